"""The look, as Gradio needs it: one theme whose every colour is a CSS variable of ``static/style.css``.

``mount_gradio_app(..., theme=THEME, head=HEAD)``. The palette, light and dark, is defined once, at the top
of the stylesheet, which HEAD carries (Gradio would prefix every rule of a ``css=``, also those for the
toasts and dialogs that live outside of its container). Nothing is fetched from elsewhere.
"""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path

import gradio as gr

STATIC = Path(__file__).with_name("static")

SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Ubuntu", "Noto Sans", "Helvetica", "sans-serif")
MONO = ("ui-monospace", "SF Mono", "Cascadia Mono", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")

# Gradio's theme variable -> the value, for light and dark alike: the palette switches underneath.
_VARIABLES = {
    "body_background_fill": "var(--ground)",
    "body_text_color": "var(--ink)",
    "body_text_color_subdued": "var(--muted)",
    "background_fill_primary": "var(--surface)",
    "background_fill_secondary": "var(--sunk)",
    "block_background_fill": "var(--surface)",
    "block_border_color": "var(--line)",
    "block_border_width": "1px",
    "block_info_text_color": "var(--muted)",
    "block_label_background_fill": "var(--surface)",
    "block_label_text_color": "var(--muted)",
    "block_title_text_color": "var(--ink)",
    "block_title_text_weight": "600",
    "block_shadow": "none",
    "block_radius": "var(--radius)",
    "container_radius": "var(--radius)",
    "input_radius": "var(--radius-small)",
    "table_radius": "var(--radius-small)",
    "border_color_primary": "var(--line)",
    "border_color_accent": "var(--accent)",
    "border_color_accent_subdued": "var(--accent)",
    "color_accent": "var(--accent)",
    "color_accent_soft": "var(--accent-soft)",
    "link_text_color": "var(--accent-ink)",
    "link_text_color_hover": "var(--accent-ink)",
    "link_text_color_active": "var(--accent-ink)",
    "link_text_color_visited": "var(--accent-ink)",
    "panel_background_fill": "var(--surface)",
    "panel_border_color": "var(--line)",
    "input_background_fill": "var(--field)",
    "input_background_fill_focus": "var(--field)",
    "input_border_color": "var(--line-field)",
    "input_border_color_hover": "var(--muted)",
    "input_border_color_focus": "var(--accent)",
    "input_border_width": "1px",
    "input_placeholder_color": "var(--faint)",
    "input_shadow": "none",
    "input_shadow_focus": "0 0 0 3px var(--ring)",
    "button_primary_background_fill": "var(--accent)",
    "button_primary_background_fill_hover": "var(--accent-strong)",
    "button_primary_border_color": "var(--accent)",
    "button_primary_border_color_hover": "var(--accent-strong)",
    "button_primary_text_color": "var(--on-accent)",
    "button_primary_text_color_hover": "var(--on-accent)",
    "button_secondary_background_fill": "var(--surface)",
    "button_secondary_background_fill_hover": "var(--sunk)",
    "button_secondary_border_color": "var(--line-strong)",
    "button_secondary_border_color_hover": "var(--muted)",
    "button_secondary_text_color": "var(--ink)",
    "button_secondary_text_color_hover": "var(--ink)",
    "button_cancel_background_fill": "var(--surface)",
    "button_cancel_background_fill_hover": "var(--bad-soft)",
    "button_cancel_border_color": "var(--bad)",
    "button_cancel_text_color": "var(--bad)",
    "button_cancel_text_color_hover": "var(--bad)",
    "button_large_radius": "var(--radius)",
    "button_medium_radius": "var(--radius)",
    "button_small_radius": "var(--radius)",
    "button_border_width": "1px",
    "checkbox_background_color": "var(--field)",
    "checkbox_background_color_selected": "var(--accent)",
    "checkbox_border_color": "var(--line-field)",
    "checkbox_border_color_focus": "var(--accent)",
    "checkbox_border_color_selected": "var(--accent)",
    "checkbox_label_background_fill": "var(--surface)",
    "checkbox_label_background_fill_hover": "var(--sunk)",
    "checkbox_label_background_fill_selected": "var(--accent-soft)",
    "checkbox_label_border_color": "var(--line-strong)",
    "checkbox_label_text_color": "var(--ink)",
    "checkbox_label_text_color_selected": "var(--ink)",
    "slider_color": "var(--accent)",
    "table_border_color": "var(--line)",
    "table_even_background_fill": "var(--surface)",
    "table_odd_background_fill": "var(--sunk)",
    "table_row_focus": "var(--accent-soft)",
    "accordion_text_color": "var(--ink)",
    "code_background_fill": "var(--sunk)",
    "error_background_fill": "var(--bad-soft)",
    "error_border_color": "var(--bad)",
    "error_text_color": "var(--bad)",
    "error_icon_color": "var(--bad)",
    "stat_background_fill": "var(--accent)",
    "loader_color": "var(--accent)",
    "shadow_drop": "none",
    "shadow_drop_lg": "none",
}


def _theme() -> gr.themes.Base:
    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_md,
        text_size=gr.themes.sizes.text_md,
        font=SANS,
        font_mono=MONO,
    )
    known = inspect.signature(theme.set).parameters
    values = dict(_VARIABLES)
    values |= {f"{name}_dark": value for name, value in _VARIABLES.items() if f"{name}_dark" in known}
    return theme.set(**values)


def static_url(name: str) -> str:
    """Address of a file of ours under ``/studio/static``; changes with its content, so it may be cached."""
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:10]
    return f"/studio/static/{name}?v={digest}"


def scripts(*names: str) -> str:
    """``head=`` of a ``gr.HTML`` that needs scripts: they run in this order, before its ``js_on_load``.

    ``shell.js`` (``window.studio``) comes first always. Gradio loads each address once.
    """
    wanted = dict.fromkeys(("shell.js", *names))
    return "".join(f'<script src="{static_url(name)}"></script>' for name in wanted)


def styles(*names: str) -> str:
    """``head=`` of a ``gr.HTML`` that needs stylesheets of its own."""
    return "".join(f'<link rel="stylesheet" href="{static_url(name)}">' for name in names)


THEME = _theme()
HEAD = '<meta name="color-scheme" content="light dark">' + "".join(
    f"<style>{(STATIC / name).read_text(encoding='utf-8')}</style>" for name in ("style.css", "forms.css")
)
