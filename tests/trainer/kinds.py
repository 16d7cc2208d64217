"""One recipe of [adapter] for every kind of adapter and of its beginnings."""

from __future__ import annotations

from typing import Any

import pytest

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "locon": {"conv_rank": 3, "conv_alpha": 1.5},
    "dora": {"dora": True},
    "rslora": {"rslora": True},
    "gaussian": {"init": "gaussian"},
    "pissa": {"init": "pissa"},
    "olora": {"init": "olora"},
    "loha": {"type": "loha"},
    "lokr": {"type": "lokr", "lokr_factor": 4},
    "lokr whole": {"type": "lokr", "rank": 512},
    "oft": {"type": "oft", "rank": 4},
    "dylora": {"type": "dylora", "rank": 4, "dylora_unit": 2},
}

every_kind = pytest.mark.parametrize("kind", KINDS)
