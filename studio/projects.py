"""A workspace holds projects and runs; a project is a folder of photos, captions and a draft recipe.

Everything is addressed by ids that this module made ([a-z0-9-]); no path ever comes from a client.
Whatever changes dataset.json goes through the project's lock, so tabs never overwrite each other.
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset_tools.buckets import Buckets
from dataset_tools.dataset import (
    Dataset,
    ImageRecord,
    load_dataset,
    project_lock,
    read_caption,
    update_dataset,
    write_caption,
)
from trainer.contract.config import TrainConfig
from trainer.contract.errors import ConfigError, UserError
from trainer.contract.fields import dump_recipe, merge, parse, read_tables
from trainer.contract.files import read_json, write_json, write_text
from trainer.contract.hardware import CARDS
from trainer.contract.runs import RunFolder, list_runs, slug

if TYPE_CHECKING:
    from dataset_tools.ingest import IngestReport

ID = re.compile(r"[a-z0-9][a-z0-9-]{0,79}")
Progress = Callable[..., None]


class NotFound(UserError):
    """A project, picture, run or file that does not exist (or is none of ours)."""


@dataclass(frozen=True)
class Project:
    """One project folder."""

    workspace: Workspace
    root: Path

    @property
    def id(self) -> str:
        return self.root.name

    def _card(self) -> dict[str, Any]:
        try:
            card = read_json(self.root / "project.json")
        except (FileNotFoundError, ValueError):
            card = None  # a folder without a card (or with a damaged one) still opens, under its id
        return card if isinstance(card, dict) else {}

    def _update_card(self, **changes: Any) -> None:
        with writing(self.root), project_lock(self.root):
            write_json(self.root / "project.json", {"version": 1, **self._card(), **changes})

    @property
    def name(self) -> str:
        return str(self._card().get("name") or self.id)

    @property
    def created(self) -> float:
        """Unix seconds."""
        created = self._card().get("created")
        return float(created) if isinstance(created, (int, float)) else 0.0

    @property
    def preset(self) -> str:
        """Name of the preset that the draft recipe started from, "" if none."""
        return str(self._card().get("preset") or "")

    def set_preset(self, name: str) -> None:
        self._update_card(preset=name)

    @property
    def memory_gib(self) -> int:
        """Of the card that the draft recipe was made to fit, 0 if none."""
        memory = self._card().get("memory_gib")
        return memory if memory in CARDS else 0

    def set_memory_gib(self, memory_gib: int) -> None:
        self._update_card(memory_gib=memory_gib)

    @property
    def damaged_recipe(self) -> str:
        """Name of the file that keeps a recipe which could not be read, "" once the new one was changed."""
        return str(self._card().get("damaged_recipe") or "")

    def set_damaged_recipe(self, name: str) -> None:
        if name != self.damaged_recipe:
            self._update_card(damaged_recipe=name)

    def rename(self, name: str) -> None:
        """Change the name that people see; the id stays."""
        self._update_card(name=_checked_name(name))

    # Pictures -----------------------------------------------------------------------------------

    def dataset(self) -> Dataset:
        return load_dataset(self.root)

    def record(self, image_id: str) -> ImageRecord:
        """The record of one picture. Raises NotFound."""
        for record in self.dataset().images:
            if record.id == image_id:
                return record
        raise NotFound(f"There is no picture {image_id[:80]!r} in this project; reload the page.")

    def captions(self) -> dict[str, str]:
        """Caption by picture id, "" where there is none."""
        return {record.id: read_caption(self.root, record) for record in self.dataset().images}

    def add(self, paths: Iterable[Path], progress: Progress | None = None) -> IngestReport:
        """Take in pictures, caption files and zips, and crop what is new."""
        from dataset_tools.ingest import ingest

        report = ingest(list(paths), self.root, progress=progress)
        notes = self._crop(None, progress)
        return replace(report, notes=(*report.notes, *notes))

    def recrop(self, ids: Iterable[str] | None = None, progress: Progress | None = None) -> None:
        """Choose bucket and crop anew, for all pictures or for some."""
        self._crop([record.id for record in self.dataset().images] if ids is None else list(ids), progress)

    def _crop(self, only: list[str] | None, progress: Progress | None) -> list[str]:
        """Crop the named pictures; with None, those that have no crop yet. Returns notes for the user."""
        from dataset_tools.crop import crop_project

        notes: list[str] = []
        crop_project(
            self.root,
            self.buckets(),
            models_dir=self.workspace.models,
            only=only,
            progress=progress,
            notify=notes.append,
        )
        return notes

    def remove(self, ids: Iterable[str]) -> None:
        from dataset_tools.ingest import remove_images

        remove_images(self.root, list(ids))

    def set_enabled(self, image_id: str, enabled: bool) -> None:
        """Let a picture take part in training, or leave it out."""
        self.record(image_id)

        def change(dataset: Dataset) -> Dataset:
            return dataset.with_record(dataset.get(image_id).model_copy(update={"enabled": enabled}))

        with writing(self.root):
            update_dataset(self.root, change)

    def set_caption(self, image_id: str, text: str) -> None:
        with writing(self.root):
            write_caption(self.root, self.record(image_id), text)

    def set_trigger(self, text: str) -> None:
        trigger = " ".join(text.split())
        if len(trigger) > 100:
            raise UserError(f"The trigger word has {len(trigger)} characters; use at most 100.")
        with writing(self.root):
            update_dataset(self.root, lambda dataset: dataset.model_copy(update={"trigger": trigger}))

    # Recipe -------------------------------------------------------------------------------------

    def config(self) -> TrainConfig:
        """The draft recipe, with this project's folder and trigger. Raises ConfigError."""
        path = self.root / "recipe.toml"
        tables: dict[str, Any] = {"output": {"name": slug(self.name, "lora")}}
        if path.exists():
            tables = read_tables(path)
        here = {"dataset": {"path": str(self.root), "trigger": self.dataset().trigger}}
        return parse(merge(tables, here))

    def save_config(self, config: TrainConfig) -> None:
        """Keep the draft. The trigger lives in dataset.json, so a changed one is saved there."""
        if config.dataset.trigger != self.dataset().trigger:
            self.set_trigger(config.dataset.trigger)
        # "." is looked up beside the recipe: the file stays true when the workspace moves.
        dataset = config.dataset.model_copy(update={"path": "."})
        with writing(self.root):
            text = dump_recipe(config.model_copy(update={"dataset": dataset}))
            write_text(self.root / "recipe.toml", text)

    def set_recipe_aside(self) -> str:
        """Rename a recipe that cannot be read, so that a new one does not replace it; its new name."""
        with writing(self.root):
            for number in range(1, 10_000):
                kept = self.root / ("recipe.toml.damaged" if number == 1 else f"recipe.toml.damaged-{number}")
                if not kept.exists():
                    break
            (self.root / "recipe.toml").rename(kept)
        return kept.name

    def buckets(self, config: TrainConfig | None = None) -> Buckets:
        """The sizes that a recipe, or the draft, crops to; the base's resolution where it names none."""
        try:
            config = config or self.config()
        except ConfigError:
            config = TrainConfig()
        return Buckets.of_recipe(config)

    def resolution(self) -> int:
        """Side in pixels of the square bucket."""
        return self.buckets().resolution

    def folder(self, path: str) -> Path:
        """The folder that a path in the draft means: "../mia" is the project of that id."""
        return (self.root / Path(path).expanduser()).resolve()

    def runs(self) -> list[RunFolder]:
        """This project's runs, newest first."""
        return [run for run in self.workspace.list_runs() if self.workspace.project_of(run) == self.id]


