"""``python -m trainer`` over a base that loads for ever."""

from __future__ import annotations

import sys
import time
from typing import Any

import trainer.train
from trainer.__main__ import main
from trainer.contract.runs import RunFolder


def find_base(run: RunFolder, *more: Any) -> Any:
    (run.path / "stuck").touch()
    time.sleep(600)


if __name__ == "__main__":
    trainer.train.find_base = find_base
    sys.exit(main())
