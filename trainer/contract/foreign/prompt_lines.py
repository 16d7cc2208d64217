"""kohya's sample prompts: ``a photo of zwx --w 832 --h 1216 --d 42 --s 30 --l 7 --n blurry``.

What kohya's scripts do with a line, traps included: it is cut at " --"; each part, the prompt too, is
matched against the flags, whose case does not count and which have one space behind them; numbers are digits
only, so that "--l -1" says nothing; flags that nobody knows are dropped without a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ..families import CATALOGUE
from ..prompt import FLOW_SAMPLERS, LIMITS
from .names import flat
from .reading import parse_json, parse_toml
from .report import Imported, shown

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
        name, _, rest = part.partition(" ")
        field, pattern = _FLAGS.get(name.lower(), ("", ""))
        match = re.match(pattern, rest) if field else None
        if match:
            try:
                values[field] = _value(field, match.group(1))
            except ValueError:
                said.append(f"--{part.strip()} is not a number and says nothing")
                continue
            if place == 0:
                said.append(
                    f"the prompt begins with {name!r}, which kohya takes for the flag of the same name as "
                    f"well: the rest of it became {field}, too; begin it with another word"
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


def prompts_in(text: str, name: str) -> list[PromptLine]:
    """The prompts of a file by its ending: lines; a JSON list; or a TOML table [prompt] with its
    [[prompt.subset]]. Raises ConfigError for a damaged one."""
    if name.lower().endswith(".json"):
        rows = parse_json(text, name)
    elif name.lower().endswith(".toml"):
        shared = parse_toml(text, name).get("prompt")
        shared = dict(shared) if isinstance(shared, dict) else {}
        subsets = shared.pop("subset", None)
        rows = [shared | row for row in subsets if isinstance(row, dict)] if isinstance(subsets, list) else []
    else:
        return list(prompt_lines(text))
    return [_of_row(row) for row in (rows if isinstance(rows, list) else []) if isinstance(row, (str, dict))]


_KEYS = {
    "prompt": "prompt",
    "negative_prompt": "negative",
    "width": "width",
    "height": "height",
    "seed": "seed",
    "sample_steps": "steps",
    "scale": "guidance",
    "guidance_scale": "embedded_guidance",
    "sample_sampler": "sampler",
}


def _of_row(row: str | dict[str, Any]) -> PromptLine:
    """A prompt as a line, or as a table of what a line's flags say."""
    if isinstance(row, str):
        return parse_prompt_line(row)
    values = {_KEYS[key]: value for key, value in row.items() if key in _KEYS}
    right: dict[str, Any] = {name: value for name, value in values.items() if _is_right(name, value)}
    wrong = [f"{name} = {shown(value)} says nothing" for name, value in values.items() if name not in right]
    unknown = [
        f"{key} = {shown(value)} is not offered here" for key, value in row.items() if key not in _KEYS
    ]
    return PromptLine(**right, said=(*wrong, *unknown))


def _is_right(field: str, value: Any) -> bool:
    if field in ("prompt", "negative", "sampler"):
        return isinstance(value, str)
    kinds = (int, float) if "guidance" in field else int
    return isinstance(value, kinds) and not isinstance(value, bool) and value >= 0


FIELDS = ("negative", "width", "height", "seed", "steps", "guidance", "sampler")
"""What our samples have once, and a prompt may have of its own."""
MOST = 16
_SAMPLERS = {
    "ddim": "ddim",
    "euler": "euler",
    "keuler": "euler",
    "eulera": "euler_ancestral",
    "keulera": "euler_ancestral",
    "eulerancestral": "euler_ancestral",
    "heun": "heun",
    "dpmsolver": "dpm++_2m",
    "dpmpp": "dpm++_2m",
    "dpm": "dpm++_2m",
    "unipc": "unipc",
}
"""Ours by others' names, without case and punctuation."""


def sampler(found: Imported, option: str, name: Any) -> str | None:
    """Our name of a sampler; None, with a line, where the base's own has to do."""
    ours = _SAMPLERS.get(flat(str(name)))
    flow = CATALOGUE[found.get("model.family")].process == "flow"
    if ours is None or (flow and ours not in FLOW_SAMPLERS):
        found.miss(option, name, "pictures are drawn with the base's own sampler")
        return None
    return ours


