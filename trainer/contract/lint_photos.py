"""Lint rules on photos, captions, base model and machine."""

from __future__ import annotations

from collections.abc import Iterator

from .config import TrainConfig
from .families import CATALOGUE, DEMO_BASE, known_base
from .findings import Facts, Finding, rule
from .trigger import has_trigger

# Dataset ---------------------------------------------------------------------------------------------


@rule
def no_pictures(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if facts.images == 0:
        yield Finding("error", "dataset.path", "There are no pictures to train on; add photos first.")


@rule
def few_pictures(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if facts.images is not None and 0 < facts.images < 6:
        yield Finding(
            "hint",
            "dataset.path",
            f"{facts.images} picture{'s' if facts.images > 1 else ''} will be copied rather than understood; "
            "10 to 30 varied ones work far better.",
        )


@rule
def trigger_empty(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if not config.dataset.trigger:
        yield Finding(
            "warning",
            "dataset.trigger",
            "There is no trigger word, so the LoRA will colour every prompt; choose one on the Captions "
            "page.",
        )


@rule
def trigger_missing_in_captions(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    missing, affixes = facts.captions_missing_trigger, f"{config.captions.prefix} {config.captions.suffix}"
    if config.dataset.trigger and missing and not has_trigger(affixes, config.dataset.trigger):
        several = sum(not folder.regularisation for folder in facts.folders) > 1
        word = "of their folder" if several else f"“{config.dataset.trigger}”"
        yield Finding(
            "warning",
            "dataset.trigger",
            f"{missing} caption{'s lack' if missing > 1 else ' lacks'} the trigger word "
            f"{word}; the Captions page can insert it everywhere.",
        )


@rule
def captions_all_the_same(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if facts.distinct_captions == 1 and facts.images is not None and facts.images >= 4:
        yield Finding(
            "hint",
            "dataset.trigger",
            "All captions are the same, so background and pose are learnt along with the subject; "
            "captions that name what varies give a cleaner LoRA.",
        )


# Model and machine -----------------------------------------------------------------------------------


@rule
def full_size_base_without_a_gpu(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if facts.gpu == "" and config.model.base != DEMO_BASE:
        yield Finding(
            "warning",
            "model.base",
            "This machine has no GPU that can be used; a full-size model trains for days on a processor.",
            {"model.base": DEMO_BASE},
            "Use the demo model",
        )


@rule
def half_precision_without_a_gpu(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if facts.gpu == "" and config.model.precision in ("fp16", "bf16"):
        yield Finding(
            "warning",
            "model.precision",
            f"On a processor {config.model.precision} is slower than fp32, and fp32 is used in its place.",
            {"model.precision": "auto"},
            "Choose automatically",
        )


@rule
def vae_overflows_in_fp16(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    """Some families' VAE overflows in fp16: black pictures, NaN latents."""
    safe = CATALOGUE[config.model.family].fp16_vae
    if safe and config.model.precision == "fp16" and not config.model.vae and config.model.base != DEMO_BASE:
        yield Finding(
            "warning",
            "model.precision",
            "This family's own VAE overflows in fp16; use the repaired one, or bf16.",
            {"model.vae": safe},
            "Use the repaired VAE",
        )


@rule
def quantised_on_a_processor(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    chosen = {f"model.{name}": getattr(config.model, name) for name in ("quantize", "quantize_text")}
    small = {setting: "none" for setting, value in chosen.items() if value != "none"}
    if facts.gpu == "" and small:
        yield Finding(
            "warning",
            next(iter(small)),
            "On a processor quantised layers are unpacked at every step: slow, and only memory is saved.",
            small,
            "Do not quantise",
        )


@rule
def nf4_in_fp16(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.model.precision == "fp16" and "nf4" in (config.model.quantize, config.model.quantize_text):
        yield Finding(
            "warning",
            "model.precision",
            "The rounding of nf4 and the narrow range of fp16 together end in infinite numbers more easily; "
            "bf16 has the range, where the GPU has bf16.",
            {"model.precision": "auto"},
            "Choose automatically",
        )


@rule
def distilled_without_assistant(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    base = known_base(config.model.family, config.model.base)
    if base and base.assistant and config.model.assistant == "none":
        yield Finding(
            "warning",
            "model.assistant",
            f"{base.label} was distilled to few steps; without its assistant LoRA training undoes that, and "
            "pictures turn out soft.",
            {"model.assistant": ""},
            "Use the known one",
        )


@rule
def checkpointing_off_on_a_small_gpu(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    base = known_base(config.model.family, config.model.base)
    stored, recomputed = (base and base.activation_gib) or CATALOGUE[config.model.family].activation_gib
    if (
        config.train.gradient_checkpointing == "off"
        and config.model.base != DEMO_BASE
        and facts.vram_gib is not None
        and facts.vram_gib < 24
    ):
        saved = (stored - recomputed) * config.train.batch_size
        yield Finding(
            "warning",
            "train.gradient_checkpointing",
            f"Without gradient checkpointing about {saved:.0f} GiB more are needed, and this GPU has "
            f"{facts.vram_gib:.0f} GiB.",
            {"train.gradient_checkpointing": "on"},
            "Switch it on",
        )
