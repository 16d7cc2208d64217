"""The form: every setting has an input, nothing typed is lost, sentences land beside their field."""

from __future__ import annotations

import json
import re
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pytest

from studio.form import (
    annotated,
    filled,
    form_html,
    note_html,
    number_text,
    raw_values,
    read,
    read_what_is_right,
    shown,
    typed,
)
from trainer.contract.config import TrainConfig
from trainer.contract.errors import ConfigError
from trainer.contract.fields import RECORDS, flatten, nest, parse
from trainer.contract.lint import Finding


def away_from_default() -> TrainConfig:
    """Every setting that has more than one value away from its default."""
    values: dict[str, Any] = {}
    for path, record in RECORDS.items():
        match record.kind:
            case "switch":
                values[path] = not record.default
            case "choice":
                values[path] = next((c for c in record.choices if c != record.default), record.default)
            case "lines":
                values[path] = ["one prompt", 'a "second" <b>prompt</b>, with, commas']
            case "text":
                values[path] = f"text-{record.name[:9]}.v2"
            case "integer":
                low = int(record.minimum or 0)
                values[path] = low + 65 if record.default != low + 65 else low + 66
                if record.maximum is not None:
                    values[path] = min(values[path], int(record.maximum))
            case "number":
                low, high = record.minimum or 0.0, record.maximum or 1.0
                values[path] = low + (high - low) * 0.123456789
    values["train.optimizer_args"] = "eps=1e-7"
    values["dataset.bucket_step"] = 72  # a multiple of the family's
    refused = {"model.family"}  # others refuse some of these settings
    while True:  # those that do not go together with the others stay as they are
        try:
            config = parse(nest({**values, **{path: RECORDS[path].default for path in refused}}))
            break
        except ConfigError as error:
            assert not refused & set(error.problems)
            refused |= set(error.problems)
    same = {path for path, value in flatten(config).items() if value == RECORDS[path].default}
    assert same == refused and len(refused) < len(RECORDS) / 5
    return config


def test_round_trip_through_the_inputs_is_the_identity() -> None:
    for config in (away_from_default(), TrainConfig()):
        sent = json.loads(json.dumps(filled(config, RECORDS)))
        assert read(raw_values(sent, RECORDS)) == config
        backwards = dict(reversed(list(sent.items())))
        assert read(raw_values(backwards, RECORDS)) == config


def test_settings_without_an_input_come_from_the_recipe() -> None:
    config = away_from_default()
    asked = [path for path in RECORDS if path not in ("dataset.path", "model.family")]
    sent = filled(config, RECORDS)
    assert set(raw_values(sent, asked)) == set(asked)
    assert read(raw_values(sent, asked), config) == config


def test_nonsense_from_a_browser_is_text_or_nothing() -> None:
    assert raw_values(None, RECORDS) == raw_values(["train.steps"], RECORDS) == {}
    sent = {"train.steps": None, "samples.prompts": 7, "dataset.flip": "yes", "evil": 1}
    raw = {"train.steps": "None", "samples.prompts": "7", "dataset.flip": False}
    assert raw_values(sent, RECORDS) == raw


