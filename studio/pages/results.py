"""Results: the finished LoRA, how to use it, its samples and checkpoints, and publishing. The script
``static/results.js`` draws it from what the functions here answer."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

import gradio as gr

from studio.context import Studio
from studio.theme import scripts
from trainer.contract.config import TrainConfig
from trainer.contract.drawings import list_drawings
from trainer.contract.errors import UserError
from trainer.contract.events import current_events, read_events
from trainer.contract.families import DEMO_BASE, known_base
from trainer.contract.length import length_in_words
from trainer.contract.prompt import prompts_of
from trainer.contract.runs import RunFolder
from trainer.contract.verdict import verdict

from . import Message, project_of, run_of, served, text_of

DRAWINGS_SHOWN = 60


def build(studio: Studio) -> None:
    gr.HTML(
        html_template="",
        elem_id="studio-results",
        apply_default_css=False,
        head=scripts("live.js", "frame.js", "samples.js", "drawing.js", "results.js"),
        js_on_load="studio.panels.results(element, server)",
        server_functions=served(
            studio, runs, detail, star, draw, stop_drawing, drawings, publish, publish_status
        ),
    )


# Called by the script ----------------------------------------------------------------------------


def runs(studio: Studio, message: Message) -> dict[str, Any]:
    """``{"runs": [{id, when, state, step, total}, …]}``, newest first."""
    return {"runs": [_line(studio, run) for run in project_of(studio, message).runs()]}


def detail(studio: Studio, message: Message) -> dict[str, Any]:
    run = run_of(studio, message)
    return {**_line(studio, run), **describe(run), "publish": studio.jobs.publish_status(run)}


def star(studio: Studio, message: Message) -> dict[str, Any]:
    """Keep a checkpoint whatever the recipe says of how many stay, or no longer."""
    run, step = run_of(studio, message), message.get("step")
    if not isinstance(step, int):
        raise UserError(f"{str(step)[:40]!r} is no step; reload the page.")
    run.star(step, message.get("on") is True)
    return {"checkpoints": checkpoints(run)}


def draw(studio: Studio, message: Message) -> dict[str, Any]:
    """Put pictures into the queue: ``prompts`` (one a line), ``seed`` ("" for new ones), ``step`` of the
    checkpoint ("" for the newest)."""
    run = run_of(studio, message)
    lines = [line.strip() for line in text_of(message, "prompts").splitlines() if line.strip()]
    seed, step = (_number(message, name) for name in ("seed", "step"))
    studio.jobs.sample(run, lines, seed, step)
    return {}


def stop_drawing(studio: Studio, message: Message) -> dict[str, Any]:
    studio.jobs.cancel(text_of(message, "job"))
    return {}


def drawings(studio: Studio, message: Message) -> dict[str, Any]:
    """``{"drawings": [{file, text, seed, step}, …], "more": how many older ones there are}``, the newest
    first."""
    found = list_drawings(run_of(studio, message))
    shown = [one.model_dump(exclude={"time"}) for one in found[:DRAWINGS_SHOWN]]
    return {"drawings": shown, "more": len(found) - len(shown)}


def _number(message: Message, name: str) -> int | None:
    """A whole number that was typed, None where nothing was. Raises UserError."""
    text = str(message.get(name, "")).strip()
    if text and not (text.isascii() and text.isdigit() and int(text) < 2**63):
        raise UserError(f"The {name} {text[:40]!r} is no whole number; write one like 42, or leave it empty.")
    return int(text) if text else None


def publish(studio: Studio, message: Message) -> dict[str, Any]:
    """Start publishing. The token is handed on and kept nowhere."""
    run = run_of(studio, message)
    private = bool(message.get("private", True))
    studio.jobs.publish(run, text_of(message, "repo_id"), private, text_of(message, "token") or None)
    return studio.jobs.publish_status(run)


def publish_status(studio: Studio, message: Message) -> dict[str, Any]:
    return studio.jobs.publish_status(run_of(studio, message))


# What a run left ---------------------------------------------------------------------------------


def _line(studio: Studio, run: RunFolder) -> dict[str, Any]:
    """A run in the list of runs."""
    status = studio.jobs.status(run)
    created = time.localtime(run.recipe.stat().st_mtime)
    when = f"{created.tm_mday} {time.strftime('%b %H:%M', created)}"
    return {"id": run.id, "when": when, "state": status.state, "step": status.step, "total": status.total}


def describe(run: RunFolder) -> dict[str, Any]:
    """The file and how to use it: ``file``, ``bytes`` (None until finished), ``facts`` [[label, value], …],
    ``trigger``, ``snippet``, ``checkpoints`` [{step, bytes}, …], ``learned``, ``repo`` (a proposed name),
    ``prompt`` (what one might draw)."""
    config = run.config()
    result = run.result(config)
    saved = result.is_file()
    return {
        "file": result.name,
        "bytes": result.stat().st_size if saved else None,
        "trigger": config.dataset.trigger,
        "facts": facts(config),
        "snippet": snippet(config, result.name),
        "checkpoints": checkpoints(run),
        "learned": learned(run),
        "repo": config.output.name,
        "prompt": next((prompt.text for prompt in prompts_of(config.samples)), config.dataset.trigger),
    }


def learned(run: RunFolder) -> dict[str, Any]:
    """Did it learn? ``sentences`` [[mood, text], …], ``bars`` [{step, likeness, drift, copied, validation,
    score}, …], ``best`` (a step or None), ``blocks`` [[name, share of the weights moved], …]."""
    events = current_events(read_events(run.events)[0])
    kept = [one["step"] for one in checkpoints(run)]
    found = verdict(events, unlearn=run.config().train.unlearn, kept=kept)
    return {
        "sentences": [[one.mood, one.text] for one in found.sentences],
        "bars": [asdict(one) for one in found.bars],
        "best": found.best,
        "blocks": [[name, moved] for name, moved in found.blocks.items()],
    }


def facts(config: TrainConfig) -> list[list[str]]:
    base = known_base(config.model.family, config.model.base)
    rate = f"{config.train.learning_rate:.1e}".replace("e-0", "e-")
    return [
        ["Base model", base.label if base else config.model.base],
        ["LoRA", f"rank {config.adapter.rank}, alpha {config.adapter.alpha:g}"],
        ["Training", f"{length_in_words(config.train)} at {rate}, batch {config.train.batch_size}"],
    ]


def snippet(config: TrainConfig, file: str) -> str:
    """Python that draws a picture with the LoRA; "" for kinds that diffusers does not read."""
    if not config.adapter.in_diffusers:
        return ""
    base, comment = config.model.base, ""
    if base == DEMO_BASE:
        base, comment = "demo/model", "  # in the studio's folder"
    elif base.endswith(".safetensors"):
        base, comment = "path/to/the/base/model", "  # the base, as a diffusers folder"
    prompts = [prompt.text for prompt in prompts_of(config.samples)]
    prompt = prompts[0] if prompts else f"a photo of {config.dataset.trigger}"
    return (
        "from diffusers import AutoPipelineForText2Image\n\n"
        f"pipeline = AutoPipelineForText2Image.from_pretrained({json.dumps(base)}){comment}\n"
        f"pipeline.load_lora_weights({json.dumps(file)})\n"
        f"image = pipeline({json.dumps(prompt, ensure_ascii=False)}).images[0]\n"
        'image.save("picture.png")\n'
    )


def checkpoints(run: RunFolder) -> list[dict[str, Any]]:
    """The resumable states that are on disk, newest first: ``step``, ``bytes`` and whether ``starred``."""
    found = []
    try:
        starred = run.starred()
    except UserError:  # a damaged list; to star one says so
        starred = frozenset()
    for folder in sorted(run.checkpoints.glob("step-*"), reverse=True):
        if (folder / "MANIFEST.json").is_file():
            size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
            step = int(folder.name.removeprefix("step-"))
            found.append({"step": step, "bytes": size, "starred": step in starred})
    return found
