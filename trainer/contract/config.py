"""TrainConfig: every setting of a training, defined once.

Sections are nested, closed (an unknown name is an error) and frozen. The docstring under a field is
its help text; label, range and choices come from the type and from :func:`setting`. The form, the
command line, ``docs/settings.md`` and the error messages are all derived from these classes
(:mod:`trainer.contract.fields`).
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from .families import CATALOGUE

Quantization = Literal["none", "int8", "nf4"]
"""Number format of frozen linear layers."""


def setting(
    default: Any,
    *,
    label: str = "",
    unit: str = "",
    basic: bool = False,
    choices: tuple[str, ...] = (),
    **limits: Any,
) -> Any:
    """A field of a section. ``basic`` fields are shown at once, the others under "Advanced".

    ``choices`` names the allowed texts where they come from a catalogue rather than from the type.
    """
    extra: dict[str, Any] = {"label": label, "unit": unit, "basic": basic, "choices": list(choices)}
    return Field(default, json_schema_extra=extra, **limits)


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        str_strip_whitespace=True,
        protected_namespaces=(),
    )


class ModelSettings(Section):
    """The base model that the LoRA is trained on."""

    family: str = setting("sdxl", label="Family", choices=tuple(CATALOGUE))
    """Architecture of the base model."""
    base: str = setting("demo", label="Base model", basic=True, min_length=1, max_length=500)
    """"demo" (the small embedded model), a Hub id such as stabilityai/stable-diffusion-xl-base-1.0,
    a diffusers folder, or a single .safetensors checkpoint."""
    revision: str = setting("", label="Revision", max_length=100)
    """Branch, tag or commit of a Hub base; empty means its main branch."""
    vae: str = setting("", label="Separate VAE", max_length=500)
    """Hub id, folder or .safetensors file of a VAE to use instead of the base's own (SDXL in fp16 wants
    madebyollin/sdxl-vae-fp16-fix); empty means the base's own."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = setting("auto", label="Precision")
    """Number format of the frozen base. "auto" takes bf16 where the GPU has it, else fp16; fp32 on a CPU.
    The LoRA has a number format of its own (adapter.precision)."""
    quantize: Quantization = setting("none", label="Quantised base")
    """Number format of the frozen base's linear layers. int8 halves its memory at hardly any loss; nf4
    (4 bits) quarters it, with visible rounding. Needs pip install -r requirements-quant.txt."""
    quantize_text: Quantization = setting("none", label="Quantised text encoders")
    """The same for the text encoders, which are in memory only while captions are encoded."""
    assistant: str = setting("", label="Assistant LoRA", max_length=500)
    """A LoRA that undoes the distillation of a base (FLUX.1 schnell, Z-Image Turbo): active while
    training, off while sampling. Hub id or file; empty takes the known one of the base, "none" none."""

    @field_validator("family")
    @classmethod
    def _family_is_known(cls, family: str) -> str:
        if family not in CATALOGUE:
            raise ValueError(
                f"{family!r} is no family that can be trained; give one of {', '.join(CATALOGUE)}"
            )
        return family


class DatasetSettings(Section):
    """The pictures and how they are prepared."""

    path: str = setting("photos", label="Folder", min_length=1, max_length=1000)
    """Folder of images with sidecar .txt captions, or a project folder of the studio.
    A relative path is looked up beside the recipe, then in the current folder."""
    trigger: str = setting("", label="Trigger word", basic=True, max_length=100)
    """The word or short phrase that calls up what the LoRA learns. It is the caption of every picture
    that has none."""
    resolution: int | None = setting(None, label="Resolution", unit="px", ge=64, le=2048)
    """Side of the square bucket; the other buckets have about the same area. Empty means the native
    size of the base."""
    flip: bool = setting(False, label="Mirror at random")
    """Show half of the pictures mirrored, chosen anew each epoch. Not for faces with a parting, text or
    anything else that is not symmetric."""
    caption_dropout: float = setting(0.0, label="Caption dropout", ge=0, le=1)
    """Share of the pictures shown with an empty caption. 0.05-0.1 keeps guidance working and lowers
    the drift of prompts without the trigger."""


