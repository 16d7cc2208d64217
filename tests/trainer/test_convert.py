"""``python -m trainer export FILE.safetensors``: a LoRA's file in other names, without its base model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from tests.tiny_families import KEYS
from trainer.__main__ import main
from trainer.adapters import LoraWeights, OftWeights, adaptable
from trainer.contract.headers import read_header
from trainer.export import FORMATS, Format, format_metadata, lycoris_name, tensors_in
from trainer.families.base import ModelFamily, family_class
from trainer.families.pipeline_family import PipelineFamily
from trainer.lora_metadata import file_of

Convert = Callable[..., Path]


@pytest.fixture(autouse=True, scope="module")
def denoisers_once() -> Iterator[None]:
    """The published denoisers on the meta device, which nothing changes, are built once."""
    built = PipelineFamily.without_weights.__func__  # type: ignore[attr-defined]
    made: dict[str, torch.nn.Module] = {}

    def once(cls: Any, config: Any) -> torch.nn.Module:
        name = f"{cls} {config}"
        if name not in made:
            made[name] = built(cls, config)
        return made[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PipelineFamily, "without_weights", classmethod(once))
        yield


@pytest.fixture
def convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Convert:
    """The command; returns the file that it wrote."""

    def run(file: Path, format: str, *options: str) -> Path:
        out = tmp_path / f"{file.stem}.{format}.safetensors"
        assert main(["export", str(file), "--format", format, "--out", str(out), *options]) == 0
        assert capsys.readouterr().out.strip() == str(out)
        return out

    return run


def published(key: str, base: int = 0) -> tuple[ModelFamily, dict[str, tuple[int, ...]]]:
    """A family at its published size, and the shapes of those modules of its first and last blocks that get
    a LoRA."""
    cls = family_class(key)
    denoiser = cls.without_weights(list(cls.published.values())[base])
    family: ModelFamily = cls.for_names(denoiser.config)
    shapes = {
        f"{family.denoiser_part}.{name}": tuple(denoiser.get_parameter(f"{name}.weight").shape)
        for name in adaptable(denoiser)
        if re.fullmatch(cls.targets["transformer+conv"], name)
    }
    blocks: dict[str, list[str]] = {}
    for name in shapes:
        blocks.setdefault(re.split(r"\.\d+\.", name)[0], []).append(name)
    some = {name for names in blocks.values() for name in (*names[:8], *names[-8:])}
    return family, {name: shape for name, shape in shapes.items() if name in some}


def loras(shapes: dict[str, tuple[int, ...]], alpha: float = 3.0) -> dict[str, LoraWeights]:
    """Of ranks 2 and 3, so that alpha / rank is 1.5, which halves round, and 1."""
    torch.manual_seed(0)
    found = {}
    for number, (name, (out, into, *kernel)) in enumerate(shapes.items()):
        rank = 2 + number % 2
        down = torch.randn(rank, into, *kernel).half().float()
        up = torch.randn(out, rank, *[1] * len(kernel)).half().float()
        found[name] = LoraWeights(down, up, alpha)
    return found


def written(
    path: Path, weights: dict[str, LoraWeights], family: ModelFamily, format: Format, **metadata: str
) -> Path:
    """A file as a run writes it, in halves where that is exact."""
    tensors = {}
    for key, tensor in tensors_in(format, weights, family).items():
        half = tensor.half()
        tensors[key] = half if tensor.ndim and torch.equal(half.float(), tensor) else tensor
    about = {**family.metadata(), **format_metadata(format, weights, family), **metadata}
    path.write_bytes(file_of(tensors, about))
    return path


def same(one: Path, other: Path) -> None:
    first, second = load_file(one), load_file(other)
    assert set(first) == set(second)
    for key, tensor in first.items():
        assert tensor.dtype == second[key].dtype and torch.equal(tensor, second[key]), key


@pytest.mark.parametrize("key", KEYS)
def test_there_and_back_is_the_same_file(key: str, convert: Convert, tmp_path: Path) -> None:
    """Of every family, at its published size: each format from each, tensor by tensor."""
    family, shapes = published(key)
    weights = loras(shapes)
    files = {
        format: written(tmp_path / f"{format}.safetensors", weights, family, format) for format in FORMATS
    }
    for around in (FORMATS, FORMATS[::-1]):
        for one, other in zip(around, (*around[1:], around[0]), strict=True):
            same(convert(files[one], other), files[other])


def keys(stem: str, down: Tensor, up: Tensor, alpha: float) -> dict[str, Tensor]:
    return {
        f"{stem}.lora_down.weight": down,
        f"{stem}.lora_up.weight": up,
        f"{stem}.alpha": torch.tensor(alpha, dtype=down.dtype),
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_fused_layer_that_was_trained_whole(dtype: torch.dtype, convert: Convert, tmp_path: Path) -> None:
    """Kohya's: one matrix down for q, k, v and the MLP. Taken apart for diffusers, and put together to the
    same rank, in the same number format."""
    torch.manual_seed(1)
    tensors = {
        **keys(
            "lora_unet_single_blocks_37_linear1",
            torch.randn(4, 3072).to(dtype),
            torch.randn(21504, 4).to(dtype),
            1.0,
        ),
        **keys(
            "lora_unet_double_blocks_0_txt_attn_qkv",
            torch.randn(3, 3072).to(dtype),
            torch.randn(9216, 3).to(dtype),
            1.0,
        ),
    }
    file = tmp_path / "kohyas.safetensors"
    save_file(tensors, file, {"ss_base_model_version": "flux1"})
    apart = load_file(convert(file, "diffusers"))
    assert len(apart) == 2 * (4 + 3)
    for name, first, last in (("attn.to_k", 3072, 6144), ("proj_mlp", 9216, 21504)):
        stem = f"transformer.single_transformer_blocks.37.{name}"
        up = tensors["lora_unet_single_blocks_37_linear1.lora_up.weight"][first:last]
        assert torch.equal(apart[f"{stem}.lora_B.weight"].float(), up.float() / 4)
        assert apart[f"{stem}.lora_A.weight"].dtype == dtype
    for format in ("diffusers", "comfyui"):
        back = load_file(convert(convert(file, format), "kohya"))
        assert set(back) == set(tensors)
        for key, tensor in tensors.items():
            # A third, in 32 bits, is rounded like any product of such numbers.
            off = 1e-6 if dtype == torch.float32 else 0.0
            assert torch.allclose(back[key].to(tensor.dtype), tensor, rtol=off, atol=0), key
            assert back[key].dtype == dtype or key.endswith(".alpha")


def test_a_layer_of_which_two_modules_were_trained(convert: Convert, tmp_path: Path) -> None:
    """Zeros are no module."""
    family, shapes = published("flux")
    chosen = {name: shape for name, shape in shapes.items() if re.search(r"s\.0\.attn\.to_[qv]$", name)}
    assert len(chosen) == 4
    weights = loras(chosen)
    apart = convert(written(tmp_path / "x.safetensors", weights, family, "kohya"), "diffusers")
    same(apart, written(tmp_path / "y.safetensors", weights, family, "diffusers"))


def test_the_last_modulation_has_its_halves_swapped(convert: Convert, tmp_path: Path) -> None:
    """(shift, scale) in the original code, (scale, shift) in diffusers: of FLUX.1 and SD 3.5."""
    for key, module, native in (
        ("flux", "norm_out.linear", "final_layer.adaLN_modulation.1"),
        ("sd3", "norm_out.linear", "final_layer.adaLN_modulation.1"),
        (
            "sd3",
            "transformer_blocks.23.norm1_context.linear",
            "joint_blocks.23.context_block.adaLN_modulation.1",
        ),
    ):
        cls = family_class(key)
        denoiser = cls.without_weights(next(iter(cls.published.values())))
        family: ModelFamily = cls.for_names(denoiser.config)
        shape = tuple(denoiser.get_parameter(f"{module}.weight").shape)
        name = f"transformer.{module}"
        known = next(one for one in published(key)[1] if one.endswith("attn.to_out.0"))
        weights = loras({name: shape, known: (shape[1], shape[1])}, 2.0)
        file = written(tmp_path / f"{key}.safetensors", weights, family, "diffusers")
        made = convert(file, "comfyui")
        up = load_file(made)[f"diffusion_model.{native}.lora_B.weight"].float()
        assert torch.equal(up, torch.cat(weights[name].up.chunk(2)[::-1])), key
        same(convert(made, "diffusers"), file)
        # What is no LoRA keeps diffusers' name and its rows.
        oft = OftWeights(torch.ones(shape[0] // 4, 4, 4))
        assert lycoris_name(name) + ".oft_blocks" in tensors_in("kohya", {name: oft}, family)


def test_files_whose_modules_lie_in_another_order(convert: Convert, tmp_path: Path) -> None:
    """Side by side by the alphabet, as files were before: each module still gets its own ranks."""
    family, shapes = published("flux")
    three = {name: shapes[name] for name in shapes if re.search(r"er_blocks\.0\.attn\.add_[qkv]", name)}
    weights, file = loras(three, 2.0), tmp_path / "x.safetensors"
    order = sorted(weights)
    rank = sum(lora.rank for lora in weights.values())
    up, column = torch.zeros(9216, rank), 0
    for name in order:
        rows = family.native(name.removeprefix("transformer.")).rows
        assert rows
        up[slice(*rows), column : column + weights[name].rank] = weights[name].up * weights[name].scale
        column += weights[name].rank
    stem = "lora_unet_double_blocks_0_txt_attn_qkv"
    down = torch.cat([weights[name].down for name in order])
    save_file(keys(stem, down, up, float(rank)), file, {"ss_base_model_version": "flux1"})
    apart = load_file(convert(file, "diffusers"))
    for name, lora in weights.items():
        assert torch.equal(apart[f"{name}.lora_A.weight"], lora.down)
        assert torch.equal(apart[f"{name}.lora_B.weight"], lora.up * lora.scale)


def test_hunyuanimages_two_spellings(convert: Convert, tmp_path: Path) -> None:
    """Kohya's scripts have Tencent's names, which ComfyUI has exchanged; ours are ComfyUI's."""
    file = tmp_path / "x.safetensors"
    sides = (torch.ones(2, 3584), torch.ones(14336, 2), 2.0)
    said = {"ss_base_model_version": "hunyuan_image_2.1"}
    save_file(keys("lora_unet_double_blocks_0_img_mlp_fc1", *sides), file, said)
    assert set(load_file(convert(file, "kohya"))) == set(keys("lora_unet_double_blocks_0_img_mlp_0", *sides))
    assert "diffusion_model.double_blocks.0.img_mlp.0.alpha" in load_file(convert(file, "comfyui"))


