"""Chance without state: numbers that are a function of what they are for."""

from __future__ import annotations

import hashlib


def derived_seed(*parts: object) -> int:
    """63 bits that depend on every part and nothing else."""
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
