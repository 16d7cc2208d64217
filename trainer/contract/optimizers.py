"""The optimizers that can be chosen: where each comes from, what it keeps in memory, which options it has.

Facts only, no torch: the form, the plan and the linter read them; trainer/optimizers.py builds.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

REQUIREMENTS = {
    "bitsandbytes": "requirements-quant.txt",
    "prodigyopt": "requirements-optimizers.txt",
    "schedulefree": "requirements-optimizers.txt",
    "pytorch_optimizer": "requirements-optimizers.txt",
}
"""{package that is not always there: the file that installs it}"""


@dataclass(frozen=True)
class OptimizerRow:
    """One optimizer.

    Attributes:
        path: dotted name of its class.
        options: what train.optimizer_args may set, with the value that holds otherwise; a value's shape
            says what may be given for it. None stands for a number that is left out.
        fixed: options that are always given.
        copies: states as large as the LoRA and in its number format.
        bytes: further bytes a weight, whatever that format.
        factored: pairs of float32 row and column sums a matrix.
        one_rate: all that is trained shares one learning rate, which the optimizer estimates.
        averages: it trains one set of weights and hands out another, the average over the run.
        paged: its states move to RAM when the GPU is full.
    """

    path: str
    options: Mapping[str, Any]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    copies: float = 0.0
    bytes: float = 0.0
    factored: int = 0
    one_rate: bool = False
    averages: bool = False
    paged: bool = False

    @property
    def package(self) -> str:
        return self.path.partition(".")[0]

    def state_bytes(self, weight_bytes: float, rank: int) -> float:
        """Bytes of state for each weight of a LoRA of ``rank`` that is stored in ``weight_bytes``.

        A rank × n matrix has n + rank row and column sums, so about one for every ``rank`` weights.
        """
        return self.copies * weight_bytes + self.bytes + 4.0 * self.factored / rank


_EIGHT_BITS = 1 + 4 / 256
"""Bytes of a state in 8 bits: one, and a float32 scale for every 256 (Dettmers et al. 2021)."""

_ADAM: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8}
_ADEMAMIX: dict[str, Any] = {
    "betas": (0.9, 0.999, 0.9999),
    "alpha": 5.0,
    "t_alpha": None,
    "t_beta3": None,
    "eps": 1e-8,
}
_LION: dict[str, Any] = {"betas": (0.9, 0.99)}
_SMALLEST = {"min_8bit_size": 4096}

OPTIMIZERS: dict[str, OptimizerRow] = {
    "adamw": OptimizerRow("torch.optim.AdamW", _ADAM | {"amsgrad": False}, copies=2),
    "adamw8bit": OptimizerRow("bitsandbytes.optim.AdamW8bit", _ADAM | _SMALLEST, bytes=2 * _EIGHT_BITS),
    "paged_adamw": OptimizerRow("bitsandbytes.optim.PagedAdamW", _ADAM, bytes=8, paged=True),
    "paged_adamw8bit": OptimizerRow(
        "bitsandbytes.optim.PagedAdamW8bit", _ADAM | _SMALLEST, bytes=2 * _EIGHT_BITS, paged=True
    ),
    "ademamix8bit": OptimizerRow(
        "bitsandbytes.optim.AdEMAMix8bit", _ADEMAMIX | _SMALLEST, bytes=3 * _EIGHT_BITS
    ),
    "paged_ademamix8bit": OptimizerRow(
        "bitsandbytes.optim.PagedAdEMAMix8bit", _ADEMAMIX | _SMALLEST, bytes=3 * _EIGHT_BITS, paged=True
    ),
    "lion": OptimizerRow("bitsandbytes.optim.Lion", _LION, bytes=4),
    "lion8bit": OptimizerRow("bitsandbytes.optim.Lion8bit", _LION | _SMALLEST, bytes=_EIGHT_BITS),
    "adafactor": OptimizerRow(
        "transformers.optimization.Adafactor",
        {
            "eps": (1e-30, 1e-3),
            "clip_threshold": 1.0,
            "decay_rate": -0.8,
            "beta1": None,
            "scale_parameter": False,
        },
        fixed={"relative_step": False, "scale_parameter": False, "warmup_init": False},
        factored=1,
    ),
    "prodigy": OptimizerRow(
        "prodigyopt.Prodigy",
        _ADAM
        | {
            "beta3": None,
            "decouple": True,
            "use_bias_correction": False,
            "safeguard_warmup": False,
            "d0": 1e-6,
            "d_coef": 1.0,
            "growth_rate": math.inf,
            "slice_p": 1,
        },
        copies=4,
        one_rate=True,
    ),
    "schedulefree_adamw": OptimizerRow(
        "schedulefree.AdamWScheduleFree",
        _ADAM | {"r": 0.0, "weight_lr_power": 2.0},
        copies=2,
        averages=True,
    ),
    "came": OptimizerRow(
        "pytorch_optimizer.CAME",
        {"betas": (0.9, 0.999, 0.9999), "clip_threshold": 1.0, "eps1": 1e-30, "eps2": 1e-16},
        copies=1,
        factored=2,
    ),
}

_OWN_SETTINGS = {
    "lr": "train.learning_rate sets it",
    "weight_decay": "train.weight_decay sets it",
    "warmup_steps": "train.warmup sets it",
    "relative_step": "Adafactor gets the recipe's learning rate here; its own would leave "
    "train.learning_rate, the scheduler and all rates per part without effect",
}
_OWN_SETTINGS["warmup_init"] = _OWN_SETTINGS["relative_step"]
"""Options that are refused for a reason."""

_NAME = re.compile(r"(?:^|[\s,;])([A-Za-z_]\w*)\s*=")


def parse_options(optimizer: str, text: str) -> dict[str, Any]:
    """The options in "name=value name=value": Python literals, and nothing is evaluated.

    Raises ValueError with a sentence for text that is none, a name that the optimizer has not, or a value
    of the wrong shape.
    """
    known = OPTIMIZERS[optimizer].options
    found = list(_NAME.finditer(text))
    if text[: found[0].start() if found else None].strip():
        raise ValueError(f"{text!r} is not name=value, such as {_example(known)}")
    options: dict[str, Any] = {}
    for match, following in zip(found, [*found[1:], None], strict=False):
        end = following.start() if following else len(text)
        name, written = match[1], text[match.end() : end].strip(" \t\r\n,;")
        if name not in known:
            reason = _OWN_SETTINGS.get(name)
            raise ValueError(
                f"{name} cannot be set here: {reason}"
                if reason
                else f"{name} is no option of {optimizer}; it has {', '.join(known)}"
            )
        if name in options:
            raise ValueError(f"{name} is there twice; keep one")
        options[name] = _value(name, written, known[name])
    return options


def written_options(options: Mapping[str, Any]) -> str:
    """The text that :func:`parse_options` reads as these."""
    return " ".join(f"{name}={_written(value)}" for name, value in options.items())


def _example(known: Mapping[str, Any]) -> str:
    name = next(iter(known))
    return f"{name}={_written(known[name])}"


def _written(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _value(name: str, written: str, usual: Any) -> Any:
    """The literal, in the shape of the usual value."""
    try:
        value = ast.literal_eval(written)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = {"true": True, "false": False}.get(written.lower(), written)
    wanted = f"give {_wanted(usual)}"
    if isinstance(usual, tuple):
        numbers = isinstance(value, (tuple, list)) and all(_is_number(one) for one in value)
        if not numbers or len(value) != len(usual):
            raise ValueError(f"{name}={written} is not allowed; {wanted}")
        return tuple(float(one) for one in value)
    if isinstance(usual, bool):
        fits = isinstance(value, bool)
    elif isinstance(usual, int):
        fits = isinstance(value, int) and not isinstance(value, bool)
    else:
        fits = _is_number(value) or (usual is None and value is None)
    if not fits:
        raise ValueError(f"{name}={written} is not allowed; {wanted}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _wanted(usual: Any) -> str:
    if isinstance(usual, tuple):
        return f"{len(usual)} numbers, such as {_written(usual)}"
    if isinstance(usual, bool):
        return "True or False"
    if isinstance(usual, int):
        return f"a whole number, such as {usual}"
    if usual is None:
        return "a number or None"
    return "a number" if math.isinf(usual) else f"a number, such as {usual:g}"
