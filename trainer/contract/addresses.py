"""Addresses: which services webhooks belong to, which are secrets, and which hosts are near."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from .redact import redact


def _ends(host: str, domain: str) -> bool:
    return host == domain or host.endswith(f".{domain}")


def service_of(address: str) -> str:
    """``discord``, ``slack`` or ``ntfy`` for the addresses of their webhooks, else ``studio``."""
    parts = urlsplit(address)
    host = (parts.hostname or "").lower()
    if any(_ends(host, domain) for domain in ("discord.com", "discordapp.com")) and parts.path.startswith(
        "/api/"
    ):
        return "discord"
    if _ends(host, "hooks.slack.com"):
        return "slack"
    return "ntfy" if host == "ntfy.sh" else "studio"


def address_problem(address: str, *, secret: bool = False) -> str:
    """Why an address cannot stand in a recipe, or where it stays ``secret``: a sentence without the address,
    "" where it can."""
    try:
        parts = urlsplit(address)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and not set(address) & set(" \t\n")
        _ = parts.port  # raises for one that is no number
    except ValueError:
        known = False
    if not known:
        return "an address begins with https:// or http:// and names a host; correct or empty it"
    service = service_of(address)
    if secret:
        return ""
    if service in ("discord", "slack") or redact(address) != address:
        what = {"discord": "an address of Discord", "slack": "an address of Slack"}.get(
            service, "an address with a password"
        )
        return (
            f"{what} lets everybody write there who sees it, and recipes are passed on; empty it here, and "
            "start with STUDIO_WEBHOOK set to it"
        )
    return ""


def is_private(host: str) -> bool:
    """Whether a host is this machine or in its own network, where nobody else listens."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.lower()
        return "." not in name or name.endswith((".local", ".internal", ".lan", ".home.arpa"))
    return address.is_private or address.is_loopback or address.is_link_local


def shown(address: str) -> str:
    """As much of an address as may be seen: its scheme and host."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.hostname}/…"
