"""What the Recipe page says of a draft: facts of the project, findings, the fit, all of it in words."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from dataset_tools.concepts import concepts_of, survey
from dataset_tools.dataset import DATASET_FILE, load_dataset
from dataset_tools.folder import Photos, load_photos
from trainer.contract.class_set import class_pictures_to_draw, with_class_set
from trainer.contract.config import TrainConfig
from trainer.contract.errors import ConfigError, UserError
from trainer.contract.families import CATALOGUE, DEMO_BASE, family_of, known_base
from trainer.contract.fields import dump_recipe, flatten, merge, parse, to_tables
from trainer.contract.foreign.kohya_export import texts, to_kohya
from trainer.contract.hardware import for_card, memory_of
from trainer.contract.length import batches_of, in_steps, length_in_words
from trainer.contract.lint import Facts, Finding, lint, looks_per_picture
from trainer.contract.lora_header import start_from_facts
from trainer.contract.pace import seconds_per_step
from trainer.contract.plan import Machine, Plan, estimate
from trainer.contract.presets import Preset
from trainer.contract.retention import kept_in_words
from trainer.contract.settings.dataset import resolutions_of
from trainer.contract.steps import calculation
from trainer.contract.storage_facts import storage_problem

from .projects import Project

DEFAULT_PRESET = {True: "sdxl-subject", False: "demo"}
"""What a new project starts from, with and without a GPU."""


@dataclass(frozen=True)
class Line:
    """A sentence and how it is meant: "" (plain), "good", "warn" or "bad"."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Verdict:
    """All that the page says of a recipe.

    ``whole`` is the recipe with its epochs in steps, where the pictures are counted. ``reference`` is the
    recipe that the chosen preset makes, ``changed`` how many settings differ from it, ``blockers`` what keeps
    it from starting. ``looks`` is how often each photo is shown, regularisation sets aside.
    """

    preset: Preset | None
    whole: TrainConfig
    reference: TrainConfig | None
    changed: int
    findings: list[Finding]
    blockers: list[str]
    words: list[str]
    looks: float
    machine: list[Line]


def facts_of(project: Project, config: TrainConfig, gpu: dict[str, Any] | None) -> Facts:
    """What the linter wants to know; ``gpu`` as :meth:`studio.machine.Gpu.state` tells it."""
    base = known_base(config.model.family, config.model.base)
    return Facts(
        **_photos(project, config),
        native_resolution=base.resolution if base else CATALOGUE[config.model.family].resolution,
        gpu=gpu["name"] if gpu else "",
        vram_gib=gpu["total_gib"] if gpu else None,
        seconds_per_step=seconds_per_step(config, gpu["name"] if gpu else "", project.runs()),
        gpus=gpu.get("count") if gpu else 0,
        **start_from_facts(config.adapter.start_from, project.root),
        storage_problem=storage_problem(config.storage.url),
    )


def _photos(project: Project, config: TrainConfig) -> dict[str, Any]:
    """What is known of the project's photos, and of the recipe's other folders where these can be read."""
    dataset = with_class_set(config.dataset, config.prior)
    concepts = concepts_of(dataset, config.validation, project.root, project.root)
    buckets = project.buckets(config)
    several = buckets.at(resolutions_of(dataset))
    drawn = class_pictures_to_draw(config.prior, [one.nearest(1, 1) for one in several])
    try:
        return survey(concepts, buckets, photos_of, drawn).facts
    except UserError as error:
        return survey(concepts[:1], buckets, photos_of, drawn).facts | {"folders_problem": str(error)}


def photos_of(folder: Path) -> Photos:
    """As load_photos; a plain folder, whose pictures are all decoded for it, once until a file changes."""
    if (folder / DATASET_FILE).exists():
        return load_photos(folder)
    if (folder / "project.json").exists():  # a project that has got no photos yet
        return Photos(load_dataset(folder), {})
    files = [Path(place, name) for place, _, names in os.walk(folder) for name in names]
    stamps = tuple(sorted((str(file), file.stat().st_mtime_ns) for file in files))
    return _plain_photos(folder, stamps)


@lru_cache(maxsize=16)
def _plain_photos(folder: Path, stamps: tuple[tuple[str, int], ...]) -> Photos:
    return load_photos(folder)


def preset_of(project: Project, presets: list[Preset]) -> Preset | None:
    """The one that the draft started from."""
    key = project.preset
    return next((preset for preset in presets if preset.key == key), None)


