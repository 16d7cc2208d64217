"""The web application over a real socket: live data and files."""

from __future__ import annotations

import io
import json
import time
from typing import Any

import pytest
from PIL import Image
from running import make_run, wait_for

from dataset_tools.masks import mask_path
from studio.live import LOG_BYTES, MAX_POINTS, read_log, thinned
from studio.projects import Project, Workspace
from trainer.contract.events import EventLog
from trainer.contract.fields import merge, parse, to_tables
from trainer.contract.redact import redact
from trainer.contract.runs import Status


def test_live_gives_each_thing_once(serve, workspace: Workspace, project: Project) -> None:
    run = make_run(workspace, project)
    events = EventLog(run.events, 1)
    events.append("started", step=0, total=10)
    events.append("step", step=1, loss=0.5, lr=1e-4, grad_norm=1.0, seconds=0.1)
    run.log.write_text("one\ntwo\nhalf a li")
    held = run.hold()
    run.write_status(Status(state="training", step=1, total=10, heartbeat=time.time(), attempt=1))
    studio = serve()
    with studio.client() as client:
        query: dict[str, Any] = {"project": project.id}
        first = client.get("/studio/live", params=query).json()
        assert first["run"] == first["latest"] == run.id and not first["reset"]
        assert [event["kind"] for event in first["events"]] == ["started", "step"]
        assert first["log"] == "one\ntwo\n" and first["status"]["alive"]
        assert first["active"]["project"] == project.id and first["active"]["step"] == 1
        assert first["result"] is None and first["disk_free_gib"] > 0

        query |= {"run": run.id, "offset": first["offset"], "log": first["log_offset"]}
        nothing = client.get("/studio/live", params=query).json()
        assert nothing["events"] == [] and nothing["log"] == "" and not nothing["reset"]
        assert (nothing["offset"], nothing["log_offset"]) == (first["offset"], first["log_offset"])

        events.append("step", step=2, loss=0.4, lr=1e-4, grad_norm=1.0, seconds=0.1)
        with run.events.open("ab") as file:
            file.write(b'{"seq": 4, "kind": "st')  # a line that is still being written
        with run.log.open("a") as file:
            file.write("ne\nthree\n")
        news = client.get("/studio/live", params=query).json()
        assert [event["step"] for event in news["events"]] == [2]
        assert news["log"] == "half a line\nthree\n"
        assert len(json.dumps(news)) < 2000

        held.release()
        events = EventLog(run.events, 2)  # resumed from step 1: the torn line is closed, step 2 is void
        events.append("started", step=1, total=10)
        query |= {"offset": news["offset"], "log": news["log_offset"]}
        assert [event["attempt"] for event in client.get("/studio/live", params=query).json()["events"]] == [
            2
        ]
        late = client.get("/studio/live", params={"project": project.id}).json()
        assert [(event["kind"], event["step"]) for event in late["events"]] == [
            ("started", 0),
            ("step", 1),
            ("started", 1),
        ]


def test_live_tells_when_offsets_do_not_fit(serve, workspace: Workspace, project: Project) -> None:
    run = make_run(workspace, project)
    EventLog(run.events, 1).append("started", step=0, total=10)
    studio = serve()
    with studio.client() as client:
        for query in (
            {"run": run.id, "offset": 10**9},
            {"run": run.id, "log": 10**9},
            {"run": "20250101-000000-gone-00", "offset": 5},
            {"offset": 5},
        ):
            answer = client.get("/studio/live", params={"project": project.id, **query}).json()
            assert answer["reset"] and answer["run"] == run.id and len(answer["events"]) == 1, query
        newer = make_run(workspace, project, "20260202-000000-b-00")
        answer = client.get("/studio/live", params={"project": project.id, "run": run.id}).json()
        assert (answer["run"], answer["latest"]) == (run.id, newer.id)


def test_live_without_any_run(serve, workspace: Workspace, project: Project) -> None:
    studio = serve()
    with studio.client() as client:
        for query in ({}, {"project": project.id}, {"project": "../../etc"}, {"run": "../x"}):
            answer = client.get("/studio/live", params=query).json()
            assert answer["run"] is None and answer["status"] is None and answer["events"] == []
        assert client.get("/studio/live", params={"offset": -1}).status_code == 422
        assert client.get("/studio/live", params={"offset": "x"}).status_code == 422


