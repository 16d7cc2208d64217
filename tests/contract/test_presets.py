"""Every preset is a valid partial recipe, and applying one keeps what is the user's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.pictures import draw_picture
from trainer.__main__ import main
from trainer.contract.config import TrainConfig
from trainer.contract.errors import ConfigError
from trainer.contract.families import DEMO_BASE, known_base
from trainer.contract.fields import flatten, merge, parse, to_tables
from trainer.contract.lint import Facts, lint
from trainer.contract.presets import PRESETS_DIR, load_preset, load_presets, load_recipe_or_preset

FILES = sorted(PRESETS_DIR.glob("*.toml"))
PRESETS = {preset.key: preset for preset in load_presets()}


def mine(**dataset: str) -> TrainConfig:
    return parse({"dataset": {"path": "here", "trigger": "zwx cat", **dataset}, "output": {"name": "cat"}})


WARNED = {
    "sd35-guide-rank768": {"learning_rate_too_high", "many_looks", "checkpoints_fill_the_disk"},
    "sd35-guide-rank128": {"learning_rate_too_high", "many_looks", "checkpoints_fill_the_disk"},
}
"""What the linter says to recipes of guides, whose numbers are kept, with 20 pictures."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_preset_is_a_valid_recipe_that_the_linter_accepts(path: Path) -> None:
    preset = load_preset(path)
    config = preset.apply(mine())
    base = known_base(config.model.family, config.model.base)
    facts = Facts(
        images=20, distinct_captions=20, native_resolution=base.resolution if base else None, gpu="GPU"
    )
    bad = {finding.rule for finding in lint(config, facts) if finding.level != "hint"}
    assert bad == WARNED.get(preset.key, set())


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.key)
def test_a_preset_speaks_plainly(preset: object) -> None:
    for text in (preset.summary, preset.source, preset.caveat):  # type: ignore[attr-defined]
        assert text == "" or text.endswith("."), text
    prompts = preset.prompts_for("zwx")  # type: ignore[attr-defined]
    assert any("zwx" in prompt for prompt in prompts)
    assert any("zwx" not in prompt for prompt in prompts), "one control prompt without the trigger"


def test_the_shelf() -> None:
    assert next(iter(PRESETS)) == "demo", "a first-time user without a GPU finds it first"
    goals: dict[str, set[str]] = {preset.goal: set() for preset in PRESETS.values()}
    for preset in PRESETS.values():
        goals[preset.goal].add(preset.pace)
    for goal in ("sdxl-subject", "sdxl-person", "sdxl-style"):
        assert goals[goal] == {"fast", "balanced", "careful"}
    guides = [preset for preset in PRESETS.values() if preset.group == "guides"]
    assert len(guides) == 6
    assert all(preset.caveat for preset in guides)


@pytest.mark.parametrize("goal", ["sdxl-subject", "sdxl-person", "sdxl-style"])
def test_paces_differ_in_what_they_cost(goal: str) -> None:
    fast, balanced, careful = (PRESETS[goal + ending].apply(mine()) for ending in ("-fast", "", "-careful"))
    looks = [one.train.steps * one.train.batch_size for one in (fast, balanced, careful)]
    assert looks[0] < looks[1] / 2 and looks[2] > 2 * looks[1]
    assert fast.train.learning_rate > balanced.train.learning_rate and careful.train.ema_decay == 0.99
    assert fast.model == balanced.model == careful.model and fast.samples.prompts == balanced.samples.prompts


def test_salads_recipe_is_theirs() -> None:
    config = PRESETS["sdxl-salad"].apply(TrainConfig())
    assert (config.adapter.rank, config.adapter.alpha) == (4, 4)
    assert (config.train.learning_rate, config.train.scheduler) == (1e-4, "constant")
    assert (config.train.steps, config.train.gradient_accumulation) == (500, 4)
    assert config.checkpoints.every == 50


