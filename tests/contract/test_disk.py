"""What the disk cannot hold is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.contract.config import TrainConfig
from trainer.contract.disk import MIN_FREE_GIB, require_space
from trainer.contract.errors import RunError
from trainer.contract.fields import merge, parse
from trainer.contract.plan import Machine, estimate
from trainer.contract.runs import RunFolder


class Disk:
    free = 4 * 2**30


@pytest.fixture(autouse=True)
def disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Disk]:
    disk = type("OneDisk", (Disk,), {})
    monkeypatch.setattr("trainer.contract.disk.shutil.disk_usage", lambda path: disk)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    return disk


def test_need_grows_with_rank_checkpoints_and_the_download(tmp_path: Path) -> None:
    require_space(tmp_path, TrainConfig())
    big = {"model": {"base": "stabilityai/stable-diffusion-xl-base-1.0"}}
    with pytest.raises(RunError, match="download needs about"):
        require_space(tmp_path, parse(big))
    (tmp_path / "hub" / "models--stabilityai--stable-diffusion-xl-base-1.0").mkdir(parents=True)
    require_space(tmp_path, parse(big))
    stay = {"train": {"steps": 9999}, "checkpoints": {"keep": 20}}
    milestones = {"train": {"steps": 9999}, "checkpoints": {"keep": 1, "keep_every": 500}}
    for more in (stay, milestones, {"adapter": {"rank": 256}}):
        with pytest.raises(RunError, match="keep fewer checkpoints") as caught:
            require_space(tmp_path, parse(merge(big, more)))
        assert caught.value.cause == "disk_full"
    with pytest.raises(RunError, match="keep fewer"):
        require_space(tmp_path, parse(big), images=10_000)


def test_a_run_that_goes_on_does_not_need_once_more_what_it_has_written(
    tmp_path: Path, disk: type[Disk]
) -> None:
    config = parse({"adapter": {"rank": 512}})
    run = RunFolder(tmp_path / "run")
    needed = estimate(config, Machine("", None)).disk_gib + MIN_FREE_GIB
    disk.free = int((needed - 0.01) * 2**30)
    for goes_on in (None, run):
        with pytest.raises(RunError, match="free some space"):
            require_space(run.path, config, run=goes_on)
    run.checkpoint(5).mkdir(parents=True)
    (run.checkpoint(5) / "adapter.safetensors").write_bytes(bytes(20 * 2**20))
    require_space(run.path, config, run=run)