def test_two_clients_and_a_late_one_see_the_same_training(serve, supervise, project: Project) -> None:
    jobs = supervise(steps=60)
    studio = serve(jobs=jobs)
    run = jobs.start(project, project.config())

    class Follower:
        def __init__(self) -> None:
            self.client = studio.client()
            self.state: dict[str, Any] = {"project": project.id}
            self.steps: list[int] = []
            self.log = ""

        def poll(self) -> str:
            answer = self.client.get("/studio/live", params=self.state).json()
            self.state |= {"run": answer["run"], "offset": answer["offset"], "log": answer["log_offset"]}
            self.steps += [event["step"] for event in answer["events"] if event["kind"] == "step"]
            self.log += answer["log"]
            return str(answer["status"]["state"])

    early, other = Follower(), Follower()
    while early.poll() != "finished":
        other.poll()
        time.sleep(0.05)
    other.poll(), early.poll()
    late = Follower()
    assert late.poll() == "finished"
    assert early.steps == other.steps == late.steps == list(range(1, 61))
    assert early.log == other.log == late.log == run.log.read_text()
    answer = early.client.get("/studio/live", params={"project": project.id}).json()
    wait_for(lambda: early.client.get("/studio/live").json()["active"] is None)
    name = answer["result"]
    lora = early.client.get(f"/studio/download/{run.id}/{name}")
    assert lora.content == run.result(run.config()).read_bytes()
    assert lora.headers["content-disposition"] == f'attachment; filename="{name}"'
    part = early.client.get(f"/studio/download/{run.id}/{name}", headers={"range": "bytes=5-9"})
    assert part.status_code == 206 and part.content == lora.content[5:10]


def test_the_queue_is_told_once_and_its_progress_each_time(serve, supervise, project: Project) -> None:
    jobs = supervise("deaf", steps=100_000)
    studio = serve(jobs=jobs)
    run = jobs.start(project, project.config())
    later = jobs.start(project, parse(merge(to_tables(project.config()), {"train": {"seed": 9}})))
    wait_for(lambda: jobs.status(run).step > 3)
    with studio.client() as client:
        query = {"project": project.id}
        first = client.get("/studio/live", params=query).json()
        assert [(row["run"], row["state"]) for row in first["queue"]["jobs"]] == [
            (run.id, "running"),
            (later.id, "waiting"),
        ]
        assert first["run"] == run.id and first["active"]["stop"] is None
        query["queue"] = first["queue_tag"]
        again = client.get("/studio/live", params=query).json()
        assert again["queue"] is None and again["queue_tag"] == first["queue_tag"]
        jobs.stop(run)
        stopping = client.get("/studio/live", params=query).json()
        assert stopping["status"]["state"] == stopping["active"]["state"] == "stopping"
        stop = next(iter(stopping["going"].values()))["stop"]
        assert stop["rung"] == "asked" and 50 < stop["left_s"] <= 60 and stop["hurry"] == "Stop now"
        jobs.hurry_run(run)
        stop = client.get("/studio/live", params=query).json()["active"]["stop"]
        assert stop["rung"] == "term" and "would be lost" in stop["text"]
        jobs.stop(later)
        assert client.get("/studio/live", params=query).json()["queue"]["jobs"][1]["state"] == "cancelled"


def test_long_run_is_thinned_and_a_poll_of_it_stays_cheap(serve, workspace, project: Project) -> None:
    run = make_run(workspace, project)
    lines = [{"seq": 1, "time": 1.0, "attempt": 1, "kind": "started", "step": 0, "total": 50_000}]
    lines += [
        {"seq": n + 1, "time": 1.0, "attempt": 1, "kind": "step", "step": n, "loss": 0.1, "lr": 1e-4}
        for n in range(1, 50_001)
    ]
    run.events.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run.log.write_text("".join(f"line {n}\n" for n in range(100_000)))
    studio = serve()
    with studio.client() as client:
        first = client.get("/studio/live", params={"project": project.id}).json()
        steps = [event["step"] for event in first["events"] if event["kind"] == "step"]
        assert len(steps) == MAX_POINTS and steps[-1] == 50_000 and steps == sorted(steps)
        assert first["log"].endswith("line 99999\n") and first["log"].startswith("line ")
        assert len(first["log"]) <= LOG_BYTES
        query = {"run": run.id, "offset": first["offset"], "log": first["log_offset"]}
        started = time.perf_counter()
        for _ in range(20):
            assert len(client.get("/studio/live", params=query).content) < 2000
        assert (time.perf_counter() - started) / 20 < 0.1


