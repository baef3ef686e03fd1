"""Who may call: the same matrix at every entrance, against a running gateway, and what it says of it anywhere."""

import asyncio
import contextlib
import logging
import os
import sys
import time
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc

from tests.fakes.entrances import ENTRANCES, Entrance, Metadata, asking, bearer
from tests.fakes.identities import Callers, Issuer
from tests.fakes.tokenizer_tier import MODEL, fake_tokenizer_tier
from tokenwire.addresses import free_ports
from tokenwire.channels import aio_channel
from tokenwire.errors import NotFound, PermissionDenied, TokenwireError, Unauthenticated
from tokenwire.health import wait_serving
from tokenwire.identity_file import hash_of
from tokenwire.v1 import gateway_pb2_grpc

Case = tuple[str, Metadata, dict[str, Any], type[TokenwireError] | None, str]
BY_DEFAULT = "default"
"""In what is asked for: a model, though it is not named."""


def matrix(callers: Callers, issuer: Issuer) -> list[Case]:
    """What is tried, the headers, what is asked for, and how it is refused."""
    alice = bearer(callers.keys["alice"])
    now = time.time()
    no, denied = Unauthenticated, PermissionDenied
    return [
        ("no key", (), {}, no, "NO_CREDENTIALS"),
        ("wrong key", bearer("tw-wrong"), {}, no, "INVALID_API_KEY"),
        ("part of a key", bearer(callers.keys["alice"][:-1]), {}, no, "INVALID_API_KEY"),
        ("hash of a key", bearer(hash_of(callers.keys["alice"])), {}, no, "INVALID_API_KEY"),
        ("another scheme", (("authorization", f"Basic {callers.keys['alice']}"),), {}, no, "MALFORMED_CREDENTIALS"),
        ("no scheme", (("authorization", callers.keys["alice"]),), {}, no, "MALFORMED_CREDENTIALS"),
        ("no value", (("authorization", "Bearer"),), {}, no, "MALFORMED_CREDENTIALS"),
        ("two headers", alice + alice, {}, no, "MALFORMED_CREDENTIALS"),
        ("expired key", bearer(callers.keys["late"]), {}, no, "EXPIRED_CREDENTIALS"),
        ("expired token", bearer(issuer.token(exp=now - 100)), {}, no, "TOKEN_EXPIRED"),
        ("token of tomorrow", bearer(issuer.token(nbf=now + 86_400)), {}, no, "INVALID_TOKEN"),
        ("wrong audience", bearer(issuer.token(aud="else")), {}, no, "INVALID_TOKEN"),
        ("wrong issuer", bearer(issuer.token(iss="else")), {}, no, "INVALID_TOKEN"),
        ("unknown key id", bearer(issuer.token(header={"kid": "else"})), {}, no, "INVALID_TOKEN"),
        ("alg none", bearer("eyJhbGciOiJub25lIiwia2lkIjoib25lIn0.e30."), {}, no, "INVALID_TOKEN"),
        ("another's tenant", alice, {"tenant": "bob"}, denied, "TENANT_MISMATCH"),
        ("token for another's tenant", bearer(issuer.token()), {"tenant": "bob"}, denied, "TENANT_MISMATCH"),
        ("priority too high", alice, {"priority": 11}, denied, "PRIORITY_TOO_HIGH"),
        ("model not allowed", bearer(callers.keys["bob"]), {"model": MODEL}, NotFound, "MODEL_NOT_FOUND"),
        ("default model not allowed", bearer(callers.keys["bob"]), {BY_DEFAULT: ""}, NotFound, "MODEL_NOT_FOUND"),
        ("model not in a token", bearer(issuer.token(models=["else"])), {BY_DEFAULT: ""}, NotFound, "MODEL_NOT_FOUND"),
        ("a key", alice, {}, None, ""),
        ("a key and all it may", alice, {"priority": 10, "tenant": "alice", "model": MODEL}, None, ""),
        ("lower case", (("authorization", f"bearer  {callers.keys['alice']}"),), {}, None, ""),
        ("a token", bearer(issuer.token(models=[MODEL], max_priority=5)), {"priority": 5, "model": MODEL}, None, ""),
        ("a front for all", bearer(callers.keys["front"]), {"tenant": "anyone"}, None, ""),
        ("an administrator", bearer(callers.keys["root"]), {}, None, ""),
    ]  # fmt: skip


def cases_at(entrance: Entrance, cases: list[Case]) -> list[Case]:
    """Those that can be asked there, as they are answered there."""
    found: list[Case] = []
    for name, headers, names, kind, reason in cases:
        if names.keys() <= entrance.names:
            if entrance.admin and kind is None and name != "an administrator":
                kind, reason = PermissionDenied, "ADMIN_ONLY"
            asked = {field: value for field, value in names.items() if field != BY_DEFAULT}
            found.append((name, headers, asked, kind, reason))
    return found


