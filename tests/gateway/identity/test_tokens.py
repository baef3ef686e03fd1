"""Tokens: what makes one bad, how keys rotate, and what is remembered."""

import asyncio
import base64
import json
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from gateway.identity.identity import Identity
from gateway.identity.key_set import KeySet
from gateway.identity.tokens import MAX_REMEMBERED, Rules, TokenProof, Tokens
from tests.fakes.identities import AUDIENCE, ISSUER, Issuer
from tests.fakes.replica import FakeClock
from tokenwire.errors import FailedPrecondition, Unauthenticated

RULES = Rules(ISSUER, AUDIENCE, 30.0, "tenant", "models", "max_priority")


@pytest.fixture(scope="module")
def shared_issuer(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    return Issuer(tmp_path_factory.mktemp("issuer") / "jwks.json")


def check(source: str, *tokens: str, now: Callable[[], float] = time.time) -> list[Identity]:
    async def main() -> list[Identity]:
        checker = Tokens(KeySet(source), RULES, now=now)
        return [(await checker.check(token)).identity() for token in tokens]

    return asyncio.run(main())


def refused(issuer: Issuer, token: str) -> str:
    with pytest.raises(Unauthenticated) as caught:
        check(str(issuer.path), token)
    assert token not in caught.value.message and not any(
        part and part in caught.value.message for part in token.split(".")[1:]
    )
    return caught.value.message


def test_a_good_token_says_who_calls(shared_issuer: Issuer) -> None:
    plain = shared_issuer.token()
    full = shared_issuer.token(tenant="acme", models=["a", "b"], max_priority=7)
    assert check(str(shared_issuer.path), plain, full, plain) == [
        Identity("carol", None, 0, False),
        Identity("acme", frozenset({"a", "b"}), 7, False),
        Identity("carol", None, 0, False),
    ]


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        ({"exp": time.time() - 60}, "has expired"),
        ({"exp": None}, "lacks one of"),
        ({"exp": "soon"}, "no number as exp"),
        ({"exp": True}, "no number as exp"),
        ({"exp": float("nan")}, "no number as exp"),
        ({"nbf": time.time() + 600}, "not valid yet"),
        ({"iat": time.time() + 600}, "not valid yet"),
        ({"aud": "somebody else"}, "another audience"),
        ({"aud": None}, "lacks one of"),
        ({"iss": "https://elsewhere.test"}, "another issuer"),
        ({"iss": None}, "lacks one of"),
        ({"sub": None}, "names no tenant"),
        ({"tenant": ""}, "names no tenant"),
        ({"tenant": 7}, "names no tenant"),
        ({"tenant": "a" * 5000}, "names no tenant"),
        ({"tenant": "*"}, "names every tenant"),
        ({"models": "all"}, "no list of names"),
        ({"max_priority": 1000}, "no priority"),
        ({"max_priority": True}, "no priority"),
    ],
)
def test_a_claim_that_is_wrong_is_refused(shared_issuer: Issuer, claims: dict[str, Any], said: str) -> None:
    assert said in refused(shared_issuer, shared_issuer.token(**claims))


def test_clocks_may_differ_a_little(shared_issuer: Issuer) -> None:
    now = time.time()
    tokens = shared_issuer.token(exp=now - 10), shared_issuer.token(nbf=now + 10, iat=now + 10)
    assert len(check(str(shared_issuer.path), *tokens)) == 2


def test_a_signature_of_another_key_is_refused(shared_issuer: Issuer) -> None:
    other = rsa.generate_private_key(65537, 2048)
    assert "does not fit" in refused(shared_issuer, shared_issuer.token(key=other))


def test_an_unknown_key_id_is_refused(shared_issuer: Issuer) -> None:
    assert "key that is not known" in refused(shared_issuer, shared_issuer.token(header={"kid": "nobody's"}))


