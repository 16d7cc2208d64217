"""Publishing against a loopback server that speaks the Hub's HTTP API."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_server import Hub, Repository
from PIL import Image
from running import wait_for

from studio.jobs import Supervisor
from studio.pages import results
from studio.processes import REPOSITORY
from studio.projects import Project, Workspace
from studio.publish import hub_base, model_card
from tests.forks import ForkedAside
from trainer.contract.events import EventLog
from trainer.contract.fields import merge, parse, to_tables
from trainer.contract.files import write_json
from trainer.contract.runs import RunFolder

TOKEN = "hf_" + "Canary7" * 5
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    hub = Hub(TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    yield hub
    hub.close()


@pytest.fixture
def jobs(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    """Its publishers are forks, which have read by now what a publisher sets for the Hub's library."""
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setattr("studio.processes.subprocess.Popen", ForkedAside)
    return Supervisor(workspace)


def finished_run(workspace: Workspace, project: Project, **settings: Any) -> RunFolder:
    """A run that has drawn two prompts twice and saved its LoRA."""
    run = RunFolder(workspace.runs / "20260101-000000-cat-00")
    own = {
        "dataset": {"path": f"../../projects/{project.id}", "trigger": "zwx cat"},
        "output": {"name": "cat"},
    }
    run.create(parse(merge(merge(to_tables(project.config()), own), settings)))
    events = EventLog(run.events, 1)
    events.append("started", step=0, total=20)
    for step in (0, 20):
        for prompt, text in enumerate(("a photo of zwx cat", 'a "star": `x` --- {y}')):
            Image.new("RGB", (16, 16), (step * 9, prompt * 90, 0)).save(run.sample(step, prompt), "WEBP")
            events.append(
                "sample", step=step, prompt=prompt, text=text, file=f"samples/{run.sample(step, prompt).name}"
            )
    run.result(run.config()).write_bytes(bytes(range(256)) * 5000)
    events.append("saved", step=20, file="cat.safetensors")
    events.append("end", state="finished", step=20)
    write_json(run.dataset, {"version": 1, "images": [{"sha256": name} for name in "abca"]})
    return run


def outcome(jobs: Supervisor, run: RunFolder) -> dict[str, Any]:
    return wait_for(lambda: (s := jobs.publish_status(run))["state"] in ("done", "failed") and s, seconds=40)


def front_matter(card: str) -> dict[str, Any]:
    return dict(yaml.safe_load(card.split("---\n")[1]))


def test_everything_arrives_byte_for_byte(hub: Hub, workspace, project) -> None:
    jobs = Supervisor(workspace)  # whose publisher is a new interpreter
    run = finished_run(workspace, project)
    started = time.monotonic()
    jobs.publish(run, "ada/my-cat", True, TOKEN)
    assert time.monotonic() - started < 1, "no page waits for an upload"
    status = outcome(jobs, run)
    assert status["state"] == "done" and status["url"] == f"{hub.url}/ada/my-cat"
    repository = hub.repositories["ada/my-cat"]
    assert repository.private and repository.commits == ["Upload cat"]
    assert set(repository.files) == {
        "README.md",
        "cat.safetensors",
        "images/s000020_p00.webp",
        "images/s000020_p01.webp",
    }
    assert repository.files["cat.safetensors"] == run.result(run.config()).read_bytes()
    assert repository.files["images/s000020_p01.webp"] == run.sample(20, 1).read_bytes()
    card = front_matter(repository.files["README.md"].decode())
    assert card["instance_prompt"] == "zwx cat" and {"lora", "text-to-image", "diffusers"} <= set(
        card["tags"]
    )
    assert card["widget"][1] == {
        "text": 'a "star": `x` --- {y}',
        "output": {"url": "images/s000020_p01.webp"},
    }


def test_nothing_private_leaves_and_the_token_is_written_nowhere(
    hub: Hub, jobs: Supervisor, workspace, project, tmp_path: Path
) -> None:
    run = finished_run(workspace, project)
    jobs.publish(run, "ada/my-cat", True, TOKEN)
    assert outcome(jobs, run)["state"] == "done"
    card = hub.repositories["ada/my-cat"].files["README.md"].decode()
    for secret in (TOKEN, str(tmp_path), "/root", "/home", "projects/", "red.png", "a red blob", run.id):
        assert secret not in card, secret
    for path in workspace.root.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def test_a_second_version_is_a_second_commit(hub: Hub, jobs: Supervisor, workspace, project) -> None:
    run = finished_run(workspace, project)
    for number in (1, 2):
        run.result(run.config()).write_bytes(b"version %d" % number)
        jobs.publish(run, "my-cat", True, TOKEN)  # whose it is follows from the token
        assert outcome(jobs, run)["state"] == "done"
        wait_for(lambda: jobs.publish_status(run)["repo_id"] == "ada/my-cat")
    repository = hub.repositories["ada/my-cat"]
    assert len(repository.commits) == 2 and repository.files["cat.safetensors"] == b"version 2"


def test_private_never_ends_up_in_a_public_repository(hub: Hub, jobs: Supervisor, workspace, project) -> None:
    hub.repositories["ada/open"] = Repository(private=False)
    run = finished_run(workspace, project)
    jobs.publish(run, "ada/open", True, TOKEN)
    status = outcome(jobs, run)
    assert status["state"] == "failed" and "everybody can see it" in status["message"]
    assert hub.repositories["ada/open"].files == {}
    jobs.publish(run, "ada/open", False, TOKEN)
    assert wait_for(lambda: jobs.publish_status(run)["state"] == "done")


