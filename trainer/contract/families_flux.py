"""Rows of the catalogue: black-forest-labs' FLUX and what descends from it."""

from __future__ import annotations

from .blocks import listed_blocks
from .family_types import Base, Family, Signature, by_targets

# Names of LoRAs' modules. The original code's are the same for all three, but a single block's last layer
# takes attention and MLP together: FLUX.1's MLPs are four times as wide as the model, FLUX.2's three times.
_ORIGINAL = r"(double|single)_blocks_"
_LINEAR1, _LINEAR2 = r"single_blocks_\d+_linear1$", r"single_blocks_\d+_linear2$"
_FLUX2_SINGLE = r"single_transformer_blocks_\d+_attn_to_(qkv_mlp_proj|out)$"
_MODULATIONS = r".*(_mod_lin|modulation_lin|norm1?_linear|norm1_context_linear)"


def _flux1_loras(phrase: str, *excluded: str) -> tuple[Signature, ...]:
    return (
        Signature(phrase, (r"single_transformer_blocks_",), (_FLUX2_SINGLE, *excluded)),
        Signature(phrase, (_ORIGINAL,), excluded, ratio=(_LINEAR2, _LINEAR1, 5)),
        Signature(phrase, (_ORIGINAL,), (_LINEAR2, *excluded)),
    )


FLUX = Family(
    key="flux",
    label="FLUX.1",
    bases=(
        Base(
            "black-forest-labs/FLUX.1-dev",
            "FLUX.1 dev",
            "flux-1-dev-non-commercial-license",
            1024,
            31.4,
            gated=True,
            guidance=3.5,
            reads_negative=False,
        ),
        Base(
            "black-forest-labs/FLUX.1-schnell",
            "FLUX.1 schnell (four steps)",
            "apache-2.0",
            1024,
            31.4,
            gated=True,
            note="Trained with an assistant LoRA that undoes the distillation.",
            assistant="ostris/FLUX.1-schnell-training-adapter",
            guidance=1.0,
            reads_negative=False,
            params=(11891.2, 4885.4, 83.8),
        ),
    ),
    resolution=1024,
    size_multiple=16,
    token_limit=512,
    params=(11901.4, 4885.4, 83.8),
    caption=(512, 4096),
    lora_params_per_rank=by_targets(1634.3, 5369.9),
    activation_gib=(51.2, 2.54),
    blocks=listed_blocks(transformer_blocks=19, single_transformer_blocks=38),
    pipelines=("FluxPipeline",),
    signatures=(
        Signature(
            "a FLUX.1 checkpoint",
            (r"double_blocks\.0\.img_attn\.qkv", r"guidance_in\."),
            (r"double_stream_modulation_img\.", r"distilled_guidance_layer\."),
        ),
        Signature(
            "a FLUX.1 checkpoint",
            (r"double_blocks\.0\.img_attn\.qkv",),
            (r"double_stream_modulation_img\.", r"distilled_guidance_layer\."),
            reference="black-forest-labs/FLUX.1-schnell",
        ),
    ),
    lora_signatures=_flux1_loras("a FLUX.1 LoRA"),
    architectures=("flux-1", "flux1"),
    known_as=("flux1", "flux.1", "FLUX_DEV_1", "flux_schnell"),
    kohya=("flux_train_network.py", "networks.lora_flux"),
)

CHROMA = Family(
    key="chroma",
    label="Chroma",
    bases=(Base("lodestones/Chroma1-HD", "Chroma1-HD", "apache-2.0", 1024, 25.6, guidance=3.0),),
    resolution=1024,
    size_multiple=16,
    token_limit=512,
    params=(8900.0, 4762.3, 83.8),
    caption=(100, 4096),
    lora_params_per_rank=by_targets(1634.3, 4085.8),
    activation_gib=(43.0, 2.31),
    blocks=listed_blocks(transformer_blocks=19, single_transformer_blocks=38),
    pipelines=("ChromaPipeline",),
    signatures=(
        Signature(
            "a Chroma checkpoint",
            (r"double_blocks\.0\.img_attn\.qkv", r"distilled_guidance_layer\."),
            (r"nerf_",),  # Radiance: in pixels, without a VAE
        ),
    ),
    lora_signatures=_flux1_loras("a Chroma LoRA", _MODULATIONS),
    architectures=("chroma",),
    known_as=("chroma1", "CHROMA_1"),
    kohya=("flux_train_network.py", "networks.lora_flux"),
)

FLUX2 = Family(
    key="flux2",
    label="FLUX.2",
    bases=(
        Base(
            "black-forest-labs/FLUX.2-klein-base-4B",
            "FLUX.2 klein base 4B",
            "apache-2.0",
            1024,
            14.9,
            guidance=4.0,
            note="Its LoRAs work on the four-step klein 4B too.",
        ),
        Base(
            "black-forest-labs/FLUX.2-klein-base-9B",
            "FLUX.2 klein base 9B",
            "flux-non-commercial-license",
            1024,
            32.4,
            gated=True,
            guidance=4.0,
            note="Its LoRAs work on the four-step klein 9B too.",
            caption=(512, 12288),
            params=(9078.6, 8190.7, 84.0),
            activation_gib=(35.2, 2.66),
            lora_params_per_rank=by_targets(1998.8, 2719.7),
            blocks=listed_blocks(transformer_blocks=8, single_transformer_blocks=24),
        ),
        Base(
            "black-forest-labs/FLUX.2-dev",
            "FLUX.2 dev",
            "flux-dev-non-commercial-license",
            1024,
            105.0,
            gated=True,
            guidance=4.0,
            reads_negative=False,
            caption=(512, 15360),
            params=(32223.3, 24011.4, 84.0),
            activation_gib=(90.8, 5.12),
            lora_params_per_rank=by_targets(5210.1, 6291.5),
            blocks=listed_blocks(transformer_blocks=8, single_transformer_blocks=48),
        ),
    ),
    resolution=1024,
    size_multiple=16,
    token_limit=500,  # 512 with the chat template
    params=(3875.5, 4022.5, 84.0),
    caption=(512, 7680),
    lora_params_per_rank=by_targets(1167.4, 1505.3),
    activation_gib=(20.5, 1.84),
    blocks=listed_blocks(transformer_blocks=5, single_transformer_blocks=20),
    pipelines=("Flux2Pipeline", "Flux2KleinPipeline"),
    signatures=(
        Signature(
            "a FLUX.2 checkpoint",
            (r"double_stream_modulation_img\.",),
            width=(r"txt_in\.weight", 3 * 5120),
            reference="black-forest-labs/FLUX.2-dev",
        ),
        Signature(
            "a FLUX.2 checkpoint",
            (r"double_stream_modulation_img\.",),
            width=(r"txt_in\.weight", 3 * 4096),
            reference="black-forest-labs/FLUX.2-klein-base-9B",
        ),
        Signature("a FLUX.2 checkpoint", (r"double_stream_modulation_img\.",)),
    ),
    lora_signatures=(
        Signature("a FLUX.2 LoRA", (_FLUX2_SINGLE,)),
        Signature("a FLUX.2 LoRA", (_ORIGINAL,), ratio=(_LINEAR2, _LINEAR1, 4)),
    ),
    architectures=("flux-2", "flux2"),
    known_as=("flux2_klein_4b", "flux2_klein_9b"),
)
