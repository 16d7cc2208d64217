"""deploy/skypilot.yaml: its real commands, run here as SkyPilot would run them on its machines."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from trainer.contract.fields import dump_recipe
from trainer.contract.files import read_json
from trainer.contract.runs import RunFolder

from .conftest import ROOT
from .forks import Door
from .trainer.helpers import recipe, train_here

pytestmark = pytest.mark.timeout(1200)

TASK: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "skypilot.yaml").read_text(encoding="utf-8"))
GIVEN = {"SKYPILOT_NUM_GPUS_PER_NODE", "SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK", "SKYPILOT_NODE_IPS"}
"""What SkyPilot tells a task, of what is used here."""


def test_the_task_says_what_it_needs() -> None:
    assert TASK["resources"]["use_spot"] and TASK["resources"]["job_recovery"] == {
        "recover_on_exit_codes": [3, 75]
    }
    told = {*TASK["envs"], *TASK["secrets"], *GIVEN}
    used = set(re.findall(r"\$\{?([A-Z_]+)", TASK["run"] + TASK["setup"]))
    assert used <= told
    assert "requirements.txt" in TASK["setup"] and "~/venv/bin/python" in TASK["run"]
    assert not any(TASK["secrets"].values())


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    door = Door(tmp_path_factory.mktemp("door") / "door")
    yield door
    door.close()


@pytest.fixture(scope="module")
def recipe_file(tiny_base: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = recipe(
        tiny_base,
        photos,
        # Steps that take a while: a machine is to be taken away between an upload and the end.
        train={"steps": 12, "batch_size": 2, "gradient_accumulation": 4, "learning_rate": 1e-3},
        samples={"prompts": [], "every": 0},
        checkpoints={"every": 2},
    )
    file = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    file.write_text(dump_recipe(config), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def expected(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The LoRA of a run that nobody disturbs."""
    from trainer.contract.fields import load_recipe

    run = RunFolder(tmp_path_factory.mktemp("straight") / "runs" / "straight")
    run.create(load_recipe(recipe_file))
    assert train_here(run)
    return load_file(run.checkpoint(12) / "adapter.safetensors")


class Machine:
    """A machine with a home of its own, on which SkyPilot has run the task's setup."""

    def __init__(
        self, home: Path, door: Door, recipe_file: Path, bucket: Path, number: int = 0, of: int = 1
    ) -> None:
        self.home, self.log = home, home / "log"
        self._environment = {
            **os.environ,
            **{name: value or "" for name, value in {**TASK["envs"], **TASK["secrets"]}.items()},
            "HOME": str(home),
            "STORAGE_URL": f"file://{bucket}",
            "RECIPE": str(recipe_file),
            "PORT": str(30100 + os.getpid() % 20000),
            "SKYPILOT_NUM_GPUS_PER_NODE": "1",
            "SKYPILOT_NUM_NODES": str(of),
            "SKYPILOT_NODE_RANK": str(number),
            "SKYPILOT_NODE_IPS": "\n".join(["127.0.0.1"] * of),
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
        }
        python = home / "venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(door.python)
        python.chmod(0o755)
        self.run = RunFolder(home / "runs" / TASK["envs"]["RUN"])

    def start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                ["bash", "-c", TASK["run"]],
                cwd=ROOT,
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


def begun(door: Door, recipe_file: Path, folder: Path) -> Path:
    """The bucket of a run whose machine was taken away on the way."""
    for attempt in range(3):  # the end comes too soon where the test itself has to wait for a processor
        bucket = folder / f"bucket-{attempt}" / "my-lora"
        machine = Machine(folder / f"first-{attempt}", door, recipe_file, bucket)
        process = machine.start()
        stored = (bucket / "checkpoints").glob
        while process.poll() is None and not any(stored("step-*/MANIFEST.json")):
            time.sleep(0.005)
        with suppress(ProcessLookupError):  # it has ended, which is found below
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        door.idle()
        said, ended = machine.log.read_text(), machine.run.checkpoint(12).exists()
        shutil.rmtree(machine.home)
        if not ended:
            assert any(stored("step-*/MANIFEST.json")), said
            return bucket
    pytest.fail(f"it ends before it is seen: {said}")


def test_a_machine_that_is_taken_away_costs_the_steps_since_the_checkpoint(
    door: Door, recipe_file: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    """The next one has nothing but the task, and gets the run from the bucket."""
    bucket = begun(door, recipe_file, tmp_path)
    second = Machine(tmp_path / "second", door, recipe_file, bucket)
    process = second.start()
    assert process.wait(400) == 0, second.log.read_text()
    assert "resuming from step-0000" in second.log.read_text()
    for folder in (second.run.path, bucket):
        adapter = load_file(folder / "checkpoints" / "step-000012" / "adapter.safetensors")
        assert all((adapter[name] == expected[name]).all() for name in expected)
    assert (bucket / "lora.safetensors").stat().st_size > 1000


def test_two_machines_train_what_one_does(
    door: Door, recipe_file: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    """They share nothing but the network: the first one writes."""
    bucket = tmp_path / "bucket" / "my-lora"
    machines = [Machine(tmp_path / f"node{n}", door, recipe_file, bucket, n, 2) for n in (0, 1)]
    processes = [machine.start() for machine in machines]
    try:
        codes = [process.wait(500) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], "\n\n".join(machine.log.read_text() for machine in machines)
    assert "2 × CPU" in machines[0].log.read_text()
    adapter = load_file(machines[0].run.checkpoint(12) / "adapter.safetensors")
    assert max(float((adapter[name] - expected[name]).abs().max()) for name in expected) < 1e-5
    assert (bucket / "lora.safetensors").exists()
    assert not machines[1].run.status.exists() and not list(machines[1].run.path.glob("checkpoints/step-*"))
    first, second = (read_json(machine.run.dataset) for machine in machines)
    assert first["images"] == second["images"] and abs(first["time"] - second["time"]) < 600
