"""``app.py`` whose trainer is the stand-in of the studio's tests; ``STAND_IN`` is how that behaves."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import app  # noqa: E402
from studio.jobs import Supervisor  # noqa: E402

trainer = (sys.executable, str(ROOT / "tests" / "studio" / "stand_in_trainer.py"))
behaviour = os.environ.get("STAND_IN", "--behave train --steps 100000").split()
os.environ["PYTHONPATH"] = str(ROOT)
app.Supervisor = partial(Supervisor, trainer=(*trainer, *behaviour), gpus=tuple)  # type: ignore[misc]
sys.exit(app.main())
