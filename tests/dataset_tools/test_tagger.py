"""Tags by an ONNX tagger of which it is known what it has to answer: it measures mean colours."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_tools import tagger
from dataset_tools.__main__ import main
from dataset_tools.dataset import load_dataset, read_caption
from dataset_tools.ingest import ingest
from dataset_tools.tagger import Tagger, prepared
from trainer.contract.errors import RunError

from ..conftest import ROOT
from ..forks import run
from ..trainer.hub_download_server import HubServer, Repo

SIZE = 8
TAGS = (  # name, kind, weights of mean blue, green and red, offset (before a sigmoid)
    ("general", "9", (0, 0, 0), 9.0),
    ("red_fur", "0", (0, 0, 1), -200.0),
    ("blue_fur", "0", (1, 0, 0), -200.0),
    ("white_margins", "0", (0, 1, 0), -100.0),
    (">_<", "0", (0, 0, 0), 2.0),
    ("hardly", "0", (0, 0, 0), math.log(0.34 / 0.66)),
    ("barely", "0", (0, 0, 0), math.log(0.36 / 0.64)),
    ("rem_(re:zero)", "4", (0, 0, 0), math.log(0.86 / 0.14)),
    ("ram_(re:zero)", "4", (0, 0, 0), math.log(0.84 / 0.16)),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from onnx import TensorProto, helper, numpy_helper, save

    made = tmp_path_factory.mktemp("tagger")
    weights = np.array([row[2] for row in TAGS], dtype=np.float32).T
    offsets = np.array([row[3] for row in TAGS], dtype=np.float32)
    nodes = [
        helper.make_node("ReduceMean", ["pictures", "over"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "weights"], ["sums"]),
        helper.make_node("Add", ["sums", "offsets"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["chances"]),
    ]
    constants = {"over": np.array([1, 2]), "weights": weights, "offsets": offsets}
    graph = helper.make_graph(
        nodes,
        "tagger",
        [helper.make_tensor_value_info("pictures", TensorProto.FLOAT, ["batch", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("chances", TensorProto.FLOAT, ["batch", len(TAGS)])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    save(model, made / "model.onnx")
    rows = [f"{number},{name},{kind},1" for number, (name, kind, _, _) in enumerate(TAGS)]
    (made / "selected_tags.csv").write_text("\n".join(["tag_id,name,category,count", *rows]))
    return made


ALWAYS = [">_<", "barely", "rem (re:zero)"]


def test_colours_padding_and_thresholds(folder: Path) -> None:
    tags = Tagger(folder, "it")
    assert tags(Image.new("RGB", (40, 40), (255, 0, 0))).split(", ") == ["red fur", *ALWAYS]
    assert tags(Image.new("RGB", (40, 40), (0, 0, 255))).split(", ") == ["blue fur", *ALWAYS]
    # Half of the square is white: its mean green is 128, and red and blue 255 and 128.
    assert tags(Image.new("RGB", (40, 20), (255, 0, 0))).split(", ") == ["red fur", "white margins", *ALWAYS]
    assert tags(Image.new("RGB", (20, 40), (0, 0, 0))).split(", ") == ["white margins", *ALWAYS]


def test_other_thresholds_and_unwanted_tags(folder: Path) -> None:
    tags = Tagger(folder, "it", threshold=0.3, character_threshold=0.8, without=("red_fur", "barely"))
    assert tags(Image.new("RGB", (9, 9), "red")) == ">_<, hardly, rem (re:zero), ram (re:zero)"


def test_a_picture_is_made_ready_as_the_demo_does() -> None:
    picture = Image.new("RGB", (6, 3), (10, 20, 30))
    ready = prepared(picture, 6)
    assert ready.shape == (1, 6, 6, 3) and ready.dtype == np.float32
    assert ready[0, 0, 0].tolist() == [255, 255, 255] and ready[0, 1, 0].tolist() == [30, 20, 10]
    assert (ready[0, 1:4] == ready[0, 1, 0]).all() and (ready[0, 4:] == 255).all()


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("red", "blue"):
        Image.new("RGB", (64, 64), name).save(tmp_path / f"{name}.png")
    root = tmp_path / "project"
    ingest([tmp_path / "red.png", tmp_path / "blue.png"], root)
    command = [
        "tag",
        str(root),
        "--model",
        str(folder),
        "--without",
        "barely",
        "--character-threshold",
        "0.9",
    ]
    assert main([*command, "--prefix", "art,"]) == 0
    texts = {record.original_name: read_caption(root, record) for record in load_dataset(root).images}
    assert texts == {"red.png": "art, red fur, >_<", "blue.png": "art, blue fur, >_<"}
    assert capsys.readouterr().out.splitlines()[-1] == "2 captioned"


def test_it_is_fetched_from_the_hub_once(folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    root = tmp_path / "project"
    ingest([tmp_path / "a.png"], root)
    repo = Repo.of_folder(folder)
    repo.files |= {"model.safetensors": b"junk", "model.msgpack": b"junk", "config.json": b"{}"}

    def tag(model: str, url: str) -> list[str]:
        command = ["dataset_tools", "tag", root, "--model", model, "--existing=replace"]
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        environment = kept | {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "cache")}
        done = run(*command, cwd=ROOT, env=environment)
        return (done.stdout + done.stderr).splitlines()

    with HubServer({"owner/tagger": repo}) as hub:
        assert tag("owner/tagger", hub.url)[-1] == "1 captioned"
        assert {*hub.fetched()} == {"model.onnx", "selected_tags.csv"}
        assert "owner/none does not exist on the Hub" in tag("owner/none", hub.url)[-1]
        url = hub.url
    assert tag("owner/tagger", url)[-1] == "1 captioned", "without a network it is there"


def test_what_is_no_tagger_is_refused(folder: Path, tmp_path: Path) -> None:
    def refused(model: Path | str) -> str:
        with pytest.raises(RunError) as error:
            tagger.load_tagger(str(model), 0.35, 0.85, (), lambda line: None)
        return str(error.value)

    assert "is no Hub id (owner/name)" in refused("nowhere")
    assert "is no tagger (it has no model.onnx)" in refused(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"no model")
    (tmp_path / "selected_tags.csv").write_text("name,category\na,0\n")
    assert "cannot be read" in refused(tmp_path)
    (tmp_path / "model.onnx").write_bytes((folder / "model.onnx").read_bytes())
    assert "is no WD tagger of version 3" in refused(tmp_path)
    (tmp_path / "selected_tags.csv").write_text("a,b\n1,2\n")
    assert "selected_tags.csv" in refused(tmp_path) and str(tmp_path) not in refused(tmp_path)


def test_without_onnxruntime_it_says_what_to_install(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    ingest([tmp_path / "a.png"], tmp_path / "project")
    monkeypatch.setattr(tagger, "installed", lambda: False)
    assert main(["tag", str(tmp_path / "project"), "--model", str(folder)]) == 1
    assert "pip install -r requirements-tagger.txt" in capsys.readouterr().err
