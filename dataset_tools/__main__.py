"""``python -m dataset_tools``: the dataset's jobs from the command line.

Exit codes: 0 finished, 1 failed (one sentence on stderr), 2 bad arguments.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from dataset_tools import captioners, masking
from dataset_tools import captions as bulk
from dataset_tools.buckets import Buckets
from dataset_tools.captioning import EXISTING, Existing, Model, Wishes, caption_project, work_of
from dataset_tools.check import check_project
from dataset_tools.crop import crop_project
from dataset_tools.dataset import Dataset, DatasetError, load_dataset, update_dataset
from dataset_tools.ingest import ingest
from trainer.contract.errors import UserError
from trainer.contract.fields import load_recipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        run: Callable[[argparse.Namespace], int] = arguments.run
        return run(arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        what = error.filename or "The project"
        remedy = "free some space, or check its permissions"
        print(f"{what} cannot be read or written ({error.strerror or error}); {remedy}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; what was finished is kept.", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dataset_tools", description="Images on disk.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    verb = verbs.add_parser("ingest", help="take photos, folders or zips into a project")
    verb.add_argument("source", type=Path, nargs="+")
    verb.add_argument("project", type=Path)
    verb.add_argument("--keep-originals", action="store_true", help="also keep the files as they came")
    verb.set_defaults(run=_ingest)

    verb = verbs.add_parser("crop", help="choose bucket and crop by face, else by what stands out")
    verb.add_argument("project", type=Path)
    verb.add_argument(
        "--resolution", type=int, help="pixels (default: as the project's recipe.toml trains, else 1024)"
    )
    verb.add_argument("--all", action="store_true", help="also those already cropped")
    verb.add_argument(
        "--models", type=Path, help="where the face detector is kept (default: <workspace>/models)"
    )
    verb.set_defaults(run=_crop)

    verb = verbs.add_parser(
        "caption",
        help="with --model, have a model write captions; else change them in bulk, or list them",
        epilog="Models: " + _keys("sentence") + ", any other Hub id, or a folder. See docs/captions.md.",
    )
    verb.add_argument("project", type=Path)
    verb.add_argument("--model", help="who writes the captions")
    verb.add_argument("--prompt", help="what the model is asked (default: for a description)")
    verb.add_argument("--max-tokens", type=_whole, help=f"at most so long (default: {captioners.MAX_TOKENS})")
    _about_writing(verb)
    verb.add_argument("--trigger", help="the trigger word: stored, and inserted where it is missing")
    verb.add_argument("--prefix", default="")
    verb.add_argument("--suffix", default="")
    verb.add_argument("--find", default="")
    verb.add_argument("--replace", default="")
    verb.add_argument("--regex", action="store_true", help="--find is a regular expression")
    verb.add_argument("--dry-run", action="store_true", help="show the changes, write nothing")
    verb.set_defaults(run=_caption, refuse=verb.error)

    verb = verbs.add_parser(
        "tag",
        help="have a tagger write tags as captions",
        epilog="Models: "
        + _keys("tags")
        + ", another WD tagger's Hub id, or a folder. See docs/captions.md.",
    )
    verb.add_argument("project", type=Path)
    verb.add_argument("--model", default=captioners.DEFAULT["tags"])
    verb.add_argument("--threshold", type=_share, default=captioners.THRESHOLD, help="default: %(default)s")
    verb.add_argument(
        "--character-threshold",
        type=_share,
        default=captioners.CHARACTER_THRESHOLD,
        help="for names of characters (default: %(default)s)",
    )
    verb.add_argument("--without", default="", help="tags that are never written, with commas between them")
    _about_writing(verb)
    verb.add_argument("--prefix", default="")
    verb.add_argument("--suffix", default="")
    verb.set_defaults(run=_tag)

    verb = verbs.add_parser(
        "mask",
        help="make masks of the subjects: where the photos are learnt",
        epilog="Models: "
        + ", ".join(masking.MODELS)
        + ", another CLIPSeg's Hub id, or a folder. Without one "
        "the subject is cut out by its colours and nothing is fetched. See docs/masks.md.",
    )
    verb.add_argument("project", type=Path)
    verb.add_argument("--model", help="who finds what --prompt names (default: nobody, see below)")
    verb.add_argument("--prompt", help='what to find: "a dog" (default: the recipe\'s class)')
    verb.add_argument("--threshold", type=_share, help=f"of the model (default: {masking.THRESHOLD})")
    verb.add_argument(
        "--existing",
        choices=masking.EXISTING,
        default="keep",
        help="what a photo with a mask gets: nothing (keep, the default), or the new one",
    )
    length = "pixels, or percent of the shorter side: 8, 2%%"
    verb.add_argument(
        "--grow", type=_length, default=masking.NONE, help=f"widen the mask by so much: {length}"
    )
    verb.add_argument(
        "--blur", type=_length, default=masking.NONE, help=f"soften its edge over so much: {length}"
    )
    verb.add_argument("--photos", nargs="+", default=(), metavar="NAME", help="these photos alone")
    verb.add_argument("--models", type=Path, help="where the face detector is kept, as for crop")
    verb.set_defaults(run=_mask, refuse=verb.error)

    verb = verbs.add_parser("check", help="look for what may spoil a training")
    verb.add_argument("project", type=Path)
    verb.set_defaults(run=_check)
    return parser


def _about_writing(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--existing",
        choices=EXISTING,
        help="what a photo with a caption gets: nothing (keep, the default), the new one, or both",
    )
    verb.add_argument("--no-trigger", action="store_true", help="do not put the trigger word in front")


def _keys(style: captioners.Style) -> str:
    return ", ".join(row.key for row in captioners.CAPTIONERS if row.style == style)


def _whole(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 2000:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and 2000")
    return number


def _share(text: str) -> float:
    number = float(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number


def _length(text: str) -> masking.Length:
    percent = text.endswith("%")
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no length; write 8 or 2%") from None
    if not 0 <= number <= (25 if percent else 1000):
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1000 pixels, or 0% and 25%")
    return masking.Length(number, percent)


def _ingest(arguments: argparse.Namespace) -> int:
    report = ingest(
        arguments.source, arguments.project, keep_originals=arguments.keep_originals, progress=_Progress()
    )
    for skipped in report.skipped:
        print(f"skipped: {skipped.reason}")
    print(report.summary())
    return 0 if report.added or not report.skipped else 1


def _crop(arguments: argparse.Namespace) -> int:
    root: Path = arguments.project
    dataset = _existing(root)
    wanted = {record.id for record in dataset.images if arguments.all or record.crop is None}
    models = arguments.models or _workspace(root) / "models"
    cropped = crop_project(
        root,
        _buckets(root, arguments.resolution),
        models_dir=models,
        only=wanted,
        progress=_Progress(),
        notify=print,
    )
    for record in cropped.images:
        if record.id in wanted and record.bucket:
            warnings = "".join(f" [{warning}]" for warning in record.warnings)
            size = f"{record.bucket[0]}x{record.bucket[1]}"
            print(f"{record.original_name}: {size}, {record.reason}{warnings}")
    print(f"{len(wanted)} cropped")
    return 0


def _buckets(root: Path, resolution: int | None) -> Buckets:
    """Those that were asked for, else those of the project's recipe."""
    if resolution is not None:
        return Buckets(resolution)
    recipe = root / "recipe.toml"
    return Buckets.of_recipe(load_recipe(recipe)) if recipe.exists() else Buckets()


