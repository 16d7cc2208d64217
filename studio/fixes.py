"""What can be done about a training that failed, at one press: the change is shown before it is made.

A recipe is frozen when its run is made. A change that lets the run go on is an amendment, kept beside it
(:mod:`trainer.contract.ladder`), and the run resumes from its newest checkpoint. What would make another
training of it (other pictures, another resolution) becomes a new run.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from trainer.contract.config import TrainConfig
from trainer.contract.errors import ConfigError, UserError
from trainer.contract.families import CATALOGUE, DEMO_BASE, known_base
from trainer.contract.fields import RECORDS, flatten, merge, nest, parse, plain, to_tables
from trainer.contract.ladder import Amendment, at_once, next_amendment, read_ladder, write_ladder
from trainer.contract.runs import RunFolder, Status
from trainer.contract.settings.dataset import all_resolutions
from trainer.contract.sizes import changed_sides

from .fetched import stored_apart
from .freeing import Removable, free, removable
from .jobs import Supervisor
from .stopping import saved_step

BY_HAND = "by hand"
RATES = ("train.learning_rate", "train.text_encoder_lr", "train.text_encoder_2_lr")
SMALLEST = 256
"""Side in pixels below which no picture is worth training on."""


@dataclass(frozen=True)
class Fix:
    """What a button would do.

    Attributes:
        text: what it is, and what it costs; a sentence or two.
        button: what the button says.
        rows: the change, [[what, before, after], …]; for deleted files [[what, size, ""], …].
        apply: does it; the run that goes on or begins.
        link: an address that helps, "" if none.
    """

    text: str
    button: str
    apply: Callable[[], RunFolder]
    rows: list[list[str]] = field(default_factory=list)
    link: str = ""

    @property
    def key(self) -> str:
        """Changes with what is shown: the button does what one has read, or nothing."""
        shown = json.dumps([self.text, self.button, self.rows])
        return hashlib.sha256(shown.encode()).hexdigest()[:12]

    def as_dict(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "text": self.text,
            "button": self.button,
            "rows": self.rows,
            "link": self.link,
        }


def propose(jobs: Supervisor, run: RunFolder) -> Fix | None:
    """What helps a run that failed, died or had to stop; None where only a person can know. Raises
    UserError."""
    status = jobs.status(run)
    if not status.wants_help:
        return None
    makers: dict[str, Callable[[Supervisor, RunFolder, Status], Fix | None]] = {
        "gpu_oom": _less_gpu_memory,
        "host_oom": _less_memory,
        "nan": _slower,
        "disk_full": _more_room,
        "gated_model": _token,
        "bad_image": _leave_out,
        "killed": _go_on,
        "model_missing": _try_again,
        "unknown": _go_on,
    }
    maker = makers.get(status.cause)
    return maker(jobs, run, status) if maker else None


def apply(jobs: Supervisor, run: RunFolder, key: str) -> RunFolder:
    """Do what :func:`propose` says. Raises UserError where that is no longer what was shown."""
    fix = propose(jobs, run)
    if fix is None or fix.key != key:
        raise UserError("This has changed meanwhile; look at what it says now, and press again.")
    return fix.apply()


# Amendments: the same run goes on ---------------------------------------------------------------


def _amended(jobs: Supervisor, run: RunFolder, changes: dict[str, Any], why: str, text: str) -> Fix:
    before = flatten(run.amended())
    rows = [[RECORDS[path].label, _shown(before[path]), _shown(value)] for path, value in changes.items()]
    listed = ", ".join(f"{label.lower()} {old} → {new}" for label, old, new in rows)

    def go() -> RunFolder:
        change = Amendment(BY_HAND, changes, f"{why}: {listed}.")
        tried = read_ladder(run.ladder)
        write_ladder(run.ladder, [*tried, change])
        try:
            return jobs.resume(run)
        except UserError:
            write_ladder(run.ladder, tried)
            raise

    return Fix(f"{text} {_from_where(run)}", "Resume with these changes", go, rows)


def _slower(jobs: Supervisor, run: RunFolder, status: Status) -> Fix:
    values = flatten(run.amended())
    changes = {path: values[path] / 2 for path in RATES if values[path]}
    text = "Half the learning rate is what helps most often."
    return _amended(jobs, run, changes, "Changed by hand, as the loss became infinite", text)


def _less_gpu_memory(jobs: Supervisor, run: RunFolder, status: Status) -> Fix | None:
    """The next rung of the trainer's own ladder, which it climbs by itself unless it was told not to."""
    config = run.amended()
    here = next_amendment(config, read_ladder(run.ladder), "train", lambda name: find_spec(name) is not None)
    if here is None:
        return _smaller(jobs, run, "Everything that saves GPU memory was tried.")
    if not here.changes:  # a fresh process is all that it is
        return _go_on(jobs, run, status)
    why = "Changed by hand, as the GPU ran out of memory"
    return _amended(jobs, run, here.changes, why, f"{here.sentence[0].upper()}{here.sentence[1:]}.")


