"""Captions by vision-language models: small ones with random weights, built here as they are published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dataset_tools import describe, pretrained
from dataset_tools.__main__ import main
from dataset_tools.captioners import CAPTIONERS, PROMPT
from dataset_tools.dataset import load_dataset, read_caption
from dataset_tools.describe import Describer, load_describer
from dataset_tools.ingest import ingest
from trainer.contract.errors import RunError

from ..conftest import ROOT

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "red", "cat", "dog", "on", "the", "sofa"]
CHAT = (
    "{% for m in messages %}<start>{{ m['role'] }} {% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<vision><|image_pad|><end>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<stop>{% endfor %}<start>"
)


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    folder = tmp_path_factory.mktemp("blip")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {
        "vocab_size": len(WORDS),
        "bos_token_id": 5,
        "eos_token_id": 3,
        "sep_token_id": 3,
        "pad_token_id": 0,
    }
    config = BlipConfig(
        text_config=sizes | text | {"encoder_hidden_size": 16, "max_position_embeddings": 32},
        vision_config=sizes | {"image_size": 32, "patch_size": 16},
    )
    torch.manual_seed(0)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = BertTokenizer(vocab=vocabulary, additional_special_tokens=["[DEC]"])
    BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its kind reads videos as well, for which it wants torchvision."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    folder = tmp_path_factory.mktemp("qwen")
    special = ["<pad>", "<unk>", "<start>", "<stop>", "<|image_pad|>", "<|video_pad|>", "<vision>", "<end>"]
    words = [*special, "user", "what", "now", "red", "cat", "sofa"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<stop>",
        additional_special_tokens=special[2:],
    )
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    edges = {"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
    Qwen2VLImageProcessorPil(patch_size=16, merge_size=2, size=edges).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16}
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4, "mrope_interleaved": True}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "num_hidden_layers": 1}
    vision = {"depth": 1, "num_heads": 2, "out_hidden_size": 16, "patch_size": 16, "spatial_merge_size": 2}
    more = {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    torch.manual_seed(0)
    config = Qwen3VLConfig(
        text_config=sizes | heads | {"vocab_size": len(words), "rope_parameters": rope},
        vision_config=sizes | vision | more,
        image_token_id=4,
        video_token_id=5,
        vision_start_token_id=6,
        vision_end_token_id=7,
    )
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    return folder


def load(folder: Path | str, prompt: str = "", most: int = 8) -> Describer:
    return load_describer(str(folder), prompt, most, lambda line: None)


def refused(folder: Path | str) -> str:
    with pytest.raises(RunError) as error:
        load(folder)
    assert "/" not in str(error.value).replace(CAPTIONERS[0].model, "").replace("owner/name", ""), "no path"
    return str(error.value)


def test_photos_are_captioned_by_the_command(
    blip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for colour in ("red", "blue"):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{colour}.png")
    root = tmp_path / "project"
    ingest([tmp_path / "red.png", tmp_path / "blue.png"], root)
    command = ["caption", str(root), "--model", str(blip), "--max-tokens", "6", "--trigger", "zwx"]
    assert main(command) == 0
    out = capsys.readouterr().out.splitlines()
    model = load(blip, most=6)
    for record in load_dataset(root).images:
        picture = Image.open(tmp_path / record.original_name)
        assert read_caption(root, record) == f"zwx, {model(picture, 0)}"
    assert load_dataset(root).trigger == "zwx"
    assert out[0] == f"Loading {blip.name}" and out[-1] == "2 captioned"
    assert main([*command, "--existing", "replace", "--prompt", "the cat"]) == 0
    assert all(read_caption(root, r).startswith("zwx, the cat") for r in load_dataset(root).images)


def test_the_model_sees_the_picture(blip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(blip)
    seen: list[torch.Tensor] = []

    def generate(pixel_values: torch.Tensor, max_new_tokens: int) -> torch.Tensor:
        seen.append(pixel_values)
        return torch.tensor([[5, 6, 7, 3]])

    monkeypatch.setattr(model.model, "generate", generate)
    assert model(Image.new("RGB", (40, 30), (255, 0, 0)), 0) == "red cat"
    mean, std = torch.tensor([0.4815, 0.4578, 0.4082]), torch.tensor([0.2686, 0.2613, 0.2758])  # CLIP's
    torch.testing.assert_close(seen[0][0, :, 0, 0], (torch.eye(3)[0] - mean) / std, atol=1e-3, rtol=0)
    assert seen[0].shape == (1, 3, 32, 32) and (seen[0] == seen[0][:, :, :1, :1]).all()


def test_a_model_that_talks_is_asked_and_its_question_left_out(qwen: Path) -> None:
    model = load(qwen, "what now", 5)
    assert model.text == "<start>user <vision><|image_pad|><end>what now<stop><start>"
    picture = Image.new("RGB", (70, 50), "red")
    asked = model.processor(images=[picture], text=[model.text], return_tensors="pt")
    assert (asked["input_ids"] == 4).sum() > 1, "the picture takes the place of its sign"
    torch.manual_seed(3)
    ids = model.model.generate(**asked, max_new_tokens=5)[0, asked["input_ids"].shape[1] :]
    assert len(ids) == 5 and model(picture, 3) == model.processor.tokenizer.decode(ids, True).strip()
    assert PROMPT in load(qwen).text


def test_a_template_that_knows_text_alone(qwen: Path, tmp_path: Path) -> None:
    shutil.copytree(qwen, tmp_path / "plain")
    template = "{% for m in messages %}<vision><|image_pad|><end>{{ m['content'] }}{% endfor %}"
    (tmp_path / "plain" / "chat_template.jinja").write_text(template)
    assert load(tmp_path / "plain", "what now").text == "<vision><|image_pad|><end>what now"


def test_large_photos_are_made_smaller_in_their_proportions() -> None:
    assert describe._shrunk(Image.new("RGB", (4000, 3000))).size == (1182, 886)
    assert describe._shrunk(Image.new("RGB", (1024, 1024))).size == (1024, 1024)
    assert describe._shrunk(Image.new("RGB", (40_000, 32))).size == (36203, 28)


def test_what_is_cut_off_ends_with_a_whole_sentence() -> None:
    assert describe._whole_sentences("A cat. It sits on a so") == "A cat."
    assert describe._whole_sentences("a cat on a so") == "a cat on a so"


def test_every_row_of_the_table_is_what_transformers_loads_by_itself() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as MODELS
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES as PROCESSORS

    kinds = {row.kind for row in CAPTIONERS if row.style == "sentence"}
    assert kinds and kinds <= MODELS.keys() & PROCESSORS.keys()
    page = (ROOT / "docs" / "captions.md").read_text(encoding="utf-8")
    for row in CAPTIONERS:
        link = f"[{row.label}](https://huggingface.co/{row.model})"
        assert f"| `{row.key}` | {link} | {row.gib} GB | {row.licence} |" in page
    assert len({row.key for row in CAPTIONERS}) == len({row.model for row in CAPTIONERS}) == len(CAPTIONERS)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"architectures": ["BlipForQuestionAnswering"]}, "is a BlipForQuestionAnswering, not a captioning"),
        ({"model_type": "bert", "architectures": ["BertModel"]}, "is a BertModel, not a captioning model"),
        ({"model_type": "own", "auto_map": {"AutoModel": "own.Own"}}, "wants code of its own to be run"),
        ({"model_type": "own", "architectures": None}, "is a model of the kind 'own', not a captioning"),
    ],
)
def test_what_is_no_captioner_is_refused(
    blip: Path, tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(json.loads((blip / "config.json").read_text()) | change))
    assert sentence in refused(tmp_path)


def test_what_cannot_be_loaded_is_said(blip: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    assert "is no model of transformers (it has no config.json)" in refused(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "is damaged" in refused(tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    assert "makes pictures and does not describe them" in refused(tmp_path)
    assert "is no Hub id (owner/name)" in refused("nowhere")
    assert "is a file" in refused(blip / "model.safetensors")

    other = tmp_path / "other"
    shutil.copytree(blip, other)
    tensors = load_file(other / "model.safetensors")
    save_file({f"old.{name}": tensor for name, tensor in tensors.items()}, other / "model.safetensors")
    assert "do not fit transformers' own model" in refused(other)
    (other / "model.safetensors").write_bytes(b"torn")
    assert "cannot be loaded" in refused(other)
    (other / "model.safetensors").rename(other / "pytorch_model.bin")
    assert "has no .safetensors weights" in refused(other)


def test_of_a_repository_only_what_loading_takes_is_fetched(
    blip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = ["config.json", "vocab.txt", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    others = ["pytorch_model.bin", "modeling.py", "README.md", "onnx/model.onnx", "model.fp16.safetensors"]

    def fetch(model: str, *, choose: Any, **_: Any) -> Path:
        wanted = choose(blip, dict.fromkeys([*files, *others], 1))
        assert (model, sorted(wanted)) == ("Salesforce/blip-image-captioning-large", sorted(files))
        with pytest.raises(RunError, match="BLIP large has no "):
            choose(blip, dict.fromkeys(others, 1))
        return blip

    monkeypatch.setattr(pretrained, "fetch", fetch)
    assert load("blip-large").name == "BLIP large"


def test_too_little_memory_is_said(blip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(blip)

    def fails(error: Exception) -> str:
        def generate(**_: Any) -> None:
            raise error

        monkeypatch.setattr(model.model, "generate", generate)
        with pytest.raises(RuntimeError if error.args == ("else",) else RunError) as raised:
            model(Image.new("RGB", (64, 64)), 0)
        return f"{getattr(raised.value, 'cause', '')}: {raised.value}"

    assert fails(torch.OutOfMemoryError("CUDA out of memory")).startswith("gpu_oom: The GPU has too little")
    assert fails(RuntimeError("not enough memory: you tried to allocate")).startswith(
        "host_oom: The computer"
    )
    assert fails(RuntimeError("else")) == ": else"
