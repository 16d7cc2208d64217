"""Out of GPU memory: the run goes on from the last good step with the next cheapest change, and says so."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from safetensors.torch import load_file

import trainer.ladder
import trainer.sampling
from bench.live_memory import Meter
from tests.conftest import ROOT
from tests.forks import Program
from tests.pictures import draw_squares
from trainer.checkpoints import load_optimizer, save_optimizer
from trainer.contract.errors import RunError
from trainer.contract.events import current_events, read_events
from trainer.contract.runs import RunFolder
from trainer.contract.settings.train import TrainSettings
from trainer.ladder import gpu_is_full
from trainer.objective import Objective
from trainer.optimizers import build_optimizer
from trainer.restart import Restart

from .helpers import Script, recipe, train_here, weights_hash

OOM = "CUDA out of memory. Tried to allocate 20.00 GiB"
Losses = Callable[..., torch.Tensor]


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Memory runs out at these steps, once for each number in the list, on the way into the last picture."""
    at: list[int] = []
    losses: Losses = Objective.losses

    def running_out(self: Objective, samples: list[Any]) -> torch.Tensor:
        found = losses(self, samples)
        if at and samples[0].batch + 1 == at[0]:
            at.pop(0)
            raise torch.cuda.OutOfMemoryError(OOM)
        return found

    monkeypatch.setattr(Objective, "losses", running_out)
    yield at


def to_the_end(run: RunFolder) -> int:
    """Train as the command does, beginning again as often as it takes; how often it was."""
    for again in range(20):
        try:
            assert train_here(run)
            return again
        except Restart:
            assert run.raw_status().state == "starting"
    raise AssertionError("it never ends")


def made(path: Path, base: Path, photos: Path, **sections: Any) -> RunFolder:
    run = RunFolder(path)
    run.create(recipe(base, photos, **sections))
    return run


def adapted(run: RunFolder) -> list[dict[str, Any]]:
    return [event for event in read_events(run.events)[0] if event["kind"] == "adapted"]


def losses_of(run: RunFolder) -> list[float]:
    return [e["loss"] for e in current_events(read_events(run.events)[0]) if e["kind"] == "step"]


SECTIONS: dict[str, Any] = {
    "train": {"steps": 8, "batch_size": 4, "gradient_checkpointing": "off"},
    "adapter": {"rank": 8, "alpha": 8.0, "targets": "attention"},
    "loss": {"mask": "batch"},
}


