"""The training of one run, top to bottom."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from .accelerated import as_launched
from .adapters import lora_weights
from .alongside import alongside
from .assemble import assemble, find_base, open_family, require_blocks, warm_start
from .averages import Averages
from .cache import LatentCache, Progress, encode_captions
from .captions import Captions
from .checkpoints import TrainState, adapter_tensors, load_checkpoint
from .class_pictures import with_class_pictures
from .concepts import apart
from .contract.config import TrainConfig
from .contract.disk import require_space
from .contract.errors import RunError
from .contract.ladder import at_once
from .contract.length import in_steps
from .contract.prompt import prompts_of
from .contract.runs import RunFolder
from .contract.schedule import lr_scale
from .contract.settings.train import TrainSettings
from .data import BatchPlan, frozen_at, frozen_images, frozen_trigger, photo_folder
from .failures import explain
from .fused import FusedBackward
from .identity import identity_of
from .keeper import Keeper, make_ready
from .ladder import begin_again_with_less, losing_no_step, tell
from .learned import Pictures, Weights, say_verdict
from .lora_file import save_and_read_back
from .losses import require_finite
from .memory import describe, pick_device, pick_dtype, require_formats
from .objective import Objective
from .optimizers import build_optimizer, learning_rate, require_optimizer, scale_learning_rates
from .processes import ALONE, Crew, PeerLost
from .quantize import require_libraries
from .report import Reporter, Silent
from .requests import Asks, Stopped
from .sampling import Drawings
from .validation import Validation

LOSS_MEMORY = 0.98
"""Weight of the past in the running mean of the loss."""


@dataclass(frozen=True)
class Folders:
    """Where a run finds what outlives it: encoded pictures and detector models."""

    cache: Path
    models: Path

    @classmethod
    def of(cls, run: RunFolder) -> Folders:
        """The workspace's folders for a run in <workspace>/runs/, the run's own otherwise."""
        home = run.path.parent.parent if run.path.parent.name == "runs" else run.path
        return cls(home / "cache", home / "models")


def train(run: RunFolder, requests: Asks, crew: Crew = ALONE) -> None:
    """Train the run in its folder, from its newest checkpoint if it has one; all of ``crew`` do, together.

    Returns when the LoRA is finished. Raises Stopped when asked to stop, RunError or UserError when
    the training cannot go on, anything else for a bug. The first process's caller holds the run's lock.
    """
    config = as_launched(crew.same(run.amended()))
    folders = Folders.of(run)
    device = pick_device()
    dtype = pick_dtype(config.model.precision, device)
    attempt = run.next_attempt()
    known = 0 if config.train.epochs else config.train.steps  # of epochs, once the pictures are counted
    report = Reporter(run, attempt, known, device) if crew.main else Silent()
    with alongside(run, config, report, requests, crew.main):
        try:
            tell(run, report)
            _train(run, config, folders, device, dtype, report, requests, crew)
            report.end("finished", f"Finished: {run.result(config).name}")
        except Stopped as stopped:
            message = f"{requests.why} {stopped}".strip()
            report.end("stopped", message, stopped.cause)
            raise Stopped(message) from None
        except PeerLost:
            raise  # not the end: torchrun starts all of them again
        except BaseException as error:
            message, cause, evidence = explain(error)
            if cause == "gpu_oom" and crew.main:
                message = begin_again_with_less(run, config, report, requests, error)
            report.end("failed", message, cause, evidence)
            if cause == "unknown" or isinstance(error, KeyboardInterrupt):
                raise
            raise RunError(message, cause) from error


def _train(
    run: RunFolder,
    config: TrainConfig,
    folders: Folders,
    device: torch.device,
    dtype: torch.dtype,
    report: Reporter,
    requests: Asks,
    crew: Crew,
) -> None:
    def go_on() -> None:
        """Ends a long preparation when a stop is asked; what is done stays on disk."""
        if requests.stop():
            raise Stopped("Stopped while preparing; resume to go on.")

    def downloading(text: str) -> None:
        report.state("downloading", text)
        go_on()

    def preparing(stage: str, text: str) -> Progress:
        def progress(done: int, total: int) -> None:
            report.stage(stage, done, total, text)
            go_on()

        report.enter(stage)
        return progress

    # The base model, and the pictures as it wants them.
    report.state("downloading", f"Loading {config.model.base} on {crew.times}{describe(device)}")
    go_on()
    require_libraries(config)
    require_optimizer(config, device)
    require_formats(config, dtype)
    require_blocks(config)
    make_ready(run, config, folders.cache)
    with crew.in_turn(run.dataset):  # what one process fetches and encodes, the next ones find
        base = find_base(run, config, downloading)
        if base.remark:
            report.warning(base.remark)
        family = open_family(config, base, device, dtype)
        report.state("preparing")
        wanted = with_class_pictures(
            run, config, family, device, dtype, folders.cache, preparing, report, requests
        )
        images = frozen_images(run, wanted, family, folders.models, preparing, report.warning)
        root = photo_folder(run, config)
        trained, held_out = apart(images)
        plan = BatchPlan(trained, config.train.batch_size, config.train.seed)
        identity = identity_of(run.config(), images, family)
        config = in_steps(config, plan.batches_per_epoch)
        keeper = Keeper(run, config.checkpoints, identity, report)
        settings = config.train
        require_space(run.path, config, images=len(images), run=run)

        # Encode once, then let the encoders go.
        latents = LatentCache(folders.cache, family, report.warning)
        latents.fill(root, images, config.dataset, preparing("encode", "Encoding photos"))
        trains_text = bool(config.text_encoder_rates())
        captions = Captions(config, plan, held_out)
        texts = encode_captions(captions, folders.cache, family, report.warning, preparing)

    # The denoiser, its LoRA, and the optimizer.
    report.stage("load", 0, 0, "Loading the denoiser")
    model = assemble(family, config, run.path, downloading, crew.split)
    if use_checkpointing(settings, device):
        model.use_checkpointing()
    parameters = model.parameters()
    optimizer = build_optimizer(settings, model.groups(config))
    state = TrainState(step=0, loss=None)
    mixed = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "no")
    accelerator = Accelerator(mixed_precision=mixed, cpu=device.type == "cpu")
    if checkpoint := crew.delivered(keeper.newest()):
        state = load_checkpoint(checkpoint, model.kept(), optimizer)
        if accelerator.scaler and state.scaler:
            accelerator.scaler.load_state_dict(state.scaler)
        report.say(f"resuming from {checkpoint.name}")
    elif said := warm_start(model, family, config, run.path, downloading):
        report.say(said)
    averages = Averages(parameters, optimizer, settings)
    if checkpoint and averages.any:
        averages.load(adapter_tensors(checkpoint))
    limit = settings.max_grad_norm or math.inf
    fused = FusedBackward(optimizer, limit) if settings.fused_backward else None
    optimizer = accelerator.prepare(optimizer, device_placement=[False])  # else it casts the state
    for module in model.parts.values():
        module.train()
    baselines = folders.cache / "baselines"
    drawings = Drawings(run, family, model, texts, config, report, requests, accelerator.autocast, baselines)
    pictures, weights = Pictures(run, root, trained, report, requests), Weights(model.parts)
    objective = Objective(family, model, latents, texts, captions, config, device)
    measured_on = held_out if crew.main else ()
    validation = Validation(
        objective, measured_on, config, report, requests, accelerator.autocast, averages.worn
    )

    saved = state.step

    def save(state: TrainState) -> None:
        nonlocal saved
        if not crew.main:
            return
        report.state("saving")
        keeper.save(state, model.kept(), optimizer.optimizer, averages.tensors())
        saved = state.step

    def sample(step: int) -> None:
        if not crew.main:
            return
        report.state("sampling")
        with averages.worn():
            drawings.draw(step)
            if requests.stop():
                return
            report.weights(step, **weights.measure())
        family.free_encoders(keep_text=trains_text)
        pictures.measure(step, [prompt.text for prompt in prompts_of(config.samples)])

    report.started(state.step, settings.steps, state.loss)
    validation.measure(state.step)
    if drawings.due(state.step):
        # Step 0 is the baseline, what the base draws before it has learnt anything. A resumed run draws
        # what it was killed over; pictures that are there are not drawn again.
        sample(state.step)
    while state.step < settings.steps:
        if crew.any(requests.stop()):
            if state.step > saved:
                save(state)
            raise Stopped(f"Stopped and saved at step {state.step} of {settings.steps}.")
        began = time.monotonic()
        scale = lr_scale(settings, state.step)
        scale_learning_rates(optimizer, scale)
        model.begin_step(config, state.step, crew.rank)
        loss = 0.0
        batches = plan.step(state.step, settings.gradient_accumulation)
        looks = [sample for batch in batches for sample in batch]
        with losing_no_step(partial(save, state), unchanged=not fused and state.step > 0):
            for batch, counts in crew.share(batches, at_once(config)):
                with accelerator.autocast():
                    losses_B = counts * objective.losses(batch)
                part = losses_B.sum() / len(looks)  # every picture counts the same, in batches of any size
                accelerator.backward(part)
                loss += part.item()
            loss = crew.add_up(parameters.values(), loss)
            require_finite("loss", torch.tensor(loss), state.step + 1, looks)
        clip = accelerator.clip_grad_norm_
        grad_norm = fused.grad_norm() if fused else clip(parameters.values(), limit)
        if accelerator.scaler is None:
            require_finite("gradient", grad_norm, state.step + 1, looks)
        optimizer.step()  # in fp16 the loss scaler passes over an infinite gradient and scales less
        optimizer.zero_grad()
        model.end_step(config)
        averages.update(state.step)
        mean = loss if state.loss is None else LOSS_MEMORY * state.loss + (1 - LOSS_MEMORY) * loss
        scaler = accelerator.scaler.state_dict() if accelerator.scaler else None
        state = TrainState(step=state.step + 1, loss=mean, scaler=scaler)
        report.step(
            state.step,
            loss,
            mean,
            learning_rate(optimizer),
            float(grad_norm),
            time.monotonic() - began,
        )

        last = state.step == settings.steps
        if last or requests.take("save") or state.step % config.checkpoints.every == 0:
            save(state)  # before sampling: a failed drawing must not cost a checkpoint
        if requests.stop():
            continue  # to the head of the loop, which saves
        with losing_no_step(partial(save, state), unchanged=True):
            validation.measure(state.step)
            if drawings.due(state.step) or requests.take("sample"):
                sample(state.step)

    left = crew.any(requests.stop())  # what the last step is measured and drawn by, as a stop was asked
    if crew.main:
        report.state("saving")
        path = run.result(config)
        trigger = frozen_trigger(run.dataset)
        with averages.worn():
            lora = lora_weights(model.parts)
        about: dict[str, Any] = {"trigger": trigger, "step": state.step, "base_name": base.name}
        about["made"] = frozen_at(run.dataset)
        keeper.with_room(lambda: save_and_read_back(path, lora, family, config, **about))
        report.saved(state.step, path.name)
    if left:
        raise Stopped("Stopped after the last step, with the LoRA written; resume to draw what was left.")
    if crew.main:
        say_verdict(run, report)


def use_checkpointing(settings: TrainSettings, device: torch.device) -> bool:
    """Whether activations are recomputed: "auto" is yes on a GPU."""
    choice = settings.gradient_checkpointing
    return choice == "on" or (choice == "auto" and device.type != "cpu")
