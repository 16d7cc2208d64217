"""``python -m dataset_tools`` with a model that needs no weights. It says "a photo": of the first one at
once, of the others when there is a file ``gate`` in the project."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from PIL import Image

import dataset_tools.tagger
from dataset_tools.__main__ import main
from trainer.contract.errors import RunError

SEEN: list[int] = []


class Model:
    def __init__(self, root: Path) -> None:
        self.gate = root / "gate"

    def __call__(self, image: Image.Image, seed: int) -> str:
        while SEEN and not self.gate.exists():
            time.sleep(0.02)
        SEEN.append(seed)
        return "a photo"


def load(model: str, *_: object) -> Model:
    if model == "nobody/none":
        raise RunError("nobody/none does not exist on the Hub", "model_missing")
    return Model(Path(sys.argv[2]))


dataset_tools.tagger.load_tagger = load
sys.exit(main())
