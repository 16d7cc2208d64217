"""Storing a run on the Hub, through the library's own file system, with a Hub on loopback.

In a process of its own: the library reads its address when it is imported.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.forks import run
from tests.studio.hub_server import Repository
from trainer.contract.whole import is_whole

from .hub_files_server import FilesHub

TOKEN = "hf_atokenfortests"
PROGRAM = """
import json, os, shutil, sys
from pathlib import Path
from tests.trainer.stored_run import Machine, Told
from trainer.__main__ import main
from trainer.stored import begin, catch_up

url, root, token = sys.argv[1], Path(sys.argv[2]), os.environ["HF_TOKEN"]
machine = Machine(root / "one", url)
machine.draw(1)
machine.save(500)
os.environ["HF_TOKEN"] = "hf_another0token"
machine.flush()
refused = machine.told
os.environ["HF_TOKEN"], machine.told = token, Told()
machine.flush()
machine.save(600)
machine.save(700)
machine.flush()
shutil.rmtree(root / "one")
catch_up(begin(url.replace("{run}", "first"), "", root / "two", root))
assert main(["fetch", url.replace("{run}", "first"), "--into", str(root / "three")]) == 0
print(json.dumps([[told.warnings, told.mirror] for told in (refused, machine.told)]))
"""


@pytest.fixture
def hub() -> Iterator[FilesHub]:
    hub = FilesHub(TOKEN)
    hub.repositories["ada/loras"] = Repository(private=True)
    yield hub
    hub.close()


def test_a_repository_holds_a_run(hub: FilesHub, tmp_path: Path) -> None:
    own = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    own |= {"HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT)}
    (tmp_path / "program.py").write_text(PROGRAM)
    done = run("program", "hf://ada/loras/{run}", tmp_path, cwd=tmp_path, env=os.environ | own)
    assert done.returncode == 0, done.stderr
    assert "hf_a" not in done.stdout + done.stderr
    (refused, said), (warnings, mirror) = json.loads(done.stdout.splitlines()[-1])
    assert len(refused) == 1 and "refuses the credentials" in refused[0] and "HF_TOKEN" in refused[0]
    assert said.startswith("Not stored")
    assert (warnings, mirror) == ([], "Stored up to step 700.")
    files = hub.repositories["ada/loras"].files
    steps = {name.split("/")[2] for name in files if name.startswith("first/checkpoints/")}
    assert steps == {"step-000600", "step-000700"}  # the oldest of three is gone again
    assert len([name for name in files if name.startswith("first/pictures/")]) == 2
    assert not any(TOKEN.encode() in content for content in files.values())
    for stored in (tmp_path / "two", tmp_path / "three" / "first"):  # as resume begins, and by the verb fetch
        assert is_whole(stored / "checkpoints" / "step-000700")
        assert len(list((stored / "pictures").iterdir())) == 2
