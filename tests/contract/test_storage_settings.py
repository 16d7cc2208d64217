"""Places where a run can be stored, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainer.contract.config import TrainConfig
from trainer.contract.errors import ConfigError
from trainer.contract.fields import nest, parse
from trainer.contract.same_run import differing
from trainer.contract.storage_facts import storage_problem


@pytest.mark.parametrize(
    ("storage", "setting", "said"),
    [
        ({"url": "bucket/folder"}, "url", "is no URL"),
        ({"url": "s3://"}, "url", "names no bucket or folder; write s3://bucket/{run}"),
        ({"url": "https://bucket.s3.amazonaws.com/x"}, "url", "can only be read"),
        ({"url": "file://disk/x"}, "url", "names no folder from the root"),
        ({"url": "s3://AKID:secret@bucket/x"}, "url", "holds credentials; leave the credentials out"),
        ({"url": "s3://secret@bucket/x"}, "url", "holds credentials"),
        ({"url": "sftp://me:secret@nas/x"}, "url", "holds credentials"),
        ({"url": "s3://bucket/x?X-Amz-Signature=secret"}, "url", "holds credentials"),
        ({"url": "s3://b/x", "endpoint": "http://AKID:secret@nas:9000"}, "endpoint", "holds credentials"),
        ({"url": "s3://b/x", "endpoint": "nas:9000"}, "endpoint", "is no address of a server"),
        ({"url": "gs://b/x", "endpoint": "http://nas:9000"}, "endpoint", "is for URLs that begin with s3://"),
        ({"endpoint": "http://nas:9000"}, "endpoint", "leave it empty"),
    ],
)
def test_places_where_nothing_can_be_stored(storage: dict[str, Any], setting: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"storage": storage})
    found = caught.value.problems
    assert list(found) == [f"storage.{setting}"] and said in found[f"storage.{setting}"]
    assert "secret" not in str(found)


def test_an_address_gets_the_run_s_name() -> None:
    config = parse({"storage": {"url": "s3://bucket/{run}/"}})
    assert config.storage.url == "s3://bucket/{run}"
    assert config.storage.for_run("20260131-cat").url == "s3://bucket/20260131-cat"
    hub = {"storage": {"url": "hf://buckets/me/loras@main/{run}"}}
    assert parse(hub).storage.url == "hf://buckets/me/loras@main/{run}"
    assert parse({"storage": {"url": "sftp://me@nas/disk"}}).storage.url == "sftp://me@nas/disk"


def test_what_this_machine_lacks(tmp_path: Path) -> None:
    assert storage_problem("file:///disk", {}) == storage_problem("", {}) == ""
    assert "need gcsfs: pip install gcsfs" in storage_problem("gs://bucket", {})
    nobody = {"HF_HOME": str(tmp_path)}
    assert "HF_TOKEN" in storage_problem("hf://buckets/me/x", nobody)
    assert storage_problem("hf://buckets/me/x", {**nobody, "HF_TOKEN": "hf_x"}) == ""
    (tmp_path / "token").write_text("hf_x")
    assert storage_problem("hf://buckets/me/x", nobody) == ""


@pytest.mark.parametrize(
    ("one", "other", "differ"),
    [
        ({"dataset.path": "/home/a/photos"}, {"dataset.path": "/mnt/b"}, []),
        ({"storage.url": "s3://bucket/x"}, {"storage.url": "file:///disk", "machine.gpus": 2}, []),
        ({"model.base": "/a/mix.safetensors"}, {"model.base": "models/mix.safetensors"}, []),
        ({"model.base": "/a/mix.safetensors"}, {"model.base": "/a/other.safetensors"}, ["model.base"]),
        ({"model.base": "me/mix"}, {"model.base": "you/mix"}, ["model.base"]),
        ({"train.seed": 1, "adapter.rank": 4}, {"train.seed": 2}, ["adapter.rank", "train.seed"]),
        ({"samples.prompts": ["a"]}, {"samples.prompts": ["b"]}, ["samples.prompts"]),
        ({"dataset.subsets": [{"path": "/a"}]}, {"dataset.subsets": [{"path": "b"}]}, []),
        (
            {"dataset.subsets": [{"path": "/a"}]},
            {"dataset.subsets": [{"path": "/a", "repeats": 3}]},
            ["dataset.subsets"],
        ),
    ],
)
def test_the_same_run_on_another_machine(
    one: dict[str, Any], other: dict[str, Any], differ: list[str]
) -> None:
    assert differing(parse(nest(one)), parse(nest(other))) == differ


def test_a_recipe_is_of_the_run_that_was_made_from_it() -> None:
    assert differing(TrainConfig(), TrainConfig()) == []
