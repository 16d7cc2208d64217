"""Sample prompts with settings of their own."""

from __future__ import annotations

import pytest

from trainer.contract.errors import ConfigError
from trainer.contract.fields import parse
from trainer.contract.prompt import Prompt, prompts_of, split_prompt, without_unknown


def test_a_prompt_has_its_own_settings_and_else_those_of_the_section() -> None:
    lines = [
        "a photo of zwx",
        "n is a letter -- no flag, a well-known --n blurry, low quality --w 832 --h 1216 --s 30 --l 7.5 "
        "--d 0 --ss ddim",
    ]
    samples = {"prompts": lines, "negative": "ugly", "steps": 20, "guidance": 4, "width": 512}
    first, second = prompts_of(parse({"samples": samples}).samples)
    assert first == Prompt("a photo of zwx", "ugly", 512, None, 20, 4.0, None, "auto")
    assert second == Prompt(
        "n is a letter -- no flag, a well-known", "blurry, low quality", 832, 1216, 30, 7.5, 0, "ddim"
    )


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("a house --w wide", "--w wide is no number"),
        ("a house --l -1", "guidance goes from 1 to 30"),
        ("a house --s 0", "steps goes from 1 to 200"),
        ("a house --ss magic", "is no sampler; give one of auto, euler"),
        (" --w 512", "one of the prompts is empty"),
    ],
)
def test_what_is_wrong_in_a_prompt_is_said(line: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence.replace("+", r"\+")):
        split_prompt(line)
    with pytest.raises(ConfigError, match=r"samples\.prompts"):
        parse({"samples": {"prompts": ["fine", line]}})


def test_options_of_other_programs_stay_in_the_text() -> None:
    """Refused, an old recipe with them could not be opened any more; kohya drops them."""
    line = "a house --ar 3:2 --n blurry --W 832 --style raw"
    assert split_prompt(line) == ("a house --ar 3:2 --style raw", {"negative": "blurry", "width": 832})
    assert without_unknown(line) == ("a house --n blurry --W 832", ["--ar 3:2", "--style raw"])
    assert split_prompt("--ar 3:2 a house")[0] == "--ar 3:2 a house"
    (drawn,) = prompts_of(parse({"samples": {"prompts": [line]}}).samples)
    assert (drawn.text, drawn.width) == ("a house --ar 3:2 --style raw", 832)


def test_flow_models_have_fewer_samplers() -> None:
    model = {"family": "flux", "base": "someone/flux"}
    for samples in ({"sampler": "ddim"}, {"prompts": ["a house --ss ddim"]}):
        with pytest.raises(ConfigError, match="ddim is not for FLUX"):
            parse({"model": model, "samples": samples})
    parse({"model": model, "samples": {"sampler": "unipc"}})
