"""``python -m trainer``: the trainer's command line, and the one place that catches every error.

Exit codes: 0 finished · 1 failed (cause on the last line) · 2 bad recipe or arguments, or a budget that was
used up before · 3 stopped and saved, resume with the same folder.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from .accelerated import as_launched
from .contract.amend import amend, take_over, with_sections
from .contract.config import TrainConfig
from .contract.errors import ConfigError, UserError
from .contract.fields import RECORDS, load_recipe, parse, to_tables
from .contract.presets import load_recipe_or_preset
from .contract.runs import RunFolder, new_run_id
from .contract.same_run import differing
from .contract.spent import refused_for_its_budget
from .processes import Crew, Machines, announced, joined, leave, speaks, under_torchrun
from .restart import AGAIN, Restart, begin_again, fit_allocator
from .steady import steady_output

if TYPE_CHECKING:
    from .requests import Requests

FINISHED, FAILED, BAD_RECIPE, STOPPED = 0, 1, 2, 3


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.verb(arguments)
        return code
    except ConfigError as error:
        for sentence in error.problems.values():
            print(f"error: {sentence}", file=sys.stderr)
        return BAD_RECIPE
    except Restart:
        return AGAIN
    except UserError as error:
        if speaks():
            print(f"error: {error}", file=sys.stderr)
        return BAD_RECIPE if getattr(error, "cause", "") == "config" else FAILED
    except KeyboardInterrupt:
        print("error: interrupted; nothing more was saved", file=sys.stderr)
        return FAILED
    except Exception as error:  # the one boundary: a bug ends as a log and a sentence, with exit code 1
        traceback.print_exc()
        if speaks():
            print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainer", description="Train LoRAs for image models.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    train = verbs.add_parser("train", help="train a recipe", epilog=_settings_help(), formatter_class=_Raw)
    train.add_argument("recipe", type=Path, metavar="RECIPE.toml")
    train.add_argument(
        "--run-dir", type=Path, metavar="DIR", help="the run's folder (default: workspace/runs/…)"
    )
    _add_set(train)
    _add_machines(train)
    train.set_defaults(verb=_train)

    resume = verbs.add_parser("resume", help="go on with a run from its newest checkpoint")
    resume.add_argument("run", metavar="RUN_DIR", help="or the address where it is stored: s3://bucket/run")
    resume.add_argument(
        "--run-dir",
        type=Path,
        metavar="DIR",
        help="where a stored run goes on (default: workspace/runs/…)",
    )
    resume.add_argument("--endpoint", default="", metavar="URL", help="of a stored run: as storage.endpoint")
    _add_set(resume)
    _add_machines(resume)
    resume.set_defaults(verb=_resume)

    fetch = verbs.add_parser("fetch", help="bring a stored run to this machine, without training it")
    fetch.add_argument("url", metavar="URL", help="where it is stored: s3://bucket/run")
    fetch.add_argument("--endpoint", default="", metavar="URL", help="as storage.endpoint")
    fetch.add_argument(
        "--into", type=Path, metavar="DIR", help="the folder of runs (default: workspace/runs)"
    )
    fetch.set_defaults(verb=_fetch)

    star = verbs.add_parser("star", help="keep a checkpoint, whatever the recipe's [checkpoints] say")
    star.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    star.add_argument("step", type=int, metavar="STEP")
    star.add_argument("--off", action="store_true", help="no longer")
    star.set_defaults(verb=_star)

    plan = verbs.add_parser("plan", help="what a recipe will need: memory, disk, steps")
    plan.add_argument("recipe", type=Path, metavar="RECIPE.toml")
    plan.add_argument("--json", action="store_true", help="print one JSON object")
    _add_set(plan)
    plan.set_defaults(verb=_plan)

    check = verbs.add_parser("check", help="check a recipe and its photos, without loading a model")
    check.add_argument("recipe", type=Path, metavar="RECIPE.toml")
    check.add_argument(
        "--captions",
        type=int,
        default=0,
        metavar="N",
        help="show what is made of the captions of the first N photos, stage by stage",
    )
    _add_set(check)
    check.set_defaults(verb=_check)

    sample = verbs.add_parser("sample", help="draw pictures with a run's LoRA")
    sample.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    sample.add_argument("--prompt", action="append", required=True, help="may be given several times")
    sample.add_argument("--out", type=Path, metavar="DIR", help="default: RUN_DIR/drawings")
    sample.add_argument("--seed", type=int, help="default: the recipe's")
    sample.add_argument("--step", type=int, metavar="STEP", help="of the checkpoint; default: the newest")
    sample.set_defaults(verb=_sample)

    export = verbs.add_parser(
        "export", help="write a run's LoRA, a LoRA's file or a recipe for another program"
    )
    export.add_argument(
        "run_dir", type=Path, metavar="RUN_DIR", help="or FILE.safetensors; or RECIPE.toml, with kohya-toml"
    )
    export.add_argument(
        "--format",
        choices=("kohya", "diffusers", "comfyui", "kohya-toml"),
        default="kohya",
        help="kohya-toml writes the recipe for kohya's scripts; the others write the LoRA",
    )
    export.add_argument(
        "--weights",
        choices=("raw", "average"),
        help="where they are averaged: those of the last step, or their average (the default)",
    )
    export.add_argument("--rank", type=int, metavar="N", help="of a dylora: cut it to this rank")
    export.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="default, of a LoRA's file: beside it, with the format's name",
    )
    export.set_defaults(verb=_export)

    bring = verbs.add_parser("import", help="a recipe from another program's, or from a finished LoRA")
    bring.add_argument("file", type=Path, metavar="FOREIGN_CONFIG")
    bring.add_argument("--out", type=Path, required=True, metavar="RECIPE.toml")
    bring.set_defaults(verb=_import)
    return parser


class _Raw(argparse.RawDescriptionHelpFormatter):
    pass


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="section.field=value",
        help="change a setting; repeatable",
    )


def _add_machines(parser: argparse.ArgumentParser) -> None:
    """torchrun's own names."""
    several = parser.add_argument_group("several machines (the same command on each; docs/several-gpus.md)")
    several.add_argument("--nnodes", type=int, default=1, metavar="N", help="how many machines")
    several.add_argument("--node-rank", type=int, default=0, metavar="I", help="which one this is, from 0")
    several.add_argument(
        "--rdzv-endpoint", default="", metavar="HOST:PORT", help="the first machine, and a free port of it"
    )


