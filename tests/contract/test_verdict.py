"""What is said of a run: from the events of runs that went well and of some that did not."""

from __future__ import annotations

from typing import Any

from trainer.contract.verdict import COPIED, DRIFTED, verdict


def measured(step: int, trigger: bool = True, **figures: Any) -> dict[str, Any]:
    usual = {"likeness": 0.5, "change": 0.0 if step == 0 else 0.3, "copied": 0.4}
    more = {"text": "a zwx cat" if trigger else "a blue star", "photo": "one.jpg", "prompt": 0}
    return {"kind": "measured", "step": step, "trigger": trigger, **usual, **more, **figures}


def weights(step: int, norm: float = 2.0, **blocks: float) -> dict[str, Any]:
    return {"kind": "weights", "step": step, "norm": norm, "blocks": blocks or {"unet.mid_block": 0.1}}


def moods(*events: dict[str, Any]) -> dict[str, str]:
    """The first words of each sentence, and its mood."""
    return {" ".join(one.text.split()[:4]): one.mood for one in verdict(events).sentences}


GOOD = (
    measured(0),
    measured(0, False),
    measured(100, likeness=0.7),
    measured(100, False, change=0.05),
    weights(100),
)


def test_a_run_that_went_well() -> None:
    assert moods(*GOOD) == {
        "The LoRA changes the": "plain",
        "It learnt: likeness to": "good",
        "Prompts without the trigger": "good",
    }


def test_nothing_measured_says_nothing() -> None:
    assert verdict([]).sentences == () and verdict([]).best is None
    assert verdict([measured(0), measured(0, False)]).sentences == ()


def test_a_lora_that_is_zero() -> None:
    assert moods(weights(100, norm=0.0))["The LoRA is still"] == "bad"


def test_weights_that_were_moved_far() -> None:
    (sentence,) = verdict([weights(9, a=0.2, b=0.8)]).sentences
    assert sentence.mood == "warning" and "80.0% (b)" in sentence.text


def test_pictures_that_did_not_change() -> None:
    assert moods(measured(0), measured(100, change=0.005))["Pictures with the trigger"] == "bad"


def test_pictures_that_are_no_more_like_the_photos() -> None:
    assert moods(measured(0), measured(100, likeness=0.51))["Pictures with the trigger"] == "warning"


def test_a_lora_that_leaks() -> None:
    leaking = (*GOOD, measured(100, False, change=DRIFTED + 0.01, text="a red house"))
    assert "a red house" in next(s.text for s in verdict(leaking).sentences if s.mood == "warning")


def test_a_copy_names_the_photo() -> None:
    copied = (*GOOD, measured(100, copied=COPIED + 0.01, photo="two.jpg"))
    assert "two.jpg" in next(s.text for s in verdict(copied).sentences if s.mood == "warning")


def validation(*losses: float) -> list[dict[str, Any]]:
    return [
        {"kind": "validation", "step": 100 * (number + 1), "loss": loss} for number, loss in enumerate(losses)
    ]


def test_a_validation_loss_that_turned_up_names_the_step() -> None:
    found = verdict(validation(1.0, 0.8, 0.9))
    assert found.sentences[0].mood == "warning" and "step 200" in found.sentences[0].text
    assert found.best == 200
    assert verdict(validation(1.0, 0.9, 0.8)).sentences[0].mood == "good"
    assert not verdict(validation(1.0, 0.9)).sentences


def run(*steps: tuple[float, float, float]) -> int | None:
    """The suggested step of a run with (likeness, drift, copied) at 100, 200, …"""
    events = [measured(0), measured(0, False)]
    for number, (likeness, drift, copied) in enumerate(steps, 1):
        events.append(measured(100 * number, likeness=likeness, copied=copied))
        events.append(measured(100 * number, False, change=drift))
    return verdict(events).best


def test_the_best_checkpoint_is_alike_without_drift_or_copies() -> None:
    assert run((0.6, 0.02, 0.5), (0.7, 0.03, 0.6), (0.8, 0.04, 0.7)) == 300
    assert run((0.6, 0.02, 0.5), (0.79, 0.03, 0.6), (0.8, 0.14, 0.7)) == 200, "drifted"
    assert run((0.6, 0.02, 0.5), (0.7, 0.03, 0.6), (0.8, 0.04, 0.99)) == 200, "copied"
    assert run((0.80, 0.02, 0.5), (0.79, 0.03, 0.5), (0.6, 0.03, 0.5)) == 200, "alike: the later one"
    assert run((0.7, 0.02, 0.5)) is None, "there is no choice"


def test_unlearning_is_to_lose_likeness() -> None:
    events = [measured(0), measured(100, likeness=0.45), measured(200, likeness=0.3), weights(200)]
    found = verdict([*events, *validation(0.8, 0.9)], unlearn=True)
    assert [one.mood for one in found.sentences] == ["plain", "good"] and found.best == 200
    assert "fell from 0.50 to 0.30" in found.sentences[1].text
    kept = verdict([measured(0), measured(100, likeness=0.5)], unlearn=True).sentences
    assert [one.mood for one in kept] == ["warning"] and "unlearn_limit" in kept[0].text


def test_a_checkpoint_that_is_not_kept_cannot_be_taken() -> None:
    events = validation(1.0, 0.8, 0.9)
    assert verdict(events, kept=[200, 300]).sentences[-1].text.startswith("The checkpoint of step 200")
    assert "is not kept" in verdict(events, kept=[300]).sentences[-1].text
