"""Every rule of the linter: a recipe that sets it off, one that does not, and a fix that helps."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest
from lint_case import Case
from lint_cases_adapter import CASES as ADAPTER_CASES
from lint_cases_captions import CASES as CAPTION_CASES
from lint_cases_dataset import CASES as DATASET_CASES
from lint_cases_machine import CASES as MACHINE_CASES
from lint_cases_masks import CASES as MASK_CASES
from lint_cases_memory import CASES as MEMORY_CASES
from lint_cases_optim import CASES as OPTIM_CASES
from lint_cases_optim import PRODIGY
from lint_cases_storage import CASES as STORAGE_CASES
from lint_cases_validation import CASES as VALIDATION_CASES

from trainer.contract.config import TrainConfig
from trainer.contract.families import CATALOGUE
from trainer.contract.fields import RECORDS, merge, nest, parse, to_tables
from trainer.contract.lint import LEVELS, RULES, Facts, lint

XL = "stabilityai/stable-diffusion-xl-base-1.0"
GOOD = {
    "model": {"base": XL},
    "dataset": {"trigger": "zwx cat"},
    "train": {"steps": 1500},
    "samples": {"prompts": ["a photo of zwx cat", "a house"]},
}
"""A recipe in which no rule finds anything; the cases below change it."""


DEV = "black-forest-labs/FLUX.1-dev"
DISTILLED = next(
    {"model.family": row.key, "model.base": base.id}
    for row in CATALOGUE.values()
    for base in row.bases
    if base.assistant
)

FLOW = {"model.family": "sd3", "model.base": "stabilityai/stable-diffusion-3.5-medium"}
NOOBAI = {"model.base": "Laxhar/noobai-XL-Vpred-1.0"}

CASES = [
    Case("no_pictures", {}, {}, Facts(images=0), Facts(images=1), ("no pictures",)),
    Case("few_pictures", {}, {}, Facts(images=3), Facts(images=6), ("3 pictures",)),
    Case("trigger_empty", {"dataset.trigger": ""}, {}),
    Case(
        "trigger_missing_in_captions",
        {},
        {"dataset.trigger": ""},
        Facts(images=9, captions_missing_trigger=2),
        says=("2 captions lack", "zwx cat"),
    ),
    Case(
        "captions_all_the_same",
        {},
        {},
        Facts(images=9, distinct_captions=1),
        Facts(images=9, distinct_captions=2),
    ),
    Case(
        "resolution_above_native",
        {"dataset.resolution": 1536},
        {"dataset.resolution": 1152},
        says=("1536 px", "1024 px"),
    ),
    Case(
        "resolution_is_rounded",
        {"dataset.resolution": 1000},
        {"dataset.resolution": 960},
        says=("1000 px is no multiple of 64", "trains at 1024 px"),
    ),
    Case(
        "resolution_far_below_native",
        {"dataset.resolution": 384},
        {"dataset.resolution": 512},
        says=("384 px",),
    ),
    Case(
        "caption_dropout_high",
        {"captions.dropout": 0.5},
        {"captions.dropout": 0.3},
        says=("50%",),
    ),
    Case(
        "full_size_base_without_a_gpu", {}, {"model.base": "demo", "train.learning_rate": 2e-3}, Facts(gpu="")
    ),
    Case(
        "half_precision_without_a_gpu", {"model.precision": "bf16"}, {}, Facts(gpu=""), Facts(gpu="RTX 4090")
    ),
    Case(
        "vae_overflows_in_fp16",
        {"model.precision": "fp16"},
        {"model.precision": "fp16", "model.vae": "madebyollin/sdxl-vae-fp16-fix"},
    ),
    Case(
        "checkpointing_off_on_a_small_gpu",
        {"train.gradient_checkpointing": "off"},
        {"train.gradient_checkpointing": "off"},
        Facts(gpu="RTX 3060", vram_gib=12),
        Facts(gpu="H100", vram_gib=80),
        ("12 GiB",),
    ),
    Case(
        "bf16_over_fp16",
        {"adapter.precision": "bf16", "model.precision": "fp16"},
        {"adapter.precision": "bf16", "model.precision": "auto"},
    ),
    Case("alpha_above_rank", {"adapter.alpha": 64}, {"adapter.alpha": 32}, says=("64", "rank 16")),
    Case("learning_rate_too_high", {"train.learning_rate": 1e-3}, {"train.learning_rate": 4e-4}),
    Case("learning_rate_too_low", {"adapter.alpha": 1}, {"adapter.alpha": 2}, says=("e-06",)),
    Case("rank_large_for_the_pictures", {"adapter.rank": 128, "adapter.alpha": 128}, {}, Facts(images=20)),
    Case("dropout_high", {"adapter.dropout": 0.5}, {"adapter.dropout": 0.1}),
    Case(
        "batch_above_pictures",
        {"train.batch_size": 16, "train.steps": 60},
        {"train.batch_size": 8, "train.steps": 60},
        Facts(images=8),
        says=("16", "8 pictures"),
    ),
    Case(
        "quantised_on_a_processor",
        {"model.quantize": "int8", "model.quantize_text": "nf4"},
        {},
        Facts(gpu=""),
        Facts(gpu=""),
        ("slow",),
    ),
    Case("nf4_in_fp16", {"model.precision": "fp16", "model.quantize": "nf4"}, {"model.quantize": "nf4"}),
    Case(
        "distilled_without_assistant",
        {**DISTILLED, "model.assistant": "none"},
        {**DISTILLED, "model.assistant": ""},
        says=("soft",),
    ),
    Case(
        "start_from_cannot_be_used",
        {"adapter.start_from": "old.safetensors"},
        {"adapter.start_from": "old.safetensors"},
        Facts(start_from_families=("sd15",)),
        Facts(start_from_families=("sd15", "sdxl")),
        ("is for Stable Diffusion 1.5",),
    ),
    Case(
        "start_from_cannot_be_used",
        {"adapter.start_from": "old.safetensors"},
        {"adapter.start_from": ""},
        Facts(start_from_problem="old.safetensors is a LoHa"),
        says=("a LoHa",),
    ),
    Case(
        "bf16_at_low_rank",
        {"adapter.precision": "bf16", "adapter.rank": 16},
        {"adapter.precision": "bf16", "adapter.rank": 128, "adapter.alpha": 128},
        says=("rank 16",),
    ),
    Case(
        "text_encoder_faster_than_the_denoiser",
        {"train.text_encoder_2_lr": 3e-4},
        {"train.text_encoder_2_lr": 1e-4},
        says=("0.0003",),
    ),
    Case(
        "captions_encoded_at_every_step",
        {"train.text_encoder_lr": 5e-5},
        {},
        says=("a text encoder learns",),
    ),
    Case(
        "huber_snr_of_a_flow",
        {**FLOW, "loss.type": "huber"},
        {**FLOW, "loss.type": "huber", "loss.huber_schedule": "exponential"},
        says=("snr",),
    ),
    Case("huber_snr_of_a_flow", {**FLOW, "loss.type": "smooth_l1"}, {"loss.type": "smooth_l1"}),
    Case(
        "huber_settings_without_huber",
        {"loss.huber_c": 0.2},
        {"loss.huber_c": 0.2, "loss.type": "smooth_l1"},
        says=("l2",),
    ),
    Case(
        "huber_scale_ignored",
        {"loss.type": "huber", "loss.huber_scale": 2.0},
        {"loss.type": "huber", "loss.huber_scale": 2.0, "loss.huber_schedule": "constant"},
    ),
    Case(
        "huber_c_makes_it_l2",
        {"loss.type": "huber", "loss.huber_c": 1.5},
        {"loss.type": "huber", "loss.huber_c": 0.5},
        says=("1.5",),
    ),
    Case("min_snr_of_a_flow", {**FLOW, "loss.min_snr_gamma": 5}, {"loss.min_snr_gamma": 5}),
    Case("min_snr_gamma_unusual", {"loss.min_snr_gamma": 0.5}, {"loss.min_snr_gamma": 1}, says=("0.5",)),
    Case("min_snr_gamma_unusual", {"loss.min_snr_gamma": 50}, {"loss.min_snr_gamma": 0}, says=("50",)),
    Case(
        "min_snr_and_debiased",
        {"loss.min_snr_gamma": 5, "loss.debiased": True},
        {"loss.debiased": True},
    ),
    Case(
        "v_pred_like_of_another_base",
        {**NOOBAI, "loss.v_pred_like": 0.005},
        {"loss.v_pred_like": 0.005},
    ),
    Case("v_pred_like_strong", {"loss.v_pred_like": 0.5}, {"loss.v_pred_like": 0.01}, says=("108 times",)),
    Case(
        "scale_v_of_another_base",
        {"loss.scale_v_like_noise": True},
        {**NOOBAI, "loss.scale_v_like_noise": True},
    ),
    Case("noise_offset_high", {"noise.offset": 0.3}, {"noise.offset": 0.1}, says=("0.3",)),
    Case(
        "noise_offset_and_multires",
        {"noise.offset": 0.05, "noise.multires_iterations": 6},
        {"noise.multires_iterations": 6},
    ),
    Case("noise_offset_not_needed", {**FLOW, "noise.offset": 0.05}, {"noise.offset": 0.05}, says=("Flow",)),
    Case(
        "noise_offset_not_needed",
        {**NOOBAI, "noise.offset": 0.05},
        NOOBAI,
        says=("zero terminal SNR", "noise offset"),
    ),
    Case(
        "noise_offset_not_needed",
        {"noise.prediction": "v_prediction", "noise.multires_iterations": 6},
        {"noise.prediction": "epsilon", "noise.multires_iterations": 6},
        says=("predicts v", "multires"),
    ),
    Case(
        "offset_settings_without_offset",
        {"noise.offset_random": True},
        {"noise.offset_random": True, "noise.offset": 0.05},
    ),
    Case(
        "multires_discount_high",
        {"noise.multires_iterations": 6, "noise.multires_discount": 0.8},
        {"noise.multires_iterations": 6},
        says=("0.8",),
    ),
    Case(
        "input_perturbation_high",
        {"noise.input_perturbation": 0.5},
        {"noise.input_perturbation": 0.1},
        says=("0.5",),
    ),
    Case(
        "zero_snr_needs_v",
        {"noise.zero_terminal_snr": "on"},
        {**NOOBAI, "noise.zero_terminal_snr": "on"},
    ),
    Case(
        "prediction_against_the_base",
        {"noise.prediction": "v_prediction"},
        {**NOOBAI, "noise.prediction": "v_prediction"},
        says=("Stable Diffusion XL 1.0 predicts noise",),
    ),
    Case(
        "named_like_v_prediction",
        {"model.base": "models/someMix_vPredV20.safetensors"},
        {"model.base": "models/someMix_v20.safetensors"},
        says=("someMix_vPredV20",),
    ),
    Case(
        "shift_ignored",
        {**FLOW, "noise.timesteps": "flux_shift", "noise.shift": 3.0},
        {**FLOW, "noise.timesteps": "shift", "noise.shift": 3.0},
        says=("ignores 3",),
    ),
    Case(
        "width_ignored",
        {"noise.sigmoid_scale": 2.0},
        {"noise.sigmoid_scale": 2.0, "noise.timesteps": "sigmoid"},
        says=("auto",),
    ),
    Case(
        "width_ignored",
        {"noise.logit_std": 2.0, "noise.timesteps": "sigmoid"},
        {"noise.logit_std": 2.0, "noise.timesteps": "logit_normal"},
        says=("width",),
    ),
    Case(
        "noise_levels_narrow",
        {"noise.t_min": 0.4, "noise.t_max": 0.6},
        {"noise.t_min": 0.2, "noise.t_max": 0.6},
        says=("0.4 to 0.6",),
    ),
    Case(
        "flow_weighting_alone",
        {**FLOW, "noise.weighting": "sigma_sqrt"},
        {**FLOW, "noise.weighting": "sigma_sqrt", "noise.kohya_flow": True},
    ),
    Case(
        "detail_counts_less",
        {**FLOW, "noise.kohya_flow": True},
        {**FLOW, "noise.kohya_flow": True, "noise.weighting": "sigma_sqrt"},
    ),
    Case("few_looks", {"train.steps": 100}, {"train.steps": 400}, Facts(images=20), says=("5 times",)),
    Case("many_looks", {"train.steps": 20000}, {"train.steps": 4000}, Facts(images=20), says=("1000 times",)),
    Case("warmup_long", {"train.warmup": 0.5}, {"train.warmup": 0.3}),
    Case(
        "restarts_do_nothing",
        {"train.scheduler": "cosine_with_restarts", "train.restarts": 1},
        {"train.scheduler": "cosine", "train.restarts": 1},
    ),
    Case(
        "restarts_too_short",
        {"train.scheduler": "cosine_with_restarts", "train.restarts": 40},
        {"train.scheduler": "cosine_with_restarts", "train.restarts": 3},
        says=("37 steps",),
    ),
    Case("no_prompts", {"samples.prompts": []}, {}),
    Case(
        "trigger_in_no_prompt",
        {"samples.prompts": ["a cat", "a house"]},
        {"samples.prompts": ["ZWX Cat", "a"]},
    ),
    Case("no_control_prompt", {"samples.prompts": ["zwx cat"]}, {"samples.prompts": ["zwx cat", "a cat"]}),
    Case(
        "prompt_has_other_options",
        {"samples.prompts": ["zwx cat --ar 3:2 --s 20", "a house"]},
        {"samples.prompts": ["zwx cat --s 20", "a house -- or two"]},
        says=("“--ar 3:2”",),
    ),
    Case("samples_never", {"samples.every": 2000}, {"samples.every": 1500}),
    Case("samples_cost_more_than_training", {"samples.every": 20}, {"samples.every": 300}),
    Case(
        "negative_prompt_ignored",
        {"model.family": "flux", "model.base": DEV, "samples.negative": "blurry", "samples.guidance": 3.5},
        {"samples.negative": "blurry"},
        says=("FLUX.1 dev", "ignored"),
    ),
    Case(
        "named_like_a_distilled_base",
        {"model.family": "zimage", "model.base": "models/MyMix_Z-Image-Turbo_v2.safetensors"},
        {"model.family": "zimage", "model.base": "models/Z-Image-Turbulence.safetensors"},
        says=("turbo", "Z-Image Turbo"),
    ),
    Case(
        "second_text_encoder_left_alone",
        {"train.text_encoder_lr": 5e-5},
        {"train.text_encoder_lr": 5e-5, "train.text_encoder_2_lr": 1e-5},
        says=("5e-05",),
    ),
    Case(
        "drawn_at_another_size",
        {"samples.width": 512, "samples.height": 512},
        {"samples.width": 832, "samples.height": 1216},
        says=("512 × 512", "1024 px"),
    ),
    Case("checkpoints_rare", {"checkpoints.every": 1200}, {"checkpoints.every": 1000}, says=("1200 steps",)),
    Case("guidance_off", {"samples.guidance": 1}, {"samples.guidance": 1.5}),
    Case("sample_size_does_not_fit", {"samples.width": 1001}, {"samples.width": 1000}, says=("1001",)),
    Case(
        "checkpoints_never", {"checkpoints.every": 2000}, {"checkpoints.every": 1500}, says=("1500", "2000")
    ),
    Case(
        "class_has_the_trigger",
        {"prior.method": "output", "prior.class_name": "zwx cat cat"},
        {"prior.method": "output", "prior.class_name": "cat"},
        says=("“zwx cat cat”", "such as cat"),
    ),
    Case(
        "kept_caption_has_the_trigger",
        {"prior.method": "output", "prior.captions": ("a dog", "a Zwx Cat")},
        {"prior.method": "output", "prior.captions": ("a dog", "a cat")},
    ),
    Case(
        "class_pictures_not_all_used",
        {"prior.method": "class_pictures", "prior.class_name": "cat"},
        {"prior.method": "class_pictures", "prior.class_name": "cat", "prior.pictures": 24},
        Facts(images=12),
    ),
    Case("prior_settings_without_a_method", {"prior.class_name": "cat"}, {}),
    Case(
        "keeping_outweighs_learning",
        {"prior.method": "output", "prior.class_name": "cat", "prior.weight": 6},
        {"prior.method": "output", "prior.class_name": "cat", "prior.weight": 5},
    ),
    *ADAPTER_CASES,
    *CAPTION_CASES,
    *OPTIM_CASES,
    *DATASET_CASES,
    *MASK_CASES,
    *VALIDATION_CASES,
    *MACHINE_CASES,
    *MEMORY_CASES,
    *STORAGE_CASES,
]


def changed(overrides: dict[str, Any]) -> TrainConfig:
    return parse(merge(GOOD, nest(overrides)))


def test_the_good_recipe_is_good() -> None:
    facts = Facts(images=20, distinct_captions=20, gpu="RTX 4090", vram_gib=24, native_resolution=1024)
    assert lint(changed({}), facts) == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_a_rule_fires_where_it_should_and_only_there(case: Case) -> None:
    found = [one for one in lint(changed(case.fires), case.facts) if one.rule == case.rule]
    assert found, "did not fire"
    for one in found:
        assert one.field in RECORDS and one.level in LEVELS
        assert one.message[0].isupper() or one.message[0].isdigit()
        assert one.message.endswith(".") and len(one.message) < 220, one.message
        assert (one.fix is None) == (one.fix_label == "")
        for part in case.says:
            assert part in one.message
    quiet = lint(changed(case.silent), case.silent_facts or case.facts)
    assert case.rule not in {one.rule for one in quiet}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_a_fix_is_valid_and_silences_its_rule(case: Case) -> None:
    config = changed(case.fires)
    for one in lint(config, case.facts):
        if one.rule != case.rule or one.fix is None:
            continue
        fixed = parse(merge(to_tables(config), nest(one.fix)))
        left = [
            other for other in lint(fixed, case.facts) if other.rule == one.rule and other.field == one.field
        ]
        assert not left, (one.fix, left)


def test_every_rule_has_a_case() -> None:
    assert {case.rule for case in CASES} == set(RULES)


def test_an_error_comes_first_and_an_odd_size_names_both_sides() -> None:
    found = lint(
        changed({"samples.width": 999, "samples.height": 30 + 64, "train.warmup": 0.8}), Facts(images=20)
    )
    assert [one.level for one in found][:2] == ["error", "error"]
    assert {one.field for one in found[:2]} == {"samples.width", "samples.height"}


def test_unknown_facts_and_an_unknown_base_raise_nothing() -> None:
    assert lint(changed({"model.base": "me/my-model", "dataset.resolution": 2048})) == []


def test_the_demo_model_has_its_own_learning_rates() -> None:
    demo = {"model.base": "demo", "dataset.resolution": None}
    assert "learning_rate_too_low" in {one.rule for one in lint(changed(demo))}
    assert lint(changed(demo | {"train.learning_rate": 2e-3})) == []


def test_some_optimizers_want_a_lower_rate_and_prodigy_another_one() -> None:
    for kind in ("lion", "came"):
        (found,) = lint(changed({"train.optimizer": kind, "train.learning_rate": 2e-4}))
        assert found.rule == "learning_rate_too_high"
    assert lint(changed({"train.optimizer": "lion", "train.learning_rate": 3e-5})) == []
    assert lint(changed(PRODIGY)) == []


def test_fast_and_without_torch() -> None:
    config = changed({"train.warmup": 0.5})
    start = time.perf_counter()
    lint(config, Facts(images=20))
    assert time.perf_counter() - start < 0.2
    code = (
        "import sys, trainer.contract.lint; sys.exit(bool({'torch', 'gradio', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_base_that_was_distilled_wants_no_guidance() -> None:
    """Guidance 1 is right there, and anything above is not."""
    base = next(base for family in CATALOGUE.values() for base in family.bases if base.guidance == 1)
    family = next(key for key, family in CATALOGUE.items() if base in family.bases)
    for guidance, found in ((1.0, []), (5.0, ["samples.guidance"])):
        tables = {**GOOD, "model": {"family": family, "base": base.id}}
        config = parse(merge(tables, {"samples": {"guidance": guidance}}))
        fields = [f.field for f in lint(config, Facts()) if f.field == "samples.guidance"]
        assert fields == found, guidance


@pytest.mark.parametrize(
    ("family", "base", "read"),
    [
        ("flux", "me/my-flux", False),
        ("flux2", "me/my-flux2", True),  # klein's, as far as is known
        ("flux2", "black-forest-labs/FLUX.2-dev", False),
        ("chroma", "lodestones/Chroma1-HD", True),
    ],
)
def test_whose_negative_prompt_is_read(family: str, base: str, read: bool) -> None:
    found = lint(changed({"model.family": family, "model.base": base, "samples.negative": "blurry"}))
    assert ("negative_prompt_ignored" in {one.rule for one in found}) != read