GUIDES: dict[str, dict[str, object]] = {
    "sd15-guide-2025": {
        "adapter.rank": 64,
        "adapter.alpha": 32,
        "train.learning_rate": 2e-4,
        "train.loraplus_ratio": 16,
        "train.optimizer": "adamw8bit",
        "train.scheduler": "cosine_with_restarts",
        "train.epochs": 15,
    },
    "sdxl-guide-2025": {
        "adapter.rank": 128,
        "adapter.alpha": 64,
        "train.learning_rate": 1e-4,
        "train.loraplus_ratio": 16,
        "train.optimizer": "adafactor",
        "train.fused_backward": True,
        "train.epochs": 10,
        "checkpoints.every_epochs": 2,
        "model.precision": "auto",  # the guide's "no" saves memory in full fine-tunes alone
    },
    "flux-guide-2025": {
        "adapter.rank": 128,
        "adapter.alpha": 128,
        "train.learning_rate": 1e-4,
        "train.optimizer": "adamw8bit",
        "train.steps": 2000,
        "model.quantize": "int8",
    },
    "sd35-guide-rank768": {
        "adapter.rank": 768,
        "adapter.alpha": 768,
        "train.batch_size": 6,
        "train.learning_rate": 1.5e-3,
        "train.scheduler": "cosine",
        "train.warmup": 0.1,
        "train.steps": 24000,
        "samples.guidance": 7.5,
        "samples.steps": 30,
        "samples.every": 200,
        "samples.seed": 42,
        "checkpoints.every": 400,
        "checkpoints.keep": 60,
    },
    "sd35-guide-rank128": {"adapter.rank": 128, "train.batch_size": 1, "train.steps": 24000},
}


@pytest.mark.parametrize("key", GUIDES)
def test_a_guides_recipe_has_the_guides_numbers(key: str) -> None:
    values = flatten(PRESETS[key].apply(mine()))
    assert {path: values[path] for path in GUIDES[key]} == GUIDES[key]


@pytest.mark.parametrize("key", [*GUIDES, "sdxl-salad"])
def test_a_guides_recipe_is_checked_as_it_lies_there(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """python -m trainer check presets/KEY.toml --set dataset.path=… --set dataset.trigger=…"""
    for number in range(8):
        draw_picture(tmp_path / "photos" / f"{number}.png", number)
    file = ROOT / "presets" / f"{key}.toml"
    mine = ("--set", f"dataset.path={tmp_path / 'photos'}", "--set", "dataset.trigger=zwx dog")
    assert main(["check", str(file), *mine]) == 0
    assert "error" not in capsys.readouterr().out
    config = load_recipe_or_preset(file, (*mine[1::2], "train.batch_size=2"))
    assert config.dataset.trigger == "zwx dog" and config.train.batch_size == 2
    taken = ("--run-dir", str(tmp_path / "photos"))  # refused, but not for what the file is
    assert main(["train", str(file), *mine, *taken]) == 2
    assert "is the folder of photos" in capsys.readouterr().err
    assert any("zwx dog" in prompt for prompt in config.samples.prompts)
    assert config.adapter == PRESETS[key].apply(TrainConfig()).adapter


def test_apply_keeps_what_is_mine_and_drops_the_last_choice() -> None:
    tuned = parse(
        merge(to_tables(mine()), {"train": {"restarts": 7, "steps": 5}, "adapter": {"dropout": 0.3}})
    )
    config = PRESETS["sdxl-subject"].apply(tuned)
    assert (config.dataset.path, config.dataset.trigger, config.output.name) == ("here", "zwx cat", "cat")
    assert (config.train.steps, config.adapter.dropout) == (1500, 0.0)
    assert config.train.restarts == TrainConfig().train.restarts
    assert PRESETS["sdxl-subject"].apply(config) == config
    assert config.samples.prompts[0] == "a photo of zwx cat"


def test_a_base_that_the_user_brought_stays_for_full_size_recipes_only() -> None:
    own = parse(merge(to_tables(mine()), {"model": {"base": "me/my-xl", "revision": "v2"}}))
    kept = PRESETS["sdxl-person"].apply(own)
    assert (kept.model.base, kept.model.revision) == ("me/my-xl", "v2")
    assert PRESETS["demo"].apply(own).model.base == DEMO_BASE
    assert PRESETS["sdxl-person"].apply(mine()).model.base == PRESETS["sdxl-person"].base


def test_prompts_without_a_trigger_are_only_those_that_need_none() -> None:
    assert PRESETS["demo"].prompts_for("") == ("a blue star on a sand background",)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('[preset]\nof = "nobody"\n', "there is no other preset 'nobody'"),
        ("[train]\nsteps = 5\n", r"\[preset\] title: field required"),
        ('[preset]\ntitle="A"\nsummary="b."\nsource="c."\nnote="x"\n', r"\[preset\] note"),
        ('[preset]\ntitle="A"\nsummary="b."\nsource="c."\n[train]\nstep = 5\n', r"did you mean train\.steps"),
        ('[preset]\ntitle="A"\nsummary="b."\nsource="c."\n[output]\nname = "x"\n', r"user's own"),
    ],
)
def test_a_wrong_preset_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=sentence):
        load_preset(path)
