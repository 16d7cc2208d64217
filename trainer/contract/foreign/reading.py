"""Files of strangers as plain data: text in any usual encoding, JSON, YAML, TOML; bounded and never run."""

from __future__ import annotations

import codecs
import json
import re
import tomllib
from pathlib import Path
from typing import Any

from ..errors import ConfigError

MAX_BYTES = 1_000_000
MAX_DEPTH = 40


def refuse(name: str, sentence: str) -> ConfigError:
    return ConfigError({"file": f"{name} {sentence}"})


def read_text(file: Path) -> str:
    """The text of a small file. Raises ConfigError with one sentence."""
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise refuse(file.name, f"cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise refuse(file.name, "has more than 1 MB; a recipe is a small text file")
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # what PowerShell's ">" writes
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        raise refuse(file.name, "is not a text file in UTF-8; save it as UTF-8") from None
    if "\0" in text:
        raise refuse(file.name, "is not a text file; choose the recipe itself")
    return text.replace("\r\n", "\n")


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twin!r} stands in it twice; remove one of them")
    return table


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is not a number")


_TRAILING_COMMA = re.compile(r'("(?:\\.|[^"\\])*")|,(?=\s*[}\]])')


def parse_json(text: str, name: str) -> Any:
    """JSON; a comma before a closing bracket, which guides print and editors forgive, is forgiven."""
    text = _TRAILING_COMMA.sub(lambda match: match.group(1) or "", text)
    try:
        data = json.loads(text, object_pairs_hook=_no_twins, parse_constant=_no_number)
    except RecursionError:
        raise refuse(name, "is nested too deeply to be a recipe") from None
    except ValueError as error:
        raise refuse(name, f"is not valid JSON: {error}") from None
    _require_shallow(data, name)
    return data


def parse_toml(text: str, name: str) -> dict[str, Any]:
    try:
        data = tomllib.loads(text)
    except RecursionError:
        raise refuse(name, "is nested too deeply to be a recipe") from None
    except tomllib.TOMLDecodeError as error:
        raise refuse(name, f"is not valid TOML: {error}") from None
    _require_shallow(data, name)
    return data


def parse_yaml(text: str, name: str) -> Any:
    """YAML of plain values only: tags are refused by the safe loader, anchors and twins by us."""
    import yaml  # huggingface_hub and Gradio bring it; here it is loaded for YAML files alone

    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            _require_plain(node, name, yaml)
        data = yaml.safe_load(text)
    except RecursionError:
        raise refuse(name, "is nested too deeply to be a recipe") from None
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise refuse(name, f"is not valid YAML: {problem}{where}") from None
    except ValueError as error:  # dates that are none
        raise refuse(name, f"is not valid YAML: {error}") from None
    _require_shallow(data, name)
    return data


def _require_plain(top: Any, name: str, yaml: Any) -> None:
    seen: set[int] = set()
    nodes = [top]
    while nodes:
        node = nodes.pop()
        if id(node) in seen:
            raise refuse(name, "uses YAML anchors (& and *), which are not followed; write the values out")
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            keys = [str(key.value) for key, _ in node.value]
            if twins := [key for key in keys if keys.count(key) > 1]:
                raise refuse(name, f"has {twins[0]!r} twice; remove one of them")
            nodes += [part for pair in node.value for part in pair]


def _require_shallow(data: Any, name: str) -> None:
    layer, depth = [data], 0
    while layer:
        depth += 1
        if depth > MAX_DEPTH:
            raise refuse(name, "is nested too deeply to be a recipe")
        tables = [value for value in layer if isinstance(value, dict)]
        lists = [value for value in layer if isinstance(value, list)]
        layer = [value for table in tables for value in table.values()]
        layer += [value for row in lists for value in row]