def test_text_encoders_and_what_is_said(convert: Convert, tmp_path: Path) -> None:
    """The keys of both encoders; trigger and architecture stay, folders and people's names do not."""
    family, shapes = published("sdxl")
    text = {
        f"{part}.text_model.encoder.layers.{layer}.{module}": (width, width)
        for part, layer, module, width in (
            ("text_encoder", 11, "self_attn.q_proj", 768),
            ("text_encoder_2", 31, "mlp.fc1", 1280),
        )
    }
    said = {
        "modelspec.trigger_phrase": "zwx dog",
        "modelspec.author": "Somebody",
        "ss_sd_model_name": "/home/somebody/models/dreamy.safetensors",
        "ss_dataset_dirs": '{"/home/somebody/photos": {}}',
        "ss_network_args": '{"conv_dim": "4", "preset": "C:\\\\Users\\\\somebody\\\\x.toml"}',
        "ss_tag_frequency": '{"somebody": {"zwx": 3}}',
        "ss_output_name": "dog",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
    }
    weights = loras({**dict(list(shapes.items())[:5]), **text})
    file = written(tmp_path / "x.safetensors", weights, family, "kohya", **said)
    for format, stem in (
        ("comfyui", "text_encoders.clip_g.transformer.text_model.encoder.layers.31.mlp.fc1"),
        ("diffusers", "text_encoder_2.text_model.encoder.layers.31.mlp.fc1"),
    ):
        made = convert(file, format)
        assert f"{stem}.lora_B.weight" in load_file(made)
        same(convert(made, "kohya"), file)
        with safe_open(made, "pt") as opened:
            metadata = opened.metadata()
        assert metadata["modelspec.trigger_phrase"] == "zwx dog" and metadata["ss_output_name"] == "dog"
        assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
        assert metadata["ss_sd_model_name"] == "dreamy.safetensors"
        assert metadata["modelspec.implementation"] == said["modelspec.implementation"]
        assert "omebody" not in str(metadata)


