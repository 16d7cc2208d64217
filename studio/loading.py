"""What is seen until Gradio has started in the browser, which takes seconds: a mark and "Loading…".

It is put into the template of the page that Gradio serves, so that it comes with the first bytes;
static/shell.js removes it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jinja2
from gradio.routes import templates

PLACEHOLDER = Path(__file__).with_name("static").joinpath("loading.html").read_text(encoding="utf-8")
PAGE = "frontend/index.html"
PLACE = "<gradio-app"


class _WithPlaceholder(jinja2.BaseLoader):
    """Gradio's own templates, with the placeholder before the element that Gradio fills."""

    def __init__(self, original: jinja2.BaseLoader) -> None:
        self._original = original

    def get_source(
        self, environment: jinja2.Environment, template: str
    ) -> tuple[str, str | None, Callable[[], bool] | None]:
        source, path, current = self._original.get_source(environment, template)
        if template == PAGE:
            # Raw: what looks like a template in a stylesheet is none.
            source = source.replace(PLACE, f"{{% raw %}}{PLACEHOLDER}{{% endraw %}}{PLACE}", 1)
        return source, path, current


def show_placeholder() -> None:
    """From now on; Gradio has one set of templates for the whole process."""
    loader = templates.env.loader
    if loader is not None and not isinstance(loader, _WithPlaceholder):
        templates.env.loader = _WithPlaceholder(loader)
        if templates.env.cache is not None:
            templates.env.cache.clear()
