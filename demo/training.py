"""What both stages of pre-training share: moving averages, checkpoints, and a control file for a long run."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn


class Ema:
    """An exponential moving average of a module's parameters, with the usual warm-up of the decay."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.shadow = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.shadow[name].lerp_(value, 1 - decay)


def cosine(step: int, steps: int, warmup: int, floor: float = 0.02) -> float:
    """Learning-rate factor: linear warm-up, then a half cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return floor + (1 - floor) * 0.5 * (1 + float(torch.cos(torch.tensor(progress * torch.pi))))


class Session:
    """A resumable training: its module, optimizer, average and step, saved in `folder` as one file.

    `folder/control.json` may hold {"threads": n, "<name>": steps}; it is read every 50 steps, so a long run
    can be given more or less of the machine, or be made longer or shorter, while it lasts.
    """

    def __init__(self, folder: Path, name: str, module: nn.Module, optimizer: torch.optim.Optimizer,
                 steps: int, warmup: int, ema_decay: float) -> None:  # fmt: skip
        self.folder, self.name, self.module, self.optimizer = folder, name, module, optimizer
        self.steps, self.warmup, self.step = steps, warmup, 0
        self.base_lr = optimizer.param_groups[0]["lr"]
        self.ema = Ema(module, ema_decay)
        self.started, self.losses = time.monotonic(), list[float]()
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            module.load_state_dict(state["module"])
            optimizer.load_state_dict(state["optimizer"])
            self.ema.shadow, self.ema.steps, self.step = state["ema"], state["ema_steps"], state["step"]
            print(f"{name}: resumed at step {self.step}", flush=True)

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.pt"

    def save(self) -> None:
        partial = self.path.with_suffix(".partial")
        state = {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict(),
                 "ema": self.ema.shadow, "ema_steps": self.ema.steps, "step": self.step}  # fmt: skip
        torch.save(state, partial)
        os.replace(partial, self.path)

    def running(self) -> bool:
        """Sets the learning rate for the next step; False when there is none left."""
        control = self.folder / "control.json"
        if self.step % 50 == 0 and control.exists():
            settings = json.loads(control.read_text())
            torch.set_num_threads(settings.get("threads", torch.get_num_threads()))
            self.steps = settings.get(self.name, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.base_lr * cosine(self.step, self.steps, self.warmup)
        return self.step < self.steps

    def take(self, loss: Tensor) -> None:
        """One optimizer step; a line every 100 steps, a checkpoint every 500."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.ema.update(self.module)
        self.step += 1
        self.losses.append(float(loss.detach()))
        if self.step % 100 == 0:
            seconds = (time.monotonic() - self.started) / len(self.losses)
            recent = sum(self.losses[-100:]) / len(self.losses[-100:])
            print(f"{self.name}: step {self.step}/{self.steps}, loss {recent:.4f}, {seconds:.3f} s/step, "
                  f"lr {self.optimizer.param_groups[0]['lr']:.2e}", flush=True)  # fmt: skip
        if self.step % 500 == 0 or self.step >= self.steps:
            self.save()