@pytest.fixture(scope="module")
def straight(tiny_base: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = made(tmp_path_factory.mktemp("straight") / "runs" / "straight", tiny_base, photos, **SECTIONS)
    assert train_here(run)
    return run


def test_every_rung_that_keeps_the_result_keeps_it(
    straight: RunFolder, tiny_base: Path, photos: Path, full: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost: each attempt goes on from the step that memory ran out in."""
    monkeypatch.setattr(trainer.ladder, "find_spec", lambda package: None)  # nothing that rounds is installed
    run = made(straight.path.with_name("climbing"), tiny_base, photos, **SECTIONS)
    full += [2, 3, 4, 5, 7]
    assert to_the_end(run) == 5
    rungs = [event["rung"] for event in adapted(run)]
    assert rungs == ["free", "checkpointing", "batch", "batch", "offload"]
    assert [event["attempt"] for event in adapted(run)] == [2, 3, 4, 5, 6]
    assert (
        "at step 3: gradient checkpointing is on from here; a step takes about a third longer"
        in (adapted(run)[1]["text"])
    )
    started = [event["step"] for event in read_events(run.events)[0] if event["kind"] == "started"]
    assert started == [0, 1, 2, 3, 4, 6]
    assert losses_of(run) == pytest.approx(losses_of(straight), rel=1e-4)
    ours, theirs = (load_file(each.checkpoint(8) / "adapter.safetensors") for each in (run, straight))
    for name in theirs:
        assert torch.allclose(ours[name], theirs[name], atol=2e-4), name
    used = run.amended()
    assert used.machine.pictures_at_once == 1 and used.machine.offload
    assert used.train.gradient_checkpointing == "on" and used.train.batch_size == 4
    assert run.config().machine.pictures_at_once == 0  # what is frozen stays


def test_rungs_that_round_are_near_and_the_last_one_ends_it(
    straight: RunFolder, tiny_base: Path, photos: Path, full: list[int]
) -> None:
    sections = SECTIONS | {"machine": {"pictures_at_once": 1}}
    sections["train"] = SECTIONS["train"] | {"gradient_checkpointing": "on"}
    run = made(straight.path.with_name("rounding"), tiny_base, photos, **sections)
    full += [1, 3, 4, 6, 7, 8]
    with pytest.raises(
        RunError, match=r"all was done that saves some \(optimizer, base in int8, .*offload\)"
    ):
        to_the_end(run)
    status = run.read_status()
    assert (status.state, status.cause, status.step) == ("failed", "gpu_oom", 7)
    assert "lower the resolution or the rank" in status.message and "20.00 GiB" in status.evidence
    rungs = [event["rung"] for event in adapted(run)]
    assert rungs == ["free", "optimizer", "base in int8", "base in nf4", "offload"]
    assert run.amended().train.optimizer == "adamw8bit"
    losses = losses_of(run)
    # To the step with the 8-bit optimizer nothing was rounded; from there on it is near.
    assert losses[:2] == pytest.approx(losses_of(straight)[:2], rel=1e-4)
    assert losses[:4] == pytest.approx(losses_of(straight)[:4], rel=2e-2)
    assert losses == pytest.approx(losses_of(straight)[:7], rel=0.2)
    assert to_the_end(run) == 0  # resumed by hand, with all that was changed


def test_it_stops_where_that_is_wanted(
    tiny_base: Path, photos: Path, tmp_path: Path, full: list[int]
) -> None:
    run = made(tmp_path / "runs" / "stop", tiny_base, photos, machine={"on_oom": "stop"})
    full += [4]
    with pytest.raises(RunError, match=r"set machine.on_oom to adapt"):
        train_here(run)
    assert not run.ladder.exists()
    assert run.checkpoint(3).is_dir()  # the step that was done is kept all the same


class Card(Meter):
    """A GPU's memory: what would live beyond ``size`` bytes is refused."""

    def __init__(self, size: float = math.inf) -> None:
        super().__init__()
        self._size = size

    def _count(self, tensor: torch.Tensor) -> None:
        super()._count(tensor)
        if self.now > self._size:
            raise torch.cuda.OutOfMemoryError(OOM)


def test_it_is_climbed_as_far_as_a_card_is_small(tiny_base: Path, tmp_path: Path) -> None:
    """No error is put in: what lives is counted, and every change has to bring the memory it promises."""
    photos = draw_squares(tmp_path / "photos", 256)  # so large that training needs the most, not loading

    def trained(card: Card, at_once: int = 0, checkpointing: str = "off") -> RunFolder:
        sections = {
            **SECTIONS,
            "dataset": {"resolution": 256},
            "train": {"steps": 2, "batch_size": 4, "gradient_checkpointing": checkpointing},
            "machine": {"pictures_at_once": at_once},
            "samples": {"prompts": []},
        }
        runs.append(made(tmp_path / "runs" / str(len(runs)), tiny_base, photos, **sections))
        with card:
            to_the_end(runs[-1])
        return runs[-1]

    runs: list[RunFolder] = []
    whole, two, one = Card(), Card(), Card()
    straight = trained(whole)
    trained(two, 2, "on")
    trained(one, 1, "on")
    for size, rungs in (
        ((whole.peak + two.peak) / 2, ["free", "checkpointing"]),
        ((two.peak + one.peak) / 2, ["free", "checkpointing", "batch", "batch"]),
    ):
        run = trained(Card(size))
        assert [event["rung"] for event in adapted(run)] == rungs
        assert losses_of(run) == pytest.approx(losses_of(straight), rel=1e-4)


class WhenFull(Script):
    """Asks for a stop as soon as memory has run out."""

    def __init__(self, run: RunFolder, at: list[int]) -> None:
        super().__init__(run)
        self._at = at

    def stop(self) -> bool:
        return not self._at


def test_a_stop_that_is_asked_for_meanwhile_is_heard(
    tiny_base: Path, photos: Path, tmp_path: Path, full: list[int]
) -> None:
    run = made(tmp_path / "runs" / "asked", tiny_base, photos)
    full += [4]
    assert not train_here(run, WhenFull(run, full))
    status = run.read_status()
    assert (status.state, status.step) == ("stopped", 3) and "resume to go on with less" in status.message
    assert run.ladder.exists() and run.checkpoint(3).is_dir()


def test_measuring_costs_no_step_either(
    tiny_base: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out while validation is measured, after a step that no checkpoint would have been of."""
    fixed, calls = Objective.fixed_losses, 0

    def running_out(self: Objective, *args: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:  # two photos at step 0, and the second one at step 2
            raise torch.cuda.OutOfMemoryError(OOM)
        return fixed(self, *args)

    monkeypatch.setattr(Objective, "fixed_losses", running_out)
    sections: dict[str, Any] = {"validation": {"every": 2, "share": 0.5}, "samples": {"prompts": []}}
    sections["train"] = {"steps": 4, "batch_size": 4}
    run = made(tmp_path / "runs" / "measured", tiny_base, photos, **sections)
    assert to_the_end(run) == 1
    started = [event["step"] for event in read_events(run.events)[0] if event["kind"] == "started"]
    assert started == [0, 2]


def test_a_drawing_that_does_not_fit_is_decoded_in_tiles(
    tiny_base: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, tiled = trainer.sampling.draw, []

    def small(family: Any, model: Any, texts: Any, config: Any, *args: Any, **kwargs: Any) -> Any:
        tiled.append(config.samples.tiling)
        if config.samples.tiling != "on":
            raise torch.cuda.OutOfMemoryError(OOM)
        return draw(family, model, texts, config, *args, **kwargs)

    monkeypatch.setattr(trainer.sampling, "draw", small)
    run = made(tmp_path / "runs" / "tiles", tiny_base, photos, train={"steps": 2})
    assert to_the_end(run) == 0
    assert tiled == ["auto", "on", "on"]
    assert [event["rung"] for event in adapted(run)] == ["tiling"]
    assert "while drawing samples" in adapted(run)[0]["text"]
    assert len(list(run.samples.iterdir())) == 2
    assert not [event for event in read_events(run.events)[0] if event["kind"] == "warning"]


@pytest.mark.parametrize(
    ("stage", "rungs"),
    [
        ("encode_images", ["free"]),
        ("encode_captions", ["free", "captions in int8", "captions in nf4"]),
        ("load_denoiser", ["free", "base in int8", "base in nf4", "offload"]),
    ],
)
def test_before_the_first_step_only_what_helps_there_is_tried(
    stage: str,
    rungs: list[str],
    tiny_base: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from trainer.families.sdxl import Family

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise torch.cuda.OutOfMemoryError(OOM)

    monkeypatch.setattr(Family, stage, fails)
    run = made(tmp_path / "runs" / stage, tiny_base, photos)
    with pytest.raises(RunError, match="smaller base"):
        to_the_end(run)
    assert [event["rung"] for event in adapted(run)] == rungs


def ours_of(
    optimizer: torch.optim.Optimizer, weights: list[torch.nn.Parameter], name: str | None
) -> list[torch.Tensor]:
    return [optimizer.state[weight][name or "state1"] for weight in weights]


@pytest.mark.parametrize(
    ("before", "after"), [("adamw", "adamw8bit"), ("adamw8bit", "adamw"), ("adamw8bit", "paged_adamw")]
)
def test_another_precision_begins_with_what_was_remembered(before: str, after: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    start = [torch.randn(64, 128), torch.randn(8)]  # of at least 4096 numbers, and fewer
    gradients = [[torch.randn_like(one) for one in start] for _ in range(6)]

    def optimizer(name: str) -> tuple[torch.optim.Optimizer, list[torch.nn.Parameter]]:
        weights = [torch.nn.Parameter(one.clone()) for one in start]
        settings = TrainSettings(optimizer=name, learning_rate=1e-2)
        return build_optimizer(settings, [(1e-2, weights)]), weights

    def steps(made: torch.optim.Optimizer, weights: list[torch.nn.Parameter], which: slice) -> None:
        for gradient in gradients[which]:
            for weight, one in zip(weights, gradient, strict=True):
                weight.grad = one.clone()
            made.step()

    whole, theirs = optimizer(before)
    steps(whole, theirs, slice(0, 5))
    save_optimizer(whole, tmp_path)
    begun = [one.detach().clone() for one in theirs]
    small, ours = optimizer(after)
    for weight, one in zip(ours, begun, strict=True):
        weight.data.copy_(one)
    load_optimizer(small, tmp_path)
    first = {"adamw": "exp_avg"}
    small_moments, moments = ours_of(small, ours, first.get(after)), ours_of(whole, theirs, first.get(before))
    assert (small_moments[0].dtype == torch.uint8) == (after == "adamw8bit")
    assert torch.equal(small_moments[1], moments[1])  # of so few numbers, never rounded
    assert small.state[ours[0]]["step"] == 5
    steps(whole, theirs, slice(5, 6))
    steps(small, ours, slice(5, 6))
    moved = [(a - b).abs().mean().item() for a, b in zip(theirs, begun, strict=True)]
    apart = [(a - b).abs().mean().item() for a, b in zip(theirs, ours, strict=True)]
    assert apart[1] == pytest.approx(0, abs=1e-6) and apart[0] < 0.1 * moved[0]


def test_what_was_paged_is_paged_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """States come back in the memory that the optimizer asks for them: on a GPU, pages."""
    weights = [torch.nn.Parameter(torch.randn(64, 128))]
    settings = TrainSettings(optimizer="paged_adamw8bit")
    first, second = (build_optimizer(settings, [(1e-3, weights)]) for _ in range(2))
    weights[0].grad = torch.randn(64, 128)
    first.step()
    save_optimizer(first, tmp_path)
    buffers: list[torch.Tensor] = []
    given: Any = second.get_state_buffer  # type: ignore[attr-defined]

    def noted(*args: Any, **kwargs: Any) -> torch.Tensor:
        buffers.append(given(*args, **kwargs))
        return buffers[-1]

    monkeypatch.setattr(second, "get_state_buffer", noted)
    load_optimizer(second, tmp_path)
    state, saved = second.state[weights[0]], first.state[weights[0]]
    assert [id(state["state1"]), id(state["state2"])] == [id(one) for one in buffers]
    assert all(torch.equal(state[name], saved[name]) for name in ("state1", "state2", "absmax1", "absmax2"))


def resume(run: RunFolder, once: Path, log: IO[bytes], rank: int = 0) -> Program:
    """A trainer whose memory runs out once. Where it starts others they are forks of it, and have that too;
    where it begins again itself, that is the trainer as it is, in a new interpreter."""
    full = {"ONCE": str(once), "FULL": str(rank)}
    words = ("tests.trainer.running_out", "resume", run.path)
    return Program(*words, cwd=ROOT, env={**os.environ, **full}, stdout=log, stderr=log)


def test_of_several_processes_all_begin_again(
    straight: RunFolder, tiny_base: Path, photos: Path, tmp_path: Path
) -> None:
    """Memory runs out in the second one, which writes nothing; the first one saves and says so."""
    sections = SECTIONS | {"machine": {"gpus": 2}, "samples": {"prompts": []}}
    run = made(straight.path.with_name("several"), tiny_base, photos, **sections)
    with (tmp_path / "log").open("wb") as log:
        assert resume(run, tmp_path / "once", log, rank=1).wait(250) == 0, (tmp_path / "log").read_text()
    assert [event["rung"] for event in adapted(run)] == ["free"]
    started = [event["step"] for event in read_events(run.events)[0] if event["kind"] == "started"]
    assert started == [0, 2]
    assert losses_of(run) == pytest.approx(losses_of(straight), rel=1e-4)


def test_the_command_goes_on_as_the_same_process_under_the_same_lock(
    straight: RunFolder, tiny_base: Path, photos: Path, tmp_path: Path
) -> None:
    run = made(straight.path.with_name("command"), tiny_base, photos, **SECTIONS)
    once = tmp_path / "once"
    with (tmp_path / "log").open("wb") as log:
        process = resume(run, once, log)
        held: list[bool] = []
        while process.poll() is None:
            full, alive = once.exists(), run.alive()
            if full and run.raw_status().state != "finished":  # it had not let go yet when it was looked at
                held.append(alive)
            time.sleep(0.005)
    assert process.returncode == 0, (tmp_path / "log").read_text()
    assert len(held) > 20 and all(held)
    assert run.read_status().state == "finished" and run.read_status().attempt == 2
    assert [event["rung"] for event in adapted(run)] == ["free"]
    assert "Out of GPU memory at step 3: it begins again" in (tmp_path / "log").read_text()
    assert weights_hash(run, 8) == weights_hash(straight, 8)
    assert not run.alive()


def test_a_ladder_that_cannot_be_read_is_named(tiny_base: Path, photos: Path, tmp_path: Path) -> None:
    run = made(tmp_path / "runs" / "torn", tiny_base, photos)
    run.ladder.write_text(json.dumps({"amendments": [{"rung": 3}]}))
    with pytest.raises(RunError, match=r"ladder.json cannot be read .*; delete it"):
        run.amended()


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (torch.cuda.OutOfMemoryError("x"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), False),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("CUDA out of memory"), False),
    ],
)
def test_what_counts_as_a_full_gpu(error: Exception, full: bool) -> None:
    assert gpu_is_full(error) is full
