"""What can be done with a run after its training: draw, export."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Literal

from .adapters import read_weights
from .assemble import assemble, find_base, open_family
from .cache import LiveTexts, TextCache, Texts
from .checkpoints import ADAPTER, AVERAGE, adapter_tensors, load_adapter, newest_whole
from .contract.config import TrainConfig
from .contract.drawings import Drawing, note_drawing
from .contract.errors import RunError
from .contract.fields import merge, parse, to_tables
from .contract.prompt import prompts_of
from .contract.runs import RunFolder, slug
from .contract.settings.adapter import AdapterSettings
from .contract.whole import is_whole, list_checkpoints, step_of
from .data import frozen_at, frozen_trigger
from .export import Format
from .families.base import ModelFamily
from .lora_file import save_and_read_back
from .memory import mixed_precision, pick_device, pick_dtype
from .quantize import require_libraries
from .sampling import draw, sample_size, save_sample
from .train import Folders


def _load(run: RunFolder, config: TrainConfig) -> tuple[ModelFamily, str]:
    device = pick_device()
    dtype = pick_dtype(config.model.precision, device)
    base = find_base(run, config)
    return open_family(config, base, device, dtype), base.name


def _checkpoint(run: RunFolder, step: int | None = None) -> Path:
    """The newest whole checkpoint, or that of ``step``. Raises RunError(config) where there is none."""
    if step is not None:
        if is_whole(run.checkpoint(step)):
            return run.checkpoint(step)
        steps = ", ".join(str(step_of(path)) for path in list_checkpoints(run.checkpoints))
        raise RunError(
            f"the run {run.id} has no whole checkpoint of step {step}; take one of {steps or 'a later day'}",
            "config",
        )
    checkpoint = newest_whole(run.checkpoints, lambda text: print(f"warning: {text}", file=sys.stderr))
    if checkpoint is None:
        raise RunError(f"the run {run.id} has no checkpoint yet; train it first", "config")
    return checkpoint


def sample_run(
    run: RunFolder, lines: list[str], out: Path | None, seed: int | None, step: int | None = None
) -> int:
    """Draw each prompt with the run's newest weights, or those of ``step``; prints the files' names. Raises
    ConfigError for a prompt whose options are wrong."""
    config = run.amended()
    if seed is not None:
        config = parse(merge(to_tables(config), {"samples": {"seed": seed}}))
    config = parse(merge(to_tables(config), {"samples": {"prompts": lines}}))
    checkpoint = _checkpoint(run, step)
    require_libraries(config)
    family, _ = _load(run, config)
    prompts = prompts_of(config.samples)
    texts: Texts = LiveTexts(family)
    if not config.text_encoder_rates():
        # Before the denoiser is loaded, as in training: the two together may not fit.
        cache = TextCache(Folders.of(run).cache, family, lambda text: None)
        needed = [text for one in prompts for text in (one.text, one.negative)]
        cache.fill(needed, lambda done, total: None)
        family.free_encoders()
        texts = cache
    model = assemble(family, config, run.path)
    load_adapter(checkpoint, model.kept())
    folder, began = out or run.drawings, time.strftime("%Y%m%d-%H%M%S")
    for number, prompt in enumerate(prompts):
        side = sample_size(config, family)
        with mixed_precision(family.device, pick_dtype(config.model.precision, family.device)):
            image = draw(family, model, texts, config, prompt, number=number, side=side)
        shown = config.samples.seed if prompt.seed is None else prompt.seed
        file = folder / f"{began}-{slug(prompt.text)}-s{step_of(checkpoint)}-{shown}-{number:02d}.webp"
        save_sample(image, file)
        if folder == run.drawings:
            drawn: dict[str, Any] = {
                "text": prompt.text,
                "seed": shown,
                "step": step_of(checkpoint),
                "time": time.time(),
            }
            note_drawing(run, Drawing(file=file.name, **drawn))
        print(file)
    return 0


def export_run(
    run: RunFolder, format: Format, out: Path, rank: int | None = None, which: Weights | None = None
) -> int:
    """Write the run's newest weights to ``out`` in another program's key names, a DyLoRA's at any rank."""
    config = run.amended()
    require_nested(config.adapter, rank)
    checkpoint = _checkpoint(run)
    family, base_name = _load(run, config)
    if out.suffix != ".safetensors":
        raise RunError(f"--out {out} has to end in .safetensors; there is no other format", "config")
    step = int(json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["step"])
    weights = weights_in(checkpoint, config, which)
    trigger = frozen_trigger(run.dataset)
    said: dict[str, Any] = {"trigger": trigger, "step": step, "base_name": base_name}
    said["made"] = frozen_at(run.dataset)
    save_and_read_back(out, weights, family, config, **said, format=format, rank=rank)
    print(out)
    return 0


def require_nested(adapter: AdapterSettings, rank: int | None) -> None:
    """Raise RunError(config) where a LoRA has not been trained at this rank."""
    if rank is None:
        return
    if adapter.type != "dylora":
        raise RunError(f"--rank {rank}: only a dylora can be cut to another rank; leave it out", "config")
    unit, whole = adapter.dylora_unit, adapter.rank
    if rank % unit or not 0 < rank <= whole:
        ranks = f"a multiple of {unit} up to {whole}" if unit > 1 else f"1 to {whole}"
        raise RunError(f"--rank {rank}: it was not trained at that rank; give {ranks}", "config")


Weights = Literal["raw", "average"]
"""Those of the last step, or their average over the steps (train.ema_decay, Schedule-Free)."""


def weights_in(checkpoint: Path, config: TrainConfig, which: Weights | None = None) -> dict[str, Any]:
    """A checkpoint's LoRA without loading the denoiser: {dotted module name: AdapterWeights}; the average
    where there is one, unless ``which`` says otherwise. Raises RunError(config) where there is none."""
    if which == "average" and not (checkpoint / AVERAGE).exists():
        raise RunError("--weights average: this run keeps no average; leave it out", "config")
    return read_weights(adapter_tensors(checkpoint, ADAPTER if which == "raw" else ""), config.adapter.alpha)
