"""Recipes: misspelt names, ranges, --set, TOML round trip, the generated settings page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomlkit

from trainer.contract.config import TrainConfig, go_with_family
from trainer.contract.errors import ConfigError
from trainer.contract.families import CATALOGUE
from trainer.contract.fields import (
    MOVED,
    RECORDS,
    dump_recipe,
    flatten,
    load_recipe,
    merge,
    nest,
    override,
    parse,
    settings_page,
    to_tables,
)

REPOSITORY = Path(__file__).resolve().parents[2]


def problems(tables: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        parse(tables)
    return caught.value.problems


@pytest.mark.parametrize(
    ("tables", "field", "sentence"),
    [
        (
            {"train": {"learning_rat": 1e-4}},
            "train.learning_rat",
            "train.learning_rat is not a setting; did you mean train.learning_rate?",
        ),
        ({"trian": {"steps": 3}}, "trian", "trian is not a setting; did you mean train?"),
        ({"batch_size": 3}, "batch_size", "batch_size is not a setting; did you mean train.batch_size?"),
        (
            {"samples": {"rank": 3}},
            "samples.rank",
            "samples.rank is not a setting; did you mean adapter.rank?",
        ),
        (
            {"zzz": {}},
            "zzz",
            "zzz is not a setting; docs/settings.md lists all settings",
        ),
        (
            {"train": {"steps": 0}},
            "train.steps",
            "train.steps = 0 is not allowed; give a whole number from 1 to 1000000",
        ),
        (
            {"train": {"steps": 10.5}},
            "train.steps",
            "train.steps = 10.5 is not allowed; give a whole number from 1 to 1000000",
        ),
        (
            {"train": {"learning_rate": 0}},
            "train.learning_rate",
            "train.learning_rate = 0 is not allowed; give a number above 0 and at most 1",
        ),
        (
            {"adapter": {"dropout": 1}},
            "adapter.dropout",
            "adapter.dropout = 1 is not allowed; give a number from 0 to below 1",
        ),
        (
            {"dataset": {"resolution": 32}},
            "dataset.resolution",
            "dataset.resolution = 32 is not allowed; give a whole number from 64 to 2048, or leave it out",
        ),
        (
            {"model": {"precision": "int8"}},
            "model.precision",
            "model.precision = 'int8' is not allowed; give one of auto, bf16, fp16, fp32",
        ),
        ({"model": {"base": " "}}, "model.base", "model.base is empty; it needs a value"),
        (
            {"samples": {"prompts": ["a"] * 17}},
            "samples.prompts",
            "samples.prompts has 17 entries; at most 16 are allowed",
        ),
        (
            {"dataset": {"trigger": "x" * 101}},
            "dataset.trigger",
            "dataset.trigger has 101 characters; at most 100 are allowed",
        ),
        (
            {"samples": {"prompts": "one text"}},
            "samples.prompts",
            "samples.prompts = 'one text' is not allowed; give a list of texts",
        ),
        ({"train": 5}, "recipe", "[train] must be a table of settings, not 5"),
    ],
)
def test_a_wrong_setting_gets_one_sentence(tables: dict[str, Any], field: str, sentence: str) -> None:
    assert problems(tables) == {field: sentence}


def test_every_wrong_setting_is_named_at_once() -> None:
    found = problems({"train": {"steps": "many", "warmup": -2}, "output": {"name": "../lora"}})
    assert set(found) == {"train.steps", "train.warmup", "output.name"}
    assert "'../lora' cannot be a file name" in found["output.name"]


def test_an_unknown_family_names_the_known_ones() -> None:
    sentence = problems({"model": {"family": "sdxxl"}})["model.family"]
    assert "'sdxxl'" in sentence and all(key in sentence for key in CATALOGUE)


def test_a_huge_wrong_value_is_cut_in_the_sentence() -> None:
    assert len(problems({"train": {"steps": "9x" * 500}})["train.steps"]) < 200


def test_not_a_number_is_refused() -> None:
    assert "train.learning_rate" in problems({"train": {"learning_rate": float("nan")}})
    assert "adapter.alpha" in problems({"adapter": {"alpha": float("inf")}})


AWAY: dict[str, Any] = {
    "machine.price_per_hour": 0.44,
    "machine.currency": "€",
    "machine.budget": 5.0,
    "machine.grace_s": 120.0,
    "machine.notices": "aws",
    "notify.webhook": "https://example.com/hooks/1",
    "notify.events": ("checkpoint", "failed"),
    "notify.format": "ntfy",
    "model.base": "someone/some-model",
    "model.revision": "v1.0",
    "model.vae": "madebyollin/sdxl-vae-fp16-fix",
    "model.precision": "bf16",
    "model.quantize": "int8",
    "model.quantize_text": "nf4",
    "model.assistant": "someone/some-lora",
    "dataset.path": 'C:\\photos of "mine"',
    "dataset.trigger": "zwx créature 🐈",
    "dataset.resolution": 768,
    "dataset.more_resolutions": "512, 640",
    "dataset.flip": True,
    "dataset.rotate": 3.5,
    "dataset.random_crop": 0.125,
    "dataset.hue": 10.0,
    "dataset.colour": 0.1,
    "dataset.variants": 5,
    "dataset.buckets": "all",
    "dataset.bucket_step": 32,
    "dataset.bucket_min": 256,
    "dataset.bucket_max": 2048,
    "dataset.repeats": 10,
    "dataset.subsets": (
        "../mia | trigger = qrt = cat | repeats = 5",
        {"path": "class pictures", "trigger": "cat", "regularisation": True, "weight": 0.25},
    ),
    "captions.prefix": "photo of zwx créature,",
    "captions.suffix": ", outdoors",
    "captions.protect": False,
    "captions.dropout": 0.05,
    "captions.dropout_every_epochs": 4,
    "captions.wildcards": True,
    "captions.shuffle": True,
    "captions.separator": "·",
    "captions.keep_tokens": 2,
    "captions.keep_tokens_separator": "|||",
    "captions.secondary_separator": ";;;",
    "captions.tag_dropout": 0.125,
    "captions.warmup_min": 3,
    "captions.warmup_steps": 0.25,
    "captions.variants": 8,
    "adapter.rank": 7,
    "adapter.alpha": 3.5,
    "adapter.targets": "transformer+conv",
    "adapter.target_regex": r"attn\d\.to_[qkv]$",
    "adapter.conv_rank": 3,
    "adapter.conv_alpha": 1.5,
    "adapter.block_ranks": "else: 6",
    "adapter.block_alphas": "else: 2",
    "adapter.block_weights": "sine+0.1 / 1,1,1 / cosine",
    "adapter.lokr_factor": 8,
    "adapter.dylora_unit": 7,
    "adapter.dora": True,
    "adapter.rslora": True,
    "adapter.init": "gaussian",
    "adapter.rank_dropout": 0.1,
    "adapter.module_dropout": 0.2,
    "adapter.max_norm": 1.25,
    "adapter.dropout": 0.125,
    "adapter.precision": "bf16",
    "adapter.start_from": "loras/finished.safetensors",
    "train.steps": 123,
    "train.epochs": 30,
    "train.batch_size": 3,
    "train.gradient_accumulation": 2,
    "train.learning_rate": 3.14159e-07,
    "train.text_encoder_lr": 1e-5,
    "train.text_encoder_2_lr": 2e-5,
    "train.scheduler": "cosine_with_restarts",
    "train.restarts": 5,
    "train.power": 2.0,
    "train.warmup": 0.07,
    "train.optimizer": "adafactor",
    "train.optimizer_args": "eps=1e-30,1e-4 clip_threshold=0.5",
    "train.loraplus_ratio": 16.0,
    "train.loraplus_denoiser_ratio": 8.0,
    "train.loraplus_text_ratio": 4.0,
    "train.decay": 250.0,
    "train.ema_decay": 0.99,
    "train.unlearn": True,
    "train.unlearn_limit": 3.0,
    "train.ema_on_cpu": True,
    "train.weight_decay": 0.1,
    "train.max_grad_norm": 0.3,
    "loss.type": "huber",
    "loss.huber_schedule": "exponential",
    "loss.huber_c": 0.2,
    "loss.huber_scale": 0.5,
    "loss.min_snr_gamma": 5.0,
    "loss.debiased": True,
    "loss.v_pred_like": 0.01,
    "loss.scale_v_like_noise": True,
    "noise.timesteps": "mode",
    "noise.sigmoid_scale": 1.5,
    "noise.logit_mean": -0.5,
    "noise.logit_std": 0.75,
    "noise.t_min": 0.1,
    "noise.t_max": 0.9,
    "noise.prediction": "v_prediction",
    "noise.zero_terminal_snr": "on",
    "noise.offset": 0.0357,
    "noise.offset_random": True,
    "noise.offset_adaptive": 0.01,
    "noise.multires_iterations": 6,
    "noise.multires_discount": 0.2,
    "noise.input_perturbation": 0.05,
    "loss.mask": "batch",
    "loss.mask_floor": 0.25,
    "train.gradient_checkpointing": "on",
    "train.seed": 2**63 - 1,
    "prior.method": "output",
    "prior.class_name": "créature",
    "prior.captions": ("a dog", "a house, in snow"),
    "prior.weight": 0.5,
    "prior.share": 0.25,
    "prior.pictures": 30,
    "prior.path": "dogs",
    "validation.every": 50,
    "validation.every_epochs": 2,
    "validation.share": 0.2,
    "validation.path": "held out",
    "samples.prompts": ("a photo of zwx créature", 'a "quoted" prompt, with = and #'),
    "samples.negative": "blurry\nlow quality\\",
    "samples.every": 11,
    "samples.every_epochs": 2,
    "samples.steps": 12,
    "samples.guidance": 4.5,
    "samples.sampler": "ddim",
    "samples.seed": 7,
    "samples.width": 640,
    "samples.height": 512,
    "samples.tiling": "on",
    "checkpoints.every": 10,
    "checkpoints.every_epochs": 3,
    "checkpoints.keep": 9,
    "checkpoints.keep_every": 30,
    "checkpoints.keep_best": 2,
    "output.name": "my_cat-v1.2",
    "machine.gpus": 2,
    "machine.on_oom": "stop",
    "machine.pictures_at_once": 1,
    "machine.offload": True,
    "storage.url": "s3://bucket/folder/{run}",
    "storage.endpoint": "https://account.r2.example.com",
    "storage.keep": 5,
    "storage.photos": False,
}


AWAY_FOR_FLOW: dict[str, Any] = {
    "model.family": "flux",
    "noise.shift": 3.1582,
    "noise.weighting": "cosmap",
    "noise.kohya_flow": True,
    "train.fused_backward": True,
    "machine.shard": True,
}
"""What does not go together with the others."""


def away_from_default() -> TrainConfig:
    """A recipe with every setting (that has more than one value) away from its default."""
    config = parse(nest(AWAY))
    values = flatten(config)
    same = {path for path, record in RECORDS.items() if values[path] == record.default}
    assert same <= {*AWAY_FOR_FLOW, "adapter.type"}, "give the new setting a value in AWAY"
    return config


@pytest.mark.parametrize(
    ("sections", "setting"),
    [
        ({"adapter": {"type": "loha"}}, "adapter.type"),
        ({"adapter": {"dora": True}}, "adapter.dora"),
        ({"model": {"quantize": "int8"}}, "model.quantize"),
        ({"machine": {"offload": True}}, "machine.offload"),
        ({"prior": {"method": "output", "class_name": "cat"}}, "prior.method"),
    ],
)
def test_what_cannot_be_split(sections: dict[str, Any], setting: str) -> None:
    machine = {"shard": True, **sections.get("machine", {})}
    assert "machine.shard" in problems({**sections, "machine": machine})[setting]
    assert parse({"machine": {"shard": True}, "adapter": {"type": "dylora"}}).machine.shard


def test_toml_round_trip(tmp_path: Path) -> None:
    config = away_from_default()
    file = tmp_path / "recipe.toml"
    file.write_text(dump_recipe(config), encoding="utf-8")
    assert load_recipe(file) == config
    for other in (TrainConfig(), parse(nest(AWAY_FOR_FLOW))):
        file.write_text(dump_recipe(other), encoding="utf-8")
        assert load_recipe(file) == other


def test_flatten_and_nest_are_inverse() -> None:
    config = away_from_default()
    assert parse(nest(flatten(config))) == config


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("train.steps=50", {"train": {"steps": 50}}),
        ("train.learning_rate = 2e-3", {"train": {"learning_rate": 2e-3}}),
        ("dataset.flip=true", {"dataset": {"flip": True}}),
        ("dataset.trigger=zwx cat", {"dataset": {"trigger": "zwx cat"}}),
        ("dataset.trigger=007", {"dataset": {"trigger": "007"}}),
        ("model.base='demo'", {"model": {"base": "demo"}}),
        ("dataset.resolution=", {"dataset": {"resolution": None}}),
        ('samples.prompts=["a = b", "c"]', {"samples": {"prompts": ["a = b", "c"]}}),
    ],
)
def test_set(assignment: str, expected: dict[str, Any]) -> None:
    assert override(assignment) == expected
    parse(expected)


@pytest.mark.parametrize("assignment", ["steps=5", "train.steps", "", "="])
def test_set_wants_section_field_value(assignment: str) -> None:
    with pytest.raises(ConfigError, match=r"is not section\.field=value"):
        override(assignment)


def test_set_wins_over_the_file_and_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text("[train]\nsteps = 5\nseed = 1\n", encoding="utf-8")
    config = load_recipe(file, ("train.steps=9",))
    assert (config.train.steps, config.train.seed) == (9, 1)
    with pytest.raises(ConfigError, match=r"train\.steps = .x. is not allowed"):
        load_recipe(file, ("train.steps=x",))


def test_merge_changes_neither_argument() -> None:
    base, over = {"train": {"steps": 1, "seed": 2}}, {"train": {"steps": 3}, "output": {"name": "a"}}
    assert merge(base, over) == {"train": {"steps": 3, "seed": 2}, "output": {"name": "a"}}
    assert base == {"train": {"steps": 1, "seed": 2}} and over["train"] == {"steps": 3}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"[train]\nsteps = \n", "is not valid TOML"),
        (b"\xff\xfe[train]", "is not a text file in UTF-8"),
    ],
)
def test_an_unreadable_recipe_is_one_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    file = tmp_path / "recipe.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=sentence):
        load_recipe(file)
    with pytest.raises(ConfigError, match="does not exist"):
        load_recipe(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="is a folder"):
        load_recipe(tmp_path)


def test_a_recipe_saved_by_notepad_loads(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_bytes(b"\xef\xbb\xbf[train]\r\nsteps = 5\r\n")
    assert load_recipe(file).train.steps == 5


def test_settings_page_is_current() -> None:
    page = (REPOSITORY / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == settings_page(), "run: python -m trainer.contract.fields > docs/settings.md"


def test_every_setting_explains_itself() -> None:
    for record in RECORDS.values():
        assert record.label and len(record.help) > 20, record.path
        assert record.help[-1] == ".", record.path


def test_another_family_leaves_out_what_it_cannot_have() -> None:
    config = parse({"train": {"text_encoder_lr": 1e-4, "text_encoder_2_lr": 1e-4, "steps": 7}})
    other, said = go_with_family(config, "flux")
    assert (other.model.family, other.train.steps) == ("flux", 7)
    assert (other.train.text_encoder_lr, other.train.text_encoder_2_lr) == (0, 0)
    assert said["train.text_encoder_2_lr"] == "FLUX.1 can train no text encoder"
    first_only, said = go_with_family(config, "sd15")
    assert first_only.train.text_encoder_lr == 1e-4 and list(said) == ["train.text_encoder_2_lr"]
    assert go_with_family(config, "sdxl") == (config, {})


def test_an_encoder_that_overflows_in_fp16() -> None:
    found = problems({"model": {"family": "sana", "base": "me/x", "precision": "fp16"}})
    assert "the text encoder of Sana overflows in fp16" in found["model.precision"]
    other, said = go_with_family(parse({"model": {"precision": "fp16"}}), "lumina2")
    assert other.model.precision == "auto" and "Lumina" in said["model.precision"]


@pytest.mark.parametrize(
    ("dataset", "setting", "said"),
    [
        ({"bucket_step": 12}, "dataset.bucket_step", "12 is no multiple of 8"),
        ({"bucket_min": 900, "bucket_max": 512}, "dataset.bucket_max", "shorter than the shortest"),
        ({"resolution": 512, "bucket_min": 768}, "dataset.bucket_min", "above the resolution of 512 px"),
        ({"resolution": 512, "bucket_max": 256}, "dataset.bucket_max", "below the resolution of 512 px"),
        ({"subsets": ["a | repeats = x"]}, "dataset.subsets", "dataset.subsets.repeats = 'x' is not allowed"),
        ({"subsets": ["a | repeat = 3"]}, "dataset.subsets", "did you mean dataset.subsets.repeats?"),
        ({"subsets": [{"trigger": "x"}]}, "dataset.subsets", "dataset.subsets.path is empty"),
        ({"subsets": [{"path": "a|b"}]}, "dataset.subsets", "'a|b' holds a |"),
        ({"subsets": [5]}, "dataset.subsets", "give a list of tables or lines"),
    ],
)
def test_buckets_and_folders_that_cannot_be(dataset: dict[str, Any], setting: str, said: str) -> None:
    found = problems({"dataset": dataset})
    assert list(found) == [setting] and said in found[setting]


def test_a_folder_is_a_table_or_a_line() -> None:
    table = {"path": "../mia", "trigger": "qrt = cat", "repeats": 5, "regularisation": True, "weight": 0.5}
    line = "../mia | trigger = qrt = cat | repeats = 5 | regularisation | weight = 0.5"
    one, other = (parse({"dataset": {"subsets": [given]}}) for given in (table, line))
    assert one == other and one.dataset.subsets[0].line == line
    assert "[[dataset.subsets]]" in dump_recipe(one)
    odd = parse({"samples": {"prompts": ['ö "x"\n\t\x7f']}, "captions": {"prefix": "a\\b"}, "dataset": {}})
    assert all(dump_recipe(each) == tomlkit.dumps(to_tables(each)) for each in (TrainConfig(), one, odd))


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        ({"noise.shift": 3.0}, r"noise\.shift.*rectified flow.*Stable Diffusion XL is not; leave it empty"),
        ({"noise.timesteps": "flux_shift"}, r"noise\.timesteps.*flux_shift is for models of rectified flow"),
        ({"noise.weighting": "cosmap"}, r"noise\.weighting.*; set it to none"),
        ({"noise.kohya_flow": True}, r"noise\.kohya_flow.*; switch it off"),
        ({"model.family": "flux", "noise.prediction": "epsilon"}, r"noise\.prediction.*; set it to auto"),
        ({"model.family": "flux", "noise.zero_terminal_snr": "on"}, r"that predict noise or v"),
        ({"model.family": "flux", "loss.debiased": True}, r"loss\.debiased.*; switch it off"),
        ({"model.family": "flux", "loss.v_pred_like": 0.1}, r"loss\.v_pred_like"),
        ({"model.family": "flux", "loss.scale_v_like_noise": True}, r"loss\.scale_v_like_noise"),
        ({"noise.t_min": 0.5, "noise.t_max": 0.5}, r"noise\.t_min.*0\.5 is not below noise\.t_max, 0\.5"),
        ({"noise.t_min": 0.7, "noise.t_max": 0.4}, r"0\.7 is not below"),
    ],
)
def test_what_the_process_cannot_have_is_refused(recipe: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse(nest(recipe))


def test_another_family_drops_what_it_cannot_have() -> None:
    """Both ways: from diffusion to flow, and back."""
    told = parse(nest({"noise.prediction": "v_prediction", "loss.debiased": True, "noise.offset": 0.1}))
    flow, said = go_with_family(told, "flux")
    assert set(said) == {"noise.prediction", "loss.debiased"}
    assert (flow.noise.prediction, flow.noise.offset) == ("auto", 0.1)
    back, said = go_with_family(parse(nest(AWAY_FOR_FLOW)), "sdxl")
    assert set(said) == {"noise.shift", "noise.weighting", "noise.kohya_flow"}
    assert back.noise == TrainConfig().noise


def test_settings_that_moved_are_found_where_they_were() -> None:
    """Drafts and runs of earlier versions open, and mean the same."""
    config = parse({"train": {"steps": 5, "min_snr_gamma": 5}, "dataset": {"caption_dropout": 0.1}})
    assert (config.train.steps, config.loss.min_snr_gamma, config.captions.dropout) == (5, 5, 0.1)
    both = {"train": {"min_snr_gamma": 5}, "loss": {"min_snr_gamma": 1, "type": "l1"}}
    assert (parse(both).loss.min_snr_gamma, parse(both).loss.type) == (1, "l1")
    assert both["train"] == {"min_snr_gamma": 5}
    assert all(old not in RECORDS and new in RECORDS for old, new in MOVED.items())