class Workspace:
    """The folder that holds everything: projects/, runs/, models/, cache/."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.projects = self.root / "projects"
        self.runs = self.root / "runs"
        self.models = self.root / "models"
        self.cache = self.root / "cache"
        for folder in (self.projects, self.runs, self.models, self.cache):
            folder.mkdir(parents=True, exist_ok=True)
        self._project_of: dict[str, str] = {}
        self._adopted_seen: tuple[tuple[int, int, int] | None, dict[str, str]] = (None, {})

    def list_projects(self) -> list[Project]:
        """All projects, newest first."""
        folders = (path for path in self.projects.iterdir() if ID.fullmatch(path.name) and path.is_dir())
        return sorted(
            (Project(self, path) for path in folders), key=lambda p: (p.created, p.id), reverse=True
        )

    def create_project(self, name: str) -> Project:
        """A new, empty project. Two of the same name get different ids."""
        name = _checked_name(name)
        stem = slug(name, "project")
        for number in range(1, 10_000):
            root = self.projects / (stem if number == 1 else f"{stem}-{number}")
            try:
                root.mkdir()
            except FileExistsError:
                continue
            with writing(root):
                write_json(root / "project.json", {"version": 1, "name": name, "created": time.time()})
            return Project(self, root)
        raise UserError(f"There are too many projects called {name!r}; choose another name.")

    def project(self, project_id: str) -> Project:
        """The project of this id. Raises NotFound."""
        if ID.fullmatch(project_id):
            root = self.projects / project_id
            if root.is_dir() and not root.is_symlink():
                return Project(self, root)
        raise NotFound(f"There is no project {project_id[:80]!r}; choose one from the list.")

    def list_runs(self) -> list[RunFolder]:
        """All runs, newest first."""
        return [run for run in list_runs(self.runs) if ID.fullmatch(run.id)]

    def run(self, run_id: str) -> RunFolder:
        """The run of this id. Raises NotFound."""
        if ID.fullmatch(run_id):
            run = RunFolder(self.runs / run_id)
            if run.recipe.is_file() and not run.path.is_symlink():
                return run
        raise NotFound(f"There is no run {run_id[:80]!r}; reload the page.")

    def project_of(self, run: RunFolder) -> str:
        """Id of the project whose pictures the run trains on, "" where it is none of ours.

        The frozen recipe names the folder relative to the run, so a workspace can be moved. A recipe
        never changes, so the answer is remembered. One that came from elsewhere may have been adopted.
        """
        if adopted := self._adopted().get(run.id):
            return adopted
        if run.id not in self._project_of:
            try:
                folder = (run.path / run.config().dataset.path).resolve()
            except UserError:
                return ""
            self._project_of[run.id] = folder.name if folder.parent == self.projects else ""
        return self._project_of[run.id]

    def adopt(self, run: RunFolder, project: Project) -> None:
        """Let a run belong to a project, whatever folder its recipe names."""
        with writing(self.root):
            write_json(self.root / "adopted.json", {**self._adopted(), run.id: project.id})

    def _adopted(self) -> dict[str, str]:
        """{run id: project id}, read again when the file changes: another studio may have written it."""
        path = self.root / "adopted.json"
        try:
            stat = path.stat()
        except OSError:
            return {}
        stamp = stat.st_mtime_ns, stat.st_size, stat.st_ino
        if stamp != self._adopted_seen[0]:
            with suppress(OSError, ValueError):
                found = read_json(path)
                rows = found.items() if isinstance(found, dict) else ()
                self._adopted_seen = (stamp, {str(run): str(project) for run, project in rows})
        return self._adopted_seen[1]


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Around a write: a full or read-only disk becomes a sentence (UserError)."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            sentence = "The disk is full, so this was not saved; free some space and try again."
        else:
            sentence = f"{folder} cannot be written ({error.strerror}); check its permissions."
        raise UserError(sentence) from error


def _checked_name(name: str) -> str:
    name = " ".join(name.split())
    if not name:
        raise UserError("The project needs a name; type one, for example the name of your pet.")
    if len(name) > 80:
        raise UserError(f"The name has {len(name)} characters; use at most 80.")
    return name
