"""The catalogue of optimizers: true to their libraries; options are read safely and wrong ones refused."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

import pytest

from trainer.contract.errors import ConfigError
from trainer.contract.fields import parse
from trainer.contract.optimizers import OPTIMIZERS, OptimizerRow, parse_options
from trainer.contract.rates import highest_rates, loraplus_ratio, rate_of


@pytest.mark.parametrize("row", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_options_are_those_of_the_class(row: OptimizerRow) -> None:
    pytest.importorskip("torch")
    module, _, name = row.path.rpartition(".")
    theirs = inspect.signature(getattr(import_module(module), name).__init__).parameters
    assert {*row.options, *row.fixed, "lr", "weight_decay"} <= set(theirs)
    for option, usual in {**row.options, **dict.fromkeys(row.fixed, ...)}.items():
        assert usual is ... or option in row.fixed or theirs[option].default == usual, option


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("", {}),
        ("betas=0.9,0.99 eps=1e-6", {"betas": (0.9, 0.99), "eps": 1e-6}),
        ("betas = (0.9, 0.99)\namsgrad=true", {"betas": (0.9, 0.99), "amsgrad": True}),
        ("eps=1e-6, amsgrad=False;", {"eps": 1e-6, "amsgrad": False}),
    ],
)
def test_options_are_read(text: str, options: dict[str, Any]) -> None:
    assert parse_options("adamw", text) == options


@pytest.mark.parametrize(
    ("optimizer", "text", "sentence"),
    [
        ("adamw", "momentum=0.9", "momentum is no option of adamw; it has betas, eps, amsgrad"),
        ("adamw", "lr=1e-4", "lr cannot be set here: train.learning_rate sets it"),
        ("adafactor", "relative_step=True", "relative_step cannot be set here: Adafactor gets the recipe's"),
        ("adamw", "betas=0.9", "betas=0.9 is not allowed; give 2 numbers, such as 0.9,0.999"),
        ("adamw", "eps=__import__('os').system('true')", "is not allowed; give a number, such as 1e-08"),
        ("adamw", "eps=True", "eps=True is not allowed"),
        ("adamw", "amsgrad=1", "give True or False"),
        ("lion8bit", "min_8bit_size=1.5", "give a whole number, such as 4096"),
        ("prodigy", "growth_rate=fast", "growth_rate=fast is not allowed; give a number"),
        ("adamw", "fast please", "'fast please' is not name=value, such as betas=0.9,0.999"),
        ("adamw", "please eps=1e-6", "is not name=value"),
        ("adamw", "eps=1e-6 eps=1e-7", "eps is there twice; keep one"),
        ("adamw", "eps=" + "(" * 300, "is not allowed"),
    ],
)
def test_wrong_options_get_a_sentence(optimizer: str, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"train": {"optimizer": optimizer, "optimizer_args": text}})
    assert sentence in caught.value.problems["train.optimizer_args"]


def test_an_unknown_optimizer_names_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"train": {"optimizer": "sgd"}})
    assert all(name in caught.value.problems["train.optimizer"] for name in OPTIMIZERS)


def test_a_negative_rate_names_unlearn() -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"train": {"learning_rate": -1e-7}})
    assert "train.unlearn = true" in caught.value.problems["train.learning_rate"]


def test_state_memory() -> None:
    """Of a LoRA of rank 16, in bytes a weight."""
    taken = {name: round(row.state_bytes(4, 16), 2) for name, row in OPTIMIZERS.items()}
    assert taken["adamw"] == 8 and taken["adamw8bit"] == 2.03 and taken["prodigy"] == 16
    assert taken["lion"] == 4 and taken["ademamix8bit"] == 3.05 and taken["adafactor"] == 0.25
    assert OPTIMIZERS["adamw"].state_bytes(2, 16) == 4


def test_loraplus_by_the_reference() -> None:
    """U-Net 1e-4, ratio 16: A 1e-4, B 1.6e-3; text encoders' own ratio 4 at 5e-5: 5e-5, 2e-4."""
    train = {"learning_rate": 1e-4, "text_encoder_lr": 5e-5, "loraplus_ratio": 16, "loraplus_text_ratio": 4}
    config = parse({"train": train})
    rates = {
        (part, factor): rate_of(config, part, factor)
        for part in ("unet", "text_encoder")
        for factor in ("lora_A", "lora_B")
    }
    assert list(rates.values()) == pytest.approx([1e-4, 1.6e-3, 5e-5, 2e-4])
    assert list(highest_rates(config).values()) == pytest.approx([1e-4, 1.6e-3, 5e-5, 2e-4])
    assert highest_rates(parse({})) == {"LoRA": 1e-4}


def test_a_ratio_of_zero_falls_back() -> None:
    train = parse({"train": {"loraplus_ratio": 16, "loraplus_denoiser_ratio": 8}}).train
    assert (loraplus_ratio(train, text=False), loraplus_ratio(train, text=True)) == (8, 16)
    assert loraplus_ratio(parse({}).train, text=False) == 1


@pytest.mark.parametrize(
    ("train", "setting", "sentence"),
    [
        ({"gradient_accumulation": 2}, "train.gradient_accumulation", "cannot be added up; set it to 1"),
        ({"optimizer": "prodigy"}, "train.fused_backward", "prodigy steps all weights together"),
        ({"optimizer": "schedulefree_adamw"}, "train.fused_backward", "steps all weights together"),
    ],
)
def test_what_cannot_be_fused(train: dict[str, Any], setting: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"train": {"fused_backward": True, **train}})
    assert sentence in caught.value.problems[setting]


def test_a_limited_norm_beside_an_average() -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"adapter": {"max_norm": 1}, "train": {"optimizer": "schedulefree_adamw"}})
    assert "hands out other weights" in caught.value.problems["adapter.max_norm"]
