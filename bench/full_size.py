"""Memory and speed at full size, on a GPU: ``python -m bench.full_size --work DIR [--only flux] [--write]``.

Bases of full size with random weights (:mod:`bench.full_bases`) are trained for a few steps by the product
itself, a process each, and what the allocator held in each phase is put beside what ``trainer plan`` says.
Rows are kept in DIR/rows.jsonl as they come; ``--write`` puts the table of them into docs/gpu.md. DIR wants
room for two bases at a time (up to 90 GB; /dev/shm does); a base goes as soon as it has been measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.full_bases import build
from bench.page import put_between
from tests.pictures import draw_squares
from trainer.contract.config import TrainConfig
from trainer.contract.events import read_events
from trainer.contract.families import CATALOGUE, known_base
from trainer.contract.fields import merge, parse
from trainer.contract.ladder import read_ladder
from trainer.contract.plan import CONTEXT_GIB, GIB, Machine, estimate
from trainer.contract.runs import RunFolder

PAGE = Path(__file__).resolve().parents[1] / "docs" / "gpu.md"
STEPS, WARM = 12, 4
"""Steps of a training, and how many of the first do not count for speed."""
CHILD = (sys.executable, "-m", "bench.full_size")
PHASES = ("cache", "load", "train", "sample")

SDXL, SD15 = "stabilityai/stable-diffusion-xl-base-1.0", "stable-diffusion-v1-5/stable-diffusion-v1-5"
MEDIUM, LARGE = "stabilityai/stable-diffusion-3.5-medium", "stabilityai/stable-diffusion-3.5-large"
FLUX, KLEIN = "black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.2-klein-base-4B"


@dataclass(frozen=True)
class Case:
    """A recipe over a base; ``card`` is the GiB that a smaller card would have, where one is played."""

    name: str
    family: str
    base: str
    changes: dict[str, Any] = field(default_factory=dict)
    card: float | None = None


def _train(**changes: Any) -> dict[str, Any]:
    return {"train": changes}


INT8 = {"model": {"quantize": "int8", "quantize_text": "int8"}}
NF4 = {"model": {"quantize": "nf4", "quantize_text": "nf4"}}
CASES = (
    Case("bf16", "sdxl", SDXL),
    Case("bf16, batch 4", "sdxl", SDXL, _train(batch_size=4)),
    Case("bf16, activations kept", "sdxl", SDXL, _train(gradient_checkpointing="off")),
    Case("bf16, drawn whole", "sdxl", SDXL, {"samples": {"tiling": "off"}}),
    Case("int8", "sdxl", SDXL, INT8),
    Case("nf4, AdamW 8-bit", "sdxl", SDXL, NF4 | _train(optimizer="adamw8bit")),
    Case("blocks in RAM", "sdxl", SDXL, {"machine": {"offload": True}}),
    Case("text encoders too", "sdxl", SDXL, _train(text_encoder_lr=1e-5, text_encoder_2_lr=1e-5)),
    Case("bf16", "flux", FLUX),
    Case("int8", "flux", FLUX, INT8),
    Case("nf4", "flux", FLUX, NF4),
    Case("a card of 24 GiB", "flux", FLUX, card=24.0),
    Case("bf16", "sd15", SD15),
    Case("bf16", "zimage", "Tongyi-MAI/Z-Image"),
    Case("bf16", "sd3", LARGE),
    Case("bf16", "flux2", KLEIN),
    Case("bf16", "chroma", "lodestones/Chroma1-HD"),
    Case("bf16", "lumina2", "Alpha-VLLM/Lumina-Image-2.0"),
    Case("bf16", "sana", "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers"),
    Case("bf16", "sd3", MEDIUM),
    Case("nf4", "qwenimage", "Qwen/Qwen-Image", NF4),
    Case("bf16", "qwenimage", "Qwen/Qwen-Image"),
)


@dataclass
class Row:
    """GiB by phase: ``held`` by the allocator at the most, ``used`` of that by tensors, and ``planned`` in
    all; seconds; ``rungs`` of the out-of-memory ladder that were climbed; ``error`` where it failed."""

    case: str
    family: str
    base: str
    gpu: str = ""
    torch: str = ""
    held: dict[str, float] = field(default_factory=dict)
    used: dict[str, float] = field(default_factory=dict)
    planned: dict[str, float] = field(default_factory=dict)
    context: float = 0.0
    seconds_per_step: float = 0.0
    start_seconds: float = 0.0
    rungs: list[str] = field(default_factory=list)
    error: str = ""


def recipe(case: Case, base: str, photos: Path) -> TrainConfig:
    """Rank 16 at the base's own resolution, one picture a step, one sample before and after."""
    tables: dict[str, Any] = {
        "model": {"family": case.family, "base": base},
        "dataset": {"path": str(photos), "resolution": native(case), "trigger": "zwx"},
        "adapter": {"rank": 16, "alpha": 16.0},
        "train": {"steps": STEPS, "batch_size": 1, "warmup": 0},
        "samples": {"prompts": ["a photo of zwx"], "every": 0, "steps": 4},
        "checkpoints": {"every": 1000},
    }
    return parse(merge(tables, case.changes))