def test_no_signature_is_refused(shared_issuer: Issuer) -> None:
    claims = {"iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 600, "sub": "carol"}
    assert "not signed as its key allows" in refused(shared_issuer, jwt.encode(claims, None, "none", {"kid": "one"}))


def test_a_public_key_is_no_secret_to_sign_with(shared_issuer: Issuer) -> None:
    """HS256 with the public key as its secret, which everybody has; PyJWT itself refuses to make such a token."""
    pem = (
        shared_issuer.keys["one"]
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    claims = {"iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 600, "sub": "carol"}
    parts = [base64url(json.dumps(part).encode()) for part in ({"alg": "HS256", "kid": "one"}, claims)]
    hmac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    parts.append(base64url(hmac.sign(".".join(parts).encode(), pem)))
    assert "not signed as its key allows" in refused(shared_issuer, ".".join(parts))


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@pytest.mark.parametrize("token", ["a.b.c", "..", "é.é.é", "eyJhbGciOiJSUzI1NiJ9..", "x" * 20_000])
def test_what_is_no_token_is_refused(shared_issuer: Issuer, token: str) -> None:
    with pytest.raises(Unauthenticated):
        check(str(shared_issuer.path), token)


def test_other_kinds_of_keys_work_and_symmetric_ones_do_not(tmp_path: Path) -> None:
    issuer = Issuer(tmp_path / "jwks.json")
    issuer.add_ec("curve")
    issuer.add_ed("edwards")
    tokens = issuer.token(key_id="curve", algorithm="ES256"), issuer.token(key_id="edwards", algorithm="EdDSA")
    assert len(check(str(issuer.path), *tokens, issuer.token(algorithm="PS384"))) == 3
    secret = {"kty": "oct", "kid": "secret", "k": base64url(b"x" * 32), "alg": "HS256"}
    issuer.path.write_text(json.dumps({"keys": [secret, *issuer.key_set["keys"]]}))
    token = issuer.token(key=b"x" * 32, algorithm="HS256", header={"kid": "secret"})
    assert "key that is not known" in refused(issuer, token)
    issuer.path.write_text(json.dumps({"keys": [secret]}))
    with pytest.raises(FailedPrecondition, match="no public key"):
        KeySet(str(issuer.path))


def test_a_key_that_names_its_algorithm_allows_no_other(tmp_path: Path) -> None:
    issuer = Issuer(tmp_path / "jwks.json")
    issuer.path.write_text(json.dumps({"keys": [{**issuer.key_set["keys"][0], "alg": "RS512"}]}))
    assert len(check(str(issuer.path), issuer.token(algorithm="RS512"))) == 1
    assert "(RS512)" in refused(issuer, issuer.token())


def test_a_token_is_refused_as_it_expires_though_it_is_remembered(shared_issuer: Issuer) -> None:
    clock = FakeClock(time.time())
    token = shared_issuer.token(exp=clock.now_s + 100)

    async def main() -> None:
        tokens = Tokens(KeySet(str(shared_issuer.path)), RULES, now=clock)
        proof = await tokens.check(token)
        clock.now_s += 129
        assert await tokens.check(token) is proof
        clock.now_s += 2
        with pytest.raises(Unauthenticated) as caught:
            await tokens.check(token)
        assert caught.value.reason == "TOKEN_EXPIRED"
        with pytest.raises(Unauthenticated):
            proof.identity()

    asyncio.run(main())


def test_what_is_remembered_is_bounded(shared_issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        tokens = Tokens(KeySet(str(shared_issuer.path)), RULES)
        made = TokenProof(Identity("t", None, 0, False), time.time() + 100, time.time)

        async def checked(token: str) -> TokenProof:
            return made

        monkeypatch.setattr(tokens, "_checked", checked)
        for number in range(MAX_REMEMBERED + 10):
            await tokens.check(f"{number}")
        assert len(tokens._remembered) == MAX_REMEMBERED

    asyncio.run(main())


def test_keys_rotate_and_one_that_is_taken_out_ends_its_tokens(tmp_path: Path) -> None:
    issuer = Issuer(tmp_path / "jwks.json")
    clock = FakeClock()

    async def main() -> None:
        tokens = Tokens(KeySet(str(issuer.path), clock=clock), RULES)
        old = issuer.token()
        await tokens.check(old)
        issuer.add_ec("two")
        clock.now_s += 2
        await tokens.check(issuer.token(key_id="two", algorithm="ES256"))
        await tokens.check(old)
        issuer.remove("one")
        clock.now_s += 2
        with pytest.raises(Unauthenticated):
            await tokens.check(old)
        issuer.path.write_text("no JSON")
        clock.now_s += 2
        await tokens.check(issuer.token(key_id="two", algorithm="ES256"))

    asyncio.run(main())


def test_keys_come_from_a_url_and_unknown_ones_are_asked_for_with_pauses(tmp_path: Path) -> None:
    issuer = Issuer(tmp_path / "jwks.json")
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = issuer.path.read_bytes()
            self.send_response(302 if self.path == "/elsewhere" else 200)
            self.send_header("Location", "/jwks")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    clock = FakeClock()

    async def main() -> None:
        tokens = Tokens(KeySet(f"{url}/jwks", clock=clock), RULES)
        found = await asyncio.gather(*(tokens.check(issuer.token()) for _ in range(5)))
        assert len(found) == 5 and len(asked) == 1
        issuer.add_ec("two")
        rotated = issuer.token(key_id="two", algorithm="ES256")
        with pytest.raises(Unauthenticated):
            await tokens.check(rotated)
        assert len(asked) == 1
        clock.now_s += 11
        await tokens.check(rotated)
        for _ in range(3):
            with pytest.raises(Unauthenticated):
                await tokens.check(issuer.token(header={"kid": "made up"}))
        assert len(asked) == 2
        with pytest.raises(Unauthenticated):
            await Tokens(KeySet(f"{url}/elsewhere", clock=clock), RULES).check(issuer.token())

    try:
        asyncio.run(main())
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{",
        b"",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 100_000,
    ],
    ids=["no HTTP", "cut", "nothing", "deep"],
)
def test_a_url_that_answers_nonsense_leaves_the_old_keys(
    tmp_path: Path, answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    issuer = Issuer(tmp_path / "jwks.json")
    answers = [b"HTTP/1.1 200 OK\r\n\r\n" + issuer.path.read_bytes(), answer, answer]

    async def main() -> None:
        async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answers.pop(0))
            writer.close()

        server = await asyncio.start_server(speak, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/jwks"
        clock = FakeClock()
        tokens = Tokens(KeySet(url, clock=clock), RULES)
        await tokens.check(issuer.token())
        clock.now_s += 11
        with pytest.raises(Unauthenticated, match="not known here"):
            await tokens.check(issuer.token(header={"kid": "made up"}))
        await tokens.check(issuer.token())
        with pytest.raises(Unauthenticated):
            await Tokens(KeySet(url), RULES).check(issuer.token())
        assert not answers and caplog.text.count("cannot be read, the old one stays") == 2
        server.close()

    asyncio.run(main())


def test_keys_are_not_fetched_in_the_clear() -> None:
    with pytest.raises(FailedPrecondition, match="https"):
        KeySet("http://192.0.2.1/jwks.json")
