"""Did it learn? What a run measured, in plain words, and which of its checkpoints to take.

Pure functions of a run's events, so that the page, the terminal and the model card say the same of a run
that is going on, was stopped or is finished.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean
from typing import Any, Literal

Mood = Literal["good", "warning", "bad", "plain"]

NOTHING = 0.01
"""Change of a picture (root mean squared, of 1) below which nobody sees one."""
DRIFTED = 0.15
"""Change of a picture without the trigger that is plainly another picture."""
COPIED = 0.93
"""Correlation with a photo from which a drawing counts as its copy."""
OVERFIT = 1.05
"""Validation loss above its lowest by this factor: what was learnt since is of the photos alone."""

CLOSE = 0.1
"""Scores that are no further apart are alike: of a few pictures with one seed each, less is chance."""


@dataclass(frozen=True)
class Sentence:
    mood: Mood
    text: str


@dataclass(frozen=True)
class Bars:
    """What was measured at a step; None where it was not. ``score`` is what the suggestion goes by.

    Attributes:
        likeness: of pictures with the trigger to the photos, in [-1, 1].
        drift: change of pictures without it from the base's, in [0, 1].
        copied: highest correlation of a picture with one photo, in [-1, 1].
        validation: loss on photos that were held out.
    """

    step: int
    likeness: float | None = None
    drift: float | None = None
    copied: float | None = None
    validation: float | None = None
    score: float | None = None


@dataclass(frozen=True)
class Verdict:
    """``best`` is the step whose checkpoint is suggested, None where nothing speaks for any."""

    sentences: tuple[Sentence, ...] = ()
    bars: tuple[Bars, ...] = ()
    best: int | None = None
    blocks: dict[str, float] = field(default_factory=dict)


def verdict(
    events: Sequence[dict[str, Any]], *, unlearn: bool = False, kept: Collection[int] | None = None
) -> Verdict:
    """Of a run's current events (:func:`trainer.contract.events.current_events`). ``unlearn``: it was to
    move away from its photos (train.unlearn). ``kept``: the steps whose checkpoints are there, None where
    that is not known."""
    measured = [event for event in events if event["kind"] == "measured"]
    weights = [event for event in events if event["kind"] == "weights"]
    bars = _scored(_bars(events, measured), unlearn)
    last = weights[-1] if weights else None
    best = _best(bars)
    sentences = [
        *_of_weights(last),
        *_of_trigger(measured, unlearn),
        *_of_control(measured),
        *_of_copies(measured),
        *([] if unlearn else _of_validation(bars)),
    ]
    newest = max((one.step for one in bars), default=0)
    if best is not None and best != newest:
        text = f"The checkpoint of step {best} looks like the best."
        if kept is not None and best not in kept:
            text = (
                f"Step {best} looks like the best, but its checkpoint is not kept; set checkpoints.keep "
                "higher, and checkpoints.every like samples.every."
            )
        sentences.append(Sentence("plain", text))
    return Verdict(tuple(sentences), tuple(bars), best, dict(last["blocks"]) if last else {})


def _bars(events: Sequence[dict[str, Any]], measured: list[dict[str, Any]]) -> list[Bars]:
    losses = {event["step"]: event["loss"] for event in events if event["kind"] == "validation"}
    steps = sorted({event["step"] for event in measured} | losses.keys())
    rows = []
    for step in steps:
        here = [event for event in measured if event["step"] == step]
        triggered = [event for event in here if event["trigger"]]
        control = [event for event in here if not event["trigger"]]
        rows.append(
            Bars(
                step,
                mean(event["likeness"] for event in triggered) if triggered else None,
                mean(event["change"] for event in control) if control else None,
                max(event["copied"] for event in triggered) if triggered else None,
                losses.get(step),
            )
        )
    return rows


def _scored(bars: list[Bars], unlearn: bool) -> list[Bars]:
    """With ``score``: likeness gained (1 for the most of this run), less half the drift (1 is DRIFTED), half
    the rise of the validation loss above its lowest (1 is OVERFIT), and a copied photo (1 is the same
    picture). Unlearning gains what likeness is lost, and is to raise the loss. The base itself, step 0, is no
    candidate."""
    sign = -1 if unlearn else 1
    alike = [sign * one.likeness for one in bars if one.likeness is not None]
    losses = [one.validation for one in bars if one.validation is not None and not unlearn]
    base = next((sign * one.likeness for one in bars if one.step == 0 and one.likeness is not None), None)
    gain = max(alike) - base if base is not None else 0.0

    def score(one: Bars) -> float | None:
        if one.step == 0 or (one.likeness is None and (one.validation is None or unlearn)):
            return None
        total = 0.0
        if one.likeness is not None and base is not None and gain > 0:
            total += (sign * one.likeness - base) / gain
        total -= 0.5 * (one.drift or 0.0) / DRIFTED
        if one.validation is not None and losses:
            total -= 0.5 * (one.validation / min(losses) - 1) / (OVERFIT - 1)
        return round(total - max(0.0, (one.copied or 0.0) - COPIED) / (1 - COPIED), 4)

    return [replace(one, score=score(one)) for one in bars]


def _best(bars: list[Bars]) -> int | None:
    """The latest of those that score alike: it has seen the photos more often."""
    scored = [(one.score, one.step) for one in bars if one.score is not None]
    if len(scored) < 2:
        return None
    highest = max(scored)[0]
    return max(step for score, step in scored if score >= highest - CLOSE)


def _of_weights(last: dict[str, Any] | None) -> list[Sentence]:
    if last is None:
        return []
    if last["norm"] == 0:
        return [
            Sentence("bad", "The LoRA is still zero and changes nothing. Raise the learning rate or steps.")
        ]
    top = max(last["blocks"], key=last["blocks"].__getitem__)
    moved = last["blocks"][top]
    text = f"The LoRA changes the base's weights by up to {moved:.1%} ({top}); ‖ΔW‖ is {last['norm']:.3g}"
    text += f", ‖B‖ {last['up']:.3g}." if last.get("up") is not None else "."
    return [Sentence("warning" if moved > 0.5 else "plain", text)]


def _latest(measured: list[dict[str, Any]], trigger: bool) -> list[dict[str, Any]]:
    these = [event for event in measured if event["trigger"] is trigger]
    newest = max((event["step"] for event in these), default=0)
    return [event for event in these if event["step"] == newest] if newest else []


def _of_trigger(measured: list[dict[str, Any]], unlearn: bool) -> list[Sentence]:
    now = _latest(measured, True)
    if not now:
        return []
    if max(event["change"] for event in now) < NOTHING:
        return [
            Sentence(
                "bad",
                "Pictures with the trigger look as the base draws them: nothing was learnt. Train longer or "
                "at a higher learning rate, and see that the captions have the trigger.",
            )
        ]
    first = [event for event in measured if event["trigger"] and event["step"] == 0]
    if not first:
        return []
    before, after = (mean(event["likeness"] for event in these) for these in (first, now))
    if unlearn:
        if after < before - 0.02:
            text = f"It unlearnt: likeness to the photos fell from {before:.2f} to {after:.2f}."
            return [Sentence("good", text)]
        text = f"Pictures are as much like the photos as before ({before:.2f}, then {after:.2f}); to unlearn"
        return [Sentence("warning", f"{text} more, train longer or raise train.unlearn_limit.")]
    if after > before + 0.02:
        return [Sentence("good", f"It learnt: likeness to the photos rose from {before:.2f} to {after:.2f}.")]
    return [
        Sentence(
            "warning",
            f"Pictures with the trigger changed, but are no more like the photos than before ({before:.2f}, "
            f"then {after:.2f}). A style shows little in this figure; for a subject, train longer.",
        )
    ]


def _of_control(measured: list[dict[str, Any]]) -> list[Sentence]:
    now = _latest(measured, False)
    if not now:
        return []
    worst = max(now, key=lambda event: event["change"])
    if worst["change"] > DRIFTED:
        return [
            Sentence(
                "warning",
                f"Prompts without the trigger changed too ({worst['text'][:60]}): the LoRA leaks. Fewer "
                "steps, caption dropout or prior preservation hold it back.",
            )
        ]
    return [Sentence("good", "Prompts without the trigger stayed close to the base's pictures.")]


def _of_copies(measured: list[dict[str, Any]]) -> list[Sentence]:
    copies = [event for event in _latest(measured, True) if event["copied"] > COPIED]
    if not copies:
        return []
    return [
        Sentence(
            "warning",
            f"“{copies[0]['text'][:60]}” is nearly a copy of {copies[0]['photo']}: it memorises. Take an "
            "earlier checkpoint, or more and more varied photos.",
        )
    ]


def _of_validation(bars: list[Bars]) -> list[Sentence]:
    losses = [(one.validation, one.step) for one in bars if one.validation is not None]
    if len(losses) < 3:
        return []
    lowest, step = min(losses)
    if losses[-1][0] > OVERFIT * lowest:
        return [
            Sentence(
                "warning",
                f"The loss on held-out photos was lowest at step {step} and has risen since: later steps "
                "learnt the training photos by heart.",
            )
        ]
    return [Sentence("good", "The loss on held-out photos did not turn up: no sign of overfitting.")]