def native(case: Case) -> int:
    """Side in pixels of the pictures that the base was made for."""
    base = known_base(case.family, case.base)
    assert base
    return base.resolution


class Peaks:
    """What the allocator holds at the most between two changes of a run's state, by phase."""

    def __init__(self) -> None:
        self.held, self.used = dict.fromkeys(PHASES, 0.0), dict.fromkeys(PHASES, 0.0)
        self._phase = "load"

    def change(self, phase: str) -> None:
        import torch

        if torch.cuda.is_available():
            for peaks, now in (
                (self.held, torch.cuda.max_memory_reserved()),
                (self.used, torch.cuda.max_memory_allocated()),
            ):
                peaks[self._phase] = round(max(peaks[self._phase], now / GIB), 2)
            torch.cuda.reset_peak_memory_stats()
        self._phase = phase

    def watch(self, reporter: Any) -> None:
        """Follow every state and stage that is reported from now on."""
        update = reporter._update

        def watched(this: Any, **changes: Any) -> None:
            stage, state = changes.get("stage"), changes.get("state")
            if stage in ("encode", "captions"):
                self.change("cache")
            elif stage == "load":
                self.change("load")
            elif state == "sampling":
                self.change("sample")
            elif state in ("training", "saving"):
                self.change("train")
            update(this, **changes)

        reporter._update = watched


def measure(case: Case, base: Path, work: Path) -> Row:
    """Train it here; this process is for that alone."""
    import torch

    from trainer.report import Reporter
    from trainer.restart import Restart
    from trainer.train import train

    class Nothing:
        why = ""

        def stop(self) -> bool:
            return False

        def take(self, verb: Any) -> bool:
            return False

    row, peaks = Row(case.name, case.family, case.base, torch=torch.__version__), Peaks()
    side = native(case)
    photos = draw_squares(work / f"photos{side}", side)
    config = recipe(case, str(base), photos)
    total = 0.0
    if torch.cuda.is_available():
        row.gpu = torch.cuda.get_device_name()
        total = torch.cuda.get_device_properties(0).total_memory / GIB
        if case.card:  # what a process holds beside its tensors is on the smaller card, too
            torch.cuda.set_per_process_memory_fraction((case.card - CONTEXT_GIB) / total)
    named = config.model_copy(update={"model": config.model.model_copy(update={"base": case.base})})
    row.planned = estimate(named, Machine(row.gpu, case.card or total or None), images=4).vram_gib
    peaks.watch(Reporter)
    run = RunFolder(work / "runs" / f"{case.family}-{time.time_ns()}")
    run.create(config)
    began = time.time()
    with run.hold():
        while True:
            try:
                train(run, Nothing())
                break
            except Restart:
                gc.collect()
                torch.cuda.empty_cache()
    peaks.change("load")
    row.held, row.used = peaks.held, peaks.used
    steps = [event for event in read_events(run.events)[0] if event["kind"] == "step"]
    row.seconds_per_step = round(statistics.median(event["seconds"] for event in steps[WARM:]), 4)
    row.start_seconds = round(steps[0]["time"] - began, 1)
    row.rungs = [change.rung for change in read_ladder(run.ladder)]
    if torch.cuda.is_available():
        free, whole = torch.cuda.mem_get_info()
        row.context = round((whole - free - torch.cuda.memory_reserved()) / GIB, 2)
    shutil.rmtree(run.path)
    return row


