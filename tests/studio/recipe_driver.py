"""The Recipe page without a browser."""

from __future__ import annotations

import json
from html import unescape
from typing import Any

from studio.context import Studio
from studio.pages import recipe, served
from studio.projects import Project
from trainer.contract.fields import RECORDS

SETTINGS = {path.replace("_", "-").replace(".", "-"): path for path in RECORDS}
FUNCTIONS = ("open_recipe", "check", "press", "launch")


class RecipePage:
    """The Recipe page of one tab, driven as static/recipe.js does."""

    def __init__(self, studio: Studio, project: Project) -> None:
        functions = [getattr(recipe, name) for name in FUNCTIONS]
        self._server = dict(zip(FUNCTIONS, served(studio, *functions), strict=True))
        self._project = project.id
        self.values: dict[str, Any] = {}
        self.said: dict[str, Any] = {"known": ""}
        self.call("open_recipe")

    def call(self, name: str, message: dict[str, Any] | None = None, **typed: Any) -> dict[str, Any]:
        """What a function answers, with some settings changed before (names with _ for . and -)."""
        for key, value in typed.items():
            self.values[SETTINGS[key.replace("_", "-")]] = value
        message = dict(message or {})
        if "set" in message:
            message["set"] = json.dumps(message["set"])
        asked = {"project": self._project, "values": dict(self.values), "known": self.said["known"]}
        answer: dict[str, Any] = self._server[name]({**asked, **message})
        self.values.update(answer.get("values", {}))
        self.said.update(answer)
        return answer

    @property
    def cards(self) -> str:
        return unescape(self.said["presets"])

    def shows(self, name: str) -> Any:
        """An input's value, by its element's name."""
        return self.values[SETTINGS[name]]

    def note(self, name: str) -> str:
        return unescape(self.raw_note(name))

    def raw_note(self, name: str) -> str:
        return str(self.said["notes"].get(SETTINGS[name], ""))
