"""``python -m studio.publish RUN_DIR --repo-id NAME (--private | --public)``: a finished LoRA to the Hub.

Runs as a process of its own, because huggingface_hub reads HF_ENDPOINT once, at import, and so that the
token (HF_TOKEN in the environment, or that of ``hf auth login``) is in no other process. How it goes is
told in the run's publish.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from trainer.contract.config import TrainConfig
from trainer.contract.errors import UserError
from trainer.contract.events import current_events, read_events
from trainer.contract.families import CATALOGUE, DEMO_BASE, known_base
from trainer.contract.files import read_json
from trainer.contract.redact import redact
from trainer.contract.runs import RunFolder
from trainer.contract.settings.dataset import all_resolutions

from .publication import publish_lock, write_publish_status

if TYPE_CHECKING:
    from huggingface_hub import HfApi

HUB = "https://huggingface.co"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Sample:
    """A validation image that goes along: ``text`` is its prompt."""

    text: str
    path: Path

    @property
    def path_in_repo(self) -> str:
        return f"images/{self.path.name}"


def last_samples(run: RunFolder) -> list[Sample]:
    """The newest picture of each prompt."""
    events, _ = read_events(run.events)
    newest: dict[int, Sample] = {}
    for event in current_events(events):
        if event["kind"] == "sample":
            path = run.samples / Path(str(event["file"])).name
            if path.is_file() and not path.is_symlink():
                newest[int(event["prompt"])] = Sample(" ".join(str(event["text"]).split()), path)
    return [newest[prompt] for prompt in sorted(newest)]


# The model card -----------------------------------------------------------------------------------


def model_card(run: RunFolder, repo_id: str) -> str:
    """README.md: YAML front matter for the Hub, then what a reader wants to know.

    Built of the recipe's settings only: no path, no file name of a photo, no caption gets in.
    """
    from huggingface_hub import ModelCardData

    config = run.config()
    samples = last_samples(run)
    base = hub_base(config)
    row = known_base(config.model.family, config.model.base)
    family = CATALOGUE[config.model.family]
    trigger = " ".join(config.dataset.trigger.split())
    data = ModelCardData(
        base_model=base,
        license=row.licence if row else None,
        library_name="diffusers" if config.adapter.in_diffusers else None,
        pipeline_tag="text-to-image",
        tags=["text-to-image", "lora", *(["diffusers"] if config.adapter.in_diffusers else []), family.key],
        instance_prompt=trigger or None,
        widget=[{"text": each.text, "output": {"url": each.path_in_repo}} for each in samples] or None,
    )
    name = run.result(config).name
    title = repo_id.rpartition("/")[2]
    parts = [f"---\n{data.to_yaml()}\n---\n", f"# {_plain(title)}\n", _origin(config, base) + "\n"]
    if samples:
        parts += ["<Gallery />\n"]
    if trigger:
        parts += [f"## Trigger\n\nWrite {_code(trigger)} in the prompt to call up what it learnt.\n"]
    prompt = samples[0].text if samples else trigger or "a photo"
    if config.adapter.in_diffusers:
        parts += [f"## Use with diffusers\n\n```py\n{_snippet(base, config, repo_id, name, prompt)}```\n"]
        others = "Other programs that load LoRAs (ComfyUI, Forge, A1111 and so on)"
    else:  # diffusers would drop a part of it, or all, without a word
        others = "## Use\n\nFor ComfyUI, Forge and A1111, which read this kind of adapter"
    parts += [f"{others}: download {_code(name)} and put it into their LoRA folder.\n"]
    parts += ["## Training\n", _table(run, run.amended())]
    return "\n".join(parts)


def hub_base(config: TrainConfig) -> str | None:
    """The Hub id of the base model; None for the demo's and for one from the user's disk."""
    base = config.model.base
    if (
        base == DEMO_BASE
        or not HUB_ID.fullmatch(base)
        or base.endswith(".safetensors")
        or Path(base).exists()
    ):
        return None
    return base


def _origin(config: TrainConfig, base: str | None) -> str:
    label = CATALOGUE[config.model.family].label
    if base:
        return f"A LoRA for [{base}](https://huggingface.co/{base}) ({label})."
    if config.model.base == DEMO_BASE:
        return (
            f"A LoRA for the small demo model of the LoRA Training Studio ({label} architecture, 128 px). "
            "It works with that model only, which comes with the studio and is not on the Hub."
        )
    return f"A LoRA for a model of the {label} architecture that is not on the Hub."


def _snippet(base: str | None, config: TrainConfig, repo_id: str, name: str, prompt: str) -> str:
    demo = config.model.base == DEMO_BASE
    where = base or ("demo/model" if demo else "path/to/the/base/model")
    comment = "  # in the studio's folder" if demo else "" if base else "  # the model it was trained on"
    return (
        "from diffusers import AutoPipelineForText2Image\n\n"
        f"pipeline = AutoPipelineForText2Image.from_pretrained({json.dumps(where)}){comment}\n"
        f"pipeline.load_lora_weights({json.dumps(repo_id)}, weight_name={json.dumps(name)})\n"
        f"image = pipeline({json.dumps(prompt, ensure_ascii=False)}).images[0]\n"
    )


def _table(run: RunFolder, config: TrainConfig) -> str:
    events, _ = read_events(run.events)
    saved = [event["step"] for event in current_events(events) if event["kind"] == "saved"]
    row = known_base(config.model.family, config.model.base)
    native = row.resolution if row else CATALOGUE[config.model.family].resolution
    train, adapter = config.train, config.adapter
    batch = f"{train.batch_size}" + (
        f" × {train.gradient_accumulation}" if train.gradient_accumulation > 1 else ""
    )
    facts: dict[str, Any] = {
        "Steps": saved[-1] if saved else train.steps,
        "Pictures": _picture_count(run),
        "Batch size": batch,
        "Resolution": ", ".join(f"{side} px" for side in all_resolutions(config.dataset, native)),
        "Rank / alpha": f"{adapter.rank} / {adapter.alpha:g}",
        "Learning rate": f"{train.learning_rate:g}, {train.scheduler}",
        "Optimizer": train.optimizer,
        "Seed": train.seed,
    }
    lines = [f"| {label} | {value} |" for label, value in facts.items() if value is not None]
    return "\n".join(["| | |", "|---|---|", *lines]) + "\n"


def _picture_count(run: RunFolder) -> int | None:
    try:
        return len({image["sha256"] for image in read_json(run.dataset)["images"]})
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _plain(text: str) -> str:
    """Text that Markdown takes literally."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~-])", r"\\\1", text)