def secrets_of(callers: Callers, cases: list[Case]) -> set[str]:
    """Keys, their hashes, whatever stood in a header, and the parts of tokens that say something."""
    given = {value.partition(" ")[2].strip() for _, headers, *_ in cases for _, value in headers}
    secrets = {*callers.keys.values(), *(value for value in given if len(value) > 8)}
    secrets |= {hash_of(key) for key in callers.keys.values()}
    parts = {part for value in secrets if value.count(".") == 2 for part in value.split(".")[1:]}
    secrets |= {part for part in parts if len(part) > 8}  # shorter ones are found in ids that are drawn
    assert len(secrets) > 20
    return secrets


@pytest.mark.parametrize("entrance", ENTRANCES, ids=lambda entrance: entrance.name)
def test_the_matrix(callers: Callers, issuer: Issuer, entrance: Entrance, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing that is said of it, in an answer or in the log, holds a secret."""
    cases = matrix(callers, issuer)
    secrets = secrets_of(callers, cases)

    async def main() -> None:
        async with asking(callers, issuer) as (_, live):
            for name, headers, names, kind, reason in cases_at(entrance, cases):
                try:
                    await entrance.call(live, headers, **names)
                    refused: TokenwireError | None = None
                except TokenwireError as error:
                    refused = error
                assert (type(refused), refused and refused.reason) == (kind or type(None), reason or None), name
                if refused is not None:
                    assert not [secret for secret in secrets if secret in refused.message], name

    assert len(cases_at(entrance, cases)) >= 16
    with caplog.at_level(logging.DEBUG):
        asyncio.run(main())
    said = "\n".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)
    assert "listening" in said
    assert [secret for secret in secrets if secret in said] == []


def test_the_tenant_below_is_the_callers_own(callers: Callers, issuer: Issuer) -> None:
    generating = [entrance for entrance in ENTRANCES if "tenant" in entrance.names]

    async def main() -> None:
        async with asking(callers, issuer) as (tier, live):
            for entrance in generating:
                await entrance.call(live, bearer(callers.keys["alice"]))
                await entrance.call(live, bearer(issuer.token()))
                await entrance.call(live, bearer(callers.keys["front"]), tenant="somebody")
                asked = [request.context.tenant for request in (*tier.requests, *tier.embeds)]
                assert asked == ["alice", "carol", "somebody"], entrance.name
                tier.requests.clear()
                tier.embeds.clear()

    asyncio.run(main())


def test_no_secret_is_in_any_log_metric_or_channelz_of_a_real_run(callers: Callers, issuer: Issuer) -> None:
    """The gateway as a process that logs everything, asked by everybody in the matrix."""
    cases = matrix(callers, issuer)

    async def main() -> str:
        async with fake_tokenizer_tier() as tier:
            port, http_port = free_ports(2)
            flags = {
                "port": port, "http-port": http_port, "metrics-port": 0, "tokenizer-targets": tier.target,
                "identity-file": callers.path, **{k.replace("_", "-"): v for k, v in issuer.settings().items()},
            }  # fmt: skip
            words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "gateway", *words, env={**os.environ, "TOKENWIRE_LOG": "debug,json"},
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            reading = asyncio.ensure_future(process.communicate())
            try:
                await asyncio.wait_for(wait_serving(f"127.0.0.1:{port}"), 60)
                said = await asked_by_everybody(port, http_port)
            finally:
                process.terminate()
                output, _ = await reading
        return said + output.decode()

    async def asked_by_everybody(port: int, http_port: int) -> str:
        async with aio_channel(f"127.0.0.1:{port}") as channel:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{http_port}", timeout=30, trust_env=False) as http:
                stub = gateway_pb2_grpc.GenerationServiceStub(channel)
                live: Any = SimpleNamespace(stub=stub, channel=channel, http=http)
                for entrance in ENTRANCES:
                    for _, headers, names, _, _ in cases_at(entrance, cases):
                        with contextlib.suppress(TokenwireError):
                            await entrance.call(live, headers, **names)
                root = bearer(callers.keys["root"])
                metrics = await http.get("/metrics", headers=list(root))
                channelz = channelz_pb2_grpc.ChannelzStub(channel)
                sockets = await channelz.GetServers(channelz_pb2.GetServersRequest(), metadata=root)
                return metrics.text + str(sockets)

    said = asyncio.run(main())
    assert said.count("request finished") > 100 and "identity_refusals_total" in said
    assert [secret for secret in secrets_of(callers, cases) if secret in said] == []