def _caption(arguments: argparse.Namespace) -> int:
    by_hand = ("find", "replace", "regex", "dry_run")
    by_model = ("prompt", "max_tokens", "existing", "no_trigger")
    for name in by_hand if arguments.model else by_model:
        if getattr(arguments, name):
            option = "--" + name.replace("_", "-")
            with_it = "without" if arguments.model else "with"
            arguments.refuse(f"{option} goes {with_it} --model; leave one of them out, or add it")
    return _written_by_model(arguments) if arguments.model else _edited(arguments)


def _written_by_model(arguments: argparse.Namespace) -> int:
    root: Path = arguments.project
    _existing(root)
    if arguments.trigger:
        update_dataset(root, lambda d: d.model_copy(update={"trigger": arguments.trigger.strip()}))
    prompt, most = arguments.prompt or "", arguments.max_tokens or captioners.MAX_TOKENS

    def load() -> Model:
        from dataset_tools.describe import load_describer  # brings torch

        return load_describer(arguments.model, prompt, most, _say)

    return _write(arguments, load, prompt=prompt, max_tokens=most)


def _tag(arguments: argparse.Namespace) -> int:
    _existing(arguments.project)
    thresholds = (arguments.threshold, arguments.character_threshold)
    without = bulk.split_tags(arguments.without)

    def load() -> Model:
        from dataset_tools.tagger import load_tagger

        return load_tagger(arguments.model, *thresholds, without, _say)

    return _write(arguments, load, thresholds=thresholds, without=without)


