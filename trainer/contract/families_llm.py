"""Rows of the catalogue: transformers whose captions a language model reads."""

from __future__ import annotations

from .blocks import listed_blocks
from .family_types import Base, Family, Signature, by_targets

QWENIMAGE = Family(
    key="qwenimage",
    label="Qwen-Image",
    bases=(
        Base("Qwen/Qwen-Image-2512", "Qwen-Image 2512", "apache-2.0", 1024, 53.7, guidance=4.0),
        Base("Qwen/Qwen-Image", "Qwen-Image", "apache-2.0", 1024, 53.7, guidance=4.0),
    ),
    resolution=1024,
    size_multiple=16,
    token_limit=512,
    params=(20430.4, 8292.2, 126.9),
    caption=(100, 3584),
    lora_params_per_rank=by_targets(2936.8, 6592.5),
    activation_gib=(33.5, 2.37),
    vae_gib=(3.78, 3.38),
    blocks=listed_blocks(transformer_blocks=60),
    pipelines=("QwenImagePipeline",),
    signatures=(
        Signature(
            "a Qwen-Image checkpoint",
            (r"transformer_blocks\.0\.txt_mlp\.", r"txt_norm\."),
            # layered and newer editing models
            (r"time_text_embed\.addition_t_embedding", r"__index_timestep_zero__"),
        ),
    ),
    lora_signatures=(
        Signature(
            "a Qwen-Image LoRA",
            (r"transformer_blocks_\d+_(attn_(to|add)|img_m|txt_m)",),
            (r"single_", r"transformer_blocks_\d+_(attn2_|ff_|attn_to_gate)"),
        ),
    ),
    architectures=("qwen-image", "qwen_image"),
    known_as=("qwen",),
)

LUMINA2 = Family(
    key="lumina2",
    label="Lumina-Image 2.0",
    bases=(Base("Alpha-VLLM/Lumina-Image-2.0", "Lumina-Image 2.0", "apache-2.0", 1024, 9.9, guidance=4.0),),
    resolution=1024,
    size_multiple=16,
    token_limit=220,  # 256 with the system prompt
    params=(2609.8, 2614.3, 83.8),
    caption=(100, 2304),
    lora_params_per_rank=by_targets(460.8, 1497.6),
    activation_gib=(21.8, 3.2),
    blocks=listed_blocks(layers=26, noise_refiner=2, context_refiner=2),
    pipelines=("Lumina2Pipeline", "Lumina2Text2ImgPipeline"),
    signatures=(
        Signature("a Lumina-Image 2.0 checkpoint", (r"layers\.0\.adaLN_modulation\.1\.", r"cap_embedder\.")),
    ),
    lora_signatures=(
        # In the original code's names Z-Image has the same modules.
        Signature(
            "a Lumina-Image 2.0 LoRA", (r"((noise|context)_refiner|layers)_\d+_(attn|attention_(qkv|out))",)
        ),
    ),
    architectures=("lumina-2", "lumina2"),
    needs_bf16=True,
    known_as=("lumina", "lumina-image-2"),
    kohya=("lumina_train_network.py", "networks.lora_lumina"),
)

KREA2 = Family(
    key="krea2",
    label="Krea 2",
    bases=(
        Base(
            "krea/Krea-2-Raw",
            "Krea 2 Raw",
            "krea-2-community-license",
            1024,
            32.6,
            gated=True,
            note="LoRAs of it are used with Krea 2 Turbo.",
            guidance=5.5,
        ),
    ),
    resolution=1024,
    size_multiple=16,
    token_limit=512,
    params=(12820.1, 4437.8, 126.9),
    caption=(100, 30720),
    lora_params_per_rank=by_targets(1462.3, 3354.6),
    activation_gib=(35.5, 3.38),
    vae_gib=(3.78, 3.38),
    blocks=listed_blocks(transformer_blocks=28),
    pipelines=("Krea2Pipeline",),
    signatures=(Signature("a Krea 2 checkpoint", (r"txtfusion\.projector\.",)),),
    lora_signatures=(
        Signature(
            "a Krea 2 LoRA",
            (
                r"(transformer_blocks_\d+_(attn_to_gate|ff_(gate|up|down))|blocks_\d+_(attn_w|attn_gate|mlp_gate))",
            ),
        ),
    ),
    architectures=("krea-2", "krea2"),
)