def _machines(arguments: argparse.Namespace) -> Machines:
    machines = Machines(arguments.nnodes, arguments.node_rank, arguments.rdzv_endpoint)
    if not 0 <= machines.number < machines.count:
        sentence = f"--node-rank {machines.number}: {machines.count} machines have the numbers from 0 up"
        raise ConfigError({"--node-rank": sentence})
    if machines.count > 1 and not re.fullmatch(r".+:\d{1,5}", machines.endpoint):
        sentence = f"--rdzv-endpoint {machines.endpoint!r}: give address and port of the first machine"
        raise ConfigError({"--rdzv-endpoint": sentence})
    unnamed = not arguments.run_dir and "://" in getattr(arguments, "run", "://")
    if machines.count > 1 and unnamed:
        raise ConfigError({"--run-dir": "--run-dir is needed on several machines, the same on each"})
    return machines


def _settings_help() -> str:
    rows = [f"  {r.path:32} {r.default!s:12} {r.range_text}" for r in RECORDS.values()]
    return "settings (docs/settings.md explains them):\n" + "\n".join(rows)


def _load(arguments: argparse.Namespace) -> TrainConfig:
    """The recipe, or the preset, with its overrides, its local paths made absolute."""
    config = load_recipe_or_preset(arguments.recipe, tuple(arguments.set))
    return _absolute(config, arguments.recipe.resolve().parent)


