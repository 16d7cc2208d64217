"""A run as it lies in its storage, and how it comes back to a machine.

What is where, seen from the URL (:mod:`trainer.storage` writes it)::

    run.json            {"version": 1, "run": id, "writer": who writes here now}
    recipe.toml         dataset.json (once the pictures are chosen)
    pictures/<sha256>.<ending>     photos, masks and class pictures, by content
    checkpoints/step-000500/…      MANIFEST.json last: without it there is no checkpoint
    samples/…  events.jsonl  status.json  <name>.safetensors

On a machine that has not got the photos where the recipe says, they come to lie in the run's own folder
``pictures/``, and its dataset.json names them there.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from .contract.config import TrainConfig
from .contract.errors import ConfigError, RunError, UserError
from .contract.events import read_events
from .contract.fields import parse
from .contract.files import is_disk_full, write_bytes, write_json
from .contract.runs import RunFolder, slug
from .contract.same_run import differing
from .contract.settings.storage import RUN
from .contract.whole import MANIFEST, is_whole, list_checkpoints, newest_whole, sha256_of, step_of
from .remote import BUGS, Differs, Listed, Remote, in_words, is_missing, is_refusal

CARD, RECIPE, DATASET = "run.json", "recipe.toml", "dataset.json"
FOLDERS = ("checkpoints", "pictures", "samples")
WAIT_S = 60.0
"""How long a machine that has nothing of a run waits for a storage that does not answer."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SHOWN = re.compile(r"[a-z0-9][a-z0-9-]{0,79}")


@dataclass(frozen=True)
class Stored:
    """A run in its storage; ``files`` are all of it, by name."""

    remote: Remote
    run_id: str
    recipe: bytes
    files: dict[str, Listed]

    @classmethod
    def look(cls, remote: Remote) -> Stored | None:
        """The run that is stored there, None where there is none. Raises what the store's library raises."""
        card, recipe = remote.read(CARD), remote.read(RECIPE)
        if card is None or recipe is None:
            return None
        try:
            run_id = str(json.loads(card)["run"])
        except (ValueError, KeyError, TypeError):
            run_id = ""
        if not _ID.fullmatch(run_id):
            run_id = slug(remote.url.rpartition("/")[2])
        return cls(remote, run_id, recipe, remote.list(*FOLDERS))

    def config(self) -> TrainConfig:
        """The frozen recipe."""
        try:
            return parse(tomllib.loads(self.recipe.decode()))
        except ValueError:
            sentence = f"{self.remote.url} holds a {RECIPE} that cannot be read; name another place"
            raise ConfigError({"storage.url": sentence}) from None

    def steps(self) -> list[int]:
        """Of the checkpoints that have a manifest, the newest first."""
        found = [name.split("/") for name in self.files if name.startswith("checkpoints/step-")]
        names = [parts[1] for parts in found if len(parts) == 3 and parts[2] == MANIFEST]
        return sorted((step_of(Path(name)) for name in names if name[5:].isdigit()), reverse=True)


def find(config: TrainConfig, run_dir: Path | None) -> Stored | None:
    """The run that a recipe not yet begun here has in its storage, None where none is there to be reached.

    Raises ConfigError where another run is there.
    """
    if RUN in config.storage.url and run_dir is None:
        return None  # the place of a new run
    settings = config.storage.for_run(run_dir.resolve().name if run_dir else "")
    try:
        stored = _look(Remote(settings.url, settings.endpoint), patient=True)
    except (UserError, *BUGS):
        raise
    except Exception as error:
        _say(f"warning: {in_words(error, settings.url)}. It is not known whether the run is there.")
        return None
    if stored:
        require_same(stored, config)
    return stored


def begin(url: str, endpoint: str, run_dir: Path | None, runs: Path) -> RunFolder:
    """The folder on this machine of a run that is stored at ``url``, made if need be, for :func:`catch_up`.

    Raises RunError where there is no such run, or it cannot be reached.
    """
    stored = _at(url, endpoint)
    return _settle(stored, endpoint, RunFolder((run_dir or _home(stored, runs)).resolve()))


def fetch(url: str, endpoint: str, runs: Path) -> RunFolder:
    """Bring a stored run to its folder in ``runs`` without training it: recipe, photos, the newest checkpoint
    that is whole, and what belongs to it. One that is here gets what its storage has newer; any other appears
    when it is complete.

    Raises RunError where there is nothing to go on from, or the run is being trained here.
    """
    stored = _at(url, endpoint)
    if not stored.steps():
        sentence = (
            f"{url} holds the run {stored.run_id}, but no checkpoint of it; there is nothing to go on from"
        )
        raise RunError(sentence, "config")
    run = RunFolder(_home(stored, runs).resolve())
    here = run.recipe.exists()
    staged = _settle(stored, endpoint, run if here else RunFolder(run.path.with_name(f".{run.id}.fetching")))
    with staged.hold():
        _bring_all(stored, staged)
    if newest_whole(staged.checkpoints, lambda text: None) is None:
        raise RunError(f"{url} holds no checkpoint that is whole; there is nothing to go on from", "config")
    if not here:
        staged.path.rename(run.path)
    return run


