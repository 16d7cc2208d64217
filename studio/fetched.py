"""A run that came from elsewhere finds a project on this machine."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from dataset_tools.dataset import Dataset, ImageRecord, save_dataset, write_caption
from dataset_tools.masks import mask_path
from trainer.contract.config import TrainConfig
from trainer.contract.errors import UserError
from trainer.contract.fields import parse, to_tables
from trainer.contract.files import read_json, seen_from
from trainer.contract.runs import RunFolder
from trainer.contract.settings.dataset import DatasetSettings, OwnSettings, resolutions_of
from trainer.contract.settings.storage import RUN

from .projects import NotFound, Project, Workspace


def house(workspace: Workspace, run: RunFolder) -> Project:
    """The project of a run. Where its own is not on this machine a new one is made for it, with the photos
    and the recipe that came along. Raises UserError."""
    try:
        return workspace.project(workspace.project_of(run))
    except NotFound:
        project = workspace.create_project(run.config().output.name)
    workspace.adopt(run, project)
    # The run needs none of it: where it cannot be had, the project begins empty.
    with suppress(OSError, ValueError, KeyError, TypeError, UserError, ValidationError):
        _furnish(project, run)
    return project


def _furnish(project: Project, run: RunFolder) -> None:
    """Photos, captions, masks and triggers of the run, and its recipe. What it has in further folders comes
    as projects of their own, which the recipe names."""
    config, frozen = run.config(), read_json(run.dataset)
    trigger = str(frozen["trigger"])
    own = (run.path / config.dataset.path).resolve()
    came = run.pictures.is_dir()  # else they are where the recipe says
    root, apart = run.pictures if came else own, dict[str, str]()
    if came and run.folders.exists():
        apart = read_json(run.folders)
    folders: dict[str, list[dict[str, Any]]] = {"": []}
    for row in frozen["images"]:
        folders.setdefault(apart.get(row["id"], row.get("folder", "")), []).append(row)
    # Runs that were fetched before it was noted whose pictures are whose have all of them in one.
    plain = (row for row in folders.pop("") if not row.get("regularisation"))
    mine = [row for row in plain if row.get("trigger", "") in ("", trigger)]
    _fill(project, root, mine, trigger, config.dataset.repeats, config.dataset)
    further, places = _further(config), dict[str, str]()
    for path, repeats in further.items():
        if rows := folders.get(seen_from(own, (run.path / path).resolve())):
            word = str(rows[0].get("trigger", ""))
            other = project.workspace.create_project((word or Path(path).name)[:80])
            _fill(other, root, rows, word, repeats, config.dataset)
            places[path] = f"../{other.id}"
    if places.keys() == further.keys():
        project.save_config(stored_apart(_moved_to(config, places, trigger), run))


def _further(config: TrainConfig) -> dict[str, int]:
    """{folder: its repeats} of those that a recipe trains or measures on beside dataset.path."""
    further = {one.path: one.repeats for one in config.dataset.subsets}
    if config.validation.measures and config.validation.path:
        further.setdefault(config.validation.path, 1)
    if config.prior.method == "class_pictures" and config.prior.path:
        further.setdefault(config.prior.path, 1)
    return further


def _moved_to(config: TrainConfig, places: dict[str, str], trigger: str) -> TrainConfig:
    """The recipe with its further folders at other places."""
    tables = to_tables(config)
    for table in (*tables["dataset"]["subsets"], tables["validation"], tables["prior"]):
        table["path"] = places.get(table["path"], "")
    tables["dataset"]["trigger"] = trigger
    return parse(tables)


def _fill(
    project: Project,
    root: Path,
    rows: list[dict[str, Any]],
    trigger: str,
    repeats: int,
    settings: DatasetSettings,
) -> None:
    """Rows of the frozen dataset as those of a project, with their files from ``root``. ``repeats`` are the
    folder's, which stay in the recipe, as its resolutions do."""
    records, looks = [], dict[tuple[str, str], list[int]]()
    for row in rows:
        looks.setdefault((row.get("folder", ""), row["file"]), []).append(row.get("repeats", 1))
    for row in rows:
        # Of a photo in several sizes there are several rows; the first has its own id.
        if not (shown := looks.pop((row.get("folder", ""), row["file"]), None)):
            continue
        sizes = len(set(resolutions_of(settings, OwnSettings.model_validate(row.get("own", {})))))
        own = 1 if row.get("regularisation") else max(1, sum(shown) // repeats // sizes)
        records.append(_moved(project, root / row.get("folder", ""), row | {"repeats": own}, trigger))
    save_dataset(project.root, Dataset(trigger=trigger, images=tuple(records)))


def _moved(project: Project, folder: Path, row: dict[str, Any], trigger: str) -> ImageRecord:
    """A row of the frozen dataset as a record of the project, with its files from ``folder``."""
    frozen = ImageRecord.model_validate({name: row[name] for name in ImageRecord.model_fields if name in row})
    record = frozen.model_copy(update={"file": f"images/{frozen.id}{PurePosixPath(frozen.file).suffix}"})
    files = {project.root / record.file: folder / frozen.file}
    if (mask := row.get("mask")) and mask != frozen.file and ".." not in PurePosixPath(mask).parts:
        files[mask_path(project.root, record.id)] = folder / mask
    for target, source in files.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    if (caption := row.get("caption", "")) != trigger:
        write_caption(project.root, record, caption)
    return record


def stored_apart(config: TrainConfig, run: RunFolder) -> TrainConfig:
    """The recipe of a run for another one, which must not be stored where this one is: it would go on from
    what lies there."""
    url = config.storage.url
    if not url:
        return config
    url = url.replace(run.id, RUN) if run.id in url else f"{url}/{RUN}"
    return config.model_copy(update={"storage": config.storage.model_copy(update={"url": url})})
