"""[validation]: the loss on photos that are not learnt."""

from __future__ import annotations

from .section import Section, setting


class ValidationSettings(Section):
    """Validation loss: how well photos are told from noise that the LoRA never sees, always at the same noise
    levels and with the same noise, drawn as a second line into the loss chart. Where it rises while the loss
    goes on falling, the photos are learnt by heart."""

    every: int = setting(0, label="Every", unit="steps", ge=0, le=1_000_000)
    """Steps between measurements; 0 switches it off. As often as checkpoints is usual."""
    every_epochs: int = setting(0, label="Every so many epochs", unit="epochs", ge=0, le=100_000)
    """The same in epochs; 0 means that the steps hold."""
    share: float = setting(0.1, label="Held-out share", ge=0, le=0.5)
    """Share of the photos of each folder that is held out, at least one; chosen by content, so that it is the
    same in every run. Regularisation sets are never split."""
    path: str = setting("", label="Own folder", max_length=1000)
    """A folder of other photos of the subject, with captions, to measure on; then none is held out."""

    @property
    def measures(self) -> bool:
        """Whether there is a validation loss at all."""
        return bool(self.every or self.every_epochs)

    @property
    def held_share(self) -> float:
        """The share to take out of the photos, 0 for none."""
        return self.share if self.measures and not self.path else 0.0