class AdapterSettings(Section):
    """The LoRA itself: how big it is and where it sits."""

    rank: int = setting(16, label="Rank", basic=True, ge=1, le=1024)
    """Inner size of the LoRA. More rank holds more detail, makes a bigger file and overfits sooner."""
    alpha: float = setting(16.0, label="Alpha", basic=True, gt=0, le=4096)
    """The LoRA's effect is scaled by alpha / rank. alpha = rank (scale 1) is the convention of
    ai-toolkit, SimpleTuner and diffusers; kohya's default is alpha 1, where learning rates are higher."""
    targets: Literal["attention", "transformer", "transformer+conv"] = setting("transformer", label="Targets")
    """Which layers are adapted: the attention projections only, every linear layer of the transformer
    blocks (what kohya calls LoRA), or those and the convolutions of the residual blocks (LoCon)."""
    dropout: float = setting(0.0, label="Dropout", ge=0, lt=1)
    """Share of the LoRA's inputs that are zeroed at each step; a little fights overfitting on few photos."""
    precision: Literal["fp32", "bf16"] = setting("fp32", label="LoRA precision")
    """Number format of the LoRA while it trains. bf16 halves it, its gradients and the optimizer's state,
    but rounds small updates away; it pays at very high ranks only."""
    start_from: str = setting("", label="Start from", max_length=500)
    """A finished LoRA (.safetensors, of kohya, diffusers or ComfyUI) to go on from instead of a fresh one.
    Where its rank differs it is changed to this one by SVD."""


class TrainSettings(Section):
    """The optimisation."""

    steps: int = setting(1000, label="Steps", basic=True, ge=1, le=1_000_000)
    """How many times the LoRA is updated. One step looks at batch size × accumulation pictures."""
    batch_size: int = setting(1, label="Batch size", basic=True, ge=1, le=256)
    """Pictures per forward pass. Larger is steadier and needs more memory."""
    gradient_accumulation: int = setting(1, label="Gradient accumulation", ge=1, le=256)
    """Forward passes per step: the effect of a batch this many times larger, at no extra memory."""
    learning_rate: float = setting(1e-4, label="Learning rate", basic=True, gt=0, le=1)
    """How far each step moves the LoRA. 1e-4 suits alpha = rank on full-size models; the small
    demo model wants about 1e-3."""
    text_encoder_lr: float = setting(0.0, label="Text encoder learning rate", ge=0, le=1)
    """Learning rate of a LoRA on the (first) text encoder; 0 leaves it alone. Usual is a half to a tenth
    of the learning rate. Captions are then encoded anew at every step, which costs time and memory."""
    text_encoder_2_lr: float = setting(0.0, label="Second text encoder's", ge=0, le=1)
    """The same for the second text encoder (SDXL); 0 leaves it alone."""
    scheduler: Literal["constant", "linear", "cosine", "cosine_with_restarts", "polynomial"] = setting(
        "cosine", label="Scheduler", basic=True
    )
    """How the learning rate moves over the run, after the warm-up."""
    restarts: int = setting(3, label="Restarts", ge=1, le=100)
    """Number of cosine cycles of "cosine_with_restarts"; the other schedulers ignore it."""
    warmup: float = setting(0.1, label="Warm-up", ge=0, le=0.9)
    """Share of the steps over which the learning rate climbs from zero; 0.1 is 10 %."""
    optimizer: Literal["adamw", "adafactor"] = setting("adamw", label="Optimizer")
    """AdamW is the usual choice; Adafactor keeps almost no state and saves memory at high ranks."""
    weight_decay: float = setting(0.01, label="Weight decay", ge=0, le=1)
    """Pull of the LoRA's weights towards zero, decoupled from the gradient."""
    max_grad_norm: float = setting(1.0, label="Gradient clipping", ge=0, le=1000)
    """Longest gradient (global norm) that is applied as it is; longer ones are shortened;
    0 switches it off."""
    min_snr_gamma: float = setting(0.0, label="Min-SNR gamma", ge=0, le=100)
    """Weighs down the nearly noise-free timesteps (Hang et al. 2023); 5 is usual, 0 switches it off."""
    gradient_checkpointing: Literal["auto", "on", "off"] = setting("auto", label="Gradient checkpointing")
    """Recompute activations instead of storing them: far less memory, about a third slower.
    "auto" is on with a GPU and off on a CPU."""
    seed: int = setting(42, label="Seed", ge=0, le=2**63 - 1)
    """Fixes noise, timesteps, order and the LoRA's start: the same recipe gives the same LoRA."""


