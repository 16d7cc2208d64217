"""[dataset]: the pictures."""

from __future__ import annotations

from .section import Section, setting


class DatasetSettings(Section):
    """The pictures and how they are prepared."""

    path: str = setting("photos", label="Folder", min_length=1, max_length=1000)
    """Folder of images with sidecar .txt captions, or a project folder of the studio.
    A relative path is looked up beside the recipe, then in the current folder."""
    trigger: str = setting("", label="Trigger word", basic=True, max_length=100)
    """The word or short phrase that calls up what the LoRA learns. It is the caption of every picture
    that has none."""
    resolution: int | None = setting(None, label="Resolution", unit="px", ge=64, le=2048)
    """Side of the square bucket; the other buckets have about the same area. Empty means the native
    size of the base."""
    flip: bool = setting(False, label="Mirror at random")
    """Show half of the pictures mirrored, chosen anew each epoch. Not for faces with a parting, text or
    anything else that is not symmetric."""