def _at(url: str, endpoint: str) -> Stored:
    """The run that is stored there. Raises RunError where there is none, or it cannot be reached."""
    where = parse({"storage": {"url": url, "endpoint": endpoint}}).storage
    remote = Remote(where.url, where.endpoint)
    try:
        stored = _look(remote, patient=True)
    except BUGS:
        raise
    except Exception as error:
        raise RunError(in_words(error, url), _cause(error)) from None
    if stored is None:
        raise RunError(f"{url} holds no run; check the address", "config")
    return stored


def _home(stored: Stored, runs: Path) -> Path:
    """Its folder in ``runs``, under a name that a studio can show."""
    shown = runs / stored.run_id
    return shown if shown.exists() or _SHOWN.fullmatch(stored.run_id) else runs / slug(stored.run_id)


def _settle(stored: Stored, endpoint: str, run: RunFolder) -> RunFolder:
    """The run with its recipe in its folder. Raises ConfigError where that holds another run."""
    config = stored.config()
    if run.recipe.exists():
        require_same(stored, run.config())
    else:
        place = config.storage.model_copy(update={"url": stored.remote.url, "endpoint": endpoint.rstrip("/")})
        run.create(config.model_copy(update={"storage": place}))
    return run


def catch_up(run: RunFolder) -> None:
    """Bring to the run's folder what its storage has and it has not: the newest of both goes on.

    The caller holds the run's lock. Where the storage cannot be reached the run goes on from what is here.
    Raises ConfigError where the storage holds another run, RunError where it can be read but not fetched.
    """
    settings = run.config().storage
    if not settings.url:
        return
    try:
        remote = Remote(settings.url, settings.endpoint)
        stored = _look(remote, patient=not any(map(is_whole, list_checkpoints(run.checkpoints))))
    except (UserError, *BUGS):
        raise
    except Exception as error:
        sentence = in_words(error, settings.url)
        _say(f"warning: {sentence}. The run goes on from what is on this machine.")
        return
    if remote.is_inside(run.path):
        sentence = f"storage.url = {settings.url!r} is the run's own folder; name another disk or a bucket"
        raise ConfigError({"storage.url": sentence})
    if stored is None:
        return
    require_same(stored, run.config())
    _bring_all(stored, run)


def _bring_all(stored: Stored, run: RunFolder) -> None:
    """:func:`_bring`, where what goes wrong is a sentence."""
    try:
        _bring(stored, run)
    except (UserError, *BUGS):
        raise
    except Exception as error:
        if is_disk_full(error):
            raise RunError(
                f"the disk of {run.path} is full; free some space, then resume", "disk_full"
            ) from None
        raise RunError(f"{in_words(error, stored.remote.url)}; start again to go on", _cause(error)) from None


def _look(remote: Remote, *, patient: bool) -> Stored | None:
    """:meth:`Stored.look`. A machine that has nothing itself is ``patient``: it waits a while for a storage
    that does not answer, as beginning anew would cost more."""
    end, pause = time.monotonic() + (WAIT_S if patient else 0.0), 1.0
    while True:
        try:
            return Stored.look(remote)
        except BUGS:
            raise
        except Exception as error:
            if is_refusal(error) or is_missing(error) or time.monotonic() + pause > end:
                raise
            if pause == 1.0:
                _say(f"{in_words(error, remote.url)}; trying again for {WAIT_S:.0f} seconds")
        time.sleep(pause)
        pause = min(2 * pause, 10.0)


def _cause(error: Exception) -> str:
    """What no waiting changes is the recipe's fault."""
    return "config" if is_refusal(error) or is_missing(error) else "unknown"


def require_same(stored: Stored, config: TrainConfig) -> None:
    """Raise ConfigError where the storage holds another run than that of this recipe."""
    if others := differing(stored.config(), config):
        names, url = ", ".join(others[:3]) + (" and more" if len(others) > 3 else ""), stored.remote.url
        raise ConfigError(
            {
                "storage.url": f"storage.url = {url!r} holds another run, whose recipe differs in "
                f"{names}; give this one its own place, {{run}} in the address stands for its name"
            }
        )


def _bring(stored: Stored, run: RunFolder) -> None:
    here = max((step_of(path) for path in list_checkpoints(run.checkpoints) if is_whole(path)), default=-1)
    step = next((step for step in stored.steps() if step <= here or _checkpoint(stored, run, step)), -1)
    newer = step > here
    if newer:
        _say(f"step {step:,} was brought from {stored.remote.url}")
    if DATASET in stored.files and not run.dataset.exists():
        _dataset(stored, run)
    if newer or not run.events.exists():
        _news(stored, run)
    _files(stored, run, newer)


