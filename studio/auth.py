"""The password: verified with scrypt, remembered by server-side sessions, guessing slowed down.

``sessions.json`` in the workspace holds the scrypt verifier of the password and the SHA-256 of each
session id with its times, readable by the owner only. So a restart logs nobody out, a changed password
logs everybody out, and a stolen copy of the file opens nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import os
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.contract.errors import UserError
from trainer.contract.files import staged

IDLE_S = 12 * 3600.0
ABSOLUTE_S = 7 * 24 * 3600.0
SAVE_SEEN_EVERY_S = 300.0
MAX_SESSIONS = 200
SCRYPT = {"n": 2**15, "r": 8, "p": 1, "maxmem": 64 * 2**20, "dklen": 32}
"""About 0.1 s and 32 MiB for one guess."""


def find_password(password_file: Path | None) -> tuple[str | None, list[str]]:
    """(password or None, warnings) from --password-file or STUDIO_PASSWORD.

    STUDIO_PASSWORD leaves the environment at once, so that no child process can read it.
    Raises UserError for a file that cannot be read and for an empty password.
    """
    from_environment = os.environ.pop("STUDIO_PASSWORD", None)
    warnings: list[str] = []
    if password_file is not None:
        try:
            password = password_file.read_text(encoding="utf-8").strip("\r\n")
            mode = password_file.stat().st_mode
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not a text file in UTF-8"
            raise UserError(f"The password file {password_file} cannot be read: {reason}.") from None
        source = f"The password file {password_file}"
        if os.name == "posix" and mode & 0o077:
            warnings.append(f"{source} can be read by other users; run: chmod 600 {password_file}")
    elif from_environment is not None:
        password, source = from_environment, "STUDIO_PASSWORD"
    else:
        return None, warnings
    if not password.strip():
        raise UserError(f"{source} is empty; put a password in it.")
    if len(password) < 8:
        warnings.append(f"{source} holds a password of only {len(password)} characters; use 12 or more.")
    return password, warnings


def random_password() -> str:
    """128 random bits, typeable."""
    return secrets.token_urlsafe(16)


class Sessions:
    """Who is logged in. Safe to use from several threads."""

    def __init__(self, path: Path, password: str, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._verifying = threading.Lock()
        stored = self._read()
        salt = bytes.fromhex(stored.get("salt", ""))
        self._sessions: dict[str, dict[str, float]] = {}
        if salt and hmac.compare_digest(_derive(password, salt), bytes.fromhex(stored["verifier"])):
            self._salt, self._verifier = salt, bytes.fromhex(stored["verifier"])
            self._sessions = stored["sessions"]
        else:  # the first start, or the password was changed
            self._salt = secrets.token_bytes(16)
            self._verifier = _derive(password, self._salt)
            self._save()

    def verify(self, password: str) -> bool:
        """Whether this is the password; constant time. Takes about 0.1 s: call it in a thread.

        One guess at a time, so that a crowd of them cannot eat the memory.
        """
        with self._verifying:
            return hmac.compare_digest(_derive(password, self._salt), self._verifier)

    def create(self) -> str:
        """A new session's id, for the cookie. Only its digest is kept."""
        session_id = secrets.token_urlsafe(32)
        now = self._clock()
        with self._lock:
            self._drop_expired(now)
            while len(self._sessions) >= MAX_SESSIONS:
                del self._sessions[min(self._sessions, key=lambda key: self._sessions[key]["seen"])]
            self._sessions[_digest(session_id)] = {"created": now, "seen": now}
            self._save()
        return session_id

    def valid(self, session_id: str) -> bool:
        """Whether the session exists and has not expired; notes that it was used."""
        now = self._clock()
        with self._lock:
            session = self._sessions.get(_digest(session_id))
            if session is None or _expired(session, now):
                return False
            if now - session["seen"] > SAVE_SEEN_EVERY_S:
                session["seen"] = now
                self._save()
            return True

    def end(self, session_id: str) -> None:
        with self._lock:
            if self._sessions.pop(_digest(session_id), None) is not None:
                self._save()

    def _drop_expired(self, now: float) -> None:
        self._sessions = {key: each for key, each in self._sessions.items() if not _expired(each, now)}

    def _read(self) -> dict[str, Any]:
        """The stored state; {} where there is none or it is damaged, which only means logging in again."""
        try:
            stored = json.loads(self._path.read_text(encoding="utf-8"))
            bytes.fromhex(stored["salt"]), bytes.fromhex(stored["verifier"])
            for session in stored["sessions"].values():
                float(session["created"]), float(session["seen"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}
        return dict(stored)

    def _save(self) -> None:
        state = {"salt": self._salt.hex(), "verifier": self._verifier.hex(), "sessions": self._sessions}
        # On a full disk one can still log in (to free space); only a restart will ask again.
        with suppress(OSError), staged(self._path) as temporary:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(state, file)


def _derive(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode("utf-8", "surrogatepass"), salt=salt, **SCRYPT)


def _digest(session_id: str) -> str:
    return hashlib.sha256(session_id.encode("utf-8", "surrogatepass")).hexdigest()


def _expired(session: dict[str, float], now: float) -> bool:
    # A clock that was set back must not make a session immortal, hence both bounds.
    idle, age = now - session["seen"], now - session["created"]
    return not (-IDLE_S < idle < IDLE_S and -IDLE_S < age < ABSOLUTE_S)


@dataclass
class _Bucket:
    tokens: float
    filled: float


class Limiter:
    """Slows down guessing: a token bucket per peer, and one over all peers.

    A peer has 5 tries, then one in 12 s; all peers together 20, then one in 3 s. A try that succeeds
    gives its token back. The peer is the socket's address (IPv6: its /64), never a header.
    """

    PEERS = 4096

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._peers: OrderedDict[str, _Bucket] = OrderedDict()
        self._everyone = _Bucket(20.0, clock())

    def take(self, peer: str) -> float:
        """Take a token for one try. Returns 0.0, or the seconds to wait when there is none."""
        now = self._clock()
        with self._lock:
            own = self._bucket(peer, now)
            wait = max(_refill(own, now, 5.0, 12.0), _refill(self._everyone, now, 20.0, 3.0))
            if wait == 0.0:
                own.tokens -= 1
                self._everyone.tokens -= 1
            return wait

    def give_back(self, peer: str) -> None:
        """The try succeeded: it was no guess."""
        with self._lock:
            own = self._bucket(peer, self._clock())
            own.tokens = min(5.0, own.tokens + 1)
            self._everyone.tokens = min(20.0, self._everyone.tokens + 1)

    def _bucket(self, peer: str, now: float) -> _Bucket:
        key = _network_of(peer)
        bucket = self._peers.setdefault(key, _Bucket(5.0, now))
        self._peers.move_to_end(key)
        if len(self._peers) > self.PEERS:
            self._peers.popitem(last=False)
        return bucket


def _refill(bucket: _Bucket, now: float, capacity: float, seconds_per_token: float) -> float:
    """Fill up what time has brought; return the seconds until a token is there, 0.0 if one is."""
    bucket.tokens = min(capacity, bucket.tokens + max(0.0, now - bucket.filled) / seconds_per_token)
    bucket.filled = now
    return 0.0 if bucket.tokens >= 1 else (1 - bucket.tokens) * seconds_per_token


def _network_of(peer: str) -> str:
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return peer
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