def test_failures_are_one_sentence_each(hub: Hub, jobs: Supervisor, workspace, project, monkeypatch) -> None:
    run = finished_run(workspace, project)

    def fails(repo_id: str = "ada/x", token: str | None = TOKEN, **fail: int) -> str:
        hub.fail = {f"/{path.replace('__', '/')}": code for path, code in fail.items()}
        jobs.publish(run, repo_id, True, token)
        status = outcome(jobs, run)
        assert status["state"] == "failed", status
        message = status["message"]
        assert "\n" not in message and "Traceback" not in message and "hf_x" not in message
        assert "Traceback" not in (run.path / "publish.log").read_text()
        return str(message)

    assert "needs a Hugging Face token" in fails(token=None)
    assert "does not accept the token" in fails(token="hf_wrong" + "w" * 20)
    assert "may not write to someone/x" in fails("someone/x")
    assert "knows no ada/x" in fails(api__models=404)
    assert "asks to wait" in fails(api__repos=429)
    assert "too large" in fails(api__models__ada__x__commit=413)
    assert "refused (402): made to fail" in fails(api__repos=402)
    assert "does not accept the token" in fails(ada__x=401)  # in the middle of the upload
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "(127.0.0.1:9) cannot be reached" in fails()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in fails()
    assert "cat.safetensors" not in hub.repositories.get("ada/x", Repository(True)).files


def test_two_publishings_at_once_are_refused(hub: Hub, jobs: Supervisor, workspace, project) -> None:
    from studio.publication import publish_lock
    from trainer.contract.errors import UserError

    run = finished_run(workspace, project)
    jobs.publish(run, "ada/x", True, TOKEN)
    with pytest.raises(UserError, match="being published already"):
        jobs.publish(run, "ada/x", True, TOKEN)
    assert outcome(jobs, run)["state"] == "done"
    assert publish_lock(run).exists()


def test_command_line_needs_a_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "studio.publish", str(tmp_path / "nothing"), "--repo-id", "a/b"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Traceback" not in done.stderr


# The card ------------------------------------------------------------------------------------------


def test_card_of_a_hub_base_names_it_and_its_licence(workspace, project) -> None:
    run = finished_run(workspace, project, model={"base": SDXL})
    card = model_card(run, "ada/my-cat")
    data = front_matter(card)
    assert data["base_model"] == SDXL and data["license"] == "openrail++"
    assert f'from_pretrained("{SDXL}")' in card
    assert 'load_lora_weights("ada/my-cat", weight_name="cat.safetensors")' in card
    snippet = card.split("```py\n")[1].split("```")[0]
    compile(snippet, "card", "exec")


@pytest.mark.parametrize("adapter", [{"type": "loha"}, {"type": "oft"}, {"dora": True}], ids=str)
def test_card_of_what_diffusers_does_not_read_says_what_does(workspace, project, adapter) -> None:
    run = finished_run(workspace, project, model={"base": SDXL}, adapter=adapter)
    card = model_card(run, "ada/my-cat")
    assert "load_lora_weights" not in card and "library_name" not in front_matter(card)
    assert "ComfyUI, Forge and A1111, which read this kind" in card
    assert results.describe(run)["snippet"] == ""


def test_card_of_the_demo_invents_no_base(workspace, project) -> None:
    card = model_card(finished_run(workspace, project, model={"base": "demo"}), "ada/my-cat")
    data = front_matter(card)
    assert "base_model" not in data and data["license"] == "apache-2.0"
    assert "is not on the Hub" in card and "huggingface.co" not in card


@pytest.mark.parametrize(
    "base", ["/home/ada/secret/model", "../secret/model.safetensors", "secret/model.safetensors"]
)
def test_card_of_a_local_base_does_not_tell_where_it_lies(workspace, project, base: str) -> None:
    run = finished_run(workspace, project, model={"base": base})
    card = model_card(run, "ada/my-cat")
    assert "secret" not in card and "base_model" not in front_matter(card) and hub_base(run.config()) is None


@pytest.mark.parametrize(
    "trigger", ['"; import os #', "```\n# hi", "a`b``c", "<script>alert(1)</script>", "é — 猫", ": {[", ""]
)
def test_card_takes_any_trigger_literally(workspace, project, trigger: str) -> None:
    run = finished_run(workspace, project, dataset={"trigger": trigger})
    card = model_card(run, "ada/my-cat")
    expected = " ".join(trigger.split())
    assert front_matter(card).get("instance_prompt", "") == expected
    compile(card.split("```py\n")[1].split("\n```\n")[0], "card", "exec")


def test_card_without_samples_or_trigger_still_reads(workspace, project) -> None:
    run = finished_run(workspace, project, dataset={"trigger": ""})
    for file in run.samples.iterdir():
        file.unlink()
    card = model_card(run, "ada/my-cat")
    assert "widget" not in front_matter(card) and "Gallery" not in card and "Trigger" not in card
    assert "| Steps | 20 |" in card and "| Pictures | 3 |" in card