ERNIEIMAGE = Family(
    key="ernieimage",
    label="ERNIE-Image",
    bases=(
        Base(
            "baidu/ERNIE-Image",
            "ERNIE-Image",
            "apache-2.0",
            1024,
            28.7,
            note="A quarter of the download is a prompt enhancer, which training does not use.",
            guidance=4.0,
        ),
    ),
    resolution=1024,
    size_multiple=16,
    token_limit=2048,
    params=(8033.5, 3849.1, 84.0),
    caption=(100, 3072),
    lora_params_per_rank=by_targets(1179.6, 2949.1),
    activation_gib=(43.1, 2.98),
    blocks=listed_blocks(layers=36),
    pipelines=("ErnieImagePipeline",),
    signatures=(Signature("an ERNIE-Image checkpoint", (r"layers\.0\.adaLN_sa_ln\.",)),),
    lora_signatures=(
        Signature(
            "an ERNIE-Image LoRA", (r"layers_\d+_(self_attention|mlp_(gate_proj|up_proj|linear_fc2))",)
        ),
    ),
    architectures=("ernie-image", "ernie_image"),
    known_as=("ernie",),
)

HUNYUANIMAGE = Family(
    key="hunyuanimage",
    label="HunyuanImage 2.1",
    bases=(
        Base(
            "hunyuanvideo-community/HunyuanImage-2.1-Diffusers",
            "HunyuanImage 2.1",
            "tencent-hunyuan-community",
            2048,
            49.5,
            note="Its licence does not hold in the EU, the UK and South Korea.",
            guidance=3.5,
        ),
    ),
    resolution=2048,
    size_multiple=64,
    token_limit=1000,
    params=(17425.8, 8511.6, 405.6),
    caption=(100, 3584),
    lora_params_per_rank=by_targets(2007.0, 5017.6),
    activation_gib=(38.5, 2.93),
    vae_gib=(1.51, 0.88),
    blocks=listed_blocks(transformer_blocks=20, single_transformer_blocks=40),
    pipelines=("HunyuanImagePipeline",),
    lora_signatures=(
        # FLUX.1's modules, but one double block more.
        Signature(
            "a HunyuanImage LoRA", (r"(transformer|double)_blocks_19_", r"single_(transformer_)?blocks_")
        ),
    ),
    architectures=("hunyuan-image", "hunyuan_image", "hunyuanimage"),
    kohya=("hunyuan_image_train_network.py", "networks.lora_hunyuan_image"),
)

_LLAMA = "unsloth/Meta-Llama-3.1-8B-Instruct"  # Meta's own repository asks to be let in by hand

HIDREAM = Family(
    key="hidream",
    label="HiDream-I1",
    bases=(
        Base(
            "HiDream-ai/HiDream-I1-Full",
            "HiDream-I1 Full",
            "mit",
            1024,
            57.4,
            note="Its fourth text encoder is Llama 3.1 8B, which has a licence of its own and comes from "
            f"{_LLAMA}.",
            guidance=5.0,
        ),
    ),
    resolution=1024,
    size_multiple=16,
    token_limit=128,
    params=(17105.7, 13610.0, 83.8),
    caption=(128, 33 * 4096),
    lora_params_per_rank=by_targets(1310.7, 8106.0),
    activation_gib=(48.8, 2.97),  # as if each of four experts got a quarter of the tokens
    blocks=listed_blocks(double_stream_blocks=16, single_stream_blocks=32),
    pipelines=("HiDreamImagePipeline",),
    signatures=(
        Signature("a HiDream-I1 checkpoint", (r"double_stream_blocks\.0\.block\.adaLN_modulation\.",)),
    ),
    lora_signatures=(Signature("a HiDream-I1 LoRA", (r"(double|single)_stream_blocks_\d+_block_",)),),
    architectures=("hidream",),
    known_as=("hidream-i1", "HI_DREAM_FULL"),
    borrowed={"text_encoder_4": _LLAMA, "tokenizer_4": _LLAMA},
)
