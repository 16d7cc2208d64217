"""Checkpoints in one file: the same numbers as from a folder, every published tensor, and refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.tiny import tiny_qwen_vae, tiny_vae
from trainer import source
from trainer.contract.errors import RunError
from trainer.contract.events import read_events
from trainer.contract.runs import RunFolder
from trainer.families.base import Geometry
from trainer.families.identify import kind_of_file, kind_of_pipeline, read_header
from trainer.families.ldm_single_file import SDXL, originals
from trainer.families.sdxl import Family
from trainer.source import BaseModel, fingerprint, resolve

from . import original_layout as layout
from .helpers import recipe, train_here

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def tiny_base(deeper_base: Path) -> Path:
    """One that has every layer that a file of SDXL's names."""
    return deeper_base


@pytest.fixture(scope="module")
def checkpoint(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("single") / "dreamy_v2.safetensors"
    save_file(layout.tensors_of(tiny_base), file)
    return file


@pytest.fixture(autouse=True)
def reference(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The family's reference model, whose configuration a single file goes with, is the tiny one."""
    monkeypatch.setattr(source, "fetch_pipeline", lambda repo, **options: tiny_base)


def family_of(base: BaseModel, dtype: torch.dtype = torch.float32) -> Family:
    return Family(base, CPU, dtype)


def outputs(family: Family) -> list[torch.Tensor]:
    """What a family says about one picture: latents, text embeddings, prediction."""
    generator = torch.Generator().manual_seed(5)
    pixels = torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1
    embeds = family.encode_captions(["zwx on a hill, far"])[0]
    latents = family.encode_images(pixels)
    with torch.no_grad():
        prediction = family.predict(
            family.load_denoiser(), latents, torch.tensor([0.4]), [embeds], [Geometry.whole(64, 64)]
        )
    return [latents, embeds["prompt"], embeds["pooled"], prediction.float()]


def assert_close(left: list[torch.Tensor], right: list[torch.Tensor]) -> None:
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_a_single_file_gives_the_folders_numbers(tiny_base: Path, checkpoint: Path) -> None:
    base = resolve("sdxl", str(checkpoint))
    assert base.single_file and base.name == "dreamy_v2"
    family = family_of(base)
    assert_close(outputs(family), outputs(family_of(resolve("sdxl", str(tiny_base)))))
    assert family.pipeline(family.load_denoiser()).vae.config.scaling_factor == 0.18215


def test_a_half_precision_file_is_upcast(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "pruned-fp16.safetensors"
    half = {n: t.half() if t.is_floating_point() else t for n, t in load_file(checkpoint).items()}
    save_file(half, file)
    family = family_of(resolve("sdxl", str(file)))
    assert {p.dtype for p in family.load_denoiser().parameters()} == {torch.float32}
    for a, b in zip(outputs(family), outputs(family_of(resolve("sdxl", str(checkpoint)))), strict=True):
        torch.testing.assert_close(a, b, atol=0.02, rtol=0.02)


def test_two_steps_from_a_single_file(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    config = recipe(checkpoint, photos, train={"steps": 2}, samples={"prompts": ["zwx"], "steps": 1})
    run.create(config)
    assert train_here(run)
    losses = [e["loss"] for e in read_events(run.events)[0] if e["kind"] == "step"]
    assert len(losses) == 2 and run.sample(2, 0).exists()
    assert any(key.endswith("lora_up.weight") for key in load_file(run.result(config)))


# Every tensor of the published model --------------------------------------------------------------


def full_size() -> dict[str, tuple[torch.nn.Module, layout.Shapes]]:
    """The parts of SDXL 1.0 without weights, and their original names and shapes."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
        )
        clip_l = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
            )
        )
        clip_g = CLIPTextModelWithProjection(
            CLIPTextConfig(
                hidden_size=1280,
                intermediate_size=5120,
                num_hidden_layers=32,
                num_attention_heads=20,
                projection_dim=1280,
            )
        )
    return {
        "unet": (unet, layout.unet_shapes((320, 640, 1280), 2, (0, 2, 10), 2048, 2816)),
        "vae": (vae, layout.vae_shapes((128, 256, 512, 512), 2)),
        "text_encoder": (clip_l, layout.clip_l_shapes(768, 12, 49408)),
        "text_encoder_2": (clip_g, layout.clip_g_shapes(1280, 32, 49408)),
    }


def test_every_tensor_of_the_published_model_has_its_place() -> None:
    parts = full_size()
    # sd_xl_base_1.0.safetensors holds 2515 tensors.
    assert [len(shapes) for _, shapes in parts.values()] == [1680, 248, 197, 390]
    for part, (model, shapes) in parts.items():
        wanted = originals(part, model, SDXL)
        consumed: dict[str, int] = {}
        for name, parameter in model.state_dict().items():
            original = wanted[name]
            shape = shapes[original.name]
            if original.third is not None:
                shape = (shape[0] // 3, *shape[1:])
            if original.transposed:
                shape = shape[::-1]
            consumed[original.name] = consumed.get(original.name, 0) + 1
            if part == "vae" and ".attentions." in name and len(shape) == 4:
                shape = shape[:2]  # 1x1 convolutions became linear layers
            assert shape == tuple(parameter.shape), name
        left = set(shapes) - set(consumed)
        assert left == {
            "text_encoder": {"text_model.embeddings.position_ids"},
            "text_encoder_2": {"logit_scale"},
        }.get(part, set())
        fused = [name for name, times in consumed.items() if times != 1]
        assert fused == [name for name in shapes if ".in_proj_" in name]
    unet, shapes = parts["unet"]
    assert sum(p.numel() for p in unet.parameters()) == 2_567_463_684
    assert {n: o.name for n, o in originals("unet", unet, SDXL).items()} == {
        diffusers: original for original, diffusers in layout.unet_names(shapes, 2).items()
    }
    vae, shapes = parts["vae"]
    assert {n: o.name for n, o in originals("vae", vae, SDXL).items()} == {
        diffusers: original for original, diffusers in layout.vae_names(shapes, 4).items()
    }


# Refusals -----------------------------------------------------------------------------------------

_OTHERS = {
    "an SD 1.5 checkpoint": [
        "model.diffusion_model.input_blocks.1.1.proj_in.weight",
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
    ],
    "an SD 2.x checkpoint": [
        "model.diffusion_model.input_blocks.1.1.proj_in.weight",
        "cond_stage_model.model.positional_embedding",
    ],
    "an SDXL refiner checkpoint": [
        "model.diffusion_model.label_emb.0.0.weight",
        "model.diffusion_model.input_blocks.4.1.norm.weight",
        "model.diffusion_model.input_blocks.9.0.op.weight",
        "conditioner.embedders.0.model.ln_final.weight",
    ],
    "a FLUX.1 checkpoint": ["double_blocks.0.img_attn.qkv.weight", "img_in.weight"],
    "a FLUX.2 checkpoint": ["double_blocks.0.img_attn.qkv.weight", "double_stream_modulation_img.lin.weight"],
    "a Chroma checkpoint": [
        "model.diffusion_model.double_blocks.0.img_attn.qkv.weight",
        "model.diffusion_model.img_in.weight",
        "model.diffusion_model.distilled_guidance_layer.in_proj.weight",
    ],
    "an SD 3 checkpoint": ["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"],
    "a LoRA": ["lora_unet_input_blocks_4_1_proj_in.lora_down.weight", "lora_unet_x.alpha"],
    "a ControlNet": ["control_model.input_blocks.0.0.weight"],
    "a VAE": ["first_stage_model.encoder.conv_in.weight"],
    "a textual inversion": ["clip_g", "clip_l"],
    "one part of a diffusers folder (name the folder instead)": ["down_blocks.0.resnets.0.conv1.weight"],
    "no checkpoint of a known architecture": ["layers.0.weight"],
}


@pytest.mark.parametrize("phrase", _OTHERS)
def test_another_architecture_is_refused_by_its_header(phrase: str, tmp_path: Path) -> None:
    file = layout.write_names(tmp_path / "other.safetensors", _OTHERS[phrase])
    kind = kind_of_file(read_header(file))
    assert kind.phrase == phrase
    remedy = f"set model.family to {kind.family}" if kind.family else "choose another base model"
    with pytest.raises(RunError) as caught:
        resolve("sdxl", str(file))
    assert str(caught.value) == (
        f"other.safetensors is {phrase}, the recipe says Stable Diffusion XL; {remedy}"
    )
    assert caught.value.cause == "model_missing"


@pytest.mark.parametrize(
    "ending",
    (
        *("lora_A.weight", "lora_A.default.weight", "lora_down.weight", "lora.down.weight", "hada_w1_a"),
        *("lokr_w1", "lokr_w1_a", "oft_blocks", "oft_diag", "dora_scale", "diff"),
        "lora_linear_layer.down.weight",
    ),
)
def test_no_adapter_passes_for_a_base(ending: str, tmp_path: Path) -> None:
    """Under the names of the original code too, which are those that tell a base."""
    stems = ["joint_blocks.0.x_block.attn.qkv", "double_blocks.0.img_attn.qkv", "img_in", "label_emb.0.0"]
    stems += ["input_blocks.4.1.proj_in", "input_blocks.1.1.proj_in", "txt_norm", "layers.0.attention.qkv"]
    names = [f"diffusion_model.{stem}.{ending}" for stem in stems]
    file = layout.write_names(tmp_path / "lora.safetensors", names)
    assert kind_of_file(read_header(file)).phrase == "a LoRA"


def test_a_folder_of_another_pipeline_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(RunError, match=r"is a FLUX\.1 model, the recipe says Stable Diffusion XL"):
        resolve("sdxl", str(tmp_path))
    assert kind_of_pipeline("StableDiffusionXLInpaintPipeline").family == "sdxl"
    assert kind_of_pipeline("StableDiffusion3Pipeline").family == "sd3"
    assert kind_of_pipeline("StableDiffusionPipeline").family == "sd15"


def test_damaged_files(checkpoint: Path, tmp_path: Path) -> None:
    whole = checkpoint.read_bytes()
    cases = {
        b"": "is empty; download it again",
        b"<!DOCTYPE html><title>Not found</title>": "is not a safetensors file, or only the beginning",
        whole[:5000]: "is not a safetensors file, or only the beginning",
        whole[:-100]: "is incomplete: ",
        (2).to_bytes(8, "little") + b"[]": "is not a safetensors file",
    }
    for content, sentence in cases.items():
        file = tmp_path / "cut.safetensors"
        file.write_bytes(content)
        with pytest.raises(RunError, match=rf"^cut\.safetensors {sentence}") as caught:
            resolve("sdxl", str(file))
        assert caught.value.cause == "model_missing"
    (tmp_path / "old.ckpt").write_bytes(b"PK")
    with pytest.raises(RunError, match=r"old\.ckpt is not a \.safetensors file"):
        resolve("sdxl", str(tmp_path / "old.ckpt"))


def test_a_damaged_or_pickled_folder(tiny_base: Path, tmp_path: Path) -> None:
    for path in tiny_base.rglob("*"):
        if path.is_file():
            target = tmp_path / "base" / path.relative_to(tiny_base)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    weights = tmp_path / "base" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(RunError, match=r"diffusion_pytorch_model\.safetensors is incomplete"):
        family_of(resolve("sdxl", str(tmp_path / "base")))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(RunError, match=r"base has no \.safetensors weights in unet/"):
        family_of(resolve("sdxl", str(tmp_path / "base")))


def test_incomplete_checkpoints(checkpoint: Path, tmp_path: Path) -> None:
    tensors = load_file(checkpoint)
    file = tmp_path / "part.safetensors"

    def loading(changed: dict[str, torch.Tensor]) -> str:
        save_file(changed, file)
        with pytest.raises(RunError) as caught:
            outputs(family_of(resolve("sdxl", str(file))))
        assert caught.value.cause == "model_missing"
        return str(caught.value)

    no_vae = {n: t for n, t in tensors.items() if not n.startswith(SDXL.prefixes["vae"])}
    assert loading(no_vae) == "part.safetensors holds no VAE; name one in model.vae"
    only_unet = {n: t for n, t in tensors.items() if n.startswith(SDXL.prefixes["unet"])}
    assert loading(only_unet).endswith("holds no text encoder; take the complete checkpoint")
    middle = SDXL.prefixes["unet"] + "middle_block.0.in_layers.2.weight"
    assert "lacks 1 tensors of the U-Net" in loading({n: t for n, t in tensors.items() if n != middle})
    assert "not (32, 32, 3, 3)" in loading(tensors | {middle: torch.zeros(32, 33, 3, 3)})
    more = {SDXL.prefixes["unet"] + "middle_block.0.extra.weight": torch.zeros(1)}
    assert "1 tensors that SDXL's U-Net does not have" in loading(tensors | more)
    assert "it has model.diffusion_model.middle_block.0.in_layers.2.scale_weight" in loading(
        tensors | {SDXL.prefixes["unet"] + "middle_block.0.in_layers.2.scale_weight": torch.zeros(1)}
    )


def test_no_reference_configuration(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(repo: str, **options: object) -> Path:
        raise RunError(f"{repo} is not on this machine", "model_missing")

    monkeypatch.setattr(source, "fetch_pipeline", unreachable)
    with pytest.raises(
        RunError, match=r"dreamy_v2\.safetensors needs what it does not hold itself .* from sta"
    ):
        resolve("sdxl", str(checkpoint))


def test_v_prediction_is_read_from_the_file(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "noob.safetensors"
    save_file(load_file(checkpoint) | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, file)
    noise = family_of(resolve("sdxl", str(file))).noise
    assert noise.prediction == "v_prediction"
    assert float(noise.alphas_cumprod[-1]) == pytest.approx(0, abs=1e-7)
    assert family_of(resolve("sdxl", str(checkpoint))).noise.prediction == "epsilon"


def test_a_file_that_does_not_say_so_can_be_told(checkpoint: Path) -> None:
    told = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    family = family_of(replace(resolve("sdxl", str(checkpoint)), schedule=told))
    assert family.noise.prediction == "v_prediction" and family.noise.alphas_cumprod[-1] == 0
    assert family.sampler().config.prediction_type == "v_prediction"
    assert family.sampler().config.rescale_betas_zero_snr


# Separate VAE -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_vae(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with another VAE in every form: vae/, flat/, original.safetensors, diffusers.safetensors."""
    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(99)
    vae = AutoencoderKL.from_config(AutoencoderKL.load_config(tiny_base / "vae"))
    vae.save_pretrained(folder / "pipeline" / "vae")
    vae.save_pretrained(folder / "flat")
    save_file(vae.state_dict(), folder / "diffusers.safetensors")
    shapes = layout.vae_shapes(vae.config.block_out_channels, vae.config.layers_per_block)
    state = vae.state_dict()
    original = {
        name: state[diffusers].reshape(shapes[name]).contiguous()
        for name, diffusers in layout.vae_names(shapes, 4).items()
    }
    save_file(original, folder / "original.safetensors")
    save_file(
        {f"{layout.VAE}{name}": tensor for name, tensor in original.items()}, folder / "baked.safetensors"
    )
    return folder


@pytest.mark.parametrize(
    "form", ["pipeline", "flat", "original.safetensors", "diffusers.safetensors", "baked.safetensors"]
)
@pytest.mark.parametrize("single", [False, True])
def test_a_separate_vae(form: str, single: bool, other_vae: Path, tiny_base: Path, checkpoint: Path) -> None:
    base = str(checkpoint if single else tiny_base)
    own, other = (family_of(resolve("sdxl", base, vae=vae)) for vae in ("", str(other_vae / form)))
    pixels = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
    expected = AutoencoderKL.from_pretrained(other_vae / "flat")
    with torch.no_grad():
        latents = expected.encode(pixels).latent_dist.mode() * expected.config.scaling_factor
    torch.testing.assert_close(other.encode_images(pixels), latents, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(own.encode_images(pixels), latents, atol=1e-2)
    assert own.image_encoder_id() != other.image_encoder_id()
    assert own.text_encoder_id() == other.text_encoder_id()


def test_what_is_no_vae(tiny_base: Path, tmp_path: Path) -> None:
    base = str(tiny_base)
    lora = layout.write_names(tmp_path / "x.safetensors", ["lora_unet_a.lora_down.weight"])
    with pytest.raises(RunError, match=r"x\.safetensors is a LoRA, the recipe names it as the VAE"):
        resolve("sdxl", base, vae=str(lora))
    with pytest.raises(RunError, match="holds no VAE"):
        resolve("sdxl", base, vae=str(tmp_path))
    with pytest.raises(RunError, match="the VAE nowhere does not exist"):
        resolve("sdxl", base, vae="nowhere")


@pytest.mark.parametrize("form", ["folder", "file"])
def test_a_vae_of_another_architecture_is_refused_at_opening(
    form: str, tiny_base: Path, tmp_path: Path
) -> None:
    """FLUX.1's for SDXL, by its header; Qwen-Image's by its class."""
    vae = tmp_path / "vae"
    tiny_vae(16).save_pretrained(vae)
    given = vae if form == "folder" else vae / "diffusion_pytorch_model.safetensors"
    with pytest.raises(RunError, match=r"latents of model\.vae have 16 channels, and those of .* have 4;"):
        family_of(resolve("sdxl", str(tiny_base), vae=str(given)))
    if form == "folder":
        tiny_qwen_vae().save_pretrained(tmp_path / "video")
        with pytest.raises(RunError, match=r"model\.vae is an AutoencoderKLQwenImage, and .* has an Auto"):
            family_of(resolve("sdxl", str(tiny_base), vae=str(tmp_path / "video")))
        (vae / "config.json").write_text("{")
        with pytest.raises(RunError, match=r"config\.json of the base model model\.vae is damaged"):
            family_of(resolve("sdxl", str(tiny_base), vae=str(vae)))


def test_checkpoints_that_differ_in_their_vae_alone(checkpoint: Path, tmp_path: Path) -> None:
    tensors = load_file(checkpoint)
    tensors[SDXL.prefixes["vae"] + "decoder.mid.block_1.conv1.weight"] += 1
    renamed, changed = tmp_path / "renamed.safetensors", tmp_path / "changed.safetensors"
    renamed.write_bytes(checkpoint.read_bytes())
    save_file(tensors, changed)
    ids = [family_of(resolve("sdxl", str(f))).image_encoder_id() for f in (checkpoint, renamed, changed)]
    assert ids[0] == ids[1] != ids[2]
    assert fingerprint(checkpoint, prefix=SDXL.prefixes["unet"]) == fingerprint(
        changed, prefix=SDXL.prefixes["unet"]
    )


# Number formats -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("force_upcast", [False, True])
def test_number_formats(
    dtype: torch.dtype, force_upcast: bool, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures are encoded in fp32; the denoiser and the text encoders are in ``dtype``; fp16 decodes in
    fp32 where the VAE asks for it, also inside autocast."""
    family = family_of(resolve("sdxl", str(tiny_base)), dtype)
    exact = family_of(resolve("sdxl", str(tiny_base)))
    pixels = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
    torch.testing.assert_close(family.encode_images(pixels), exact.encode_images(pixels), atol=0, rtol=0)
    assert family.image_encoder_id() == exact.image_encoder_id()
    assert (family.text_encoder_id() == exact.text_encoder_id()) == (dtype == torch.float32)
    embeds = family.encode_captions(["zwx", ""])
    family.free_encoders()
    denoiser = family.load_denoiser()
    assert {p.dtype for p in denoiser.parameters()} == {dtype}

    pipeline = family.pipeline(denoiser)
    pipeline.set_progress_bar_config(disable=True)
    assert isinstance(pipeline, StableDiffusionXLPipeline)
    assert pipeline.vae.dtype == dtype
    pipeline.vae.register_to_config(force_upcast=force_upcast)
    seen: list[torch.dtype] = []
    pipeline.vae.decoder.conv_in.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        image = pipeline(
            **family.pipeline_inputs(*embeds),
            width=64,
            height=64,
            num_inference_steps=1,
            generator=torch.Generator().manual_seed(0),
        ).images[0]
    assert image.size == (64, 64)
    assert seen == [torch.float32 if dtype == torch.float16 and force_upcast else dtype]
    assert family.pipeline(denoiser).vae is pipeline.vae
