"""Which program wrote a file, told by its content, and the recipe that becomes of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..fields import RECORDS, SECTIONS
from . import kohya_tables
from .ai_toolkit import read_ai_toolkit
from .diffusers_scripts import PREFIXES, read_diffusers
from .kohya import Base, Beside, flattened, read_kohya
from .kohya_dataset import take_dataset
from .kohya_gui import read_kohya_gui
from .onetrainer import read_onetrainer
from .prompt_lines import prompt_lines, take_prompts
from .reading import parse_json, parse_toml, parse_yaml, read_text, refuse
from .report import Imported
from .shell import COMPUTED, TRAINER, read_command
from .simpletuner import read_simpletuner

SIMPLETUNER = ("model_family", "lora_rank", "data_backend_config", "validation_prompt")
"""Options that tell a config.json of SimpleTuner, where they stand without their dashes."""
ENDINGS = (".toml", ".json", ".yaml", ".yml", ".sh", ".bat", ".cmd", ".ps1", ".txt", ".md")


def beside_file(file: Path) -> Beside:
    """Files that a recipe names: beside it, by their path from there, or as they stand."""

    def find(name: str) -> Path | None:
        try:
            places = [file.parent / name, file.parent / name.replace("\\", "/").rpartition("/")[2]]
            return next((place for place in places if place.is_file()), None)
        except (OSError, ValueError):  # no name for a file at all
            return None

    return find


def among(files: Sequence[Path]) -> Beside:
    """Files that a recipe names, by their name, out of those that were given along with it: no other."""
    by_name = {file.name: file for file in files}
    return lambda name: by_name.get(name.replace("\\", "/").rpartition("/")[2])


def read_foreign(file: Path, beside: Beside | None = None, into: Base | None = None) -> Imported:
    """The recipe in a file of another program. ``into``: family and base of the recipe that a part goes into,
    which names none. Raises ConfigError with one sentence."""
    beside = beside or beside_file(file)
    ending = file.suffix.lower()
    if ending not in ENDINGS:
        known = ", ".join(ENDINGS)
        raise refuse(file.name, f"cannot be imported; files ending in {known} can")
    text = read_text(file)
    if not text.strip():
        raise refuse(file.name, "is empty; choose the recipe itself")
    if ending == ".toml":
        return _read_toml(parse_toml(text, file.name), file.name, beside, into)
    if ending == ".json":
        return _read_json(parse_json(text, file.name), file.name, beside)
    if ending in (".yaml", ".yml"):
        data = parse_yaml(text, file.name)
        if not isinstance(data, dict):
            raise refuse(file.name, "is no recipe of ai-toolkit; it holds no options")
        return read_ai_toolkit(data, file.name, beside, into)
    return _read_script(text, file.name, beside, into)


def is_own(tables: dict[str, Any]) -> bool:
    """Whether TOML tables are a recipe of ours: its sections, and more of its settings than of kohya's."""
    if not tables or not set(tables) <= {*SECTIONS, "preset"}:
        return False
    paths = [
        f"{section}.{name}" for section, table in tables.items() if isinstance(table, dict) for name in table
    ]
    own = sum(path in RECORDS for path in paths)
    return own > sum(name in kohya_tables.ALL for name in flattened(tables))


def _read_toml(tables: dict[str, Any], name: str, beside: Beside, into: Base | None) -> Imported:
    if is_own(tables):
        raise refuse(name, "is a recipe of this program already; train it as it is")
    if "datasets" in tables or set(tables) == {"general"}:
        found = Imported("a kohya dataset file")
        take_dataset(found, tables)
        found.note(
            "A dataset file says nothing of the base, the LoRA and the training; those are the usual ones."
        )
        found.settle()
        return found
    return read_kohya(flattened(tables), beside, into=into)


def _read_json(data: Any, name: str, beside: Beside) -> Imported:
    if not isinstance(data, dict):
        raise refuse(name, "holds a list; give the recipe that names it, and this file beside it")
    if "config" in data and "job" in data:
        return read_ai_toolkit(data, name, beside)
    if "pretrained_model_name_or_path" in data and ("LoRA_type" in data or "network_dim" in data):
        return read_kohya_gui(data, beside)
    if "training_method" in data or "base_model_name" in data:
        return read_onetrainer(data, name, beside)
    if any(key.startswith("--") or key in SIMPLETUNER for key in data):
        return read_simpletuner(data, name, beside)
    raise refuse(name, "is no recipe of a program that is known here")


def _read_script(text: str, name: str, beside: Beside, into: Base | None) -> Imported:
    commands = TRAINER.search(text) or any(line.lstrip().startswith("--") for line in text.splitlines())
    if not commands and name.lower().endswith(".txt"):
        found = Imported("a kohya prompt file")
        take_prompts(found, name, list(prompt_lines(text)))
        if not found.tables:
            raise refuse(name, "holds neither a training command nor sample prompts")
        found.settle()
        return found
    command = read_command(text, name)
    computed = {
        option: value
        for option, value in command.options.items()
        if COMPUTED.search(" ".join(value) if isinstance(value, list) else str(value))
    }
    options = {option: value for option, value in command.options.items() if option not in computed}
    if command.script.startswith(PREFIXES):
        found = read_diffusers(options, command.script)
    else:
        found = read_kohya(options, beside, command.script, into)
    for option, value in computed.items():
        found.miss(
            option, value, "only a shell could work this out, and nothing of the file is run; fill it in"
        )
    for option, value in command.launcher.items():
        found.leave(
            f"accelerate {option}", value, "how the process is launched; it does not change the result"
        )
    for sentence in command.said:
        found.note(sentence)
    return found