def _checkpoint(stored: Stored, run: RunFolder, step: int) -> bool:
    """Whether a checkpoint came whole; of a damaged one it is said that the one before is used."""
    folder = run.checkpoint(step)
    name = f"checkpoints/{folder.name}"
    staging = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        manifest = stored.remote.read(f"{name}/{MANIFEST}")
        for file, entry in json.loads(manifest or b"").items():
            if PurePosixPath(file).name != file:
                raise Differs(f"its manifest names {file!r}")
            stored.remote.fetch(f"{name}/{file}", staging / file, entry["size"], entry["sha256"])
        write_bytes(staging / MANIFEST, manifest or b"")
    except (Differs, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error) if isinstance(error, Differs) else "its manifest cannot be read"
        _say(f"warning: the stored checkpoint {folder.name} is damaged ({reason}); the one before it is used")
        shutil.rmtree(staging, ignore_errors=True)
        return False
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)
    return True


def _dataset(stored: Stored, run: RunFolder) -> None:
    """The frozen pictures. The recipe's own photos are used if they are on this machine, else they come."""
    frozen = json.loads(stored.remote.read(DATASET) or b"{}")
    root = (run.path / run.config().dataset.path).resolve()
    rows: list[dict[str, Any]] = frozen["images"]
    wanted = {name: place for row in rows for name, place in picture_files(row, root).items()}
    if all(place.is_file() and sha256_of(place) == sha256_in(name) for name, place in wanted.items()):
        write_json(run.dataset, frozen)
        return
    missing = [name for name in wanted if name not in stored.files]
    kept = {name: wanted[name] for name in missing if wanted[name].is_file()}
    kept = {name: place for name, place in kept.items() if sha256_of(place) == sha256_in(name)}
    if lost := len(missing) - len(kept):
        raise RunError(
            f"{lost} of the run's {len(wanted)} photos and masks are neither in {stored.remote.url} nor in "
            f"{root}; put them there, and start again",
            "config",
        )
    _say(f"bringing {len(wanted)} photos from {stored.remote.url}")
    for name in wanted:
        target = run.path / name
        if name in kept:
            write_bytes(target, kept[name].read_bytes())
        elif not target.is_file() or sha256_of(target) != sha256_in(name):
            stored.remote.fetch(name, target, stored.files[name].size, sha256_in(name))
    run.pictures.mkdir(exist_ok=True)
    if apart := {row["id"]: row["folder"] for row in rows if row.get("folder")}:
        write_json(run.folders, apart)
    for row in rows:
        photo, *mask = (PurePosixPath(name).name for name in picture_files(row, root))
        masked = {"mask": (mask or [photo])[0]} if row.get("mask") else {}
        row.update({"folder": "", "file": photo} | masked)
    write_json(run.dataset, frozen)


def picture_files(row: dict[str, Any], root: Path) -> dict[str, Path]:
    """{name in the storage: file on this machine} of a row of dataset.json: the photo, and its mask where it
    is a file of its own."""
    folder = root / row.get("folder", "")
    files = {_by_content(row["sha256"], row["file"]): folder / row["file"]}
    if row.get("mask") and row["mask"] != row["file"]:
        files[_by_content(row["mask_sha256"], row["mask"])] = folder / row["mask"]
    return files


def _by_content(sha256: str, file: str) -> str:
    return f"pictures/{sha256}{PurePosixPath(file).suffix.lower()}"


def sha256_in(name: str) -> str:
    return PurePosixPath(name).stem


def _news(stored: Stored, run: RunFolder) -> None:
    """Events and status, unless this machine's tell of later attempts."""
    events = stored.remote.read(run.events.name)
    if events and events.count(b"\n") >= len(read_events(run.events)[0]):
        write_bytes(run.events, events)
        if status := stored.remote.read(run.status.name):
            write_bytes(run.status, status)


def _files(stored: Stored, run: RunFolder, newer: bool) -> None:
    """Samples, the finished LoRA and small files that this machine has not, or has not so new."""
    result = run.result(run.config()).name
    if newer and run.stars.exists():
        _stars(stored, run)
    for name, listed in stored.files.items():
        path = PurePosixPath(name)
        sample = len(path.parts) == 2 and path.parts[0] == "samples"
        small = is_small(name)
        target = run.path / name
        renewed = small and newer and target != run.stars
        if (sample or small or name == result) and (renewed or not target.exists()):
            stored.remote.fetch(name, target, listed.size)


def _stars(stored: Stored, run: RunFolder) -> None:
    """What was starred here and what was starred where the run went on meanwhile: all of it stays."""
    try:
        there = frozenset(int(step) for step in json.loads(stored.remote.read(run.stars.name) or b"[]"))
        write_json(run.stars, sorted(run.starred() | there))
    except (ValueError, TypeError, RunError):
        _say(f"warning: the stars were not brought from {stored.remote.url}, as one of the lists is damaged")


def is_small(name: str) -> bool:
    """Whether a file of a run's folder is one of those beside the great ones: who starred what, and the like.
    launch.json is of a machine's own process, publish.json of what was published from it."""
    apart = (CARD, DATASET, "status.json", "launch.json", "publish.json")
    return "/" not in name and name.endswith(".json") and not name.startswith(".") and name not in apart


def _say(sentence: str) -> None:
    """There is no training yet that could tell it."""
    print(sentence, file=sys.stderr, flush=True)
