"""What a section of a recipe is made of."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


def setting(
    default: Any,
    *,
    label: str = "",
    unit: str = "",
    basic: bool = False,
    choices: tuple[str, ...] = (),
    **limits: Any,
) -> Any:
    """A field of a section. ``basic`` fields are shown at once, the others under "Advanced".

    ``choices`` names the allowed texts where they come from a catalogue rather than from the type.
    """
    extra: dict[str, Any] = {"label": label, "unit": unit, "basic": basic, "choices": list(choices)}
    return Field(default, json_schema_extra=extra, **limits)


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        str_strip_whitespace=True,
        protected_namespaces=(),
    )
