"""The supervisor with the real trainer and a tiny model: start, follow, stop, resume, finish."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from running import end_trainer, wait_for

from studio.jobs import Supervisor
from studio.projects import Project, Workspace
from tests.forks import ForkedAside
from trainer.contract.errors import RunError
from trainer.contract.events import read_events
from trainer.contract.fields import merge, parse, to_tables


def settings(base: Path) -> dict[str, Any]:
    return {
        "model": {"base": str(base)},
        "dataset": {"resolution": 64},
        "adapter": {"rank": 2, "alpha": 2},
        "train": {"steps": 120, "batch_size": 1},
        "samples": {"prompts": ["a blob"], "every": 0, "steps": 1, "width": 64, "height": 64},
        "checkpoints": {"every": 50, "keep": 2},
        "output": {"name": "blob"},
    }


@pytest.fixture
def base(tmp_path: Path) -> Path:
    from tests.tiny import tiny_sdxl

    return tiny_sdxl(tmp_path / "base", layers=1)


def test_start_stop_resume_finish(workspace: Workspace, project: Project, base: Path, monkeypatch) -> None:
    monkeypatch.setattr("studio.processes.subprocess.Popen", ForkedAside)
    monkeypatch.setenv("STUDIO_PASSWORD", "secret")
    jobs = Supervisor(workspace)
    project.save_config(parse(merge(to_tables(project.config()), settings(base))))
    project.recrop()
    run = jobs.start(project, project.config())
    try:
        assert jobs.status(run).state == "starting"
        with pytest.raises(RunError, match="being trained now"):
            jobs.resume(run)
        wait_for(lambda: jobs.status(run).step >= 3, seconds=90)
        assert jobs.active() == run and run.alive()
        jobs.stop(run)
        wait_for(lambda: not jobs.is_running(run), seconds=30)
        stopped = jobs.status(run)
        assert stopped.state == "stopped" and 3 <= stopped.step < 120
        again = Supervisor(workspace)  # the studio was restarted meanwhile
        again.resume(run)
        assert again.status(run).state == "starting"
        wait_for(lambda: again.status(run).step > stopped.step, seconds=90)
        wait_for(lambda: again.status(run).state == "finished", seconds=90)
        assert (
            run.result(run.config()).is_file() and run.sample(0, 0).is_file() and run.sample(120, 0).is_file()
        )
        events, _ = read_events(run.events)
        assert [e["step"] for e in events if e["kind"] == "started"] == [0, stopped.step]
        assert project.runs() == [run]
        wait_for(lambda: not again.is_running(run))
        with pytest.raises(RunError, match="already finished"):
            again.resume(run)
    finally:
        end_trainer(run)
