"""kohya's sample prompts: the grammar, and what its scripts make of odd lines."""

from __future__ import annotations

from pathlib import Path

from trainer.contract.foreign.prompt_lines import parse_prompt_line, prompt_lines

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
    assert parse_prompt_line("a well-known cat --n b").prompt == "a well-known cat"
    dropped = parse_prompt_line("a cat --l -1 --zz 3 --cn hint.png")
    assert dropped.guidance is None
    assert [sentence.split()[0] for sentence in dropped.said] == ["--l", "--zz", "--cn"]
    assert "digits" not in dropped.prompt and dropped.prompt == "a cat"


def test_a_prompt_that_begins_with_a_flags_letter() -> None:
    trapped = parse_prompt_line("n cats on a mat --w 512")
    assert (trapped.prompt, trapped.negative, trapped.width) == ("", "cats on a mat", 512)
    assert "begins with 'n'" in trapped.said[0]
    assert parse_prompt_line("d day in June").prompt == "d day in June", "not digits: an ordinary prompt"


def test_files_have_comments_and_empty_lines(tmp_path: Path) -> None:
    text = "# mine\n\na cat --w 768 --d 1\n  a dog --w 768 --d 2 --ss ddim\n"
    assert [line.prompt for line in prompt_lines(text)] == ["a cat", "a dog"]
    config, imported = read(tmp_path, "prompts.txt", text)
    assert config.samples.prompts == ("a cat", "a dog") and config.samples.width == 768
    assert config.samples.seed == 1 and "others had 2" in said(imported)
    assert "own sampler" in said(imported)


def test_size_is_the_trainings_where_none_is_given(tmp_path: Path) -> None:
    config, imported = read(tmp_path, "prompts.txt", "a cat\n")
    assert config.samples.width is None and "512 × 512" in said(imported)
