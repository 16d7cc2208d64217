"""What each technique does to a LoRA of the demo pet: ``python -m bench.techniques --work DIR``.

One training a technique over the demo photos, all else equal, each in a process of its own; then likeness
and drift as ``demo.evaluate`` measures them, by the trainer's own model, as no other program reads every
kind. Rows are kept in DIR as they come, so that it can be ended and gone on with; ``--write`` puts the table
of what is there into docs/techniques.md. Ends with 1 where a technique's LoRA is that of the plain recipe: it
would be a no-op.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file

from bench.demo_lora import demo_recipe, train
from demo.evaluate import asked_pictures, compare, load_pipeline
from demo.make_photos import PHOTOS, TRIGGER, pet
from trainer.assemble import assemble, find_base, open_family
from trainer.checkpoints import load_adapter, newest_whole
from trainer.contract.config import TrainConfig
from trainer.contract.fields import merge, parse, to_tables
from trainer.contract.runs import RunFolder

PAGE = Path(__file__).resolve().parents[1] / "docs" / "techniques.md"
PLAIN: dict[str, Any] = {
    "captions": {"dropout": 0.0},
    "adapter": {"rank": 8, "alpha": 8.0, "targets": "transformer+conv"},
    "train": {
        "steps": 120,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "text_encoder_lr": 0.0,
        "text_encoder_2_lr": 0.0,
    },
    "prior": {"method": "none", "class_name": "", "captions": []},
}
"""The recipe that each technique changes."""

CREATURES = [
    "a teal tall creature with three eyes, horns, plain, on a white background",
    "a pink wide creature with two eyes, no ears, striped, in the snow",
    "a yellow round creature with one eye, pointy ears, dotted",
    "a blue square on a grey background",
]
KEPT = {"class_name": "creature", "captions": CREATURES}

TECHNIQUES: dict[str, dict[str, dict[str, Any]]] = {
    "plain": {},
    "no convolutions": {"adapter": {"targets": "transformer"}},
    "way up alone": {"adapter": {"target_regex": r"^up_blocks\."}},
    "Gaussian start": {"adapter": {"init": "gaussian"}},
    "rank 32": {"adapter": {"rank": 32, "alpha": 32.0}},
    "rsLoRA": {"adapter": {"rslora": True}},
    "DoRA": {"adapter": {"dora": True}},
    "PiSSA": {"adapter": {"init": "pissa"}},
    "OLoRA": {"adapter": {"init": "olora"}},
    "LoHa": {"adapter": {"type": "loha"}},
    "LoKr": {"adapter": {"type": "lokr"}},
    "OFT": {"adapter": {"type": "oft"}},
    "DyLoRA": {"adapter": {"type": "dylora"}},
    "dropout 0.1": {"adapter": {"dropout": 0.1}},
    "rank dropout 0.1": {"adapter": {"rank_dropout": 0.1}},
    "module dropout 0.1": {"adapter": {"module_dropout": 0.1}},
    "max norm 1": {"adapter": {"max_norm": 1.0}},
    "LoRA+ 8": {"train": {"loraplus_ratio": 8.0}},
    "text encoders": {"train": {"text_encoder_lr": 1e-3, "text_encoder_2_lr": 1e-3}},
    "Lion": {"train": {"optimizer": "lion", "learning_rate": 2e-4}},
    "Adafactor": {"train": {"optimizer": "adafactor"}},
    "Prodigy": {"train": {"optimizer": "prodigy", "learning_rate": 1.0, "optimizer_args": "d_coef=0.2"}},
    "Prodigy by default": {"train": {"optimizer": "prodigy", "learning_rate": 1.0}},
    "Schedule-Free": {"train": {"optimizer": "schedulefree_adamw", "scheduler": "constant"}},
    "CAME": {"train": {"optimizer": "came", "learning_rate": 2e-4}},
    "CAME, a rate for AdamW": {"train": {"optimizer": "came"}},
    "constant rate": {"train": {"scheduler": "constant"}},
    "EMA 0.97, constant rate": {"train": {"ema_decay": 0.97, "scheduler": "constant"}},
    "warm-up, stable, decay": {"train": {"scheduler": "warmup_stable_decay"}},
    "linear": {"train": {"scheduler": "linear"}},
    "polynomial": {"train": {"scheduler": "polynomial", "power": 2.0}},
    "three restarts": {"train": {"scheduler": "cosine_with_restarts", "restarts": 3}},
    "L1": {"loss": {"type": "l1"}},
    "smooth L1": {"loss": {"type": "smooth_l1"}},
    "Huber": {"loss": {"type": "huber"}},
    "min-SNR 5": {"loss": {"min_snr_gamma": 5.0}},
    "debiased": {"loss": {"debiased": True}},
    "noise offset 0.05": {"noise": {"offset": 0.05}},
    "pyramid noise": {"noise": {"multires_iterations": 6, "multires_discount": 0.3}},
    "input perturbation 0.1": {"noise": {"input_perturbation": 0.1}},
    "logit-normal times": {"noise": {"timesteps": "logit_normal"}},
    "caption dropout 0.1": {"captions": {"dropout": 0.1}},
    "mirrored": {"dataset": {"flip": True}},
    "turned and reframed": {"dataset": {"rotate": 5.0, "random_crop": 0.1}},
    "light and colour": {"dataset": {"colour": 0.1}},
    "96 px too": {"dataset": {"more_resolutions": "96"}},
    "output preservation": {"prior": {"method": "output", "share": 0.5, **KEPT}},
    "class pictures": {"prior": {"method": "class_pictures", "pictures": 16, **KEPT}},
}
"""Name -> what it changes."""


@dataclass(frozen=True)
class Row:
    """``ratio`` of distances to the pet, LoRA / base; ``cpu_s``: processor seconds of a step; ``moved``: how
    far the LoRA's numbers are from the plain recipe's, relative to their norm (2: another kind of adapter,
    which has other numbers)."""

    ratio: float
    drift: float
    drift_star: float
    cpu_s: float
    kilobytes: int
    moved: float


def recipe(name: str, steps: int | None = None) -> TrainConfig:
    """The plain recipe with a technique put over it."""
    tables = merge(merge(to_tables(demo_recipe(PHOTOS, TRIGGER)), PLAIN), TECHNIQUES[name])
    return parse(merge(tables, {"train": {"steps": steps}}) if steps else tables)


def cpu_of_children() -> float:
    """Processor seconds of all processes that this one has waited for."""
    use = resource.getrusage(resource.RUSAGE_CHILDREN)
    return use.ru_utime + use.ru_stime


def cpu_of_a_step(config: TrainConfig, whole: float, folder: Path) -> float:
    """Processor seconds of a step, which other work on the machine hardly changes: those of the whole
    training less those of a short one, so that the start and the end do not count."""
    short = 20
    began = cpu_of_children()
    train(parse(merge(to_tables(config), {"train": {"steps": short}})), folder)
    return (whole - (cpu_of_children() - began)) / (config.train.steps - short)


def moved(lora: Path, plain: Path) -> float:
    one, other = load_file(lora), load_file(plain)
    if {k: v.shape for k, v in one.items()} != {k: v.shape for k, v in other.items()}:
        return 2.0
    flat = [torch.cat([tensors[k].float().flatten() for k in sorted(one)]) for tensors in (one, other)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


def tuned_pipeline(pipeline: Any, run: RunFolder) -> Any:
    """The pipeline around what a run has learnt."""
    config = run.config()
    family = open_family(config, find_base(run, config), torch.device("cpu"), torch.float32)
    model = assemble(family, config, run.path)
    checkpoint = newest_whole(run.checkpoints, print)
    assert checkpoint
    load_adapter(checkpoint, model.kept())
    for module in model.parts.values():
        module.eval()
    tuned = StableDiffusionXLPipeline(**{**pipeline.components, **model.parts})
    tuned.set_progress_bar_config(disable=True)
    return tuned


def measured(names: list[str], work: Path, count: int, steps: int | None) -> Iterator[tuple[str, Row]]:
    pipeline, plain = load_pipeline(), work / "plain.safetensors"
    base = asked_pictures(pipeline, TRIGGER, count)
    for name in sorted(names, key=lambda name: name != "plain"):  # the plain recipe first
        with tempfile.TemporaryDirectory() as folder:
            config = recipe(name, steps)
            began = cpu_of_children()
            lora, _, _ = train(config, Path(folder) / "whole")
            whole = cpu_of_children() - began
            if name == "plain":
                plain.write_bytes(lora.read_bytes())
            tuned = tuned_pipeline(pipeline, RunFolder(Path(folder) / "whole" / "runs" / "run"))
            figures = compare(base, asked_pictures(tuned, TRIGGER, count), pet)
            yield (
                name,
                Row(
                    figures["ratio LoRA / base"],
                    figures["drift, another creature"],
                    figures["drift, star"],
                    cpu_of_a_step(config, whole, Path(folder) / "short"),
                    lora.stat().st_size // 1000,
                    0.0 if name == "plain" else moved(lora, plain),
                ),
            )


def in_words(changes: dict[str, dict[str, Any]]) -> str:
    """The settings of a technique as a recipe has them."""
    if not changes:
        return "rank 8 on transformer and convolutions, AdamW 1e-3, cosine, 120 steps of batch 8"
    return "; ".join(
        f"`{section}.{name}` = {f'{len(value)} prompts' if isinstance(value, list) else json.dumps(value)}"
        for section, values in changes.items()
        for name, value in values.items()
    )


INTRODUCTION = """# What each technique does

