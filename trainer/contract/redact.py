"""Secrets, and where things lie on a disk, never reach a page, a log that is shown, or a message."""

from __future__ import annotations

import re

_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\b(hf_|api_org_|sk-|ghp_|glpat-)[A-Za-z0-9_-]{8,}"), r"\1…"),
    (re.compile(r"(?i)\b(bearer|basic)(\s+)[A-Za-z0-9._~+/=-]{8,}"), r"\1\2…"),
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^\s/@]+@"), r"\1…@"),
    (
        re.compile(
            r"(?i)((?:token|password|passwd|secret|api[_-]?key)[\"']?\s*[=:]\s*[\"']?)(?!…)[^\s\"',;&}]{6,}"
        ),
        r"\1…",
    ),
)


def redact(text: str) -> str:
    """``text`` with access tokens, Authorization values, URL logins and ``token=…`` values blanked."""
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


_PATHS = (
    re.compile(r"(?i)\bfile:/+[^\s'\"<>|*?]+"),
    re.compile(r"(?i)(?<!\w)(?:[a-z]:[\\/]|\\\\)[^\s'\"<>|*?:]+"),
    re.compile(r"(?<![\w/:.~\\-])~?(?:/[^\s'\"<>|*?:;,()/\\]+)+/?"),
)
"""Of absolute paths: file addresses, Windows, others. One with a space is seen up to it."""


def without_paths(text: str, *known: str) -> str:
    """``text`` with absolute paths cut to their last name, as they tell who one is; ``known`` ones are
    taken away first, as they may have spaces in them."""
    for path in sorted(filter(None, known), key=len, reverse=True):
        text = text.replace(path, "…")
    for pattern in _PATHS:
        text = pattern.sub(lambda match: "…/" + re.split(r"[\\/]+", match[0].rstrip("\\/"))[-1], text)
    return text
