"""What only a GPU can show. Skipped without one; run with ``pytest -m gpu``."""

from __future__ import annotations

import gc
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pictures import draw_squares
from tests.tiny_families import KEYS, tiny
from trainer.__main__ import main
from trainer.contract.events import read_events
from trainer.contract.optimizers import OPTIMIZERS
from trainer.contract.runs import RunFolder
from trainer.restart import Restart

from .helpers import Script, recipe, train_here, weights_hash

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(scope="session")
def tiny_base(deeper_base: Path) -> Path:
    """What the figures here were measured with."""
    return deeper_base


def losses_of(run: RunFolder) -> list[float]:
    return [event["loss"] for event in read_events(run.events)[0] if event["kind"] == "step"]


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_every_precision_trains_and_resumes(
    precision: str, tiny_base: Path, photos: Path, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "runs" / precision)
    run.create(recipe(tiny_base, photos, model={"precision": precision}, train={"steps": 30}))
    assert not train_here(run, Script(run, "stop", 4))
    assert train_here(run)
    status = run.read_status()
    assert status.vram and status.vram_total and 0 < status.vram < status.vram_total
    losses = losses_of(run)
    assert sum(losses[-5:]) < sum(losses[:5])
    assert len(list(run.samples.iterdir())) == 2


@pytest.mark.parametrize("key", KEYS)
def test_every_family_trains(key: str, photos: Path, tmp_path: Path) -> None:
    base = tiny(key).build(tmp_path / "base")
    run = RunFolder(tmp_path / "runs" / key)
    changes: dict[str, Any] = {"model": {"family": key}, "dataset": {"resolution": 64}}
    adapter = {"targets": "transformer", "rank": 2, "alpha": 2.0}
    run.create(recipe(base, photos, **changes, adapter=adapter, train={"steps": 4, "learning_rate": 1e-3}))
    assert train_here(run)
    losses = losses_of(run)
    assert len(losses) == 4 and all(map(math.isfinite, losses))
    assert len(list(run.samples.iterdir())) == 2


TECHNIQUES: dict[str, dict[str, Any]] = {
    **{name: {"train": {"optimizer": name, "learning_rate": 1e-3}} for name in OPTIMIZERS},
    "text encoders": {"train": {"text_encoder_lr": 1e-3, "text_encoder_2_lr": 1e-3}},
    "accumulated": {"train": {"gradient_accumulation": 2}},
    "fused backward": {"train": {"fused_backward": True, "optimizer": "adafactor"}},
    "average in RAM": {"train": {"ema_decay": 0.9, "ema_on_cpu": True}},
    "bf16 adapter": {"adapter": {"precision": "bf16"}},
    **{kind: {"adapter": {"type": kind, "alpha": 2.0}} for kind in ("loha", "lokr", "oft", "dylora")},
    "dora": {"adapter": {"dora": True}},
    "pissa": {"adapter": {"init": "pissa"}},
    "dropouts": {"adapter": {"dropout": 0.1, "rank_dropout": 0.1, "module_dropout": 0.1, "max_norm": 1.0}},
    "int8": {"model": {"quantize": "int8", "quantize_text": "int8"}},
    "nf4": {"model": {"quantize": "nf4", "quantize_text": "nf4"}},
    "int8 in RAM": {"model": {"quantize": "int8"}, "machine": {"offload": True}},
    "nf4 in RAM": {"model": {"quantize": "nf4"}, "machine": {"offload": True}},
    "kept outputs": {"prior": {"method": "output", "share": 0.5, "class_name": "cat"}},
    "noises": {"noise": {"offset": 0.05, "multires_iterations": 4, "input_perturbation": 0.1}},
    "min-SNR": {"loss": {"min_snr_gamma": 5.0, "type": "huber"}},
    "held out": {"validation": {"share": 0.4, "every": 2}},
    "mirrored": {"dataset": {"flip": True}},
    "in tiles": {"samples": {"tiling": "on"}},
}


@pytest.mark.parametrize("name", TECHNIQUES)
def test_every_technique_trains_and_resumes_to_the_bit(
    name: str, tiny_base: Path, photos: Path, tmp_path: Path
) -> None:
    runs = [RunFolder(tmp_path / "runs" / which) for which in ("straight", "stopped")]
    steps = {"train": {"steps": 6, **TECHNIQUES[name].get("train", {})}}
    for run in runs:
        run.create(recipe(tiny_base, photos, **{**TECHNIQUES[name], **steps}))
    assert train_here(runs[0])
    assert not train_here(runs[1], Script(runs[1], "stop", 3)) and train_here(runs[1])
    assert all(map(math.isfinite, losses_of(runs[0])))
    assert weights_hash(runs[0], 6) == weights_hash(runs[1], 6)


def test_sample_draws_the_last_picture_again(
    tiny_base: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path / "runs" / "r", tiny_base, photos, {"samples": {"prompts": ["zwx"]}})
    assert train_here(run)
    capsys.readouterr()
    assert main(["sample", str(run.path), "--prompt", "zwx", "--out", str(tmp_path)]) == 0
    assert Path(capsys.readouterr().out.strip()).read_bytes() == run.sample(4, 0).read_bytes()


def test_checkpointing_saves_memory(tiny_base: Path, photos: Path, tmp_path: Path) -> None:
    changes = [{"train": {"gradient_checkpointing": switch}} for switch in ("off", "on")]
    off, on = (peak_of(made(tmp_path / str(n), tiny_base, photos, c)) for n, c in enumerate(changes))
    assert on < off


def peak_of(run: RunFolder) -> int:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    assert train_here(run)
    return torch.cuda.max_memory_reserved()


def made(path: Path, base: Path, photos: Path, changes: dict[str, Any] | None = None) -> RunFolder:
    changes = changes or {}
    train = {"batch_size": 4, "steps": 4, "gradient_checkpointing": "off"} | changes.get("train", {})
    run = RunFolder(path)
    run.create(recipe(base, photos, **{"samples": {"prompts": []}, **changes, "train": train}))
    return run


def test_blocks_in_ram_train_the_same(tiny_base: Path, photos: Path, tmp_path: Path) -> None:
    runs = [
        made(tmp_path / "runs" / f"{on}", tiny_base, photos, {"machine": {"offload": on}})
        for on in (False, True)
    ]
    for run in runs:
        assert train_here(run)
    assert losses_of(runs[0]) == pytest.approx(losses_of(runs[1]), rel=2e-2)  # in half precision


def test_a_gpu_that_is_really_full_is_adapted_to(tiny_base: Path, tmp_path: Path) -> None:
    photos = draw_squares(tmp_path / "photos", 512)  # large enough that training needs the most
    few = peak_of(made(tmp_path / "runs" / "few", tiny_base, photos, {"machine": {"pictures_at_once": 1}}))
    many = peak_of(made(tmp_path / "runs" / "many", tiny_base, photos))
    assert few < many
    run = made(tmp_path / "runs" / "full", tiny_base, photos)
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((few + many) / 2 / whole)
    try:
        for _ in range(10):
            try:
                assert train_here(run)
                break
            except Restart:
                gc.collect()
                torch.cuda.empty_cache()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    rungs = [event["rung"] for event in read_events(run.events)[0] if event["kind"] == "adapted"]
    assert run.read_status().state == "finished" and rungs[:2] == ["free", "checkpointing"]