def test_kohyas_flux_with_clip(convert: Convert, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    clip = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    denoiser = keys("lora_unet_double_blocks_0_img_mlp_0", torch.ones(2, 3072), torch.ones(12288, 2), 2.0)
    save_file({**denoiser, **keys(clip, torch.ones(2, 768), torch.ones(3072, 2), 1.0)}, file)
    made = convert(file, "diffusers")
    assert "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight" in load_file(made)
    same(convert(made, "kohya"), file)


def test_of_several_sizes_the_one_that_fits(convert: Convert, tmp_path: Path) -> None:
    """Keys alone, and rows that are counted by the width: klein 9B and SD 3.5 Large, the second of theirs."""
    for key in ("flux2", "sd3"):
        family, shapes = published(key, 1)
        weights = loras(shapes, 2.0)
        file = written(tmp_path / f"{key}.safetensors", weights, family, "comfyui")
        save_file(load_file(file), file)  # without metadata
        made = convert(file, "diffusers")
        back = load_file(made)
        name = next(name for name in shapes if name.endswith("attn.to_v"))
        assert torch.equal(back[f"{name}.lora_A.weight"].float(), weights[name].down)
        with safe_open(made, "pt") as opened:
            version = opened.metadata()["ss_base_model_version"]
        assert version == family.metadata()["ss_base_model_version"]


def test_peft_keys_and_an_alpha_in_the_metadata(convert: Convert, tmp_path: Path) -> None:
    """What peft itself saves, and what diffusers writes: the alpha comes along."""
    module = "down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q"
    sides = {"lora_A": torch.randn(4, 640), "lora_B": torch.randn(640, 4)}
    for prefix, metadata, alpha in (
        ("base_model.model.", {}, 4.0),
        ("unet.", {"lora_adapter_metadata": '{"unet.lora_alpha": 2, "unet.r": 4}'}, 2.0),
    ):
        file = tmp_path / "x.safetensors"
        save_file(
            {f"{prefix}{module}.{side}.weight": tensor for side, tensor in sides.items()}, file, metadata
        )
        made = load_file(convert(file, "kohya"))
        stem = "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q"
        assert torch.equal(made[f"{stem}.lora_up.weight"], sides["lora_B"])
        assert float(made[f"{stem}.alpha"]) == alpha


KIND_KEYS: dict[str, dict[str, Tensor]] = {
    "a LoHa": {
        "hada_w1_a": torch.ones(9216, 2),
        "hada_w1_b": torch.ones(2, 3072),
        "hada_w2_a": torch.ones(9216, 2),
        "hada_w2_b": torch.ones(2, 3072),
    },
    "a LoKr": {
        "lokr_w1": torch.ones(4, 4),
        "lokr_w2_a": torch.ones(2304, 2),
        "lokr_w2_b": torch.ones(2, 768),
    },
    "an OFT": {"oft_blocks": torch.ones(2304, 4, 4)},
    "a DoRA": {
        "lora_down.weight": torch.ones(2, 3072),
        "lora_up.weight": torch.ones(9216, 2),
        "dora_scale": torch.ones(9216, 1),
    },
}


@pytest.mark.parametrize("kind", KIND_KEYS)
def test_other_kinds_keep_their_tensors(
    kind: str, convert: Convert, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between kohya's and ComfyUI's names, fused layers as they are; diffusers is told no."""
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    file = tmp_path / "x.safetensors"
    rows = {**KIND_KEYS[kind], "alpha": torch.tensor(1.0)}
    save_file({f"{stem}.{ending}": t for ending, t in rows.items()}, file, {"ss_base_model_version": "flux1"})
    made = convert(file, "comfyui")
    beginning = "diffusion_model.double_blocks.0.img_attn.qkv."
    assert all(key.startswith(beginning) for key in load_file(made))
    assert len(load_file(made)) == len(rows)
    same(convert(made, "kohya"), file)
    assert main(["export", str(file)]) == 0  # beside it, by default
    same(tmp_path / "x-kohya.safetensors", file)
    assert main(["export", str(file), "--format", "diffusers"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"diffusers reads plain LoRAs, and this is {kind}" in said
    assert not (tmp_path / "x-diffusers.safetensors").exists()


def test_what_cannot_be_converted_is_said_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.safetensors"

    def said(*options: str) -> str:
        assert main(["export", str(file), "--format", "comfyui", *options]) in (1, 2)
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        assert [path.name for path in tmp_path.iterdir() if path != file] == []
        return error

    assert "does not exist" in said()
    save_file({"model.layer.weight": torch.ones(2)}, file)
    assert "x.safetensors is no LoRA; choose" in said()
    save_file(keys("lora_unet_unheard_of", torch.ones(1, 2), torch.ones(2, 1), 1.0), file)
    assert "for no family that is known here" in said()
    flux = keys("lora_unet_double_blocks_0_img_attn_qkv", torch.ones(1, 8), torch.ones(24, 1), 1.0)
    save_file(flux, file, {"ss_base_model_version": "flux1"})
    assert "FLUX.1, but is of another size" in said()
    flux = keys("lora_unet_double_blocks_0_img_attn_qkv", torch.ones(1, 3072), torch.ones(9216, 1), 1.0)
    save_file({**flux, "lora_unet_double_blocks_99_img_attn_qkv.alpha": torch.ones(1)}, file)
    assert "has 1 modules that FLUX.1 has not (such as lora_unet_double_blocks_99_img_attn_qkv)" in said()
    save_file({**flux, "lora_unet_double_blocks_0_img_attn_qkv.lora_mid.weight": torch.ones(1)}, file)
    assert "has 1 tensors of no plain LoRA" in said()
    save_file(flux, file)
    assert "is the file itself" in said("--out", str(file))
    assert "has to end in .safetensors" in said("--out", str(tmp_path / "x.ckpt"))
    assert "--rank is for runs" in said("--rank", "2")
    assert main(["export", str(file), "--format", "kohya-toml"]) == 2
    assert "holds no recipe" in capsys.readouterr().err
    save_file(
        keys("lora_unet_double_blocks_0_img_mlp_0", torch.ones(2, 3072), torch.ones(12288, 3), 1.0), file
    )
    assert "do not fit together" in said()
    file.write_bytes(file.read_bytes()[:-9])
    assert "is incomplete" in said()


def test_the_hashes_are_kohyas(convert: Convert, tmp_path: Path) -> None:
    """Of everything behind the header, and of 64 KiB from 1 MiB on in a file with ``ss_`` metadata alone."""
    family, shapes = published("sdxl")
    made = convert(written(tmp_path / "x.safetensors", loras(shapes), family, "kohya"), "comfyui")
    data, header = made.read_bytes(), read_header(made)
    body = data[8 + int.from_bytes(data[:8], "little") :]
    assert header.metadata["sshs_model_hash"] == hashlib.sha256(body).hexdigest()
    assert header.metadata["modelspec.hash_sha256"] == "0x" + header.metadata["sshs_model_hash"]
    ss: dict[str, Any] = {key: text for key, text in header.metadata.items() if key.startswith("ss_")}
    alone = save(load_file(made), ss)
    assert len(alone) > 0x110000
    assert header.metadata["sshs_legacy_hash"] == hashlib.sha256(alone[0x100000:0x110000]).hexdigest()[:8]
