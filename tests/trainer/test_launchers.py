"""Several processes, however they are started: by torchrun, accelerate launch, or our own launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.forks import Program
from trainer import accelerated
from trainer.accelerated import as_launched
from trainer.contract import agent
from trainer.contract.config import TrainConfig
from trainer.contract.errors import ConfigError, RunError
from trainer.contract.events import current_events, read_events
from trainer.contract.fields import dump_recipe, parse
from trainer.contract.runs import LOCK_HOLDER, RunFolder
from trainer.processes import ALONE, CODE_FILE, SIGNALLED, PeerLost, announced, joined
from trainer.requests import Requests

from .helpers import Script, recipe, train_here

pytestmark = pytest.mark.timeout(900)

EXACT: dict[str, Any] = {
    "train": {"steps": 6, "batch_size": 2, "learning_rate": 1e-3, "text_encoder_lr": 1e-3, "ema_decay": 0.9},
    "machine": {"pictures_at_once": 1},
    "samples": {"prompts": [], "every": 0},
    "checkpoints": {"every": 1, "keep": 99},
}
"""Two pictures a step, one at a time: a sum of two is the same in either order."""


@pytest.fixture(scope="module")
def make(tiny_base: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunFolder]:
    def run(sections: dict[str, Any]) -> RunFolder:
        made = RunFolder(tmp_path_factory.mktemp("home") / "runs" / "run")  # with a cache of its own
        made.create(recipe(tiny_base, photos, **sections))
        return made

    return run


def started(*words: str) -> Program:
    return Program(*words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_until(true: Callable[[], bool], process: Program) -> None:
    end = time.monotonic() + 300
    while not true():
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
        time.sleep(0.02)


def losses(run: RunFolder) -> list[float]:
    return [e["loss"] for e in current_events(read_events(run.events)[0]) if e["kind"] == "step"]


# Our own launcher ---------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the first of the processes holds the lock")
def test_a_step_that_is_longer_than_the_grace_ends_all_in_order(make: Callable[..., RunFolder]) -> None:
    """SIGTERM to the launcher, which has held the run's lock all the time; nobody begins again."""
    endless = {"steps": 3, "batch_size": 64, "gradient_accumulation": 64}
    machine = {"gpus": 2, "grace_s": 5.0, "pictures_at_once": 8}
    run = make({**EXACT, "train": endless, "machine": machine, "dataset": {"repeats": 40}})
    process = started("trainer", "resume", str(run.path))
    try:
        wait_until(lambda: any(e["kind"] == "weights" for e in read_events(run.events)[0]), process)
        launcher = psutil.Process(process.pid)
        assert len(launcher.children()) == 2
        opened = [
            {file.path for file in one.open_files()} for one in (launcher, *launcher.children(recursive=True))
        ]
        assert [str(run.lock) in files for files in opened] == [True, False, False]
        time.sleep(2)  # what was told of last is the measure of the LoRA just before the first step
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=120)[0]
    finally:
        process.kill()
    assert process.returncode == 3, said
    status = run.read_status()
    assert status.state == "stopped" and status.attempt == 1
    assert status.message == "Stopped in the middle, as the machine goes; nothing was saved yet."