class Inputs(HTMLParser):
    """Of a form: {setting: (tag, attributes)}, labels by what they are for, options by setting."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.inputs: dict[str, tuple[str, dict[str, str | None]]] = {}
        self.labels: dict[str, str] = {}
        self.options: dict[str, list[str]] = {}
        self.ids: set[str] = set()
        self._label = self._setting = ""
        self.feed(text)

    def handle_starttag(self, tag: str, pairs: list[tuple[str, str | None]]) -> None:
        attributes = dict(pairs)
        if identity := attributes.get("id"):
            assert identity not in self.ids
            self.ids.add(identity)
        if setting := attributes.get("data-setting"):
            assert setting not in self.inputs
            self.inputs[setting] = (tag, attributes)
        if tag == "select":
            self._setting = setting or ""
        if tag == "option":
            self.options.setdefault(self._setting, []).append(attributes["value"] or "")
        self._label = attributes["for"] or "" if tag == "label" and "for" in attributes else ""

    def handle_data(self, data: str) -> None:
        if self._label:
            self.labels[self._label] = data
            self._label = ""


def test_every_setting_has_an_input_of_its_kind() -> None:
    form = Inputs(form_html(RECORDS))
    assert set(form.inputs) == set(RECORDS)
    kinds = {"switch": "checkbox", "text": "text", "integer": "text", "number": "text"}
    tags = {"choice": "select", "lines": "textarea"}
    for path, record in RECORDS.items():
        tag, attributes = form.inputs[path]
        assert (tag, attributes.get("type")) == (tags.get(record.kind, "input"), kinds.get(record.kind))
        assert form.labels[attributes["id"] or ""].startswith(record.label)
        assert set((attributes["aria-describedby"] or "").split()) <= form.ids
        if record.kind == "choice":
            assert form.options[path] == list(record.choices)


def test_settings_that_are_not_asked_for_have_no_input() -> None:
    asked = [path for path in RECORDS if not path.startswith("notify.")]
    text = form_html(asked)
    assert set(Inputs(text).inputs) == set(asked) and "Webhooks" not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-4, "1e-4"),
        (3.14159e-07, "3.14159e-7"),
        (0.00025, "2.5e-4"),
        (0.001, "0.001"),
        (0.1, "0.1"),
        (16.0, "16"),
        (0.0, "0"),
        (5, "5"),
        (2**63 - 1, "9223372036854775807"),
    ],
)
def test_numbers_are_written_as_people_do_and_read_back(value: float, text: str) -> None:
    assert number_text(value) == text
    assert type(value)(text) == value


def test_empty_boxes() -> None:
    width = RECORDS["samples.width"]
    assert shown(width, None) == "" and typed(width, " ") is None
    assert read({"samples.width": ""}).samples.width is None
    with pytest.raises(ConfigError, match=r"train\.steps = '' is not allowed; give a whole number"):
        read({"train.steps": ""})
    assert typed(RECORDS["samples.prompts"], "a\n\n  b \n") == ["a", "b"]


def test_wrong_settings_keep_the_others() -> None:
    before = parse({"train": {"steps": 700}})
    config, problems = read_what_is_right(
        {"train.steps": "lots", "train.batch_size": "4", "train.warmup": "-1.5", "adapter.rank": " 8 "},
        before,
    )
    assert set(problems) == {"train.steps", "train.warmup"}
    assert (config.train.steps, config.train.batch_size, config.adapter.rank) == (700, 4, 8)
    assert config.train.warmup == before.train.warmup


def test_several_settings_that_do_not_go_with_the_others_are_all_told() -> None:
    before = parse({"train": {"text_encoder_lr": 1e-4, "text_encoder_2_lr": 1e-4}})
    config, problems = read_what_is_right({"model.family": "flux", "train.seed": "7"}, before)
    assert set(problems) == {"train.text_encoder_lr", "train.text_encoder_2_lr"}
    assert (config.model.family, config.train.seed, config.train.text_encoder_lr) == ("flux", 7, 0)


def test_sentences_land_below_their_field_with_its_name() -> None:
    config, problems = read_what_is_right({"train.learning_rate": "fast"}, TrainConfig())
    finding = Finding("warning", "train.steps", "Too few.", {"train.steps": 600}, "Use 600 steps")
    notes = annotated(config, problems, [finding], None)
    rate = notes["train.learning_rate"]
    assert unescape(rate).count("Learning rate = 'fast' is not allowed; give a number above 0") == 1
    assert 'role="alert"' in rate
    steps = notes["train.steps"]
    assert "Too few." in steps and "Use 600 steps" in steps
    assert [note for note in notes.values() if note] == [rate, steps] or [steps, rate]
    assert sum(bool(note) for note in notes.values()) == 2


def test_beside_a_wrong_value_nothing_is_said_of_the_one_before() -> None:
    lines = ["../mia | resolution = 20", "../mia | keep_token = 2"]
    for line, sentence in zip(
        lines,
        (
            "More folders: resolution = '20' is not allowed; give a whole number from 64 to 2048",
            "More folders: keep_token is not a setting; did you mean keep_tokens?",
        ),
        strict=True,
    ):
        config, problems = read_what_is_right({"dataset.subsets": line}, TrainConfig())
        old = Finding("warning", "dataset.subsets", "Of before.", rule="some_rule")
        elsewhere = Finding("warning", "dataset.subsets", "Changed in another tab.")
        note = unescape(annotated(config, problems, [old, elsewhere], None)["dataset.subsets"])
        assert sentence in note and "Of before." not in note and "Changed in another tab." in note


def test_the_button_of_a_fix_carries_its_values() -> None:
    fix = {"samples.prompts": ('a "b" <c> & d', "e"), "dataset.resolution": None}
    note = note_html(RECORDS["samples.prompts"], None, [Finding("hint", "samples.prompts", "x.", fix, "Go")])
    attribute = re.search(r'data-set="([^"]*)"', note)
    assert attribute
    values = json.loads(unescape(attribute[1]))
    assert values == {"samples.prompts": ['a "b" <c> & d', "e"], "dataset.resolution": None}
    record = RECORDS["samples.prompts"]
    assert shown(record, values["samples.prompts"]) == 'a "b" <c> & d\ne'
    assert shown(RECORDS["dataset.resolution"], None) == ""


def test_a_changed_setting_shows_the_way_back_to_the_preset() -> None:
    reference = TrainConfig()
    config = parse({"train": {"steps": 5}, "dataset": {"flip": True}})
    notes = annotated(config, {}, [], reference)
    marked = {path for path, said in notes.items() if said}
    assert marked == {"train.steps", "dataset.flip"}
    assert "↺ 1000" in notes["train.steps"]
    assert "↺ off" in notes["dataset.flip"]


def test_what_users_type_is_escaped() -> None:
    evil = "<img src=x onerror=alert(1)>"
    problems = {"train.steps": f"train.steps = '{evil}' is not allowed; give a whole number"}
    note = note_html(RECORDS["train.steps"], problems["train.steps"], [], usual=5)
    assert "<img" not in note
    config = parse({"samples": {"prompts": [evil]}})
    assert "<img" not in "".join(annotated(TrainConfig(), {}, [], config).values())