class SampleSettings(Section):
    """Validation images drawn while training."""

    prompts: tuple[str, ...] = setting((), label="Prompts", basic=True, max_length=16)
    """One picture is drawn of each, always from the same noise, before the first step and then
    regularly. Leave the trigger out of one of them to see what the LoRA does to everything else."""
    negative: str = setting("", label="Negative prompt", max_length=2000)
    """What the pictures should not show; used by guidance."""
    every: int = setting(250, label="Every", unit="steps", basic=True, ge=0, le=1_000_000)
    """Steps between drawings; 0 draws only before the first and after the last step."""
    steps: int = setting(25, label="Sampling steps", ge=1, le=200)
    """Denoising steps of a drawing."""
    guidance: float = setting(5.0, label="Guidance", ge=1, le=30)
    """Classifier-free guidance scale; 1 switches it off."""
    seed: int = setting(42, label="Seed", ge=0, le=2**63 - 1)
    """Fixes the noise that each prompt starts from."""
    width: int | None = setting(None, label="Width", unit="px", ge=64, le=4096)
    """Width of the drawings; empty means the training resolution."""
    height: int | None = setting(None, label="Height", unit="px", ge=64, le=4096)
    """Height of the drawings; empty means the training resolution."""
    tiling: bool = setting(False, label="Decode in tiles")
    """Let the VAE decode in tiles: a fraction of the memory, at a risk of faint seams."""

    @field_validator("prompts")
    @classmethod
    def _each_prompt_says_something(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        if any(not prompt.strip() for prompt in prompts):
            raise ValueError("one of the prompts is empty; remove it or write something")
        if any(len(prompt) > 2000 for prompt in prompts):
            raise ValueError("one of the prompts is longer than 2000 characters; shorten it")
        return tuple(prompt.strip() for prompt in prompts)


class CheckpointSettings(Section):
    """Resumable states, saved while training."""

    every: int = setting(250, label="Every", unit="steps", basic=True, ge=1, le=1_000_000)
    """Steps between checkpoints: the most that a crash or a power cut can cost."""
    keep: int = setting(3, label="Keep", ge=1, le=1000)
    """How many checkpoints stay on disk; the oldest goes first."""


class OutputSettings(Section):
    """The finished file."""

    name: str = setting("lora", label="File name", basic=True)
    """Name of the .safetensors file, without the ending. Letters, digits, dot, dash, underscore."""

    @field_validator("name")
    @classmethod
    def _name_is_safe_as_a_file(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", name):
            raise ValueError(
                f"{name!r} cannot be a file name here; use up to 80 letters, digits, dots, dashes and "
                "underscores, with a letter or digit first"
            )
        return name


TEXT_RATES = ("text_encoder_lr", "text_encoder_2_lr")
"""The settings of ``train`` for a family's trainable text encoders, in their order."""


def _problem(setting: str, sentence: str) -> PydanticCustomError:
    """An error of settings that do not go together, told at one of them."""
    return PydanticCustomError("together", "{sentence}", {"setting": setting, "sentence": sentence})


class TrainConfig(Section):
    """A whole recipe."""

    model: ModelSettings = Field(default_factory=ModelSettings)
    dataset: DatasetSettings = Field(default_factory=DatasetSettings)
    adapter: AdapterSettings = Field(default_factory=AdapterSettings)
    train: TrainSettings = Field(default_factory=TrainSettings)
    samples: SampleSettings = Field(default_factory=SampleSettings)
    checkpoints: CheckpointSettings = Field(default_factory=CheckpointSettings)
    output: OutputSettings = Field(default_factory=OutputSettings)

    @model_validator(mode="before")
    @classmethod
    def _sections_are_tables(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for name, value in data.items():
                if name in cls.model_fields and not isinstance(value, (dict, BaseModel)):
                    raise ValueError(f"[{name}] must be a table of settings, not {value!r}")
        return data

    @model_validator(mode="after")
    def _encoders_can_be_trained(self) -> TrainConfig:
        row = CATALOGUE[self.model.family]
        for number, name in enumerate(TEXT_RATES):
            if getattr(self.train, name) and number >= len(row.trainable_text):
                can = "only its first text encoder" if row.trainable_text else "no text encoder"
                raise _problem(f"train.{name}", f"{row.label} can train {can}; set it to 0")
        return self

    def text_encoder_rates(self) -> dict[str, float]:
        """{text encoder: its learning rate} of those that get a LoRA."""
        trainable = CATALOGUE[self.model.family].trainable_text
        rates = [getattr(self.train, name) for name in TEXT_RATES]
        return {part: rate for part, rate in zip(trainable, rates, strict=False) if rate}