def take_prompts(
    found: Imported, option: str, prompts: list[PromptLine], names: Mapping[str, str] | None = None
) -> None:
    """[samples] from prompts: the section has what the first says, and others what differs from it.

    ``names``: the program's options by our field, where prompts are no lines with flags.
    """
    if names is not None:
        prompts = [_with_flags(_of_its_types(found, names, prompt)) for prompt in prompts]
    told = [_ours(found, option, prompt) for prompt in prompts if prompt.prompt]
    if len(told) > MOST:
        found.miss(option, f"{len(told)} prompts", f"the first {MOST} are taken; more cannot be drawn")
        told = told[:MOST]
    if not told and names is None:
        found.miss(option, f"{len(prompts)} lines", "no line of it is a prompt")
        return
    for field in FIELDS:
        values = [getattr(prompt, field) for prompt in (told or prompts)[:1]]
        if values and values[0] is not None:
            name = (names or {}).get(field, f"{option} --{_flag(field)}")
            found.keep(name, values[0], f"samples.{field}", values[0])
    if names is None and told and CATALOGUE[found.get("model.family")].process != "flow":
        for setting, usual in (("samples.steps", 30), ("samples.guidance", 7.5)):
            found.assume(setting, usual, "kohya's default where a line does not say it")
    texts = [f"{prompt.prompt}{_own_flags(found, prompt)}" for prompt in told]
    if texts:
        found.keep(option, [prompt.prompt for prompt in told], "samples.prompts", texts)
    for prompt in prompts:
        for sentence in prompt.said:
            found.miss(option, prompt.prompt or "(no prompt)", sentence)
    if names is None and not any(prompt.width or prompt.height for prompt in told):
        found.note(
            "kohya draws at 512 × 512 where a line has no --w and --h; here it is the training's size."
        )


def _of_its_types(found: Imported, names: Mapping[str, str], prompt: PromptLine) -> PromptLine:
    """A prompt out of a file, which may have anything anywhere; what is no number or no text is left out."""
    wrong: dict[str, Any] = {}
    for field in FIELDS:
        value = getattr(prompt, field)
        right = (str,) if field in ("negative", "sampler") else (int, float)
        if value is not None and (isinstance(value, bool) or not isinstance(value, right)):
            found.miss(names.get(field, field), value, "no number" if int in right else "no text")
            wrong[field] = None
    return replace(prompt, **wrong)


def _with_flags(prompt: PromptLine) -> PromptLine:
    """A prompt of another program, some of which know flags too."""
    if " --" not in prompt.prompt:
        return prompt
    line = parse_prompt_line(prompt.prompt)
    given = {field.name: getattr(line, field.name) for field in fields(line)}
    return replace(prompt, **{name: value for name, value in given.items() if value not in (None, ())})


def _ours(found: Imported, option: str, prompt: PromptLine) -> PromptLine:
    """The prompt with what we can draw: guidance that is embedded, samplers by our names, within limits."""
    chosen = sampler(found, f"{option} --ss", prompt.sampler) if prompt.sampler else None
    guidance = prompt.guidance if prompt.embedded_guidance is None else prompt.embedded_guidance
    prompt = replace(prompt, sampler=chosen, guidance=guidance, negative=_one_line(prompt.negative))
    for field, (low, high) in LIMITS.items():
        value = getattr(prompt, field)
        if value is not None and not low <= value <= high:
            found.miss(f"{option} --{_flag(field)}", value, f"{field} goes from {low} to {high} here")
            unset: dict[str, Any] = {field: None}
            prompt = replace(prompt, **unset)
    return replace(prompt, prompt=_one_line(prompt.prompt) or "")


def _one_line(text: str | None) -> str | None:
    return None if text is None else re.sub(r"(^|\s)--(?=\w)", r"\1- ", " ".join(text.split()))


def _own_flags(found: Imported, prompt: PromptLine) -> str:
    """The flags of what differs from the section."""
    flags = ""
    for field in FIELDS:
        value = getattr(prompt, field)
        if value is not None and value != found.get(f"samples.{field}"):
            flags += f" --{_flag(field)} {shown(value)}"
    return flags


def _flag(field: str) -> str:
    return next(flag for flag, (name, _) in _FLAGS.items() if name == field)
