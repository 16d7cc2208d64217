"""``python -m trainer`` whose memory runs out once, at step 3, in the process of rank ``FULL``.

Started as a fork, those that it starts in turn have it too.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from trainer.__main__ import main
from trainer.objective import Objective

_losses = Objective.losses


def losses(self: Objective, samples: list[Any]) -> torch.Tensor:
    ours = os.environ.get("RANK", "0") == os.environ["FULL"]
    if ours and samples[0].batch == 2 and not os.path.exists(os.environ["ONCE"]):
        Path(os.environ["ONCE"]).touch()
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
    return _losses(self, samples)


if __name__ == "__main__":
    Objective.losses = losses  # type: ignore[method-assign]
    sys.exit(main())
