"""Where the studio listens. Light, so that a taken port is told before Gradio is loaded."""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import Any

from trainer.contract.errors import UserError

DEFAULT_PORT = 7860
PORTS_TRIED = 20


def is_loopback(host: str) -> bool:
    """Whether listening on ``host`` reaches only this machine. Raises UserError for an unknown host."""
    return all(ipaddress.ip_address(address[0]).is_loopback for _, address in _resolve(host, 0))


def bind(host: str, port: int | None) -> socket.socket:
    """A listening socket on ``port``, or on the first free one from 7860 on when it is None.

    Raises UserError in one sentence.
    """
    first = DEFAULT_PORT if port is None else port
    last = first + PORTS_TRIED - 1 if port is None else first
    for number in range(first, last + 1):
        family, address = _resolve(host, number)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(256)
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRINUSE and number < last:
                continue
            if error.errno == errno.EADDRINUSE:
                taken = f"Port {first} is" if first == last else f"The ports {first} to {last} are"
                raise UserError(f"{taken} taken; choose another with --port.") from None
            raise UserError(f"The studio cannot listen on {host}:{number} ({error.strerror}).") from None
        return listener
    raise AssertionError("unreachable: the loop returns or raises")


def _resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, Any]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        raise UserError(f"The host {host!r} is unknown here; use 127.0.0.1 or 0.0.0.0.") from None
    addresses = [(family, address) for family, _, _, _, address in found]
    return sorted(addresses, key=lambda each: each[0] != socket.AF_INET)  # localhost: 127.0.0.1 first
