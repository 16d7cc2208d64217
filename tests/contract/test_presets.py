"""Every preset is a valid partial recipe, and applying one keeps what is the user's."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.contract.config import TrainConfig
from trainer.contract.errors import ConfigError
from trainer.contract.families import DEMO_BASE, known_base
from trainer.contract.fields import merge, parse, to_tables
from trainer.contract.lint import Facts, lint
from trainer.contract.presets import PRESETS_DIR, load_preset, load_presets

FILES = sorted(PRESETS_DIR.glob("*.toml"))
PRESETS = {preset.key: preset for preset in load_presets()}


def mine(**dataset: str) -> TrainConfig:
    return parse({"dataset": {"path": "here", "trigger": "zwx cat", **dataset}, "output": {"name": "cat"}})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_preset_is_a_valid_recipe_that_the_linter_accepts(path: Path) -> None:
    preset = load_preset(path)
    config = preset.apply(mine())
    base = known_base(config.model.family, config.model.base)
    facts = Facts(
        images=20, distinct_captions=20, native_resolution=base.resolution if base else None, gpu="GPU"
    )
    bad = [finding for finding in lint(config, facts) if finding.level != "hint"]
    assert not bad, bad


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.key)
def test_a_preset_speaks_plainly(preset: object) -> None:
    for text in (preset.summary, preset.source, preset.caveat):  # type: ignore[attr-defined]
        assert text == "" or text.endswith("."), text
    prompts = preset.prompts_for("zwx")  # type: ignore[attr-defined]
    assert any("zwx" in prompt for prompt in prompts)
    assert any("zwx" not in prompt for prompt in prompts), "one control prompt without the trigger"


def test_the_shelf() -> None:
    assert set(PRESETS) >= {"demo", "sdxl-subject", "sdxl-person", "sdxl-style", "sdxl-fast", "sdxl-careful"}
    assert next(iter(PRESETS)) == "demo", "a first-time user without a GPU finds it first"


def test_salads_recipe_is_theirs() -> None:
    config = PRESETS["sdxl-salad"].apply(TrainConfig())
    assert (config.adapter.rank, config.adapter.alpha) == (4, 4)
    assert (config.train.learning_rate, config.train.scheduler) == (1e-4, "constant")
    assert (config.train.steps, config.train.gradient_accumulation) == (500, 4)
    assert config.checkpoints.every == 50


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
