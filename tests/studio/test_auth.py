"""Sessions, the limiter and the login, by themselves and over a real socket."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path

import httpx
import pytest

from studio.auth import ABSOLUTE_S, IDLE_S, Limiter, Sessions, find_password, random_password
from studio.login import local_path
from trainer.contract.errors import UserError

PASSWORD = "correct horse battery"


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


# Where the password comes from ---------------------------------------------------------------------


def test_password_from_environment_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDIO_PASSWORD", PASSWORD)
    assert find_password(None) == (PASSWORD, [])
    assert "STUDIO_PASSWORD" not in os.environ


def test_password_file_wins_and_warns_when_others_can_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "password"
    file.write_text(PASSWORD + "\n")
    file.chmod(0o644)
    monkeypatch.setenv("STUDIO_PASSWORD", "another one")
    password, warnings = find_password(file)
    assert password == PASSWORD and "chmod 600" in warnings[0]
    assert "STUDIO_PASSWORD" not in os.environ
    file.chmod(0o600)
    assert find_password(file) == (PASSWORD, [])


@pytest.mark.parametrize("content", [b"", b"\n", b"   \n", b"\xff\xfe\xff"])
def test_unusable_password_file_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "password"
    file.write_bytes(content)
    with pytest.raises(UserError, match="password file"):
        find_password(file)
    with pytest.raises(UserError, match="cannot be read"):
        find_password(tmp_path / "missing")


def test_random_passwords_have_128_bits() -> None:
    assert len({random_password() for _ in range(100)}) == 100
    assert re.fullmatch(r"[\w-]{22}", random_password())


# Sessions ------------------------------------------------------------------------------------------


def test_sessions_survive_a_restart_but_not_a_new_password(tmp_path: Path) -> None:
    path = tmp_path / "sessions.json"
    session = Sessions(path, PASSWORD).create()
    assert Sessions(path, PASSWORD).valid(session)
    assert not Sessions(path, "another password").valid(session)
    assert not Sessions(path, PASSWORD).valid(session), "changed back: still logged out"


def test_session_file_is_private_and_opens_nothing(tmp_path: Path) -> None:
    path = tmp_path / "sessions.json"
    sessions = Sessions(path, PASSWORD)
    session = sessions.create()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    assert session not in text and PASSWORD not in text
    stored = json.loads(text)
    assert not sessions.valid(next(iter(stored["sessions"]))), "a digest is no session"


def test_sessions_expire_when_idle_and_in_the_end_anyway(tmp_path: Path) -> None:
    clock = Clock()
    sessions = Sessions(tmp_path / "sessions.json", PASSWORD, clock)
    idle = sessions.create()
    clock.now += IDLE_S + 1
    assert not sessions.valid(idle)
    busy = sessions.create()
    for _ in range(int(ABSOLUTE_S // (IDLE_S / 2)) - 1):
        clock.now += IDLE_S / 2
        assert sessions.valid(busy)
    clock.now += IDLE_S / 2 + 1
    assert not sessions.valid(busy)


def test_ended_session_stays_ended(tmp_path: Path) -> None:
    path = tmp_path / "sessions.json"
    sessions = Sessions(path, PASSWORD)
    one, other = sessions.create(), sessions.create()
    sessions.end(one)
    again = Sessions(path, PASSWORD)
    assert not again.valid(one) and again.valid(other)


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"salt": "zz"}', '{"salt": "00", "verifier": "00"}', "null"]
)
def test_damaged_session_file_only_logs_out(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "sessions.json"
    path.write_text(damage)
    sessions = Sessions(path, PASSWORD)
    assert sessions.valid(sessions.create()) and sessions.verify(PASSWORD)


@pytest.mark.parametrize(
    "wrong", ["", "correct horse", PASSWORD + " ", PASSWORD.upper(), "\udcff", "x" * 10_000]
)
def test_wrong_passwords_are_refused(tmp_path: Path, wrong: str) -> None:
    assert not Sessions(tmp_path / "sessions.json", PASSWORD).verify(wrong)


# Limiter -------------------------------------------------------------------------------------------


def test_limiter_slows_one_peer_and_spares_the_others() -> None:
    clock = Clock()
    limiter = Limiter(clock)
    assert [limiter.take("10.0.0.1") for _ in range(5)] == [0.0] * 5
    assert limiter.take("10.0.0.1") == pytest.approx(12.0)
    assert limiter.take("10.0.0.2") == 0.0
    clock.now += 12
    assert limiter.take("10.0.0.1") == 0.0
    assert limiter.take("10.0.0.1") > 0
    clock.now += 24 * 3600
    tries = 0
    for _ in range(12):  # an hour of guessing every second
        for _ in range(300):
            tries += limiter.take("10.0.0.1") == 0.0
            clock.now += 1
    assert tries <= 5 + 300


def test_limiter_holds_against_many_peers() -> None:
    clock = Clock()
    limiter = Limiter(clock)
    allowed = sum(limiter.take(f"10.0.{n // 250}.{n % 250}") == 0.0 for n in range(20_000))
    assert allowed == 20
    assert len(limiter._peers) <= Limiter.PEERS


def test_limiter_counts_an_ipv6_network_as_one_peer() -> None:
    limiter = Limiter(Clock())
    assert sum(limiter.take(f"2001:db8::{n:x}") == 0.0 for n in range(1, 20)) == 5
    assert sum(limiter.take(f"::ffff:10.0.0.{n}") == 0.0 for n in range(1, 4)) == 3


def test_success_gives_the_token_back() -> None:
    limiter = Limiter(Clock())
    for _ in range(50):
        assert limiter.take("10.0.0.1") == 0.0
        limiter.give_back("10.0.0.1")


# Login over a socket -------------------------------------------------------------------------------


def log_in(client: httpx.Client, password: str = PASSWORD, **fields: str) -> httpx.Response:
    return client.post("/login", data={"password": password, **fields})


def test_login_opens_and_logout_closes(serve) -> None:
    studio = serve(PASSWORD)
    with studio.client() as client:
        answer = client.get("/?project=cat&step=train", headers={"accept": "text/html"})
        assert answer.status_code == 302
        assert answer.headers["location"] == "/login?next=%2F%3Fproject%3Dcat%26step%3Dtrain"
        form = client.get(answer.headers["location"])
        assert 'value="/?project=cat&amp;step=train"' in form.text and "<script" not in form.text
        answer = log_in(client, next="/?project=cat&step=train")
        assert (answer.status_code, answer.headers["location"]) == (303, "/?project=cat&step=train")
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=lax" in cookie and "secure" not in cookie
        assert client.get("/").status_code == 200
        assert client.get("/studio/live").status_code == 200
        assert client.get("/login").status_code == 303, "already logged in"
        stolen = dict(client.cookies)
        assert client.post("/logout").headers["location"] == "/login"
        assert client.get("/studio/live").status_code == 401
        client.cookies.update(stolen)
        assert client.get("/studio/live").status_code == 401, "the session itself has ended"


def test_cookie_is_secure_behind_https(serve) -> None:
    studio = serve(PASSWORD)
    with studio.client() as client:
        answer = client.post("/login", data={"password": PASSWORD}, headers={"x-forwarded-proto": "https"})
        assert "secure" in answer.headers["set-cookie"].lower()


def test_restart_keeps_the_login_and_expiry_ends_it(serve) -> None:
    clock = Clock()
    first = serve(PASSWORD, clock=clock)
    with first.client() as client:
        log_in(client)
        session = next(iter(client.cookies.values()))
    first.stop()
    second = serve(PASSWORD, clock=clock)
    cookies = {f"studio_session_{second.port}": session}
    with second.client(cookies=cookies) as client:
        assert client.get("/studio/live").status_code == 200
        clock.now += IDLE_S + 1
        assert client.get("/studio/live").status_code == 401


def test_forged_cookies_open_nothing(serve) -> None:
    studio = serve(PASSWORD)
    with studio.client() as client:
        for forged in ("", "x", "a" * 43, "a" * 5000, "../../etc", '"; drop', "%00", "\xff\xfe"):
            header = f"studio_session_{studio.port}={forged}".encode("latin-1")
            assert client.get("/studio/live", headers={b"cookie": header}).status_code == 401, forged


def test_guessing_is_slowed_down_whatever_the_header_says(serve) -> None:
    studio = serve(PASSWORD)
    with studio.client() as client:
        codes = []
        for number in range(9):
            answer = client.post(
                "/login",
                data={"password": f"guess {number}"},
                headers={"x-forwarded-for": f"10.1.1.{number}"},
            )
            codes.append(answer.status_code)
        assert codes == [401] * 5 + [429] * 4
        assert 1 <= int(answer.headers["retry-after"]) <= 12
        assert "Wait" in answer.text
        assert log_in(client).status_code == 429, "the right password waits like every other"


def test_own_logins_are_not_counted(serve) -> None:
    studio = serve(PASSWORD)
    for _ in range(8):
        with studio.client() as client:
            assert log_in(client).status_code == 303


def test_who_is_logged_in_is_not_slowed_down_by_guessers(serve) -> None:
    studio = serve(PASSWORD)
    with studio.client() as owner, studio.client() as guesser:
        log_in(owner)
        for _ in range(8):
            log_in(guesser, "wrong")
        assert owner.get("/studio/live").status_code == 200


def test_login_leads_nowhere_else(serve) -> None:
    studio = serve(PASSWORD)
    elsewhere = ("//evil.example", "/\\evil.example", "https://evil.example", "javascript:alert(1)", "")
    for wanted in (*elsewhere, "/x\r\nSet-Cookie: a=b", "/ x", "/" + "x" * 2000):
        assert local_path(wanted) == "/"
        with studio.client() as client:
            answer = log_in(client, next=wanted)
            assert answer.headers["location"] == "/" and "a" not in answer.cookies


def test_login_form_escapes_and_bounds_what_it_is_sent(serve) -> None:
    studio = serve(PASSWORD)
    with studio.client() as client:
        page = client.get("/login", params={"next": '/"><script>alert(1)</script>'}).text
        assert "<script>" not in page
        assert client.post("/login", content=b"password=" + b"x" * 9000).status_code == 413
        assert client.post("/login", content=b"&".join([b"a=b"] * 50)).status_code == 400
        assert client.post("/login", content=b"\xff\xfe%zz=&&&==").status_code == 401
        assert client.get("/login").headers["content-security-policy"].startswith("default-src 'none'")


def test_without_a_password_there_is_nothing_to_log_in_to(serve) -> None:
    studio = serve()
    with studio.client() as client:
        assert client.get("/").status_code == 200
        assert client.get("/login").headers["location"] == "/"
        assert client.post("/login", data={"password": "x"}).headers["location"] == "/"
