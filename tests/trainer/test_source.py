"""Base models from the Hub, against a loopback server that speaks its HTTP API.

huggingface_hub reads its environment when it is imported, so each download runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from tests.conftest import ROOT
from tests.forks import run
from trainer.contract.families import SDXL
from trainer.contract.runs import RunFolder
from trainer.hub import wanted_files

from .hub_download_server import HubServer, Repo
from .original_layout import tensors_of

REFERENCE = SDXL.bases[1].id
TOKEN = "hf_secretsecretsecret"

SCRIPT = """
import json, sys
from trainer.contract.errors import RunError
from trainer.source import resolve
{before}
said = []
def tell(text):
    said.append(text)
    {on_tell}
try:
    base = resolve("sdxl", *{arguments!r}, on_download=tell)
    print(json.dumps({{"weights": str(base.weights), "vae": str(base.vae), "said": said}}))
except RunError as error:
    print(json.dumps({{"error": str(error), "cause": error.cause, "said": said}}))
"""


@dataclass
class Machine:
    """A machine with a Hub cache of its own, which sees the server as the Hub."""

    home: Path
    hub: HubServer

    def environment(self, url: str = "", **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        return {
            **kept,
            "HF_ENDPOINT": url or self.hub.url,
            "HF_HOME": str(self.home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            **more,
        }

    def resolve(
        self, *arguments: str, url: str = "", before: str = "", on_tell: str = "", **environment: str
    ) -> dict[str, Any]:
        """What ``resolve("sdxl", *arguments)`` returns or raises."""
        script = SCRIPT.format(before=before, on_tell=on_tell, arguments=arguments)
        folder = self.home.parent
        (folder / "asks.py").write_text(script)
        done = run("asks", cwd=folder, env=self.environment(url, **environment))
        assert done.returncode == 0, done.stderr
        assert TOKEN not in done.stdout + done.stderr
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer


@pytest.fixture(scope="module")
def repo(tiny_base: Path) -> Repo:
    """The tiny model as it would lie on the Hub, with everything that loading does not need."""
    repo = Repo.of_folder(tiny_base)
    more = {name.replace(".safetensors", ".fp16.safetensors"): b for name, b in repo.files.items()}
    repo.files |= {name: content for name, content in more.items() if name.endswith(".safetensors")}
    for junk in (
        "sd_xl_base_1.0.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "text_encoder/flax_model.msgpack",
        "text_encoder/model.onnx",
        "vae_1_0/diffusion_pytorch_model.safetensors",
        "vae_1_0/config.json",
        "model.ckpt",
        "README.md",
    ):
        repo.files[junk] = b"junk"
    return repo


@pytest.fixture
def machine(repo: Repo, tiny_base: Path, tmp_path: Path) -> Any:
    vae = {"config.json", "diffusion_pytorch_model.safetensors"}
    repos = {
        "owner/tiny": repo,
        REFERENCE: repo,
        "owner/gated": Repo(repo.files, gated=True),
        "owner/flux": Repo({"model_index.json": b'{"_class_name": "FluxPipeline", "vae": ["a", "b"]}'}),
        "owner/pickles": Repo(
            {n: b for n, b in repo.files.items() if not n.endswith(".safetensors")} | {"unet/x.bin": b"x"}
        ),
        "owner/file": Repo({"model.safetensors": b"", "README.md": b""}),
        "owner/vae": Repo(
            {name: (tiny_base / "vae" / name).read_bytes() for name in vae} | {"sdxl_vae.safetensors": b"x"}
        ),
        "owner/big": Repo(repo.files | {"unet/diffusion_pytorch_model.fp16.safetensors": bytes(60 * 2**20)}),
    }
    with HubServer(repos, token=TOKEN) as hub:
        yield Machine(tmp_path / "hf", hub)


def files_in(folder: str) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file()}


def test_what_is_fetched_and_that_it_is_fetched_once(machine: Machine) -> None:
    answer = machine.resolve("owner/tiny")
    there = files_in(answer["weights"])
    weights = {name for name in there if name.endswith(".safetensors")}
    assert weights == {
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.fp16.safetensors",
        "text_encoder_2/model.fp16.safetensors",
    }
    assert all(name.endswith((".json", ".txt")) for name in there - weights)
    assert {
        "model_index.json",
        "tokenizer_2/tokenizer_config.json",
        "scheduler/scheduler_config.json",
    } < there
    assert set(machine.hub.fetched()) <= there  # less what is the same as another file: the tokenizers

    machine.hub.requests.clear()
    assert machine.resolve("owner/tiny")["weights"] == answer["weights"]
    assert machine.hub.fetched() == []
    for offline in ({"url": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}):
        assert machine.resolve("owner/tiny", **offline)["weights"] == answer["weights"]


def test_half_precision_only_where_there_is_some() -> None:
    files = ["unet/diffusion_pytorch_model-00001-of-00002.safetensors", "unet/config.json", "a.safetensors"]
    files += ["unet/diffusion_pytorch_model-00002-of-00002.safetensors", "model_index.json"]
    files += ["vae/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.safetensors"]
    wanted = wanted_files(files, ["unet", "vae"])
    assert set(files) - set(wanted) == {"vae/diffusion_pytorch_model.safetensors", "a.safetensors"}
    assert wanted_files(files, ["unet", "vae"], without_weights=["unet", "vae"]) == [
        "unet/config.json",
        "model_index.json",
    ]
    assert wanted_files(files, []) == []
    kinds = [f"unet/diffusion_pytorch_model{kind}.safetensors" for kind in ("", ".fp16", ".bf16")]
    for there, best in ((kinds, kinds[2]), (kinds[:2], kinds[1]), (kinds[:1], kinds[0])):
        assert wanted_files(there, ["unet"]) == [best, "model_index.json"]
    chat = ["tokenizer/chat_template.jinja", "tokenizer/tokenizer.json", "tokenizer/spiece.model"]
    assert set(chat) < set(wanted_files([*files, *chat, "tokenizer/x.py"], ["vae", "tokenizer"]))


@pytest.mark.parametrize(
    ("arguments", "cause", "sentence"),
    [
        (
            ("owner/gated",),
            "gated_model",
            "owner/gated asks you to accept its licence: do so at {url}/owner/gated",
        ),
        (("owner/none",), "model_missing", "owner/none does not exist on the Hub, or is private"),
        (("owner/tiny", "v9"), "model_missing", "owner/tiny has no revision v9; leave it empty"),
        (
            ("owner/flux",),
            "model_missing",
            "owner/flux is a FLUX.1 model, the recipe says Stable Diffusion XL",
        ),
        (
            ("owner/pickles",),
            "model_missing",
            "owner/pickles holds no diffusers model with .safetensors weights",
        ),
        (("owner/file",), "model_missing", "the base model owner/file has no model_index.json"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_refusals(machine: Machine, arguments: tuple[str, ...], cause: str, sentence: str) -> None:
    answer = machine.resolve(*arguments)
    assert answer["cause"] == cause
    assert answer["error"].startswith(sentence.format(url=machine.hub.url))
    assert not any(name.endswith(".safetensors") for name in machine.hub.fetched())


def test_the_token_opens_a_gated_model_and_goes_nowhere_else(machine: Machine) -> None:
    answer = machine.resolve("owner/gated", HF_TOKEN=TOKEN)
    assert "unet/config.json" in files_in(answer["weights"])
    assert {request.authorization for request in machine.hub.requests} == {f"Bearer {TOKEN}"}
    assert not any(TOKEN in request.path for request in machine.hub.requests)
    assert TOKEN not in json.dumps(answer)
    stored = [p for p in machine.home.rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()]
    assert stored == []


def test_a_separate_vae_from_the_hub(machine: Machine, tiny_base: Path) -> None:
    alone = machine.resolve(str(tiny_base), "", "owner/vae")
    assert files_in(alone["vae"]) == {"config.json", "diffusion_pytorch_model.safetensors"}
    machine.hub.requests.clear()
    within = machine.resolve(str(tiny_base), "", "owner/tiny")
    assert Path(within["vae"]).name == "vae"
    assert set(machine.hub.fetched()) == {
        "model_index.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    }


def test_progress_and_an_interrupted_connection(machine: Machine) -> None:
    machine.hub.cut_once = "unet/diffusion_pytorch_model.fp16.safetensors"
    machine.hub.chunk_seconds = 0.04
    answer = machine.resolve("owner/big")
    size = (Path(answer["weights"]) / "unet/diffusion_pytorch_model.fp16.safetensors").stat().st_size
    assert size == 60 * 2**20
    resumed = [r.range for r in machine.hub.requests if r.range]
    assert resumed == [f"bytes={30 * 2**20}-"]
    shown = [text for text in answer["said"] if text.startswith("Downloading owner/big: ")]
    assert 2 <= len(shown) <= 8
    amounts = [float(text.split(": ")[1].split()[0]) for text in shown]
    assert amounts == sorted(amounts) and amounts[0] < amounts[-1] <= 60.8
    assert shown[-1].endswith(" MiB")


def test_a_killed_download_goes_on_with_what_is_complete(machine: Machine) -> None:
    machine.hub.hold = "unet/diffusion_pytorch_model.fp16.safetensors"
    script = SCRIPT.format(before="", on_tell="", arguments=("owner/big",))
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, env=machine.environment(), stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list(machine.home.rglob("text_encoder_2/*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    offline = machine.resolve("owner/big", url="http://127.0.0.1:9")
    assert offline["error"].startswith("owner/big is not (completely) on this machine and the Hub cannot be")
    machine.hub.requests.clear()
    machine.hub.hold = ""
    answer = machine.resolve("owner/big")
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in machine.hub.fetched()
    assert "text_encoder_2/model.fp16.safetensors" not in machine.hub.fetched()
    assert "vae/config.json" in files_in(answer["weights"])


def test_stopping_ends_a_download(machine: Machine) -> None:
    machine.hub.chunk_seconds = 0.2
    began = time.monotonic()
    stop = "if text.startswith('Downloading'): raise RunError('stopped', 'unknown')"
    answer = machine.resolve("owner/big", on_tell=stop)
    assert answer["error"] == "stopped"
    assert time.monotonic() - began < 10


def test_a_full_disk(machine: Machine) -> None:
    no_space = (
        "import shutil; usage = shutil.disk_usage('/')\nshutil.disk_usage = lambda p: usage._replace(free=9)"
    )
    answer = machine.resolve("owner/tiny", before=no_space)
    assert answer["cause"] == "disk_full" and answer["error"].startswith("owner/tiny needs 0.0 GiB more and")
    assert not any(name.endswith(".safetensors") for name in machine.hub.fetched())
    in_the_middle = """
