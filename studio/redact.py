"""Secrets never reach a page, a log that is shown, or a message."""

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
