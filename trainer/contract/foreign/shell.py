"""Command lines out of scripts and guides: read as text, never executed.

``accelerate launch … sdxl_train_network.py --learning_rate=1e-4 …`` in a .sh, .bat, .ps1 or .txt file, or
options alone, as guides print them. Variables that the file itself sets to a plain value are put in;
whatever a shell would have to work out stays out, with a line in the report.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from typing import Any

from .reading import refuse

SCRIPT = re.compile(r"([A-Za-z0-9_]+)\.py$")
TRAINER = re.compile(r"train_network|train_dreambooth|train_text_to_image")
_ASSIGNMENT = re.compile(
    r"^\s*(?:export\s+|set\s+\"?|\$)?([A-Za-z_]\w*)\s?=\s?(?!.*\$\()(\"[^\"]*\"|'[^']*'|\S*)\s*$"
)
_VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)|%(\w+)%")
COMPUTED = re.compile(r"\$\(|`|\$\{?\w|%\w+%|[<>]\(")
"""What only a shell could give a value."""


@dataclass
class Command:
    """One command: the script's name without its ending, its options, and the launcher's."""

    script: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    launcher: dict[str, Any] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)


def read_command(text: str, name: str) -> Command:
    """The training command of a script. Raises ConfigError where there is none."""
    windows = name.lower().endswith((".bat", ".cmd", ".ps1"))
    lines = _joined(text)
    variables = {}
    for line in lines:
        if assigned := _ASSIGNMENT.match(line):
            variables[assigned.group(1)] = assigned.group(2).strip("\"'")
    commands = [line for line in lines if any(_is_trainer(word) for word in line.split())]
    if not commands:
        # In lines of their own, so that a comment behind one hides no other.
        commands = ["\n".join(line for line in lines if line.lstrip().startswith("--"))]
    if not commands[0].strip():
        raise refuse(
            name, "holds no training command; it needs one like accelerate launch train_network.py --…"
        )
    command = _parsed(_words(_filled(commands[0], variables), windows, name))
    if len(commands) > 1:
        command.said.append(f"{name} has {len(commands)} training commands; the first is read.")
    return command


def _is_trainer(word: str) -> bool:
    word = word.strip("\"'")
    return bool(SCRIPT.search(word) and TRAINER.search(word))


def _joined(text: str) -> list[str]:
    """Lines with those they go on in: behind \\ (sh), ^ (bat) or ` (PowerShell). Comments are left out."""
    joined = re.sub(r"[ \t]*[\\^`][ \t]*\n[ \t]*", " ", text)
    comment = re.compile(r"^\s*(#|::|rem\b)", re.IGNORECASE)
    return [line for line in joined.splitlines() if line.strip() and not comment.match(line)]


def _filled(line: str, variables: dict[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        name = next(part for part in match.groups() if part)
        return variables.get(name, match.group(0))

    return _VARIABLE.sub(value, line)


def _words(line: str, windows: bool, name: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=False)
    lexer.whitespace_split = True
    lexer.commenters = "#"
    if windows:
        lexer.escape = ""  # backslashes are paths'
    try:
        return list(lexer)
    except ValueError as error:
        raise refuse(name, f"has a command with an open quote ({error}); close it") from None


def _parsed(words: list[str]) -> Command:
    place = next((i for i, word in enumerate(words) if _is_trainer(word)), -1)
    command = Command()
    if place >= 0:
        command.script = re.split(r"[/\\]", words[place])[-1].removesuffix(".py")
        command.launcher = _options(words[:place], command)
    command.options = _options(words[place + 1 :], command)
    return command


def _options(words: list[str], command: Command) -> dict[str, Any]:
    """{name: value, list of values, or True for a flag alone}; the last of twins wins, as in argparse."""
    options: dict[str, Any] = {}
    values: list[str] | None = None
    for word in words:
        if word in ("&&", "||", ";", "|", ">", ">>", "2>&1", "&"):
            break
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            if name in options:
                command.said.append(f"--{name} stands in the command twice; the last one holds.")
            options[name] = values = [value] if equals else []
        elif values is not None:
            values.append(word)
    return {name: given[0] if len(given) == 1 else given or True for name, given in options.items()}