def _absolute(config: TrainConfig, beside: Path, *, with_photos: bool = True) -> TrainConfig:
    """The recipe with paths that hold wherever it lies; relative ones are looked up beside it first.

    ``with_photos``: whether the folders of photos have to be there.
    """
    from .contract.hub import local_path

    def folder(text: str, setting: str) -> str:
        found = local_path(text, beside)
        if found is None and not with_photos:
            return str((beside / text).resolve())
        if found is None or not found.is_dir():
            wrong = "is no folder" if found else "does not exist"
            raise ConfigError({setting: f"{setting} = {text!r} {wrong}; name the folder of photos"})
        return str(found)

    tables = to_tables(config)
    tables["dataset"]["path"] = folder(config.dataset.path, "dataset.path")
    for table in tables["dataset"]["subsets"]:
        table["path"] = folder(table["path"], "dataset.subsets.path")
    for section in ("validation", "prior"):
        if text := tables[section]["path"]:
            tables[section]["path"] = folder(text, f"{section}.path")
    for section, field in (
        ("model", "base"),
        ("model", "vae"),
        ("model", "assistant"),
        ("adapter", "start_from"),
    ):
        text = tables[section][field]
        if text not in ("", "demo", "none") and (local := local_path(text, beside)):
            tables[section][field] = str(local)
    return parse(tables)


def _train(arguments: argparse.Namespace) -> int:
    from .requests import Requests

    requests = Requests()
    config = load_recipe_or_preset(arguments.recipe, tuple(arguments.set))
    machines = _machines(arguments)
    with joined() as crew:
        stored = crew.same(_stored(config, arguments.run_dir) if crew.main else "")
        folder = arguments.run_dir or _runs() / (stored or new_run_id(config.output.name))
        run = RunFolder(crew.same(folder.resolve()))
        with crew.in_turn():
            _make(run, config, arguments.recipe.resolve().parent, bool(stored))
        return _run(run, requests, crew, machines)


def _stored(config: TrainConfig, run_dir: Path | None) -> str:
    """The id of the run that a recipe has in its storage, when none is here yet; "" where it has none."""
    if not config.storage.url or (run_dir and RunFolder(run_dir).recipe.exists()):
        return ""
    from .stored import find

    stored = find(config, run_dir)
    return stored.run_id if stored else ""


def _make(run: RunFolder, config: TrainConfig, beside: Path, stored: bool) -> None:
    """Freeze the recipe in the run's folder, unless it is there. Raises ConfigError for another one's run.

    The photos of a ``stored`` run come from its storage, where they are not on this machine.
    """
    apart = stored or run.pictures.is_dir()
    config = run.own(_absolute(config, beside, with_photos=not apart))
    if run.path == Path(config.dataset.path).resolve():
        raise ConfigError({"--run-dir": f"{run.path} is the folder of photos; choose another for the run"})
    if run.recipe.exists():
        # The same command again goes on with the run, which is what a restarted machine does.
        frozen = _absolute(run.config(), run.path, with_photos=not apart)
        if differing(frozen, config) if apart else with_sections(frozen, of=config) != config:
            sentence = f"{run.path} holds a run of another recipe; choose another folder, or resume it"
            raise ConfigError({"--run-dir": sentence})
        take_over(run, config)  # a larger budget, say
    else:
        run.create(config)


def _runs() -> Path:
    return Path(os.environ.get("STUDIO_WORKSPACE", "workspace")) / "runs"


def _resume(arguments: argparse.Namespace) -> int:
    from .requests import Requests

    requests = Requests()
    stored = "://" in arguments.run
    if not stored:
        run = RunFolder(Path(arguments.run).resolve())
        run.config()
        fit_allocator(run)
    machines = _machines(arguments)
    with joined() as crew:
        with crew.in_turn():
            if stored:
                from .stored import begin

                run = begin(arguments.run, arguments.endpoint, arguments.run_dir, _runs())
            if crew.main:
                amend(run, arguments.set)
        return _run(run, requests, crew, machines)


