"""The Recipe page and the draft behind it, without a browser."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from recipe_driver import RecipePage

from studio.bring import bring, take
from studio.context import Studio
from studio.form import annotated, merge_typed
from studio.pages import recipe
from studio.projects import Project
from studio.recipes import draft, export_text, rename_trigger, verdict, with_family
from trainer.contract.config import TrainConfig
from trainer.contract.errors import ConfigError, RunError, UserError
from trainer.contract.families import CATALOGUE
from trainer.contract.fields import RECORDS, dump_recipe, flatten, load_recipe, parse
from trainer.contract.presets import PRESETS_DIR, load_preset, load_presets

PRESETS = load_presets()
GPU = {"name": "RTX 4090", "total_gib": 24.0}


@pytest.fixture
def project(luna: Project) -> Project:
    return luna


def test_a_new_project_starts_from_the_preset_that_suits_the_machine(studio: Studio) -> None:
    plain = studio.workspace.create_project("plain")
    assert draft(plain, PRESETS, None).model.base == "demo" and plain.preset == "demo"
    strong = studio.workspace.create_project("strong")
    assert draft(strong, PRESETS, GPU).adapter.rank == 16 and strong.preset == "sdxl-subject"


def test_a_damaged_draft_is_kept_and_told(studio: Studio, project: Project) -> None:
    draft(project, PRESETS, None)
    project.set_preset("sdxl-style")
    for number, damage in enumerate(("[train]\nlearning_rat = 1\n", "steps = = 3"), 1):
        file = project.root / "recipe.toml"
        file.write_text(damage, encoding="utf-8")
        page = RecipePage(studio, project)
        name = "recipe.toml.damaged" if number == 1 else "recipe.toml.damaged-2"
        assert (project.root / name).read_text(encoding="utf-8") == damage
        assert draft(project, PRESETS, None) == load_recipe_of(project), "a whole recipe is in its place"
        assert (project.preset, project.config().dataset.trigger) == ("sdxl-style", "zwx cat")
        assert f"could not be read, so it is kept as {name} in the project" in page.cards
        page.call("check")
        assert name in page.cards, "nothing was typed: said to whoever comes next"
        page.call("check", train_steps=str(700 + number))
        assert name not in page.cards and "damaged" not in RecipePage(studio, project).cards


def test_a_draft_that_is_damaged_while_one_types_is_told_too(page: RecipePage, project: Project) -> None:
    (project.root / "recipe.toml").write_bytes(b"\xff\xfe")
    page.call("check", train_steps="900")
    assert "recipe.toml.damaged" in page.cards and project.config().train.steps == 900


def test_a_recipe_that_the_disk_does_not_give_out_is_left_where_it_is(project: Project) -> None:
    draft(project, PRESETS, None)
    (project.root / "recipe.toml").unlink()
    (project.root / "recipe.toml").mkdir()
    with pytest.raises(UserError, match=r"recipe\.toml cannot be read \(.*directory"):
        draft(project, PRESETS, None)
    assert (project.root / "recipe.toml").is_dir()


def test_a_trigger_is_renamed_beside_a_damaged_recipe(project: Project) -> None:
    (project.root / "recipe.toml").write_text("nonsense", encoding="utf-8")
    rename_trigger(project, PRESETS, "zwx cat", "ohwx")
    assert (project.root / "recipe.toml").read_text(encoding="utf-8") == "nonsense"


def test_the_recipe_in_words(project: Project) -> None:
    config = parse(
        {
            "dataset": {"trigger": "zwx cat"},
            "train": {"steps": 200, "batch_size": 4},
            "samples": {"prompts": ["a", "b"], "every": 50},
            "checkpoints": {"every": 50, "keep": 1},
        }
    )
    said = verdict(project, config, PRESETS, None)
    assert said.words == [
        "4 pictures, batch 4: 200 steps show each picture about 100 times.",
        "4 photos in 2 buckets, batch 4 → 2 steps an epoch; 200 steps = 100 epochs.",
        "By the guides' formula, which knows no buckets: 1.00 steps an epoch, 100 in 100 epochs; here 200.",
        "2 sample images before the first step, every 50 steps and at the end.",
        "A checkpoint every 50 steps; the last is kept.",
    ]
    assert any(
        one.rule == "trigger_missing_in_captions" and "2 captions" in one.message for one in said.findings
    )


def test_the_fit_is_said_for_the_card(project: Project) -> None:
    config = parse(
        {"model": {"base": "stabilityai/stable-diffusion-xl-base-1.0"}, "train": {"batch_size": 64}}
    )
    lines = verdict(project, config, PRESETS, {"name": "GTX 1070", "total_gib": 8.0}).machine
    assert lines[0].kind == "bad" and "GTX 1070 has 8 GiB" in lines[0].text
    lines = verdict(project, parse({}), PRESETS, {"name": "H100", "total_gib": 80.0}).machine
    assert lines[0].kind == "good"
    assert "No GPU was found" in verdict(project, parse({}), PRESETS, None).machine[0].text


def test_changed_settings_are_counted_against_the_preset(project: Project) -> None:
    config = draft(project, PRESETS, None)
    assert verdict(project, config, PRESETS, None).changed == 0
    changed = config.model_copy(update={"train": config.train.model_copy(update={"steps": 7, "seed": 1})})
    assert verdict(project, changed, PRESETS, None).changed == 2


def test_a_new_trigger_reaches_the_sample_prompts(project: Project) -> None:
    config = draft(project, PRESETS, None)
    assert config.samples.prompts[0] == "a photo of zwx cat"
    project.set_trigger("ohwx")
    rename_trigger(project, PRESETS, "zwx cat", "ohwx")
    assert project.config().samples.prompts[0] == "a photo of ohwx"
    own = project.config()
    samples = own.samples.model_copy(update={"prompts": ("my ohwx at sea", "a boat")})
    project.save_config(own.model_copy(update={"samples": samples}))
    project.set_trigger("qrs")
    rename_trigger(project, PRESETS, "ohwx", "qrs")
    assert project.config().samples.prompts == ("my qrs at sea", "a boat")


def test_export_then_import(project: Project, studio: Studio, tmp_path: Path) -> None:
    draft(project, PRESETS, None)
    file = tmp_path / "recipe.toml"
    file.write_text(export_text(project), encoding="utf-8")
    exported = load_recipe(file)
    assert exported == project.config() and Path(exported.dataset.path) == project.root
    other = studio.workspace.create_project("Other")
    taken = take(other, bring([file], TrainConfig()).tables, "")
    assert Path(taken.dataset.path) == other.root and taken.dataset.trigger == "zwx cat"
    assert taken.train == exported.train
    file.write_text(dump_recipe(exported).replace("learning_rate", "learning_rat"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"did you mean train\.learning_rate"):
        bring([file], TrainConfig())
    assert other.config().train == exported.train


def load_recipe_of(project: Project) -> TrainConfig:
    return load_recipe(project.root / "recipe.toml").model_copy(update={"dataset": project.config().dataset})


@pytest.fixture
def page(studio: Studio, project: Project) -> RecipePage:
    return RecipePage(studio, project)


def test_typing_is_checked_and_kept(page: RecipePage, project: Project) -> None:
    page.call("check", train_steps="900", train_warmup="0.05")
    assert project.config().train.steps == 900
    steps = load_preset(PRESETS_DIR / "demo.toml").values["train"]["steps"]
    assert f"↺ {steps}" in page.note("train-steps")
    page.call("check", train_steps="abc", train_batch_size="4")
    assert "Steps = 'abc' is not allowed; give a whole number from 1 to 1000000" in page.note("train-steps")
    assert (project.config().train.steps, project.config().train.batch_size) == (900, 4), "the rest is kept"
    assert page.said["ready"] is False
    assert "Correct the settings marked in red" in page.said["summary"]


def test_a_fix_and_the_way_back(page: RecipePage, project: Project) -> None:
    rank = project.config().adapter.rank
    page.call("check", adapter_alpha="64")
    assert f"Alpha 64 at rank {rank}" in page.note("adapter-alpha")
    page.call("press", {"set": {"adapter.alpha": float(rank), "output.evil": 1}})
    assert page.shows("adapter-alpha") == str(rank)
    assert project.config().adapter.alpha == rank and page.note("adapter-alpha") == ""


def test_two_tabs_write_only_what_was_changed_in_them(
    studio: Studio, project: Project, page: RecipePage
) -> None:
    other = RecipePage(studio, project)
    page.call("check", train_steps="900")
    other.call("check", adapter_rank="5", samples_prompts="a boat\n")
    page.call("check", train_seed="7", train_learning_rate="abc")
    config = project.config()
    assert (config.train.steps, config.train.seed, config.adapter.rank) == (900, 7, 5)
    assert config.samples.prompts == ("a boat",)
    assert "Changed in another tab to 5." in page.note("adapter-rank") and page.shows("adapter-rank") != "5"
    assert "Changed in another tab to a boat." in page.note("samples-prompts")
    assert "Changed" not in page.note("train-steps") + other.note("adapter-rank")
    assert "learning_rate" in project.root.joinpath("recipe.toml").read_text() and "abc" in page.note(
        "train-learning-rate"
    ), "a wrong value stays where it was typed"

    page.call("press", {"set": {"adapter.rank": 5}})  # the button "Show it here"
    assert page.shows("adapter-rank") == "5" and "another tab" not in page.note("adapter-rank")
    page.call("check", samples_prompts="a ship")
    assert "another tab" not in page.note("samples-prompts"), "who types over it has decided"
    assert project.config().samples.prompts == ("a ship",)
    other.call("check", train_batch_size="2")
    assert "Changed in another tab to a ship." in other.note("samples-prompts")
    assert "Changed in another tab to 900." in other.note("train-steps")


def test_a_fresh_look_shows_what_was_changed_elsewhere_and_keeps_what_is_wrong_yet(
    studio: Studio, project: Project, page: RecipePage
) -> None:
    RecipePage(studio, project).call("check", adapter_rank="5", train_steps="900")
    page.call("check", {"fresh": True}, train_steps="12x", train_seed="7")
    assert (page.shows("adapter-rank"), page.shows("train-steps")) == ("5", "12x")
    assert "another tab" not in page.note("adapter-rank") and "12x" in page.note("train-steps")
    assert project.config().train.steps == 900
    page.call("check", train_steps="13")
    config = project.config()
    assert (config.train.steps, config.train.seed, config.adapter.rank) == (13, 7, 5)


def test_a_start_shows_first_what_another_tab_changed(
    studio: Studio, project: Project, page: RecipePage, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[TrainConfig] = []
    monkeypatch.setattr(
        studio.jobs, "start", lambda _, config: started.append(config) or SimpleNamespace(id="run-1")
    )
    RecipePage(studio, project).call("check", adapter_rank="5", train_steps="900")
    answer = page.call("launch", train_seed="7")
    assert "Another tab changed Rank, Steps; look at what is shown now" in answer["answer"]
    assert not started and (page.shows("adapter-rank"), page.shows("train-seed")) == ("5", "7")
    page.call("launch")
    assert (started[0].adapter.rank, started[0].train.steps, started[0].train.seed) == (5, 900, 7)


def test_what_the_browser_sends_as_known_is_not_trusted(page: RecipePage, project: Project) -> None:
    for nonsense in ("", "[]", "{", '{"output.evil": 1, "train.steps": "x"}', '{"train.steps": {}}'):
        page.said["known"] = nonsense
        page.call("check", train_steps="901")
        assert project.config().output.name and "evil" not in (project.root / "recipe.toml").read_text()


def test_a_preset_fills_the_form(page: RecipePage, project: Project) -> None:
    page.call("check", train_restarts="9")
    page.call("press", {"preset": "sdxl-style"})
    assert page.shows("train-restarts") == "3"
    assert project.config().adapter.targets == "transformer+conv" and project.preset == "sdxl-style"
    assert 'data-preset="sdxl-style" aria-pressed="true"' in page.said["presets"]


def test_a_card_is_put_over_every_goal(page: RecipePage, project: Project) -> None:
    page.call("press", {"preset": "sdxl-style"})
    page.call("check", train_seed="7")
    page.call("press", {"card": 8})
    config = project.config()
    assert (config.train.batch_size, config.train.gradient_accumulation) == (1, 2)
    assert (config.model.quantize, config.train.seed) == ("int8", 7), "and what was typed stays"
    assert 'data-card="0" aria-pressed="true">8 GB' in page.cards and "Made to fit 8 GB" in page.cards
    assert "1 setting is changed" in page.cards, "only the seed"
    page.call("press", {"preset": "sdxl-person"})
    assert project.config().model.quantize == "int8", "another goal is made to fit too"
    page.call("press", {"preset": "flux-subject"})
    assert "does not fit 8 GB" in page.cards
    page.call("press", {"preset": "sdxl-style"})
    page.call("press", {"card": 0})
    config = project.config()
    assert (config.train.batch_size, config.model.quantize) == (2, "none")
    assert "is changed" not in page.cards and "Made to fit" not in page.cards
    page.call("press", {"card": "8"})
    assert project.memory_gib == 0, "no card of that name"


def test_a_goal_has_one_card_and_its_paces(page: RecipePage, project: Project) -> None:
    assert page.cards.count('class="preset" data-preset="sdxl-person') == 1
    page.call("press", {"preset": "sdxl-person"})
    assert 'data-preset="sdxl-person-careful" aria-pressed="false">Careful' in page.cards
    page.call("press", {"preset": "sdxl-person-careful"})
    assert page.cards.count('class="preset" data-preset="sdxl-person') == 1
    assert 'data-preset="sdxl-person-careful" aria-pressed="true">Careful' in page.cards
    assert '<details class="guides"><summary>From guides (6)' in page.cards
    page.call("press", {"preset": "sd35-guide-rank128"})
    assert '<details class="guides" open>' in page.cards and 'aria-label="Pace"' not in page.cards


def test_start_says_what_is_in_the_way(
    page: RecipePage, studio: Studio, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise RunError("20260101-cat is being trained now; stop it first, or wait until it ends.", "config")

    monkeypatch.setattr(studio.jobs, "start", refuse)
    answer = page.call("launch")
    assert "20260101-cat is being trained now" in answer["answer"]
    started: list[Any] = []
    monkeypatch.setattr(
        studio.jobs, "start", lambda *arguments: started.append(arguments) or SimpleNamespace(id="run-1")
    )
    answer = page.call("launch", train_steps="50")
    assert answer["run"] == "run-1" and started[0][1].train.steps == 50
    answer = page.call("launch", train_steps="")
    assert len(started) == 1 and "Correct the settings" in answer["answer"]


def test_the_curve_is_drawn_for_every_scheduler() -> None:
    for scheduler in RECORDS["train.scheduler"].choices:
        for steps, warmup in ((1, 0.1), (2, 5), (5000, 500), (5000, 0)):
            train = {"scheduler": scheduler, "steps": steps, "warmup": warmup}
            drawn = recipe.curve_svg(parse({"train": train}))
            assert drawn.count("<polyline") == 1 and "nan" not in drawn
    assert "warm-up of 500 steps" in recipe.curve_svg(parse({"train": {"steps": 5000, "warmup": 500}}))


def test_the_curve_has_a_line_for_each_rate() -> None:
    train = {"learning_rate": 1e-4, "text_encoder_lr": 5e-5, "loraplus_ratio": 4, "loraplus_text_ratio": 2}
    drawn = recipe.curve_svg(parse({"train": {**train, "scheduler": "warmup_stable_decay"}}))
    assert drawn.count("<polyline") == 3  # the encoder's outer factors are as fast as the denoiser's inner
    for said in (
        "up to 0.0004 (outer factors of LoRA)",
        "up to 0.0001 (LoRA and outer factors of text encoder 1)",
        "up to 5e-05 (text encoder 1)",
        "decay of 200 steps",
    ):
        assert said in drawn
    tops = [
        min(float(pair.split(",")[1]) for pair in line.split('"')[0].split())
        for line in drawn.split('polyline points="')[1:]
    ]
    bottom = 96 - 18
    heights = sorted(bottom - top for top in tops)
    assert heights == pytest.approx([heights[2] / 8, heights[2] / 4, heights[2]], abs=0.11)


def test_a_length_in_epochs_is_drawn_and_told_in_steps(project: Project) -> None:
    config = parse({"train": {"epochs": 3}, "samples": {"prompts": ["zwx"], "every_epochs": 2}})
    judgement = verdict(project, config, [], None)
    photos = len(project.dataset().enabled_images())
    assert judgement.whole.train.steps == 3 * photos and judgement.whole.samples.every == 2 * photos
    assert any(f"{3 * photos} steps show each picture about 3 times" in line for line in judgement.words)
    assert f">{3 * photos} steps<" in recipe.curve_svg(judgement.whole)
    assert ">3 epochs<" in recipe.curve_svg(config)


def test_what_two_tabs_chose_may_not_go_together() -> None:
    """Each is right by itself; the one that comes second is told, and nothing else is lost."""
    shown = parse({"model": {"family": "sdxl"}})
    disk = parse({"model": {"family": "sd15"}, "train": {"seed": 7}})  # a preset of the other tab
    raw = {"train.text_encoder_2_lr": "1e-5", "train.steps": "900", "train.seed": str(shown.train.seed)}
    merged = merge_typed(raw, flatten(shown), disk)
    assert "can train only its first text encoder" in merged.problems["train.text_encoder_2_lr"]
    assert (merged.config.train.steps, merged.config.train.seed) == (900, 7)
    assert merged.config.train.text_encoder_2_lr == 0 and merged.elsewhere == {"train.seed": 7}
    assert merged.known["model.family"] == "sdxl" and merged.known["train.steps"] == 900


# The base and its family ------------------------------------------------------------------------------

DEV, XL = "black-forest-labs/FLUX.1-dev", "stabilityai/stable-diffusion-xl-base-1.0"


def test_a_base_of_the_catalogue_brings_its_family(page: RecipePage, project: Project) -> None:
    page.call("check", model_base=DEV)
    assert (project.config().model.family, project.config().model.base) == ("flux", DEV)
    page.call("check", model_base="demo")
    assert project.config().model.family == "sdxl"


def test_what_a_download_brings_is_said_before_it(page: RecipePage) -> None:
    assert "Included, nothing is downloaded. Licence: apache-2.0" in page.note("model-base")
    page.call("check", model_base=DEV)
    said = page.note("model-base")
    assert "GiB are downloaded once" in said and "Licence: flux-1-dev-non-commercial-license" in said
    assert "accept their terms" in said and f'href="https://huggingface.co/{DEV}"' in said
    page.call("check", model_base=XL)
    assert "Licence: openrail++" in page.note("model-base") and "terms" not in page.note("model-base")


def test_a_base_that_is_typed_keeps_the_family_and_offers_others(page: RecipePage, project: Project) -> None:
    page.call("check", model_base=DEV)
    page.call("check", model_base="me/my-own-<b>model")
    assert project.config().model.family == "flux"
    assert "Trained as FLUX.1." in page.note("model-base")
    assert '"model.family": "sd15"' in page.note("model-base")
    page.call("press", {"set": {"model.family": "sd15"}})
    assert project.config().model.family == "sd15" and project.config().model.base == "me/my-own-<b>model"
    page.call("check", train_steps="77")  # and stays so
    assert project.config().model.family == "sd15"


def test_what_the_new_family_cannot_have_is_settled_and_said(page: RecipePage, project: Project) -> None:
    """Nobody has to look for a setting that they never saw before it can start."""
    page.call("check", train_text_encoder_lr="1e-3", train_text_encoder_2_lr="5e-4")
    page.call("check", model_base=DEV, train_steps="77")
    train = project.config().train
    assert (train.text_encoder_lr, train.text_encoder_2_lr, train.steps) == (0, 0, 77)
    assert (page.shows("train-text-encoder-lr"), page.shows("train-text-encoder-2-lr")) == ("0", "0")
    assert page.said["ready"] is True and project.config().model.family == "flux"
    why = "FLUX.1 can train no text encoder."
    assert f"Text encoder learning rate was set to 0: {why}" in page.note("model-base")
    page.call("check", train_seed="5")
    assert f"Second encoder's rate was set to 0: {why}" in page.note("model-base"), "it stays said"
    page.call("check", model_base="demo", train_text_encoder_2_lr="1e-5")
    assert project.config().train.text_encoder_2_lr == 1e-5 and why not in page.note("model-base")
    page.call("press", {"set": {"model.base": DEV}})
    assert page.shows("train-text-encoder-2-lr") == "0" and why in page.note("model-base")


def test_what_is_typed_against_the_family_is_told(page: RecipePage, project: Project) -> None:
    page.call("check", model_base=DEV)
    page.call("check", train_text_encoder_lr="1e-5")
    assert "FLUX.1 can train no text encoder; set it to 0" in page.note("train-text-encoder-lr")
    assert page.said["ready"] is False and page.shows("train-text-encoder-lr") == "1e-5"
    page.call("check", train_text_encoder_lr="0")
    assert page.said["ready"] is True


def test_every_preset_leads_to_every_base(page: RecipePage, project: Project) -> None:
    """Whatever a preset sets, choosing a base after it leaves nothing that cannot be."""
    for preset in {preset.family: preset for preset in PRESETS}.values():
        page.call("press", {"preset": preset.key})
        chosen = project.config()
        for base in ("demo", *(row.bases[-1].id for row in CATALOGUE.values())):
            merged = merge_typed(with_family({"model.base": base}), flatten(chosen), chosen)
            assert merged.config.model.base == base and not merged.problems, (preset.key, base)
            said = verdict(project, merged.config, PRESETS, None)
            assert "cannot" not in recipe.summary_html(merged.config, said, {}), (preset.key, base)


def test_the_way_back_to_a_value_that_cannot_be_is_not_offered(page: RecipePage, project: Project) -> None:
    reference = parse({"train": {"text_encoder_lr": 1e-3, "steps": 5}})
    notes = annotated(parse({"model": {"family": "flux", "base": DEV}}), {}, [], reference)
    assert "reset" in notes["train.steps"]
    assert "reset" not in notes["train.text_encoder_lr"]


def test_every_base_of_the_catalogue_can_be_chosen(page: RecipePage, project: Project) -> None:
    for row in CATALOGUE.values():
        for base in row.bases:
            page.call("check", model_base=base.id)
            assert project.config().model.family == row.key, base.id
            assert base.licence in page.note("model-base")
