"""Lint rules on masks."""

from __future__ import annotations

from collections.abc import Iterator

from .config import TrainConfig
from .findings import Facts, Finding, rule
from .settings.loss import MaskMode

USUAL_FLOOR = 0.1


def masks_in_words(mode: MaskMode, masked: int, photos: int) -> str:
    """What is not as one may think when ``masked`` of the photos have a mask; "" otherwise."""
    some = f"{masked} of {photos} photos" if masked < photos else f"all {photos} photos"
    if mode == "off":
        return f"{some} have a mask, but loss.mask is off, so all of the photo is learnt" if masked else ""
    if not masked:
        return f"no photo has a mask, though loss.mask is {mode}, so all is learnt"
    return f"{some} have a mask, the others are learnt whole" if masked < photos else ""


@rule
def masks_and_setting_differ(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if facts.masks is None or not facts.images:
        return
    mode = config.loss.mask
    if sentence := masks_in_words(mode, facts.masks, facts.images):
        sentence = f"{sentence[0].upper()}{sentence[1:]}."
        if mode == "off":
            fix: dict[str, object] | None = {"loss.mask": "normalised"}
            yield Finding("warning", "loss.mask", sentence, fix, "Use the masks")
        elif not facts.masks:
            yield Finding("warning", "loss.mask", sentence, {"loss.mask": "off"}, "Without masks")
        else:
            yield Finding("hint", "loss.mask", sentence)


@rule
def mask_scales_the_learning_rate(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.loss.mask == "kohya" and facts.masks != 0:
        yield Finding(
            "hint",
            "loss.mask",
            "In kohya's way a subject that fills a tenth of its photo has a tenth of the loss, as if it were "
            "weighted down; normalised masks count the same however large.",
            {"loss.mask": "normalised"},
            "Normalise",
        )


@rule
def nothing_holds_the_surroundings(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.loss.mask in ("normalised", "batch") and config.loss.mask_floor == 0:
        yield Finding(
            "hint",
            "loss.mask_floor",
            "Outside of the masks nothing counts, so that backgrounds may fall apart; 0.1 keeps them sound.",
            {"loss.mask_floor": USUAL_FLOOR},
            f"Use {USUAL_FLOOR}",
        )