def _run(run: RunFolder, requests: Requests, crew: Crew, machines: Machines) -> int:
    """Train; or have torchrun start as many processes as the recipe wants, which come here then."""
    config = run.config()
    if (config.machine.gpus != 1 or machines.count > 1) and not under_torchrun():
        from .torchrun import launch, wanted

        if (processes := wanted(config.machine.gpus)) * machines.count > 1:
            return launch(run, processes, machines, requests.stop)
    crew.require(as_launched(config, lambda text: print(text, file=sys.stderr) if crew.main else None))
    with run.hold() if crew.main else nullcontext() as lock, announced(run, crew):
        if crew.main:
            requests.attach(run)
        with crew.in_turn():  # every machine needs the photos
            if config.storage.url and crew.local_rank == 0:
                from .stored import catch_up

                catch_up(run)
        fit_allocator(run)
        result = run.result(config)
        if crew.same(run.raw_status().state == "finished" and result.exists()):
            if crew.main:
                print(f"{run.id} is finished: {result}", file=sys.stderr)
            return FINISHED
        if why := crew.same(refused_for_its_budget(run) if crew.main else ""):
            if crew.main:
                print(f"error: {why}", file=sys.stderr)
            return BAD_RECIPE
        # What torch and its kin make on import is there to stay: looking through it for garbage, again
        # and again while it grows, costs a sixth of the start.
        gc.disable()
        from .requests import Stopped
        from .train import train

        gc.freeze()
        gc.enable()
        try:
            train(run, requests, crew)
        except Stopped as stopped:
            crew.tell(stopped)
            if crew.main:
                print(stopped, file=sys.stderr)
            return STOPPED
        except Restart:
            if lock is None or crew.world > 1:
                raise  # which ends the others too; who has started us starts all of us again
            return begin_again(run, lock)
    return FINISHED


def _fetch(arguments: argparse.Namespace) -> int:
    from .stored import fetch

    print(fetch(arguments.url, arguments.endpoint, arguments.into or _runs()).path)
    return FINISHED


def _star(arguments: argparse.Namespace) -> int:
    run = RunFolder(arguments.run_dir.resolve())
    run.config()
    run.star(arguments.step, on=not arguments.off)
    print(f"starred: {', '.join(map(str, sorted(run.starred()))) or 'none'}")
    return FINISHED


def _plan(arguments: argparse.Namespace) -> int:
    from .check import facts_of

    config = _load(arguments)
    folders = facts_of(config)[0].folders
    from .planning import print_plan

    return print_plan(config, folders, arguments.json)


def _check(arguments: argparse.Namespace) -> int:
    from .check import check_recipe

    return FINISHED if check_recipe(_load(arguments), arguments.captions) else BAD_RECIPE


def _sample(arguments: argparse.Namespace) -> int:
    from .after import sample_run

    run = RunFolder(arguments.run_dir.resolve())
    return sample_run(run, arguments.prompt, arguments.out, arguments.seed, arguments.step)


def _export(arguments: argparse.Namespace) -> int:
    source, out = arguments.run_dir, arguments.out
    if source.suffix == ".safetensors" and not source.is_dir():
        return _convert(arguments)
    if out is None:
        raise ConfigError({"--out": "--out is missing; name the file to write"})
    if arguments.format == "kohya-toml":
        return _export_recipe(arguments)
    from .after import export_run

    run = RunFolder(arguments.run_dir.resolve())
    return export_run(run, arguments.format, arguments.out, arguments.rank, arguments.weights)


def _convert(arguments: argparse.Namespace) -> int:
    file, format = arguments.run_dir, arguments.format
    for option, value in (("--rank", arguments.rank), ("--weights", arguments.weights)):
        if value is not None:
            raise ConfigError({option: f"{option} is for runs, and {file.name} is a file; leave it out"})
    if format == "kohya-toml":
        raise ConfigError({"--format": f"{file.name} holds no recipe; choose kohya, diffusers or comfyui"})
    from .convert import convert

    out = arguments.out or file.with_name(f"{file.stem}-{format}.safetensors")
    convert(file, format, out)
    print(out)
    return FINISHED


def _export_recipe(arguments: argparse.Namespace) -> int:
    from .contract.foreign.kohya_export import export_kohya

    source = arguments.run_dir
    config = RunFolder(source.resolve()).config() if source.is_dir() else load_recipe(source)
    made = export_kohya(config, arguments.out)
    for line in made.lines:
        print(f"{line.outcome:9} {line}")
    print(f"written to {arguments.out}; accelerate launch {made.script} --config_file {arguments.out}")
    return FINISHED


def _import(arguments: argparse.Namespace) -> int:
    from .importing import import_recipe

    imported = import_recipe(arguments.file, arguments.out)
    for line in imported.lines:
        print(f"{line.outcome:9} {line}")
    print(f"{imported.program}: {imported.counts()}")
    print(f"written to {arguments.out}; name your photos in its dataset.path")
    return FINISHED


if __name__ == "__main__":
    steady_output()
    sys.exit(leave(main()))
