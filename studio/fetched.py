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
from trainer.contract.files import read_json
from trainer.contract.runs import RunFolder
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
    """Photos, captions, masks and trigger of the run's first folder, and its recipe."""
    config, frozen = run.config(), read_json(run.dataset)
    trigger = str(frozen["trigger"])
    came = run.pictures.is_dir()  # else they are where the recipe says
    root = run.pictures if came else (run.path / config.dataset.path).resolve()
    records = [
        _moved(project, root, row, trigger)
        for row in frozen["images"]
        if not (row.get("folder") or row.get("regularisation")) and row.get("trigger", "") in ("", trigger)
    ]
    save_dataset(project.root, Dataset(trigger=trigger, images=tuple(records)))
    own = config.dataset.model_copy(update={"trigger": trigger})
    if not (config.dataset.subsets or config.validation.path or config.prior.path):
        project.save_config(stored_apart(config.model_copy(update={"dataset": own}), run))


def _moved(project: Project, root: Path, row: dict[str, Any], trigger: str) -> ImageRecord:
    """A row of the frozen dataset as a record of the project, with its files from ``root``."""
    frozen = ImageRecord.model_validate({name: row[name] for name in ImageRecord.model_fields if name in row})
    record = frozen.model_copy(update={"file": f"images/{frozen.id}{PurePosixPath(frozen.file).suffix}"})
    files = {project.root / record.file: root / frozen.file}
    if (mask := row.get("mask")) and mask != frozen.file and ".." not in PurePosixPath(mask).parts:
        files[mask_path(project.root, record.id)] = root / mask
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
