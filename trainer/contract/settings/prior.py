"""[prior]: what the base knew already, kept."""

from __future__ import annotations

from typing import Literal

from .section import Section, setting


class PriorSettings(Section):
    """Prior preservation: the LoRA learns the one, and the base keeps the others of its kind."""

    method: Literal["none", "class_pictures", "output"] = setting("none", label="Prior preservation")
    """What keeps prompts without the trigger as they were. "class_pictures" trains on pictures of the class
    as well, which the base draws before the start (DreamBooth). "output" shows each noisy photo a second
    time with another caption and holds the answer to the base's own (differential output preservation, as
    in ai-toolkit): it needs no pictures, and a step takes up to 2.4 times as long."""
    class_name: str = setting("", label="Class", max_length=200)
    """What the subject is one of, as it stands in a caption: "cat", "a man", "house". It takes the place
    of the trigger in the other caption."""
    captions: tuple[str, ...] = setting((), label="Captions to keep", max_length=64)
    """More captions whose pictures must stay as the base draws them, such as other members of the class;
    each time one of them, or that with the class, is chosen at random. Class pictures are drawn of them
    too."""
    weight: float = setting(1.0, label="Weight", gt=0, le=10)
    """How much keeping counts beside learning; 1 is usual."""
    share: float = setting(1.0, label="Share", gt=0, le=1)
    """Share of the photos that are shown the second time. A half costs half as much."""
    pictures: int = setting(100, label="Class pictures", ge=1, le=10_000)
    """How many the base draws; once, as long as base, class and sampling stay the same. Those beyond the
    number of photos × repeats are not used."""
    path: str = setting("", label="Folder of class pictures", max_length=1000)
    """Your own pictures of the class, instead of drawn ones; those without a caption get the class for one.
    A relative path is looked up as dataset.path is."""
