"""HiDream-I1 (HiDream.ai 2025): 17 billion parameters, of which each token uses about half; rectified flow.

Four encoders read a caption: two CLIPs for a pooled vector, T5, and Llama 3.1 8B, of which every block of
the transformer is given another layer. All read 128 tokens, padding included; 34 MB a caption in 16 bits.
The published folder has no Llama: it comes from a repository of its own (``Family.borrowed`` in the
catalogue). The transformer predicts the flow from noise to picture, the opposite of what is usual.

A feed-forward layer is a mixture of experts: two of four for each token, and one that all share. Where
diffusers evaluates, it computes the routed ones without gradients; where it trains, it returns the picture in
patches of another order. Here they are computed as in evaluation, and with gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from diffusers import HiDreamImagePipeline, HiDreamImageTransformer2DModel
from diffusers.models.transformers.transformer_hidream_image import MOEFeedForwardSwiGLU
from torch import Tensor, nn
from transformers import (
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5EncoderModel,
    T5Tokenizer,
)

from ..contract import families as catalogue
from ..contract.errors import RunError
from ..noise import Flow
from ..timesteps import Times
from .base import Geometry, TextEmbeds
from .native_file import NativeFamily

_ATTENTION = r"attn1\.to_(q|k|v|out)(_t)?"
_BLOCKS = r"(double|single)_stream_blocks\.\d+\.block"


class SizedPipeline(HiDreamImagePipeline):
    """diffusers' pipeline in the size that was asked for: its own draws 1024² pixels of any proportions."""

    vae_scale_factor: int

    def __call__(self, *, width: int, height: int, **inputs: Any) -> Any:
        # A little more than the size itself, which would be rounded down to the next multiple of 16.
        self.default_sample_size = (width * height) ** 0.5 / self.vae_scale_factor * (1 + 1e-6)
        return super().__call__(width=width, height=height, **inputs)  # type: ignore[misc]


class Family(NativeFamily):
    """See :class:`trainer.families.base.ModelFamily` for when each member is called."""

    row = catalogue.HIDREAM
    published: ClassVar[dict[str, dict[str, Any]]] = {
        "HiDream-ai/HiDream-I1-Full": {
            "patch_size": 2,
            "in_channels": 16,
            "caption_channels": [4096, 4096],
            "axes_dims_rope": (64, 32, 32),
            "llama_layers": [*range(32), *[31] * 16],
        }
    }
    pipeline_class = SizedPipeline
    denoiser_class = HiDreamImageTransformer2DModel
    text_classes: ClassVar[dict[str, Any]] = {
        "text_encoder": CLIPTextModelWithProjection,
        "text_encoder_2": CLIPTextModelWithProjection,
        "text_encoder_3": T5EncoderModel,
        "text_encoder_4": LlamaForCausalLM,
    }
    tokenizer_classes: ClassVar[dict[str, Any]] = {
        "tokenizer": CLIPTokenizer,
        "tokenizer_2": CLIPTokenizer,
        "tokenizer_3": T5Tokenizer,
        "tokenizer_4": PreTrainedTokenizerFast,
    }
    targets: ClassVar[dict[str, str]] = catalogue.by_targets(
        rf"{_BLOCKS}\.{_ATTENTION}",
        rf"{_BLOCKS}\.({_ATTENTION}|ff_[it]\.((shared_experts|experts\.\d+)\.)?w[123])",
    )
    landmark = "double_stream_blocks.0.block.adaLN_modulation.1.weight"

    def setup(self) -> None:
        patch, (rows, columns) = self.denoiser_config["patch_size"], self.denoiser_config["max_resolution"]
        self.longest = rows * columns // patch**2
        self.resolution = 8 * min(rows, columns)
        # Two schedulers can sample it, and each has a name of its own for the shift.
        shift = self.schedule.get("flow_shift") or self.schedule.get("shift") or 1.0
        self.noise = Flow(Times("logit_normal", float(shift)))

    def embed(self, text: Any, captions: list[str]) -> list[TextEmbeds]:
        t5, _, llama, _, pooled, _ = text.encode_prompt(
            captions, device=self.device, do_classifier_free_guidance=False, max_sequence_length=self.tokens
        )
        return [
            {"t5": one, "llama": layers, "pooled": pool}
            for one, layers, pool in zip(t5, llama.transpose(0, 1), pooled, strict=True)
        ]

    def load_denoiser(self, in_ram: bool = False) -> nn.Module:
        denoiser = super().load_denoiser(in_ram)
        denoiser.register_to_config(force_inference_output=True)  # type: ignore[operator]
        for module in denoiser.modules():
            if isinstance(module, MOEFeedForwardSwiGLU):
                module._force_inference_output = module.gate._force_inference_output = True
                module.moe_infer = partial(_routed, module)  # type: ignore[method-assign]
        return denoiser

    def predict(
        self,
        denoiser: nn.Module,
        noisy_BCHW: Tensor,
        t_B: Tensor,
        embeds: Sequence[TextEmbeds],
        geometry: Sequence[Geometry],
    ) -> Tensor:
        height, width = noisy_BCHW.shape[-2:]
        if height != width and height * width // 4 > self.longest:
            raise RunError(
                f"{self.row.label} cannot be trained at {8 * width} × {8 * height} px; "
                f"set dataset.resolution to {self.resolution}",
                "config",
            )
        velocity: Tensor = denoiser(
            noisy_BCHW.to(self.dtype),
            timesteps=t_B * 1000,
            encoder_hidden_states_t5=self.stacked([e["t5"] for e in embeds]),
            encoder_hidden_states_llama3=self.stacked([e["llama"] for e in embeds]).transpose(0, 1),
            pooled_embeds=self.stacked([e["pooled"] for e in embeds]),
        ).sample
        return -velocity

    def pipeline_inputs(self, positive: TextEmbeds, negative: TextEmbeds) -> dict[str, Any]:
        def given(embeds: TextEmbeds, beginning: str) -> dict[str, Tensor]:
            return {
                f"{beginning}prompt_embeds_t5": self.batched(embeds["t5"]),
                f"{beginning}prompt_embeds_llama3": self.batched(embeds["llama"]).transpose(0, 1),
                f"{beginning}pooled_prompt_embeds": self.batched(embeds["pooled"]),
            }

        return given(positive, "") | given(negative, "negative_")

    def metadata(self) -> dict[str, str]:
        return {
            "ss_base_model_version": "hidream_i1",
            "modelspec.architecture": "hidream-i1/lora",
            "modelspec.implementation": "https://github.com/HiDream-ai/HiDream-I1",
        }


def _routed(layer: MOEFeedForwardSwiGLU, x_ND: Tensor, expert_of: Tensor, weight_of: Tensor) -> Tensor:
    """``layer.moe_infer``, with gradients: each token through its experts, weighted.

    ``expert_of`` (N·k,) and ``weight_of`` (N·k, 1) have k entries for each of the N tokens.
    """
    y_ND = torch.zeros_like(x_ND)
    for number, expert in enumerate(layer.experts):
        entries = (expert_of == number).nonzero()[:, 0]
        if len(entries):
            tokens = entries // layer.num_activated_experts
            part = expert(x_ND[tokens]) * weight_of[entries]
            y_ND = y_ND.to(part.dtype).index_add(0, tokens, part)
    return y_ND
