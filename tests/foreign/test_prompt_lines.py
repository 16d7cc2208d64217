"""kohya's sample prompts: the grammar, and what its scripts make of odd lines."""

from __future__ import annotations

from pathlib import Path

from trainer.contract.foreign.prompt_lines import parse_prompt_line, prompt_lines
from trainer.contract.prompt import prompts_of

from .helpers import read, said


def test_every_flag() -> None:
    line = parse_prompt_line(
        "a cat, on a mat --w 832 --h 1216 --d 42 --s 28 --l 7.5 --g 3.5 --ss euler --n ugly, bad"
    )
    assert (line.prompt, line.negative) == ("a cat, on a mat", "ugly, bad")
    assert (line.width, line.height, line.seed, line.steps) == (832, 1216, 42, 28)
    assert (line.guidance, line.embedded_guidance, line.sampler) == (7.5, 3.5, "euler")
    assert line.said == ()


def test_kohyas_ways() -> None:
    assert parse_prompt_line("a cat --W 512").width == 512, "case does not count"
    assert (
        parse_prompt_line("a cat --w 1001 --h 20").width == 1000
        and parse_prompt_line("x --h 20").height == 64
    )
    assert parse_prompt_line("a cat --s 5000").steps == 1000
    assert parse_prompt_line("a cat --l 7,5").guidance == 7, "what is no digit ends a number"
    assert parse_prompt_line("a cat --w  832").width is None, "one space"
    assert parse_prompt_line("a well-known cat --n b").prompt == "a well-known cat"
    dropped = parse_prompt_line("a cat --l -1 --zz 3 --cn hint.png")
    assert dropped.guidance is None
    assert [sentence.split()[0] for sentence in dropped.said] == ["--l", "--zz", "--cn"]
    assert "digits" not in dropped.prompt and dropped.prompt == "a cat"


def test_a_prompt_that_begins_with_a_flags_letter() -> None:
    trapped = parse_prompt_line("n cats on a mat --w 512")
    assert (trapped.prompt, trapped.negative, trapped.width) == ("n cats on a mat", "cats on a mat", 512)
    assert "begins with 'n'" in trapped.said[0], "it is drawn, and kept away from itself"
    assert parse_prompt_line("d day in June").prompt == "d day in June", "not digits: an ordinary prompt"


def test_files_have_comments_and_empty_lines(tmp_path: Path) -> None:
    text = "# mine\n\na cat --w 768 --d 1\n  a dog --w 768 --d 2 --ss ddim\n"
    assert [line.prompt for line in prompt_lines(text)] == ["a cat", "a dog"]
    config, imported = read(tmp_path, "prompts.txt", text)
    assert config.samples.prompts == ("a cat", "a dog --d 2 --ss ddim"), "what differs from the first"
    assert (config.samples.seed, config.samples.width) == (1, 768)
    first, second = prompts_of(config.samples)
    assert (first.seed, second.seed, second.width, second.sampler) == (None, 2, 768, "ddim")
    assert imported.tables["samples"]["width"] == 768


def test_samplers_and_limits(tmp_path: Path) -> None:
    config, imported = read(tmp_path, "prompts.txt", "a cat --ss k_euler_a --s 900 --l 0\na dog --ss pndm\n")
    assert config.samples.sampler == "euler_ancestral"
    told = said(imported)
    assert "steps goes from 1 to 200" in told and "guidance goes from 1 to 30" in told
    assert "pndm: pictures are drawn with the base's own sampler" in told


def test_what_kohya_draws_with_where_nothing_is_said(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\na dog --s 12\n")
    command = "accelerate launch {}_train_network.py --sample_prompts=p.txt"
    config, imported = read(tmp_path, "t.sh", command.format("sdxl"))
    assert (config.samples.steps, config.samples.guidance) == (30, 7.5)
    assert "draws with ddim" in said(imported)
    assert config.samples.prompts == ("a cat", "a dog --s 12")
    flow, _ = read(tmp_path, "t.sh", command.format("flux"))
    assert flow.samples.guidance != 7.5


TOML = """
[prompt]
width = 768
sample_steps = 28
negative_prompt = "ugly"
[[prompt.subset]]
prompt = "a cat"
[[prompt.subset]]
prompt = "a dog"
width = 512
seed = 7
scale = 5.5
controlnet_image = "hint.png"
seeds = true
"""


def test_files_of_tables(tmp_path: Path) -> None:
    command = "accelerate launch sdxl_train_network.py --sample_prompts={}"
    (tmp_path / "p.toml").write_text(TOML)
    config, imported = read(tmp_path, "t.sh", command.format("p.toml"))
    assert config.samples.prompts == ("a cat", "a dog --w 512 --d 7 --l 5.5")
    assert (config.samples.width, config.samples.steps, config.samples.negative) == (768, 28, "ugly")
    assert "hint.png is not offered here" in said(imported)
    (tmp_path / "p.json").write_text('[{"prompt": "a cat", "width": "wide", "seed": 3}, "a dog --w 640"]')
    config, imported = read(tmp_path, "t.sh", command.format("p.json"))
    assert config.samples.prompts == ("a cat", "a dog --w 640") and config.samples.seed == 3
    assert "width = wide says nothing" in said(imported)
    for name, text in (
        ("p.json", '{"prompt": "a cat"}'),
        ("p.toml", "prompt = 5"),
        ("p.toml", "[prompt]\nsubset = 5"),
    ):
        (tmp_path / name).write_text(text)
        assert "no line of it is a prompt" in said(read(tmp_path, "t.sh", command.format(name))[1])


def test_embedded_guidance_is_the_guidance_of_bases_that_have_it(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat --g 3.5 --l 1 --ss ddim\n")
    command = "accelerate launch flux_train_network.py --sample_prompts=p.txt --sample_sampler=euler"
    config, imported = read(tmp_path, "t.sh", command)
    assert (config.samples.guidance, config.samples.sampler) == (3.5, "euler")
    assert "ddim: pictures are drawn with the base's own sampler" in said(imported), "flow has no DDIM"


def test_size_is_the_trainings_where_none_is_given(tmp_path: Path) -> None:
    config, imported = read(tmp_path, "prompts.txt", "a cat\n")
    assert config.samples.width is None and "512 × 512" in said(imported)
