"""A small classifier that reads back what a picture shows, to judge whether prompts are followed.

It is trained on drawings (blurred, shifted in colour, noisy, as generated pictures are) whose attribute
combinations exclude the held-out ones, and is tested on drawings of just those.

    python -m demo.judge            # trains, prints its accuracy, writes demo/judge.safetensors
"""

from __future__ import annotations

import argparse
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from demo.draw import (
    BACKGROUNDS,
    BODIES,
    COLOURS,
    EARS,
    EYES,
    PATTERNS,
    PLACES,
    SHAPES,
    Creature,
    Drawing,
    random_drawing,
    render,
)

WEIGHTS = Path(__file__).parent / "judge.safetensors"
SIDE = 64
LABELS: dict[str, tuple[str, ...]] = {
    "background": (*BACKGROUNDS, *PLACES),
    "colour": tuple(COLOURS),
    "shape": (*SHAPES, "creature"),
    "body": BODIES,
    "eyes": EYES,
    "ears": EARS,
    "pattern": PATTERNS,
}


def labels_of(drawing: Drawing) -> dict[str, str]:
    """The drawing's attributes; a plain shape has no body, eyes, ears or pattern."""
    subject = drawing.subject
    common = {"background": drawing.backdrop.name, "colour": subject.colour}
    if not isinstance(subject, Creature):
        return {**common, "shape": subject.shape}
    parts = {name: getattr(subject, name) for name in ("body", "eyes", "ears", "pattern")}
    return {**common, "shape": "creature", **parts}


class Judge(nn.Module):
    """Pictures [B, 3, SIDE, SIDE] in [0, 1] to one row of logits per attribute."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 32, 64, 64)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride=2, padding=1),
                nn.GroupNorm(4, outputs),
                nn.SiLU(),
            ]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 128), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(128, len(values)) for name, values in LABELS.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        features = self.body(2 * pictures - 1)
        return {name: head(features) for name, head in self.heads.items()}

    @torch.no_grad()
    def read(self, images: list[Image.Image]) -> list[dict[str, str]]:
        """What each image (of any square size) shows, as `labels_of` has it."""
        logits = self(to_tensor(images))
        best = {name: rows.argmax(1).tolist() for name, rows in logits.items()}
        return [{name: LABELS[name][best[name][index]] for name in LABELS} for index in range(len(images))]


def to_tensor(images: list[Image.Image], side: int = SIDE) -> Tensor:
    """float32 [N, 3, side, side] in [0, 1]."""
    pixels = [np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BOX)) for image in images]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255


def targets(drawings: list[Drawing]) -> dict[str, Tensor]:
    """Class indices [N] per attribute; -1 where a drawing has no such attribute."""
    labels = [labels_of(drawing) for drawing in drawings]
    return {
        name: torch.tensor([values.index(label[name]) if name in label else -1 for label in labels])
        for name, values in LABELS.items()
    }


def worsen(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Blur, colour shifts and noise, so that the judge does not depend on clean edges."""
    pictures = pictures + torch.randn(len(pictures), 3, 1, 1, generator=generator) * 0.02
    if torch.rand((), generator=generator) < 0.5:
        pictures = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    coarse = torch.randn(len(pictures), 3, 8, 8, generator=generator) * 0.02
    noise = torch.randn(pictures.shape, generator=generator) * 0.02
    return pictures + noise + F.interpolate(coarse, scale_factor=SIDE // 8, mode="bilinear")


def accuracy(judge: Judge, drawings: list[Drawing]) -> dict[str, float]:
    """Share of attributes read rightly from drawings that are rendered afresh."""
    readings = judge.read([render(drawing) for drawing in drawings])
    pairs = [(labels_of(drawing), reading) for drawing, reading in zip(drawings, readings, strict=True)]
    return {
        name: float(np.mean([truth[name] == reading[name] for truth, reading in pairs if name in truth]))
        for name in LABELS
    }


def train_judge(count: int, epochs: int, seed: int = 0, batch: int = 64) -> Judge:
    """Trains a judge on `count` drawings."""
    torch.manual_seed(seed)
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    drawings = [random_drawing(rng) for _ in range(count)]
    pictures, wanted = to_tensor([render(drawing) for drawing in drawings]), targets(drawings)
    judge = Judge()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, epochs * (count // batch), pct_start=0.1)
    for epoch in range(epochs):
        order = torch.randperm(count, generator=generator)[: count // batch * batch].view(-1, batch)
        for picks in order:
            logits = judge(worsen(pictures[picks], generator))
            losses = [
                F.cross_entropy(rows, wanted[name][picks], ignore_index=-1, reduction="sum") / batch
                for name, rows in logits.items()
            ]
            loss = torch.stack(losses).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{epochs}: loss {float(loss.detach()):.4f}", flush=True)
    return judge.eval()


def load_judge() -> Judge:
    judge = Judge()
    judge.load_state_dict({name: weights.float() for name, weights in load_file(WEIGHTS).items()})
    return judge.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the judge.")
    parser.add_argument("--count", type=int, default=16_000)
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    judge = train_judge(args.count, args.epochs)
    save_file({name: weights.half().contiguous() for name, weights in judge.state_dict().items()}, WEIGHTS)
    rng = random.Random(1)
    held_out = [random_drawing(rng, holdout=True) for _ in range(1000)]
    for name, share in accuracy(load_judge(), held_out).items():
        print(f"{name:12} {100 * share:.1f} %")


if __name__ == "__main__":
    main()
