"""Lint rules on the resolutions that photos are trained at."""

from __future__ import annotations

from collections.abc import Iterator

from .config import TrainConfig
from .families import CATALOGUE
from .findings import Facts, Finding, native_resolution, rule
from .settings.dataset import all_resolutions, listed_sides
from .sizes import changed_sides, exact_resolution, rounded, sides_text


@rule
def resolution_above_native(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    native = native_resolution(config, facts)
    if native and (above := [side for side in _sides(config, native) if side > native * 1.25]):
        fix = changed_sides(config.dataset, lambda side: None if side in above else side)
        yield Finding(
            "warning",
            next(iter(fix)),
            f"{above[0]} px is beyond the {native} px that the base was made for; it would learn slowly and "
            "draw doubled subjects.",
            fix,
            f"Use {native} px" if list(fix) == ["dataset.resolution"] else "Leave it out",
        )


@rule
def resolution_far_below_native(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    native, chosen = native_resolution(config, facts), config.dataset.resolution
    if native and chosen and _sides(config, native)[0] < native * 0.5:
        yield Finding(
            "hint",
            "dataset.resolution",
            f"{chosen} px is less than half of the {native} px that the base was made for; pictures come out "
            "soft.",
            {"dataset.resolution": None},
            f"Use {native} px",
        )


@rule
def resolution_is_rounded(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    multiple = CATALOGUE[config.model.family].size_multiple
    odd = [side for side in _sides(config, 0) if side and rounded(side, multiple)]
    if odd:
        fix = changed_sides(config.dataset, lambda side: exact_resolution(side, multiple))
        side = exact_resolution(odd[0], multiple)
        yield Finding("warning", next(iter(fix)), rounded(odd[0], multiple), fix, f"Use {side} px")


@rule
def resolution_is_never_reached(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    """Of several resolutions the largest; photos are not enlarged for it."""
    native = native_resolution(config, facts)
    sides = _sides(config, native) if native else ()
    areas = [width * height for folder in facts.folders for (width, height), _ in folder.pictures]
    if len(sides) > 1 and areas and max(areas) < ((sides[0] + sides[1]) / 2) ** 2:
        fix = changed_sides(config.dataset, lambda side: None if side == sides[0] else side)
        if config.dataset.resolution in (None, sides[0]):
            fix = {"dataset.resolution": sides[1]} | fix | {"dataset.resolution": sides[1]}
        yield Finding(
            "warning",
            "dataset.resolution",
            f"No photo is large enough for {sides[0]} px without being enlarged, so that all are shown at "
            "smaller sizes alone.",
            fix,
            f"Use {sides[1]} px",
        )


@rule
def resolution_said_twice(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    data = config.dataset
    main = data.resolution or native_resolution(config, facts)
    more = listed_sides(data.more_resolutions)
    if main in more:
        yield Finding(
            "hint",
            "dataset.more_resolutions",
            f"{main} px is the resolution anyway, so that naming it once more does nothing.",
            {"dataset.more_resolutions": sides_text(side for side in more if side != main)},
            "Name it once",
        )


def _sides(config: TrainConfig, native: int) -> tuple[int, ...]:
    return all_resolutions(config.dataset, native)