def _code(text: str) -> str:
    """Text as inline code, whatever backticks are in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {text} {fence}" if longest else f"`{text}`"


# Upload -------------------------------------------------------------------------------------------


def publish(run: RunFolder, repo_id: str, private: bool) -> str:
    """Push card, LoRA and samples in one commit; return the address. Raises UserError in one sentence."""
    from httpx2 import HTTPError
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    token = os.environ.get("HF_TOKEN") or get_token()
    if not token:
        raise UserError(
            "Publishing needs a Hugging Face token with write access; paste one "
            f"(made at {HUB}/settings/tokens), or start the studio with HF_TOKEN set."
        )
    api = HfApi(token=token, library_name="lora-training-studio")

    def tell(message: str) -> None:
        write_publish_status(run, state="running", repo_id=repo_id, private=private, message=message)

    try:
        if "/" not in repo_id:
            repo_id = f"{api.whoami()['name']}/{repo_id}"
        tell(f"Making the repository {repo_id}")
        url = _repository(api, repo_id, private)
        _commit(api, run, repo_id, tell)
    except OfflineModeIsEnabled:
        raise UserError("HF_HUB_OFFLINE is set, so nothing can be published; unset it.") from None
    except HFValidationError:
        raise UserError(f"{repo_id!r} is no name for a model on the Hub; write it as you/my-lora.") from None
    except (HTTPError, OSError, RuntimeError) as error:
        raise UserError(sentence(error, repo_id, str(api.endpoint))) from error
    except ValueError as error:
        raise UserError(f"{api.endpoint} does not answer like a Hub ({error}); check HF_ENDPOINT.") from error
    write_publish_status(run, state="done", repo_id=repo_id, private=private, message="Published", url=url)
    return url


def _repository(api: HfApi, repo_id: str, private: bool) -> str:
    """The address of the repository, made where it is not there yet."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return str(api.create_repo(repo_id, private=private, exist_ok=False))
    except HfHubHTTPError as error:
        if error.response.status_code != 409:
            raise
    # It is there already, say from an earlier version of this LoRA: the files become a new commit of it.
    if private and not api.repo_info(repo_id).private:
        raise UserError(
            f"{repo_id} exists already and everybody can see it; choose another name, or publish openly."
        )
    return f"{api.endpoint}/{repo_id}"


