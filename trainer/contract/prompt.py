"""A sample prompt with settings of its own: ``a photo of zwx --n blurry --w 832 --h 1216 --s 30 --l 7``.

The flags are those of kohya's sample prompts, without its traps: what is no number is refused and what is
no flag is text, neither is dropped; and a prompt may begin with any word.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .settings.samples import SampleSettings

SAMPLERS = ("auto", "euler", "euler_ancestral", "ddim", "dpm++_2m", "unipc", "heun")
FLOW_SAMPLERS = ("auto", "euler", "heun", "dpm++_2m", "unipc")
"""Those that there are for rectified flow."""


@dataclass(frozen=True)
class Prompt:
    """What one picture is drawn with. None: the base decides (sizes), or the section's seed and the prompt's
    place in the list (``seed``)."""

    text: str
    negative: str
    width: int | None
    height: int | None
    steps: int
    guidance: float
    seed: int | None
    sampler: str


_FLAG = re.compile(r"(?:^|\s)--(?=\w)")
FLAGS: dict[str, str] = {
    "n": "negative",
    "w": "width",
    "h": "height",
    "s": "steps",
    "l": "guidance",
    "g": "guidance",
    "d": "seed",
    "ss": "sampler",
}
LIMITS = {"width": (64, 4096), "height": (64, 4096), "steps": (1, 200), "guidance": (1, 30)}


def split_prompt(line: str) -> tuple[str, dict[str, Any]]:
    """(the prompt, {field: value} of its flags). Raises ValueError with a sentence.

    >>> split_prompt("a red house --w 832 --l 7.5")
    ('a red house', {'width': 832, 'guidance': 7.5})

    What is no flag here, such as another program's --ar, belongs to the prompt:

    >>> split_prompt("a red house --ar 3:2 --w 832")
    ('a red house --ar 3:2', {'width': 832})
    """
    text, *parts = _FLAG.split(line)
    words, values = [text.strip()], {}
    for part in parts:
        name, _, rest = part.strip().partition(" ")
        if field := FLAGS.get(name.lower()):
            values[field] = _value(name, field, rest.strip())
        else:
            words.append(f"--{part.strip()}")
    prompt = " ".join(word for word in words if word)
    if not prompt:
        raise ValueError("one of the prompts is empty; remove it or write something")
    return prompt, values


def without_unknown(line: str) -> tuple[str, list[str]]:
    """(the line without what looks like a flag and is none, what that was).

    >>> without_unknown("a red house --ar 3:2 --w 832")
    ('a red house --w 832', ['--ar 3:2'])
    """
    text, *parts = _FLAG.split(line)
    known = [part.strip().partition(" ")[0].lower() in FLAGS for part in parts]
    flags = [f"--{part.strip()}" for part in parts]
    kept = [flag for flag, is_known in zip(flags, known, strict=True) if is_known]
    unknown = [flag for flag, is_known in zip(flags, known, strict=True) if not is_known]
    return " ".join([text.strip(), *kept]).strip(), unknown


def _value(name: str, field: str, text: str) -> Any:
    if field == "negative":
        return text
    if field == "sampler":
        if text not in SAMPLERS:
            raise ValueError(f"--{name} {text} is no sampler; give one of {', '.join(SAMPLERS)}")
        return text
    try:
        number = float(text) if field == "guidance" else int(text)
    except ValueError:
        raise ValueError(f"--{name} {text} is no number; write it like --{name} 7") from None
    low, high = LIMITS.get(field, (0, 2**63 - 1))
    if not low <= number <= high:
        raise ValueError(f"--{name} {text} is not allowed; {field} goes from {low} to {high}")
    return number


def prompts_of(samples: SampleSettings) -> list[Prompt]:
    """The prompts of a recipe, each with the section's settings where it has none of its own."""
    shared: dict[str, Any] = {
        "negative": samples.negative,
        "width": samples.width,
        "height": samples.height,
        "steps": samples.steps,
        "guidance": samples.guidance,
        "seed": None,
        "sampler": samples.sampler,
    }
    split = [split_prompt(line) for line in samples.prompts]
    return [Prompt(text=text, **{**shared, **own}) for text, own in split]
