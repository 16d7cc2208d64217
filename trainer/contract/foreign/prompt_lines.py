"""kohya's sample prompts: ``a photo of zwx --w 832 --h 1216 --d 42 --s 30 --l 7 --n blurry``.

What kohya's scripts do with a line, traps included: it is cut at " --"; each part, the prompt too, is
matched against the flags, whose case does not count; numbers are digits only, so that "--l -1" says
nothing; flags that nobody knows are dropped without a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .report import Imported

MULTIPLE = 8
"""kohya rounds sides down to multiples of this many pixels, and up to 64."""


@dataclass(frozen=True)
class PromptLine:
    """One prompt. None: not given on the line. ``said`` are sentences on what was dropped, and traps."""

    prompt: str = ""
    negative: str | None = None
    width: int | None = None
    height: int | None = None
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    embedded_guidance: float | None = None
    sampler: str | None = None
    said: tuple[str, ...] = ()


_FLAGS: dict[str, tuple[str, str]] = {
    "w": ("width", r"(\d+)"),
    "h": ("height", r"(\d+)"),
    "d": ("seed", r"(\d+)"),
    "s": ("steps", r"(\d+)"),
    "l": ("guidance", r"([\d.]+)"),
    "g": ("embedded_guidance", r"([\d.]+)"),
    "n": ("negative", r"(.+)"),
    "ss": ("sampler", r"(.+)"),
}
_ELSEWHERE = ("cn", "ctr", "rcfg", "fs", "am")
"""Flags for ControlNets and for families that are not sampled so here."""


def parse_prompt_line(line: str) -> PromptLine:
    parts = line.strip().split(" --")
    values: dict[str, Any] = {"prompt": parts[0].strip()}
    said: list[str] = []
    for place, part in enumerate(parts):
        name, _, rest = part.strip().partition(" ")
        field, pattern = _FLAGS.get(name.lower(), ("", ""))
        match = re.match(pattern, rest.strip()) if field else None
        if match:
            try:
                values[field] = _value(field, match.group(1))
            except ValueError:
                said.append(f"--{part.strip()} is not a number and says nothing")
                continue
            if place == 0:
                values["prompt"] = ""
                said.append(
                    f"the prompt begins with {name!r}, which kohya takes for the flag of the same name: "
                    f"it became {field} and no prompt is left; write it without the flag in front"
                )
        elif place and name.lower() in _ELSEWHERE:
            said.append(f"--{part.strip()} is not offered here")
        elif place:
            what = "is not a number" if field else "is no flag"
            said.append(f"--{part.strip()} {what}, so that kohya drops it without a word")
    return PromptLine(**values, said=tuple(said))


def _value(field: str, text: str) -> int | float | str:
    if field in ("negative", "sampler"):
        return text.strip()
    if field in ("guidance", "embedded_guidance"):
        return float(text)
    given = int(text)
    if field == "steps":
        return min(max(given, 1), 1000)
    return max(64, given - given % MULTIPLE) if field in ("width", "height") else given


def prompt_lines(text: str) -> Iterator[PromptLine]:
    """The lines of a prompt file; empty ones and comments (#) are skipped."""
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield parse_prompt_line(line)


FIELDS = ("negative", "width", "height", "seed", "steps", "guidance")
"""What our samples have once for all prompts."""
MOST = 16


def take_prompts(
    found: Imported, option: str, prompts: list[PromptLine], names: Mapping[str, str] | None = None
) -> None:
    """[samples] from prompts. What a section has once only is the first prompt's that gives it.

    ``names``: the program's options by our field, where prompts are no lines with flags.
    """
    told = [prompt for prompt in prompts if prompt.prompt]
    texts = [prompt.prompt for prompt in told]
    if texts:
        found.keep(option, texts, "samples.prompts", texts[:MOST])
    elif names is None:
        found.miss(option, f"{len(prompts)} lines", "no line of it is a prompt")
        return
    if len(told) > MOST:
        found.miss(option, f"{len(told)} prompts", f"the first {MOST} are taken; more cannot be drawn")
    for field in FIELDS:
        given = [getattr(prompt, field) for prompt in (told or prompts)]
        values = [value for value in given if value is not None]
        if not values:
            continue
        others = sorted({str(value) for value in given[1:] if value != values[0]})
        why = f"for all prompts; others had {', '.join(others)[:80]}" if others else ""
        name = names[field] if names else f"{option} --{_flag(field)}"
        found.keep(name, values[0], f"samples.{field}", values[0], why)
    for prompt in prompts:
        if prompt.sampler:
            found.miss(f"{option} --ss", prompt.sampler, "pictures are drawn with the base's own sampler")
        if prompt.embedded_guidance is not None:
            found.miss(f"{option} --g", prompt.embedded_guidance, "the base's usual one is used")
        for sentence in prompt.said:
            found.miss(option, prompt.prompt or "(no prompt)", sentence)
    if names is None and not any(prompt.width or prompt.height for prompt in told):
        found.note(
            "kohya draws at 512 × 512 where a line has no --w and --h: the training's size is used here."
        )


def _flag(field: str) -> str:
    return next(flag for flag, (name, _) in _FLAGS.items() if name == field)
