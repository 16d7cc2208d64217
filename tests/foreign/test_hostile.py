"""Files that mean harm, or are damaged: one sentence each, and nothing is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.contract.errors import ConfigError
from trainer.contract.foreign.importing import read_foreign

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
        ("a.yaml", b"a: " + b"[" * 20000, "is nested too deeply"),
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