def test_those_whose_launcher_holds_the_lock_need_none(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    code = (
        "import sys, pathlib; from trainer.contract.runs import RunFolder as R; R(pathlib.Path(sys.argv[1]))"
    )
    with run.hold():
        held = subprocess.run(
            [sys.executable, "-c", f"{code}.hold().release()", str(run.path)],
            cwd=ROOT,
            env={**os.environ, LOCK_HOLDER: str(os.getpid())},
        )
        assert held.returncode == 0 and run.alive()


@pytest.mark.skipif(sys.platform != "linux", reason="it is noted on Linux alone")
def test_a_run_is_taken_while_a_torchrun_that_is_not_ours_starts_all_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it ends: its processes may go on, and nobody else; where they have ended in order it is no matter
    how long it lives."""
    run = RunFolder(tmp_path)
    waits = [sys.executable, "-c", "input()"]
    torchrun = subprocess.Popen(waits, stdin=subprocess.PIPE)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv(CODE_FILE, "")
    mine = os.getppid()
    monkeypatch.setattr(os, "getppid", lambda: torchrun.pid)
    try:
        with pytest.raises(PeerLost), run.hold(), announced(run, ALONE):
            raise PeerLost("killed")
        assert not run.alive(), "of this process it is the parent"
        monkeypatch.setattr(os, "getppid", lambda: mine)
        assert run.alive()
        with pytest.raises(RunError, match="already being trained"):
            run.hold()
        monkeypatch.setattr(os, "getppid", lambda: torchrun.pid)
        with run.hold(), announced(run, ALONE):
            pass
        monkeypatch.setattr(os, "getppid", lambda: mine)
        assert not run.alive()
        agent.note(run.agent, torchrun.pid)
        assert run.alive()
    finally:
        torchrun.kill()
        torchrun.wait()
    assert not run.alive()
    run.hold().release()


def test_a_signal_of_torchrun_is_no_word_on_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends those that are left by SIGTERM when one has died: they begin again, and have no grace."""
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    monkeypatch.setenv(CODE_FILE, str(tmp_path / "code"))
    requests = Requests()
    requests.on_signal(signal.SIGTERM, None)
    assert requests.stop() and requests.heard is None
    (tmp_path / SIGNALLED).touch()
    requests.on_signal(signal.SIGTERM, None)
    assert requests.heard is not None


# accelerate launch --------------------------------------------------------------------------------------


def test_accelerate_launch_splits_the_base_by_its_configuration(
    make: Callable[..., RunFolder], tmp_path: Path
) -> None:
    """And SIGTERM stops it saved, with the weights of one process at that step."""
    train, adapter = {"steps": 90, "batch_size": 2, "learning_rate": 1e-3}, {"targets": "attention"}
    alone = make({**EXACT, "train": train, "adapter": adapter})
    file, about = tmp_path / "recipe.toml", tmp_path / "fsdp.yaml"
    file.write_text(dump_recipe(alone.config()))
    about.write_text(
        yaml.safe_dump(
            {
                "compute_environment": "LOCAL_MACHINE",
                "distributed_type": "FSDP",
                "num_machines": 1,
                "num_processes": 2,
                "machine_rank": 0,
                "main_process_port": 0,
                "mixed_precision": "no",
                "fsdp_config": {"fsdp_version": 2, "fsdp_reshard_after_forward": True},
            }
        )
    )
    run = RunFolder(tmp_path / "runs" / "run")
    process = started(
        *("accelerate.commands.launch", "--config_file", str(about), "-m", "trainer"),
        *("train", str(file), "--run-dir", str(run.path)),
    )
    try:
        wait_until(lambda: any(e["kind"] == "step" for e in read_events(run.events)[0]), process)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=120)[0]
    finally:
        process.kill()
    assert "accelerate's FSDP: the base is split" in said and "2 × CPU" in said
    assert "the base is split: 5" in said and "% of it is on each" in said
    status = run.read_status()
    assert status.state == "stopped" and run.checkpoint(status.step).exists(), said
    assert not train_here(alone, Script(alone, "stop", status.step))
    assert losses(run) == pytest.approx(losses(alone), rel=1e-5)
    ours, theirs = (load_file(one.checkpoint(status.step) / "adapter.safetensors") for one in (run, alone))
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) < 1e-5


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Set what accelerate says to one of two processes."""

    def tell(**variables: str) -> None:
        accelerated._told.cache_clear()
        processes = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        for name, value in {"ACCELERATE_MIXED_PRECISION": "no", **processes, **variables}.items():
            monkeypatch.setenv(name, value)

    yield tell
    accelerated._told.cache_clear()


def heeded(config: TrainConfig | None = None) -> tuple[TrainConfig, str]:
    said: list[str] = []
    return as_launched(config or parse({}), said.append), "\n".join(said)


FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1", "FSDP_SHARDING_STRATEGY": "FULL_SHARD"}
ZERO = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}


@pytest.mark.parametrize(
    ("variables", "shard", "words"),
    [
        ({}, False, ""),
        (FSDP, True, "accelerate's FSDP: the base is split"),
        ({**FSDP, "FSDP_SHARDING_STRATEGY": "NO_SHARD"}, False, ""),
        ({**FSDP, "FSDP_VERSION": "2", "FSDP_SHARDING_STRATEGY": "NO_SHARD"}, True, "FSDP"),  # not read there
        (ZERO, True, "ZeRO-3 (without DeepSpeed itself)"),
        ({**ZERO, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, False, "ZeRO-2"),
        ({**FSDP, "RANK": ""}, True, "split"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, False, "is 4; the recipe's counts (1)"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, False, "mixed_precision is fp8; the recipe's"),
    ],
)
def test_what_accelerate_splits_becomes_ours(
    variables: dict[str, str], shard: bool, words: str, told: Callable[..., None]
) -> None:
    told(**variables)
    config, said = heeded()
    assert config.machine.shard is shard and words in said and bool(said) is bool(words)
    assert not [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]
    assert heeded()[0] == config  # although the environment is rid of it


def test_precision_and_checkpointing_are_taken_where_the_recipe_leaves_them_open(
    told: Callable[..., None],
) -> None:
    told(**FSDP, ACCELERATE_MIXED_PRECISION="fp16", FSDP_ACTIVATION_CHECKPOINTING="true")
    config, said = heeded()
    assert (config.model.precision, config.train.gradient_checkpointing) == ("fp16", "on")
    config, said = heeded(parse({"model": {"precision": "bf16"}}))
    assert config.model.precision == "bf16" and "the recipe's model.precision counts (bf16)" in said


def test_a_configuration_file_of_deepspeed_is_read(told: Callable[..., None], tmp_path: Path) -> None:
    file = tmp_path / "zero.json"
    about = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}
    file.write_text('{"zero_optimization": {"stage": 3}}')
    told(**about)
    assert heeded()[0].machine.shard
    file.write_text('{"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}')
    told(**about)
    with pytest.raises(RunError, match="offload_param_device keeps a split base in RAM"):
        heeded()
    file.write_text("[")
    told(**about)
    with pytest.raises(RunError, match="cannot be read"):
        heeded()


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({**FSDP, "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params keeps a split base in RAM"),
        ({**ZERO, "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"}, "set machine.offload"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM cannot train"),
    ],
)
def test_what_cannot_be_had_is_refused_in_a_sentence(
    variables: dict[str, str], sentence: str, told: Callable[..., None]
) -> None:
    told(**variables)
    with pytest.raises(RunError, match=sentence):
        heeded()


def test_a_recipe_that_cannot_be_split_says_who_splits(told: Callable[..., None]) -> None:
    told(**FSDP)
    with pytest.raises(
        ConfigError, match=r"with accelerate's configuration: .*machine\.shard is for plain LoRAs"
    ):
        heeded(parse({"adapter": {"dora": True}}))


def test_one_process_of_several_is_not_trained_alone_in_silence(
    told: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate needs mpirun for several on processors, and starts one without a word where it is not asked
    to use it."""
    told(ACCELERATE_USE_CPU="True")
    monkeypatch.delenv("RANK")
    with pytest.raises(RunError, match=r"one process of several.*set machine\.gpus"):
        heeded()


def test_mpirun_says_which_process_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{name.removeprefix('WORLD_')}", "1" if "SIZE" in name else "0")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with joined() as crew:
        assert crew is ALONE
    assert [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")] == ["0", "1", "0"]
