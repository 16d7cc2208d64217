"""SD 1.5 and 2.x: which is which, and the names of their files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from tests.tiny_families import full_size
from tests.tiny_families import sd15 as tiny
from trainer.families import ldm_single_file as single_file
from trainer.families.identify import kind_of_file, read_header
from trainer.families.sd15 import Family
from trainer.source import BaseModel, resolve

from . import original_layout as layout

CPU = torch.device("cpu")


def family_of(base: BaseModel) -> Family:
    return Family(base, CPU, torch.float32)


@pytest.fixture(scope="module", params=[False, True], ids=["1.5", "2.1"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("sd") / "base", second=request.param, layers=2)


def test_the_base_says_which_it_is(base: Path) -> None:
    family = family_of(resolve("sd15", str(base)))
    second = family.noise.prediction == "v_prediction"
    assert family.clip_names == {"text_encoder": "clip_h" if second else "clip_l"}
    metadata = family.metadata()
    assert metadata["ss_v2"] == str(second)
    assert metadata["ss_base_model_version"] == ("sd_v2" if second else "sd_v1")
    assert metadata.get("ss_v_parameterization") == ("True" if second else None)


def test_a_single_file_gives_every_part(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2.x too, whose published file has one text layer more than is used."""
    tensors = layout.tensors_of(base)
    second = layout.CLIP_2 + "ln_final.weight" in tensors
    if second:
        block = layout.CLIP_2 + "transformer.resblocks."
        more = {n.replace(".1.", ".2."): t for n, t in tensors.items() if n.startswith(f"{block}1.")}
        tensors |= {name: tensor + 1 for name, tensor in more.items()}
    file = tmp_path / "dreamy.safetensors"
    save_file(tensors, file)
    kind = kind_of_file(read_header(file))
    assert (kind.family, kind.reference) == ("sd15", tiny.SD21 if second else "")
    monkeypatch.setattr("trainer.source.fetch_pipeline", lambda repo, **options: base)
    folder, single = family_of(resolve("sd15", str(base))), family_of(resolve("sd15", str(file)))
    assert single.noise.prediction == folder.noise.prediction
    for part, cls in (
        ("unet", Family.denoiser_class),
        ("vae", AutoencoderKL),
        ("text_encoder", CLIPTextModel),
    ):
        one, two = folder.load_part(cls, part).state_dict(), single.load_part(cls, part).state_dict()
        assert set(one) == set(two)
        assert all(torch.equal(tensor, two[name]) for name, tensor in one.items()), part


def test_what_a_file_says_of_its_prediction(tmp_path: Path) -> None:
    for said, expected in (("epsilon", "epsilon"), ("v", "v_prediction")):
        file = layout.write_names(
            tmp_path / f"{said}.safetensors", ["x"], {"modelspec.prediction_type": said}
        )
        assert single_file.schedule(read_header(file)) == {"prediction_type": expected}


@pytest.mark.parametrize("second", [False, True], ids=["1.5", "2.1"])
def test_every_tensor_of_the_published_models_has_its_place(second: bool) -> None:
    """v1-5-pruned holds 686 + 248 + 197 tensors of these parts, v2-1_768 686 + 248 and open_clip's."""
    full: torch.nn.Module = full_size("sd15")[tiny.SD21 if second else tiny.SD15]
    assert isinstance(full, UNet2DConditionModel)
    shapes = layout.unet_shapes((320, 640, 1280, 1280), 2, (1, 1, 1, 0), 1024 if second else 768, 0, second)
    assert len(shapes) == 686
    which = single_file.SD2 if second else single_file.SD1
    places = single_file.originals("unet", full, which)
    assert {name: place.name for name, place in places.items()} == {
        diffusers: original for original, diffusers in layout.unet_names(shapes, 2).items()
    }
    for name, parameter in full.state_dict().items():
        assert shapes[places[name].name] == tuple(parameter.shape), name
    width, layers, heads = (1024, 23, 16) if second else (768, 12, 12)
    with torch.device("meta"):
        clip = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
            )
        )
    text = (layout.clip_g_shapes if second else layout.clip_l_shapes)(width, layers + second, 49408)
    used = {place.name for place in single_file.originals("text_encoder", clip, which).values()}
    left = {name for name in text if name not in used and "resblocks.23." not in name}
    assert used < set(text)
    assert left == ({"text_projection", "logit_scale"} if second else {"text_model.embeddings.position_ids"})


def test_kohyas_names(base: Path) -> None:
    family = family_of(resolve("sd15", str(base)))
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    assert family.kohya_name("unet", layer) == (
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    )
    for module in ("encoder.layers.0.self_attn.q_proj", "text_model.encoder.layers.0.self_attn.q_proj"):
        assert family.kohya_name("text_encoder", module) == (
            "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
        )
    assert family.native(layer).name == "input_blocks.4.1.transformer_blocks.0.attn1.to_q"
