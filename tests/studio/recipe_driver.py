"""The Recipe page without a browser."""

from __future__ import annotations

import json
from html import unescape
from types import SimpleNamespace
from typing import Any

from running import functions_of

from studio.context import Studio
from studio.pages import recipe
from studio.projects import Project


class RecipePage:
    """The Recipe page, driven as Gradio would."""

    def __init__(self, studio: Studio, project: Project) -> None:
        self.page, self.handlers, _ = functions_of(recipe.build, studio)
        values = dict(zip(self.page.outputs, self.page.refresh(project.id), strict=True))
        self.values = values
        self.by_id = {component.elem_id: component for component in values}

    def call(self, name: str, *, event: Any = None, **typed: Any) -> Any:
        """Call a handler with the widgets' values, some of them changed (ids with _ for -)."""
        function = self.handlers[name]
        for key, value in typed.items():
            self.values[self.by_id["recipe-" + key.replace("_", "-")]] = value
        data = {component: self.values[component] for component in function.inputs}
        assert function.inputs_as_dict, "inputs are a set, not a list"
        answer = function.fn(data) if event is None else function.fn(data, SimpleNamespace(_data=event))
        if isinstance(answer, dict):
            self.values.update({c: v for c, v in answer.items() if c in self.values})
        if name == "check" and self.said()["ask"]:  # as recipe.js does
            self.call("press", event={"ask": True})
        return answer

    def answer(self, name: str, *given: Any) -> dict[str, Any]:
        """What a handler of an upload answers, by the components' ids."""
        mark = self.values[self.by_id["recipe-opened"]]
        return {component.elem_id: value for component, value in self.handlers[name].fn(*given, mark).items()}

    @property
    def cards(self) -> str:
        return unescape(str(self.values[self.by_id["recipe-presets"]]))

    def shows(self, name: str) -> Any:
        return self.values[self.by_id[f"recipe-{name}"]]

    def note(self, name: str) -> str:
        return unescape(self.raw_note(name))

    def raw_note(self, name: str) -> str:
        return str(self.said()["notes"].get(f"recipe-{name}-note", ""))

    def said(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.values[self.by_id["recipe-hub"]])
        return told