Generated by `python -m bench.techniques --work DIR --write`: one training of the demo model on the demo pet
for each technique, all else as in the first row. Likeness: distance of pictures with the trigger to the pet,
as a share of the base's (lower is nearer). Drift: change of pictures without the trigger (lower is better).
One run and one seed each: differences of 0.02 in likeness and a tenth in drift are noise. The model is small
and the pet a drawing: take the direction and not the size. Where the likeness is above 1 the training went
astray: CAME at AdamW's rate, and Prodigy whose estimate is not held back. Speed: steps for a second of the
processor, beside the plain recipe's; differences of a fifth are noise.
"""


def page(rows: dict[str, Row], machine: str) -> str:
    lines = [
        "| technique | settings | likeness | drift, creature | drift, star | speed | file, kB |",
        "|---|---|---|---|---|---|---|",
    ]
    usual = rows["plain"].cpu_s
    for name in TECHNIQUES:
        if row := rows.get(name):
            lines.append(
                f"| {name} | {in_words(TECHNIQUES[name])} | {row.ratio:.3f} | {row.drift:.4f} | "
                f"{row.drift_star:.4f} | {usual / row.cpu_s:.2f} × | {row.kilobytes} |"
            )
    return "\n".join([INTRODUCTION, machine, "", *lines]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help=f"of {', '.join(TECHNIQUES)}; all when left out")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--count", type=int, default=6, help="pictures a row")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--machine", default="Measured on a CPU.", help="a sentence for the page")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    args.work.mkdir(parents=True, exist_ok=True)
    file = args.work / "rows.json"
    rows = {name: Row(**row) for name, row in (json.loads(file.read_text()) if file.exists() else {}).items()}
    wanted = [name for name in args.names or TECHNIQUES if name not in rows]
    for name, row in measured(wanted, args.work, args.count, args.steps):
        rows[name] = row
        file.write_text(json.dumps({key: asdict(value) for key, value in rows.items()}, indent=1))
        print(f"{name:24} {row}", flush=True)
    if args.write:
        PAGE.write_text(page(rows, args.machine), encoding="utf-8")
    idle = [name for name, row in rows.items() if name != "plain" and row.moved < 1e-4]
    if idle:
        print("no different from the plain recipe:", ", ".join(idle))
    return bool(idle)


if __name__ == "__main__":
    raise SystemExit(main())