def test_log_is_given_in_whole_lines_and_redacted(workspace: Workspace, project: Project) -> None:
    run = make_run(workspace, project)
    token = "hf_" + "A1b2" * 8
    run.log.write_bytes(f"a\nusing {token[:20]}".encode())
    text, offset = read_log(run, 0)
    assert text == "a\n"
    with run.log.open("ab") as file:
        file.write(f"{token[20:]} \xe9\n".encode("latin-1"))
        file.write(b"no newline at the end")
    text, offset = read_log(run, offset)
    assert text == "using hf_… �\n"
    assert read_log(run, offset, ended=True)[0] == "no newline at the end"


def test_thinning_keeps_everything_but_steps() -> None:
    events = [{"kind": "step", "step": n} for n in range(MAX_POINTS * 3)]
    events.insert(7, {"kind": "sample", "step": 3})
    kept = thinned(events)
    assert len(kept) == MAX_POINTS + 1 and kept[-1] is events[-1]
    assert [event for event in kept if event["kind"] == "sample"]
    assert thinned(events[:100]) == events[:100]


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("token hf_abcdefghijklmnopqrstuvwxyz end", "abcdefgh"),
        ("Authorization: Bearer abcdef.ghi-jkl", "abcdef.ghi"),
        ("https://user:pa55word@hub.example/x", "pa55word"),
        ("HF_TOKEN=secretvalue1", "secretvalue1"),
        ('{"password": "hunter2222"}', "hunter2222"),
        ("?api_key=0123456789abc&x=1", "0123456789abc"),
    ],
)
def test_secrets_are_blanked(text: str, gone: str) -> None:
    assert gone not in redact(text) and redact(redact(text)) == redact(text)


def test_plain_text_is_left_alone() -> None:
    for text in ("step 3/10 loss 0.12", "https://huggingface.co/a/b@main", "token: 77", "a tokeniser = fast"):
        assert redact(text) == text


# Files ---------------------------------------------------------------------------------------------


def test_dataset_is_described_with_findings_and_an_etag(serve, project: Project) -> None:
    studio = serve()
    with studio.client() as client:
        answer = wait_for(
            lambda: (a := client.get(f"/studio/dataset/{project.id}")).json()["checking"] is False and a
        )
        body = answer.json()
        assert (body["trigger"], body["resolution"]) == ("zwx blob", 128)
        image = next(each for each in body["images"] if each["name"] == "red.png")
        assert image["caption"] == "a red blob" and image["enabled"] and image["crop"] and image["bucket"]
        assert any("blue.png has no caption" in finding["sentence"] for finding in body["findings"])
        etag = {"if-none-match": answer.headers["etag"]}
        assert client.get(f"/studio/dataset/{project.id}", headers=etag).status_code == 304
        blue = next(each["id"] for each in body["images"] if each["name"] == "blue.png")
        caption = "<img src=x onerror=alert(1)> zwx blob é"
        assert client.post(f"/studio/caption/{project.id}/{blue}", json={"text": caption}).status_code == 200
        assert client.post(f"/studio/enabled/{project.id}/{blue}", json={"enabled": False}).status_code == 200
        changed = wait_for(
            lambda: (
                (a := client.get(f"/studio/dataset/{project.id}", headers=etag)).status_code == 200
                and not a.json()["checking"]
                and a.json()
            )
        )
        image = next(each for each in changed["images"] if each["id"] == blue)
        assert image["caption"] == caption and not image["enabled"]
        assert not any("blue.png" in finding["sentence"] for finding in changed["findings"])