def verdict(
    project: Project, config: TrainConfig, presets: list[Preset], gpu: dict[str, Any] | None
) -> Verdict:
    facts = facts_of(project, config, gpu)
    findings = lint(config, facts)
    preset = preset_of(project, presets)
    reference = fitted(project, preset.apply(config)) if preset else None
    changed = 0
    if reference:
        usual = flatten(reference)
        changed = sum(value != usual[path] for path, value in flatten(config).items())
    whole = in_steps(config, batches_of(config, facts.folders))
    machine = Machine("CPU", None)
    if gpu:
        machine = Machine(gpu["name"], gpu["total_gib"], gpu.get("count", 0))
    plan = estimate(
        config,
        machine,
        images=facts.images or 0,
        folders=facts.folders,
        seconds_per_step=facts.seconds_per_step,
    )
    return Verdict(
        preset=preset,
        reference=reference,
        changed=changed,
        findings=findings,
        blockers=[one.message for one in findings if one.level == "error"],
        words=in_words(whole, facts),
        whole=whole,
        looks=looks_per_picture(whole, facts.images, facts.folders) if facts.images else 0.0,
        machine=on_machine(config, plan, gpu),
    )


def in_words(config: TrainConfig, facts: Facts) -> list[str]:
    """The recipe as sentences."""
    train, samples = config.train, config.samples
    images = facts.images or 0
    batch = f"batch {train.batch_size}"
    if train.gradient_accumulation > 1:
        batch += f" × {train.gradient_accumulation}"
    lines = []
    if images:
        looks = looks_per_picture(config, images, facts.folders)
        times = (
            f"about {looks:.0f} times" if looks >= 1.5 else "about once" if looks >= 0.5 else "not even once"
        )
        many = "picture" if images == 1 else "pictures"
        lines.append(f"{images} {many}, {batch}: {train.steps} steps show each picture {times}.")
        lines += [f"{line}." for line in calculation(config, facts.folders)]
    else:
        lines.append(f"No pictures yet, {batch}, {length_in_words(train)}.")
    if samples.prompts:
        many = "One sample image" if len(samples.prompts) == 1 else f"{len(samples.prompts)} sample images"
        between = f", every {samples.every} steps" if 0 < samples.every <= train.steps else ""
        if samples.every_epochs:
            between = f", every {samples.every_epochs} epochs"
        lines.append(f"{many} before the first step{between} and at the end.")
    saved = config.checkpoints
    every = f"{saved.every_epochs} epochs" if saved.every_epochs else f"{saved.every} steps"
    lines.append(f"A checkpoint every {every}; {kept_in_words(saved)}.")
    return lines


def on_machine(config: TrainConfig, plan: Plan, gpu: dict[str, Any] | None) -> list[Line]:
    """The fit: memory in each phase, disk, download."""
    lines = []
    if gpu:
        peak = f"{plan.vram_gib['train']:.1f} GiB to train"
        if plan.vram_gib["sample"]:
            peak += f", {plan.vram_gib['sample']:.1f} GiB while drawing samples"
        if plan.fits:
            lines.append(Line(f"✓ Fits: about {peak}; {gpu['name']} has {gpu['total_gib']:.0f} GiB.", "good"))
        else:
            lines.append(
                Line(
                    f"Does not fit: about {peak}, and {gpu['name']} has {gpu['total_gib']:.0f} GiB. "
                    "Lower the batch size, the resolution or the rank.",
                    "bad",
                )
            )
    else:
        lines.append(
            Line(f"No GPU was found: it runs on the processor, with about {plan.ram_gib:.1f} GiB of RAM.")
        )
    disk = (
        f"{plan.disk_gib:.1f} GiB" if plan.disk_gib >= 0.1 else f"{max(1, round(plan.disk_gib * 1024))} MiB"
    )
    download = f"; {plan.download_gib:.1f} GiB are downloaded first" if plan.download_gib else ""
    lines.append(Line(f"About {disk} on disk for checkpoints and samples{download}."))
    if plan.seconds_per_step:
        minutes = plan.seconds_per_step * plan.steps / 60
        lines.append(Line(f"About {_long(minutes)}, as fast as such a run was here before."))
    if plan.price:
        lines.append(Line(f"{plan.price[:1].upper()}{plan.price[1:]}."))
    return lines


def _long(minutes: float) -> str:
    if minutes < 90:
        return f"{max(1, round(minutes))} minute{'s' if minutes >= 1.5 else ''}"
    return f"{minutes / 60:.1f} hours"


# The base and its family ----------------------------------------------------------------------------