def _less_memory(jobs: Supervisor, run: RunFolder, status: Status) -> Fix | None:
    config = run.amended()
    why = "Changed by hand, as the computer ran out of memory"
    if config.machine.offload:
        text = "The base's blocks lie in the computer's memory; without that it needs more of the GPU's."
        return _amended(jobs, run, {"machine.offload": False}, why, text)
    if at_once(config) > 1:
        text = "A step sees as many pictures as before, fewer of them together, and takes longer."
        return _amended(jobs, run, {"machine.pictures_at_once": at_once(config) // 2}, why, text)
    return _smaller(jobs, run, "One picture at a time is the least.")


# As it is -----------------------------------------------------------------------------------------


def _go_on(jobs: Supervisor, run: RunFolder, status: Status) -> Fix:
    saved = saved_step(run)
    button = f"Resume from step {saved:,}" if saved else "Try again"
    return Fix(f"Nothing is changed. {_from_where(run)}", button, lambda: jobs.resume(run))


def _try_again(jobs: Supervisor, run: RunFolder, status: Status) -> Fix:
    return Fix(
        "When the network is back, or the model is where it should be:", "Try again", lambda: jobs.resume(run)
    )


def _token(jobs: Supervisor, run: RunFolder, status: Status) -> Fix:
    base = run.config().model.base
    known = "A token is there (HF_TOKEN), so it is the licence that is missing"
    if not os.environ.get("HF_TOKEN"):
        known = "There is no token: end the studio, set HF_TOKEN to one that may read, and start it again"
    text = f"Accept the licence on the model's page, as the owner of the token. {known}. Then:"
    link = f"https://huggingface.co/{base}" if base != DEMO_BASE and base.count("/") == 1 else ""
    return Fix(text, "Try again", lambda: jobs.resume(run), link=link)


def _more_room(jobs: Supervisor, run: RunFolder, status: Status) -> Fix:
    found = removable(jobs)
    size = sum(one.size for one in found)
    if not found:
        text = "There are no old checkpoints that could go: free some space elsewhere, then resume."
        return Fix(text, "Resume", lambda: jobs.resume(run))
    rows = [[_what(jobs, one), _size(one.size), ""] for one in found]

    def go() -> RunFolder:
        free(found)
        return jobs.resume(run)

    text = "These old checkpoints may go. The newest of each training, starred ones, LoRAs and samples stay."
    return Fix(f"{text} {_from_where(run)}", f"Delete {_size(size)} and resume", go, rows)


def _what(jobs: Supervisor, one: Removable) -> str:
    """ "Luna, 26 Nov 14:05: 2 old checkpoints"."""
    try:
        name = jobs.workspace.project(jobs.workspace.project_of(one.run)).name
    except UserError:
        name = one.run.id
    began = time.localtime(one.run.recipe.stat().st_mtime)
    count = len(one.folders)
    when = f"{began.tm_mday} {time.strftime('%b %H:%M', began)}"
    return f"{name}, {when}: {count} old checkpoint{'' if count == 1 else 's'}"


# Another training: a new run ----------------------------------------------------------------------


def _smaller(jobs: Supervisor, run: RunFolder, first: str) -> Fix | None:
    """The same with smaller pictures."""
    config = run.config()
    base = known_base(config.model.family, config.model.base)
    data = config.dataset
    now = all_resolutions(data, (base or CATALOGUE[config.model.family]).resolution)[0]
    smaller = now * 3 // 4 // 64 * 64
    if smaller < SMALLEST:
        return None
    changes = {"dataset.resolution": smaller} | changed_sides(data, lambda side: min(side, smaller))
    after = _with(config, changes)
    if after is None:
        return None
    text = f"{first} Smaller pictures need less, and are another training: it begins anew as a new run."
    rows = [[RECORDS["dataset.resolution"].label, _shown(now), _shown(smaller)]]
    return Fix(text, "Start anew with this change", lambda: _anew(jobs, run, after), rows)


def _leave_out(jobs: Supervisor, run: RunFolder, status: Status) -> Fix | None:
    """The pictures that are named, left out of the project; where the run has taken its pictures down
    already, the training begins anew without them."""
    project = jobs.workspace.project(jobs.workspace.project_of(run))
    named = [image for image in project.dataset().enabled_images() if image.original_name in status.message]
    if not named:
        return None
    begun = run.dataset.exists()

    def go() -> RunFolder:
        for image in named:
            project.set_enabled(image.id, False)
        try:
            return _anew(jobs, run, run.config()) if begun else jobs.resume(run)
        except UserError:
            for image in named:
                project.set_enabled(image.id, True)
            raise

    how = "It is another training then, and begins anew." if begun else "The run goes on without."
    rows = [[image.original_name, "takes part", "left out"] for image in named]
    text = f"Pictures that are left out can be taken back on the Photos page. {how}"
    return Fix(text, "Leave out and train", go, rows)


def _anew(jobs: Supervisor, run: RunFolder, config: TrainConfig) -> RunFolder:
    """A new run, which is not stored where this one is."""
    project = jobs.workspace.project(jobs.workspace.project_of(run))
    return jobs.start(project, stored_apart(config, run))


def _with(config: TrainConfig, changes: dict[str, Any]) -> TrainConfig | None:
    try:
        return parse(merge(to_tables(config), nest(changes)))
    except ConfigError:
        return None


# Words --------------------------------------------------------------------------------------------


def _from_where(run: RunFolder) -> str:
    saved = saved_step(run)
    return f"It goes on from step {saved:,}." if saved else "It begins anew, as nothing was saved yet."


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float) and 0 < value < 0.01:
        return f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e")
    if isinstance(value, (int, float)):
        return plain(value) if value else "0"
    return str(value)


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
