"""Files that mean harm, or are damaged: one sentence each, and nothing is run."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import pytest
import tomlkit
import yaml

from trainer.contract.errors import ConfigError
from trainer.contract.fields import parse
from trainer.contract.foreign.importing import read_foreign

from .helpers import HERE

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("a.toml", b"rank = \xff\xfe", "is not a text file in UTF-8"),
        ("a.toml", b"x = 1\n\0", "is not a text file"),
        ("a.toml", b"#" * 1_000_001, "has more than 1 MB"),
        ("a.toml", b"x = [", "is not valid TOML"),
        ("a.toml", b"x = " + b"[" * 20000, "is nested too deeply"),
        ("a.json", b'{"a": 1, "a": 2}', "'a' stands in it twice"),
        ("a.json", b'{"a": NaN}', "NaN is not a number"),
        ("a.json", b"[" * 100000, "is nested too deeply"),
        ("a.json", b'{"a": ' + b"[" * 60 + b"]" * 60 + b"}", "is nested too deeply"),
        ("a.json", b"[1]", "holds a list"),
        ("a.json", b"{}", "is no recipe of a program that is known here"),
        ("a.yaml", b"a: !!python/object/apply:os.system ['touch /tmp/x']", "is not valid YAML"),
        ("a.yaml", BOMB.encode(), "uses YAML anchors"),
        ("a.yaml", b"a: &a [*a]", "uses YAML anchors"),
        ("a.yaml", b"a: 1\na: 2", "has 'a' twice"),
        ("a.yaml", b"a: " + b"[\n" * 20000, "is nested too deeply"),
        ("a.yaml", b"- 1", "holds no options"),
        ("a.yaml", b"foo: {}", "is neither a job of ai-toolkit"),
        ("a.yaml", b"config: {process: []}\njob: x", "has no process"),
        ("a.sh", b"echo hello", "holds no training command"),
        ("a.sh", b"accelerate launch train_network.py --a='x", "open quote"),
        ("a.txt", b"   \n", "is empty"),
        ("a.exe", b"MZ", "cannot be imported"),
    ],
)
def test_one_sentence(tmp_path: Path, name: str, data: bytes, sentence: str) -> None:
    file = tmp_path / name
    file.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        read_foreign(file)
    assert sentence in str(caught.value) and str(caught.value).count("\n") == 0
    assert len(str(caught.value)) < 300


def test_what_powershell_writes_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("accelerate launch train_network.py --network_dim=8\r\n", encoding="utf-16")
    assert read_foreign(file).get("adapter.rank") == 8


def test_values_out_of_range_do_not_spoil_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('network_dim = 99999\nmax_train_steps = "many"\nseed = 5\nlearning_rate = [1]\n')
    found = read_foreign(file)
    assert found.get("train.seed") == 5
    missed = {line.option: str(line) for line in found.lines if line.outcome == "missing"}
    assert "adapter.rank = 99999 is not allowed" in missed["network_dim"]
    assert "is not a number" in missed["max_train_steps"]


@pytest.mark.parametrize(
    "name", ["ai_toolkit.yaml", "kohya_gui.json", "onetrainer.json", "kohya_dataset.toml"]
)
def test_any_value_anywhere_ends_in_a_recipe_or_a_sentence(tmp_path: Path, name: str) -> None:
    """A number where a text is meant, a list where a table is: told in a line, or the file is refused."""
    text = (HERE / "examples" / name).read_text(encoding="utf-8")
    whole = yaml.safe_load(text) if name.endswith(".yaml") else None
    dump = tomlkit.dumps if name.endswith(".toml") else json.dumps  # ai-toolkit's pages have JSON
    values = ["", "x", -1, "nan", True, [], {}, ["a"], {"a": 1}, "10%", 10**30, 1.5]
    whole = whole or (tomllib.loads(text) if name.endswith(".toml") else json.loads(text))
    places = list(_places(whole))
    random = Random(name)
    for number in range(60):
        tables: Any = deepcopy(whole)
        *way, last = random.choice(places)
        table = tables
        for step in way:
            table = table[step]
        table[last] = values[number % len(values)]
        file = tmp_path / name.replace(".yaml", ".json")
        file.write_text(dump(tables), encoding="utf-8")
        try:
            parse(read_foreign(file).tables)
        except ConfigError as error:
            assert str(error)


def _places(data: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield (*way, key)
        yield from _places(value, (*way, key))