def _commit(api: HfApi, run: RunFolder, repo_id: str, tell: Any) -> None:
    from huggingface_hub import CommitOperationAdd

    lora = run.result(run.config())
    if not lora.is_file():
        raise UserError(f"{run.id} has no finished LoRA yet; publish it when the training has ended.")
    card = model_card(run, repo_id).encode()
    additions = [CommitOperationAdd("README.md", card), CommitOperationAdd(lora.name, str(lora))]
    additions += [CommitOperationAdd(each.path_in_repo, str(each.path)) for each in last_samples(run)]
    tell(f"Uploading {lora.stat().st_size / 1e6:.1f} MB to {repo_id}")
    api.create_commit(repo_id, additions, commit_message=f"Upload {lora.stem}")


def sentence(error: BaseException | None, repo_id: str, endpoint: str) -> str:
    """What to tell of a failed request: the answer's code decides, wherever in the chain it is."""
    host = re.sub(r"^\w+://", "", endpoint)
    first = error
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            return _answer(
                response.status_code, str(getattr(error, "server_message", "") or ""), repo_id, host
            )
        error = error.__cause__ or error.__context__
    if isinstance(first, OSError) and first.filename is not None:
        return f"{Path(str(first.filename)).name} cannot be read ({first.strerror}); is the run still there?"
    return f"The Hub ({redact(host)}) cannot be reached; check the network and publish again."


def _answer(code: int, message: str, repo_id: str, host: str) -> str:
    known = {
        401: f"The Hub does not accept the token; make one with write access at {HUB}/settings/tokens.",
        403: f"This token may not write to {repo_id}; use one with write access, or a name of your own.",
        404: f"The Hub knows no {repo_id}; the part before the slash must be you or your organisation.",
        409: f"{repo_id} is being changed at the moment, or the name is taken; try again or choose another.",
        413: "The Hub refuses the upload as too large; check the storage of your account.",
        429: "The Hub asks to wait (too many requests); publish again in some minutes.",
    }
    if code in known:
        return known[code]
    detail = redact(" ".join(message.split()))[:300]
    if code >= 500:
        return f"The Hub ({redact(host)}) is out of order ({code}); publish again in some minutes."
    return f"The Hub refused ({code}){': ' + detail if detail else ''}; choose another name or try again."


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m studio.publish", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--repo-id", required=True)
    visibility = parser.add_mutually_exclusive_group()
    visibility.add_argument("--private", action="store_true", default=True)
    visibility.add_argument("--public", dest="private", action="store_false")
    options = parser.parse_args(argv)
    run = RunFolder(options.run_dir.resolve())
    # Mirrors and servers of one's own speak the Hub's LFS protocol; few speak its newer Xet as well.
    if os.environ.get("HF_ENDPOINT", HUB).rstrip("/") != HUB:
        os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        with FileLock(publish_lock(run), timeout=10):
            return _run(run, options.repo_id, options.private)
    except Timeout:
        print(f"{run.id} is being published already.", file=sys.stderr)
        return 1


def _run(run: RunFolder, repo_id: str, private: bool) -> int:
    try:
        run.config()  # before anything is written into a folder that is no run
        print(publish(run, repo_id, private))
    except UserError as error:
        print(error, file=sys.stderr)
        write_publish_status(run, state="failed", repo_id=repo_id, private=private, message=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