def _write(arguments: argparse.Namespace, load: Callable[[], Model], **settings: object) -> int:
    """Have a model write the captions; what it did is the last line."""
    existing: Existing = arguments.existing or "keep"
    wishes = Wishes(existing, arguments.prefix, arguments.suffix, trigger=not arguments.no_trigger)
    model = captioners.model_of(arguments.model)
    outcome = caption_project(
        arguments.project,
        load,
        wishes,
        label=f"Captions by {captioners.label_of(arguments.model)}",
        work=work_of(wishes, model=model, **settings),
        tell=_say,
    )
    _say(outcome.summary())
    return 1 if outcome.failed else 0


def _mask(arguments: argparse.Namespace) -> int:
    root: Path = arguments.project
    _existing(root)
    for name in () if arguments.model else ("prompt", "threshold"):
        if getattr(arguments, name):
            arguments.refuse(f"--{name} goes with --model; leave it out, or add a model")
    prompt = (arguments.prompt or "").strip() or _class_of(root) or "the subject"
    threshold = arguments.threshold or masking.THRESHOLD

    def load() -> masking.Model:
        if arguments.model:
            from dataset_tools.segment import load_segmenter  # brings torch

            return load_segmenter(arguments.model, prompt, threshold, _say)
        from dataset_tools.cutout import Cutter

        return stack.enter_context(Cutter(arguments.models or _workspace(root) / "models"))

    wishes = masking.Wishes(arguments.existing, arguments.grow, arguments.blur)
    settings = {"model": arguments.model, "prompt": prompt, "threshold": threshold} if arguments.model else {}
    work = work_of(wishes, **settings)
    with ExitStack() as stack:
        outcome = masking.mask_project(root, load, wishes, work=work, tell=_say, photos=arguments.photos)
    _say(outcome.summary())
    return 1 if outcome.failed else 0


def _class_of(root: Path) -> str:
    """What the project's recipe says that the subject is one of."""
    recipe = root / "recipe.toml"
    return load_recipe(recipe).prior.class_name if recipe.exists() else ""


def _say(text: str) -> None:
    print(text, flush=True)


def _edited(arguments: argparse.Namespace) -> int:
    root: Path = arguments.project
    dataset = _existing(root)
    before = bulk.read_captions(root, dataset)
    after = dict(before)
    if arguments.find:
        after |= bulk.find_replace(after, arguments.find, arguments.replace, regex=arguments.regex)
    if arguments.prefix:
        after |= bulk.add_prefix(after, arguments.prefix)
    if arguments.suffix:
        after |= bulk.add_suffix(after, arguments.suffix)
    if arguments.trigger:
        after |= bulk.insert_trigger(after, arguments.trigger)
    changes = {key: text for key, text in after.items() if text != before[key]}
    names = {record.id: record.original_name for record in dataset.images}
    edits = any((arguments.trigger, arguments.prefix, arguments.suffix, arguments.find))
    for key, text in (changes if edits else before).items():
        print(f"{names[key]}: {text}")
    if edits and not arguments.dry_run:
        bulk.apply_captions(root, dataset, changes)
        if arguments.trigger:
            update_dataset(root, lambda d: d.model_copy(update={"trigger": arguments.trigger.strip()}))
    if edits:
        print(f"{len(changes)} {'would change' if arguments.dry_run else 'changed'}")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    _existing(arguments.project)
    findings = check_project(arguments.project, _Progress())
    for finding in findings:
        print(f"{finding.level}: {finding.sentence} {finding.remedy}")
    if not findings:
        print("nothing found")
    return 1 if any(finding.level == "error" for finding in findings) else 0


def _existing(root: Path) -> Dataset:
    """The dataset of a project folder that must be one."""
    if not (root / "dataset.json").is_file():
        raise DatasetError(f"{root} is no project (it has no dataset.json); ingest photos into it first.")
    return load_dataset(root)


def _workspace(root: Path) -> Path:
    """A project lies in <workspace>/projects/<project-id>; elsewhere its parent serves."""
    parent = root.resolve().parent
    return parent.parent if parent.name == "projects" else parent


class _Progress:
    """Prints ``[3/12] name``, at most once a second."""

    def __init__(self) -> None:
        self.last = 0.0

    def __call__(self, done: int, total: int, what: str) -> None:
        now = time.monotonic()
        if now - self.last >= 1:
            self.last = now
            print(f"[{done}/{total}] {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
