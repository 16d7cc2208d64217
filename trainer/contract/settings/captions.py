"""[captions]: how a caption becomes what a sample is shown with."""

from __future__ import annotations

from .section import Section, setting


class CaptionSettings(Section):
    """What happens to captions before they are encoded."""

    dropout: float = setting(0.0, label="Caption dropout", ge=0, le=1)
    """Share of the pictures shown with an empty caption. 0.05-0.1 keeps guidance working and lowers
    the drift of prompts without the trigger."""