def with_family(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted name, with the family of a base from the catalogue."""
    family = family_of(str(values.get("model.base", "")).strip())
    return {**values, "model.family": family} if family else dict(values)


def about_base(config: TrainConfig) -> list[Line]:
    """What to know of a base before it is downloaded: size, licence, whose terms to accept."""
    base = known_base(config.model.family, config.model.base)
    if base is None:
        return [Line(f"Trained as {CATALOGUE[config.model.family].label}.")]
    if base.id == DEMO_BASE:
        return [Line(f"Included, nothing is downloaded. Licence: {base.licence}.")]
    size = f"{base.download_gib:.1f} GiB are downloaded once"
    lines = [Line(f"{CATALOGUE[config.model.family].label}. {size}. Licence: {base.licence}.")]
    if base.gated:
        lines.append(
            Line(
                "Its makers ask you to accept their terms before the download, and to start the studio with "
                "your access token in HF_TOKEN.",
                "warn",
            )
        )
    return lines + ([Line(base.note)] if base.note else [])


# The draft ------------------------------------------------------------------------------------------


changing = threading.RLock()
"""Held from reading a draft until it is written, so that two tabs do not undo each other's changes."""


def draft(project: Project, presets: list[Preset], gpu: dict[str, Any] | None) -> TrainConfig:
    """The project's recipe. A project without one starts from the preset that suits the machine.

    So does one whose recipe is damaged or from another version: the page must open all the same. The
    file is kept, and the project's card tells of it.
    """
    with changing:
        try:
            config = project.config()
        except ConfigError:
            _require_readable(project)
            kept = project.set_recipe_aside()
            key = project.preset
            if key not in {preset.key for preset in presets}:
                key = DEFAULT_PRESET[gpu is not None]
            config = choose_preset(project, project.config(), presets, key)
            project.set_damaged_recipe(kept)
        if not project.preset and not (project.root / "recipe.toml").exists():
            return choose_preset(project, config, presets, DEFAULT_PRESET[gpu is not None])
        return config


def _require_readable(project: Project) -> None:
    """Raise UserError for a recipe that the disk does not give out: nothing is known to be wrong with it."""
    path = project.root / "recipe.toml"
    try:
        path.read_bytes()
    except OSError as error:
        raise UserError(
            f"The recipe {path} cannot be read ({error.strerror}); check the disk and the permissions."
        ) from None


def keep_draft(project: Project, config: TrainConfig) -> None:
    """Save what somebody chose. A damaged recipe before it need not be told of any longer."""
    project.save_config(config)
    project.set_damaged_recipe("")


def choose_preset(project: Project, config: TrainConfig, presets: list[Preset], key: str) -> TrainConfig:
    """Make the preset the project's draft. Raises UserError for one that does not exist."""
    preset = next((preset for preset in presets if preset.key == key), None)
    if preset is None:
        raise UserError(f"There is no preset {key[:80]!r}; reload the page.")
    config = fitted(project, preset.apply(config))
    with changing:
        keep_draft(project, config)
        project.set_preset(preset.key)
    return config


def choose_card(project: Project, config: TrainConfig, presets: list[Preset], memory_gib: int) -> TrainConfig:
    """Make the draft fit a card, or as the preset has it with 0; all but the memory settings stay."""
    preset = preset_of(project, presets)
    with changing:
        project.set_memory_gib(memory_gib)
        config = fitted(project, memory_of(config, preset.apply(config)) if preset else config)
        keep_draft(project, config)
    return config


def fitted(project: Project, config: TrainConfig) -> TrainConfig:
    """The recipe as it fits the card that was chosen, if one was."""
    return for_card(config, project.memory_gib) if project.memory_gib else config


def rename_trigger(project: Project, presets: list[Preset], old: str, new: str) -> None:
    """Put a changed trigger word into the draft's sample prompts, which would else show nothing of it.

    Prompts that are still the preset's become those for the new word; in others the word is replaced.
    """
    with changing:
        try:
            config = project.config()
        except ConfigError:
            return  # the Recipe page will say so
        prompts = config.samples.prompts
        preset = preset_of(project, presets)
        if preset and prompts == preset.prompts_for(old):
            renamed = preset.prompts_for(new)
        elif old and new:
            renamed = tuple(prompt.replace(old, new) for prompt in prompts)
        else:
            return
        if renamed != prompts:
            project.save_config(parse(merge(to_tables(config), {"samples": {"prompts": renamed}})))


def kohya_files(project: Project) -> tuple[dict[str, str], str]:
    """({file name: text} of the draft for kohya's scripts, a sentence on what they have nothing like). Raises
    ConfigError where they cannot train it."""
    made = to_kohya(project.config(), project.id)
    missing = sorted({line.option for line in made.lines if line.outcome == "missing"})
    said = f"kohya's scripts have nothing like {', '.join(missing)}." if missing else ""
    return texts(made, project.id), said


def export_text(project: Project) -> str:
    """The draft as TOML that trains on this machine without the studio."""
    return (
        "# python -m trainer train recipe.toml\n"
        "# dataset.path is the project's folder on this machine; change it elsewhere.\n\n"
        + dump_recipe(project.config())
    )