def test_masks_are_laid_over_the_thumbnails(serve, project: Project) -> None:
    record = project.dataset().images[0]
    mask = Image.new("L", (record.width, record.height), 0)
    mask.paste(255, (0, 0, record.width // 2, record.height))
    path = mask_path(project.root, record.id)
    studio = serve()
    with studio.client() as client:

        def told() -> str:
            return client.get(f"/studio/dataset/{project.id}").json()["images"][0]["mask"]

        url = f"/studio/mask/{project.id}/{record.id}.webp"
        assert told() == "" and client.get(url).status_code == 404
        path.parent.mkdir(exist_ok=True)
        mask.save(path)
        first = told()
        answer = client.get(url, params={"v": first})
        assert answer.status_code == 200 and "immutable" in answer.headers["cache-control"]
        veil = Image.open(io.BytesIO(answer.content))
        assert veil.mode == "RGBA" and veil.size == (200, 150)
        assert veil.getpixel((10, 75))[3] == 0 and veil.getpixel((190, 75))[3] > 100
        mask.point(lambda value: 255 - value).save(path)
        assert told() != first
        veil = Image.open(io.BytesIO(client.get(url, params={"v": told()}).content))
        assert veil.getpixel((10, 75))[3] > 100 and veil.getpixel((190, 75))[3] == 0


def test_thumbnail_and_crop_are_rendered_once(serve, project: Project) -> None:
    studio = serve()
    record = project.dataset().images[0]
    with studio.client() as client:
        version = client.get(f"/studio/dataset/{project.id}").json()["images"][0]["v"]
        for kind, size in (("thumb", (200, 150)), ("crop", record.bucket)):
            url = f"/studio/{kind}/{project.id}/{record.id}.webp"
            answer = client.get(url, params={"v": version})
            assert answer.headers["content-type"] == "image/webp"
            assert "immutable" in answer.headers["cache-control"]
            assert Image.open(io.BytesIO(answer.content)).size == size
            assert "immutable" not in client.get(url).headers["cache-control"]
            etag = {"if-none-match": answer.headers["etag"]}
            assert client.get(url, headers=etag).status_code == 304
        project.save_config(parse(merge(to_tables(project.config()), {"dataset": {"resolution": 256}})))
        project.recrop()
        crop = client.get(f"/studio/crop/{project.id}/{record.id}.webp", params={"v": version})
        assert "immutable" not in crop.headers["cache-control"], "an old address"
        assert max(Image.open(io.BytesIO(crop.content)).size) >= 256
        assert len(list((project.root / ".thumbs").glob(f"{record.id}.*"))) == 2


def test_crop_is_what_the_trainer_sees(serve, project: Project) -> None:
    from dataset_tools.crop import render_crop
    from dataset_tools.images import open_image

    record = project.dataset().images[0]
    studio = serve()
    with studio.client() as client:
        shown = Image.open(io.BytesIO(client.get(f"/studio/crop/{project.id}/{record.id}.webp").content))
    seen = render_crop(open_image(project.root / record.file).image, record.crop, record.bucket)
    from PIL import ImageChops, ImageStat

    assert max(ImageStat.Stat(ImageChops.difference(shown.convert("RGB"), seen)).mean) < 3


def test_static_and_vendor_files(serve) -> None:
    studio = serve()
    with studio.client() as client:
        css = client.get("/studio/static/login.css", params={"v": "abc"})
        assert (
            css.headers["content-type"].startswith("text/css") and "immutable" in css.headers["cache-control"]
        )
        script = client.get("/studio/vendor/bokeh.min.js")
        assert script.headers["content-type"].startswith("text/javascript") and len(script.content) > 100_000
        for name in (
            "login.html",
            "..",
            "%2e%2e%2fserver.py",
            "server.py",
            "x.css",
            ".login.css",
            "bokeh.js",
        ):
            assert client.get(f"/studio/static/{name}").status_code == 404, name
            assert client.get(f"/studio/vendor/{name}").status_code == 404, name


def test_samples_are_served_and_nothing_else_of_a_run(serve, workspace: Workspace, project: Project) -> None:
    run = make_run(workspace, project)
    Image.new("RGB", (8, 8)).save(run.sample(0, 1), "WEBP")
    (run.samples / "s000001_p00.webp").symlink_to(run.recipe)
    (run.path / "evil.safetensors").symlink_to("/etc/passwd")
    (run.path / "publish.log").write_text("secret")
    studio = serve()
    with studio.client() as client:
        assert client.get(f"/studio/sample/{run.id}/s000000_p01.webp").headers["content-type"] == "image/webp"
        for name in (
            "s000001_p00.webp",
            "s000009_p00.webp",
            "../recipe.toml",
            "..%2frecipe.toml",
            "%2e%2e/recipe.toml",
            "recipe.toml",
            "s000000_p01.webp%00",
            "s000000_p01.webp%0a",
        ):
            assert client.get(f"/studio/sample/{run.id}/{name}").status_code == 404, name
        for name in (
            "evil.safetensors",
            "none.safetensors",
            "recipe.toml",
            "publish.log",
            "trainer.log",
            "lock",
            "..%2f..%2fsessions.json",
            "%2fetc%2fpasswd",
            "checkpoints%2fstep-000001%2fx.safetensors",
        ):
            assert client.get(f"/studio/download/{run.id}/{name}").status_code == 404, name


def test_the_page_that_is_served_shows_something_at_once(serve) -> None:
    serve()
    with serve().client() as client:  # the second application of this process
        answer = client.get("/")
    assert answer.text.count('<div id="loading" role="status">') == 1 and "{% " not in answer.text
    assert answer.text.index("Loading…") < answer.text.index("<gradio-app")
    assert "gradio_config" in answer.text and "content-security-policy" in answer.headers