class Measured:
    """A process that measures one case. It has imported everything when it is told to begin: the one after
    may wait beside the one that is at work."""

    def __init__(self, work: Path, number: int) -> None:
        argv = [*CHILD, "--work", str(work), "--case", str(number)]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, text=True)

    def run(self, base: Path) -> None:
        self._process.communicate(f"{base}\n" if base.name else "")


def be_measured(work: Path, case: Case) -> None:
    """In such a process: add the case's row."""
    preload(case.family)
    base = sys.stdin.readline().strip()
    if not base:
        return
    try:
        row = measure(case, Path(base), work)
    except BaseException as error:
        traceback.print_exc()
        row = Row(case.name, case.family, case.base, error=f"{type(error).__name__}: {error}"[:300])
    with (work / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(row)) + "\n")


def ahead(work: Path, wanted: Sequence[tuple[str, str]]) -> Iterator[Path]:
    """The bases, each built by a process while the one before is measured. Raises RuntimeError where one
    could not be built: it has said why."""

    def begin(number: int) -> subprocess.Popen[bytes]:
        family, base = wanted[number]
        folder = str(work / f"base{number}")
        return subprocess.Popen([*CHILD, "--work", str(work), "--build", family, base, folder])

    coming = begin(0)
    for number, (_, base) in enumerate(wanted):
        if coming.wait():
            raise RuntimeError(f"{base} could not be built")
        if number + 1 < len(wanted):
            coming = begin(number + 1)
        yield work / f"base{number}"
        shutil.rmtree(work / f"base{number}", ignore_errors=True)


def preload(family: str) -> None:
    """Import what a training needs."""
    import peft  # noqa: F401

    import trainer.train  # noqa: F401
    from trainer.families.base import family_class

    family_class(family)


def table(rows: Sequence[Row]) -> list[str]:
    """The rows as Markdown, by base."""
    context = min((row.context for row in rows if row.context), default=0.0)
    lines = [
        "| Base | Recipe | Encoding | Training | Sampling | s a step | Start to step 1 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row.error:
            continue
        cells = [
            f"{row.held[phase] + context:.1f} ({row.planned.get(phase, 0):.1f})"
            for phase in ("cache", "train", "sample")
        ]
        name = next(base.label for base in CATALOGUE[row.family].bases if base.id == row.base)
        recipe = row.case + (f": {', '.join(row.rungs)}" if row.rungs else "")
        speed = [f"{row.seconds_per_step:.2f}", f"{row.start_seconds:.0f} s"]
        lines.append(f"| {' | '.join([name, recipe, *cells, *speed])} |")
    return lines


def read_rows(file: Path) -> list[Row]:
    """The newest row of each case, in the order of CASES."""
    found = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        row = Row(**json.loads(line))
        found[row.base, row.case] = row
    return [found[case.base, case.name] for case in CASES if (case.base, case.name) in found]


def measure_all(work: Path, families: Sequence[str], seconds: float) -> None:
    """Every case of these families (of all, if none is named), as far as can be begun in ``seconds``."""
    chosen = [n for n, case in enumerate(CASES) if not families or case.family in families]
    wanted = list(dict.fromkeys((CASES[n].family, CASES[n].base) for n in chosen))
    bases, began = ahead(work, wanted), time.monotonic()
    here, base = Path(), ("", "")
    waiting: Measured | None = None
    for at, number in enumerate(chosen):
        case = CASES[number]
        if (case.family, case.base) != base:
            here, base = next(bases), (case.family, case.base)
        if time.monotonic() - began > seconds:
            break
        now = waiting or Measured(work, number)
        # Not beside the first: what its process holds beside its tensors is read off the whole card.
        waiting = Measured(work, chosen[at + 1]) if at and at + 1 < len(chosen) else None
        now.run(here)
    if waiting:
        waiting.run(Path())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.full_size", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for bases, runs and rows")
    parser.add_argument("--only", default="", help="families, by commas")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no more cases after that")
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--build", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help="put the rows of DIR into docs/gpu.md")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    if given.write:
        put_between(PAGE, "measured", table(read_rows(given.work / "rows.jsonl")))
        return
    if given.build:
        family, base, folder = given.build
        build(family, base, Path(folder))
        return
    if given.case is not None:
        be_measured(given.work, CASES[given.case])
        return
    measure_all(given.work, given.only.split(",") if given.only else [], given.seconds)
    for line in table(read_rows(given.work / "rows.jsonl")):
        print(line)


if __name__ == "__main__":
    main()