import errno, huggingface_hub.file_download as download
def http_get(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device")
download.http_get = http_get
"""
    answer = machine.resolve("owner/tiny", before=in_the_middle)
    assert (
        answer["cause"] == "disk_full" and "the disk is full while downloading owner/tiny" in answer["error"]
    )


def test_a_hub_that_does_not_answer(machine: Machine) -> None:
    machine.hub.silent = True
    answer = machine.resolve("owner/tiny", HF_HUB_ETAG_TIMEOUT="1")
    assert len(machine.hub.requests) == 1
    assert answer["error"].startswith("owner/tiny is not (completely) on this machine and the Hub cannot be")


def test_no_network_ends_in_one_sentence(machine: Machine, photos: Path, tmp_path: Path) -> None:
    """Through the command line: exit code, last line, status.json."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'[model]\nbase = "{REFERENCE}"\n[dataset]\npath = "{photos}"\n')
    folder = RunFolder(tmp_path / "run")
    nowhere = machine.environment("http://127.0.0.1:9")
    done = run("trainer", "train", recipe, "--run-dir", folder.path, cwd=ROOT, env=nowhere)
    assert done.returncode == 1
    status = folder.read_status()
    assert (status.state, status.cause) == ("failed", "model_missing")
    assert status.message == (
        f"{REFERENCE} is not (completely) on this machine and the Hub cannot be reached; "
        "check the network, or name a local folder or file"
    )
    assert done.stderr.splitlines()[-1] == f"error: {status.message}"
    assert "Traceback" not in done.stderr


def test_a_single_file_fetches_the_references_small_files(
    machine: Machine, deeper_base: Path, tmp_path: Path
) -> None:
    file = tmp_path / "dreamy.safetensors"
    save_file(tensors_of(deeper_base), file)
    for url in ("", "http://127.0.0.1:9"):
        assert machine.resolve(str(file), url=url)["weights"] == str(file)
        assert {name.rpartition(".")[2] for name in machine.hub.fetched()} == {"json", "txt"}
    there = {path.name for path in machine.home.rglob("snapshots/*/*/*")}
    assert {"config.json", "vocab.json", "merges.txt", "scheduler_config.json"} <= there
