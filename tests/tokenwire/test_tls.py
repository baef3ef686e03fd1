"""TLS of a tier's gRPC server and its metrics: who is refused, in which words, and what a change of the files does."""

import asyncio
import logging
import os
import shutil
import socket
import ssl
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from tests.fakes.certificates import Certificates
from tokenwire import channels
from tokenwire.addresses import free_ports
from tokenwire.channels import TierChannel, aio_channel
from tokenwire.errors import FailedPrecondition, Unavailable
from tokenwire.health import is_serving, wait_serving
from tokenwire.server import GrpcServer
from tokenwire.settings import ServerSettings
from tokenwire.status import TLS_FAILED, from_rpc_error
from tokenwire.telemetry import serve_metrics
from tokenwire.tls import ClientTls, server_context

Settings = dict[str, Any]


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path / "ca")


@pytest.fixture
def others(tmp_path: Path) -> Certificates:
    """Of a CA that nobody trusts."""
    return Certificates(tmp_path / "other")


@asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[str]:
    server = GrpcServer(ServerSettings(drain_timeout_s=0.2, **settings))
    port = await server.start()
    await server.set_serving(True)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.drain()


async def check(target: str, tls: ClientTls | None) -> bool:
    """Whether a call on a new connection is answered. Raises the error of one that is not."""
    async with aio_channel(target, tls) as channel:
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def refused(server: Settings, tls: ClientTls | None) -> str:
    """Why a client gets no connection, in its own words."""

    async def main() -> str:
        async with running(**server) as target:
            with pytest.raises(Unavailable) as caught:
                await check(target, tls)
            assert caught.value.reason == TLS_FAILED
            return caught.value.message

    return asyncio.run(main())


def served(server: Settings, tls: ClientTls | None) -> None:
    async def main() -> None:
        async with running(**server) as target:
            assert await check(target, tls)
            await asyncio.wait_for(wait_serving(target, tls=tls), 10)
            assert await asyncio.to_thread(is_serving, target, 10, tls)

    asyncio.run(main())


def test_a_client_that_trusts_the_ca_is_served(certificates: Certificates) -> None:
    served(certificates.server(), certificates.client())


def test_a_client_certificate_is_asked_for_and_taken(certificates: Certificates) -> None:
    served(certificates.server(ask=True), certificates.client("someone"))


def test_a_name_other_than_the_host_can_be_asked_for(certificates: Certificates) -> None:
    served(certificates.server(names=["tier.test"]), certificates.client(server_name="tier.test"))


def test_a_server_of_another_ca_is_refused(certificates: Certificates, others: Certificates) -> None:
    assert "of no CA that is trusted here" in refused(others.server(), certificates.client())


def test_a_server_whose_certificate_has_expired_is_refused(certificates: Certificates) -> None:
    assert "certificate has expired" in refused(certificates.server(days=-1), certificates.client())


def test_a_server_whose_certificate_is_not_valid_yet_is_refused(certificates: Certificates) -> None:
    assert "not valid yet" in refused(certificates.server(starts_in_days=2), certificates.client())


def test_a_server_of_another_name_is_refused(certificates: Certificates) -> None:
    assert "for another name" in refused(certificates.server(names=["elsewhere.test"]), certificates.client())


def test_a_tls_client_on_a_plain_port_is_told_so(certificates: Certificates) -> None:
    assert "does not speak TLS" in refused({}, certificates.client())


def test_a_plain_client_on_a_tls_port_is_told_so(certificates: Certificates) -> None:
    assert "it may speak TLS" in refused(certificates.server(), None)


def test_a_client_without_a_certificate_is_refused_where_one_is_asked_for(certificates: Certificates) -> None:
    assert "ask for a client certificate" in refused(certificates.server(ask=True), certificates.client())


def test_an_expired_client_certificate_is_refused(certificates: Certificates) -> None:
    refused(certificates.server(ask=True), certificates.client("late", days=-1))


def test_a_client_certificate_of_another_ca_is_refused(certificates: Certificates, others: Certificates) -> None:
    stranger = others.client("stranger")
    refused(certificates.server(ask=True), replace(stranger, ca=certificates.ca))


def test_versions_before_1_2_are_refused(certificates: Certificates) -> None:
    async def main() -> None:
        context = ssl.create_default_context(cafile=certificates.ca)
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.set_alpn_protocols(["h2"])
        async with running(**certificates.server()) as target:
            port = int(target.rpartition(":")[2])
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
            writer.close()
            context.maximum_version = ssl.TLSVersion.TLSv1_1
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.open_connection("127.0.0.1", port, ssl=context)

    with pytest.warns(DeprecationWarning):
        asyncio.run(main())


def serial(target: str, ca: str) -> int:
    """The serial number of the certificate that a new connection is shown."""
    host, _, port = target.rpartition(":")
    context = ssl.create_default_context(cafile=ca)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, int(port)), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=host) as connection,
    ):
        return int(connection.getpeercert()["serialNumber"], 16)  # type: ignore[index, arg-type]


def test_new_connections_see_a_new_certificate_and_streams_are_not_cut(certificates: Certificates) -> None:
    async def main() -> None:
        settings = certificates.server()
        async with running(**settings) as target, aio_channel(target, certificates.client()) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            before = await asyncio.to_thread(serial, target, certificates.ca)
            assert await asyncio.to_thread(serial, target, certificates.ca) == before
            certificates.server()
            after = await asyncio.to_thread(serial, target, certificates.ca)
            assert after != before
            assert await check(target, certificates.client())
            read = asyncio.ensure_future(watch.read())
            await asyncio.sleep(0)
            assert not read.done() and not watch.done()
            watch.cancel()
            await asyncio.gather(read, return_exceptions=True)

    asyncio.run(main())


def test_a_ca_that_is_taken_out_lets_nobody_in_any_more(
    certificates: Certificates, others: Certificates, tmp_path: Path
) -> None:
    async def main() -> None:
        asked = tmp_path / "clients.pem"
        shutil.copy(others.ca, asked)
        stranger = replace(others.client("stranger"), ca=certificates.ca)
        async with running(**{**certificates.server(), "tls_client_ca": str(asked)}) as target:
            assert await check(target, stranger)
            shutil.copy(certificates.ca, asked)
            with pytest.raises(Unavailable):
                await check(target, stranger)
            assert await check(target, certificates.client("known"))

    asyncio.run(main())


@pytest.mark.parametrize("port", ["asyncio", "gRPC", "metrics"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_does_not_bring_a_ca_back(
    certificates: Certificates, others: Certificates, tmp_path: Path, port: str, version: ssl.TLSVersion
) -> None:
    async def main() -> None:
        asked = tmp_path / "clients.pem"
        settings = ServerSettings(**{**certificates.server(), "tls_client_ca": str(asked)}, metrics_tls=True)
        asked.write_text(Path(others.ca).read_text() + Path(certificates.ca).read_text())
        stranger = others.client("stranger")
        context = ssl.create_default_context(cafile=certificates.ca)
        context.load_cert_chain(stranger.certificate, stranger.key)
        context.maximum_version = version
        context.set_alpn_protocols(["h2"])
        async with listening(port, settings) as number:
            try:
                session = await asyncio.to_thread(connected, number, context, None)
            except ssl.SSLError:
                assert version is ssl.TLSVersion.TLSv1_2 and port != "gRPC", "1.2 is refused where it would resume"
                return
            shutil.copy(certificates.ca, asked)
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.to_thread(connected, number, context, session)

    asyncio.run(main())


@asynccontextmanager
async def listening(port: str, settings: ServerSettings) -> AsyncIterator[int]:
    """A port of one of the three servers that speak TLS."""
    assert settings.tls is not None
    if port == "gRPC":
        async with running(tls_certificate=settings.tls_certificate, tls_key=settings.tls_key,
                           tls_client_ca=settings.tls_client_ca) as target:  # fmt: skip
            yield int(target.rpartition(":")[2])
    elif port == "metrics":
        (number,) = free_ports(1)
        serve_metrics("127.0.0.1", number, CollectorRegistry(), settings.tls)
        yield number
    else:

        async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"hello")
            writer.close()

        server = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=server_context(settings.tls))
        yield server.sockets[0].getsockname()[1]
        server.close()


def connected(port: int, context: ssl.SSLContext, session: ssl.SSLSession | None) -> ssl.SSLSession | None:
    """Connect and read something, as only a client that was let in can; the session, for the next time."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as connection,
    ):
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        if not connection.recv(1):
            raise ConnectionResetError("closed")
        return connection.session


def test_half_of_a_new_pair_leaves_the_old_one_in_force(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        settings = certificates.server()
        async with running(**settings) as target:
            before = await asyncio.to_thread(serial, target, certificates.ca)
            key = Path(settings["tls_key"])
            old_key = key.read_bytes()
            certificates.server()
            new_key = key.read_bytes()
            key.write_bytes(old_key)
            assert await asyncio.to_thread(serial, target, certificates.ca) == before
            key.write_bytes(new_key)
            assert await asyncio.to_thread(serial, target, certificates.ca) != before

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert [record.message for record in caplog.records] == ["the new certificate cannot be used, the old one stays"]


def test_a_caller_takes_new_certificates_with_its_next_session(certificates: Certificates) -> None:
    async def main() -> None:
        tls = certificates.client("caller", days=-1)
        async with running(**certificates.server(ask=True)) as target:
            link: TierChannel[Any] = TierChannel(target, health_pb2_grpc.HealthStub, tls)
            with pytest.raises(grpc.aio.AioRpcError):
                await link.refreshed().Check(health_pb2.HealthCheckRequest(), timeout=10)
            old = link.stub
            assert link.refreshed() is old
            certificates.client("caller")
            assert await link.refreshed().Check(health_pb2.HealthCheckRequest(), timeout=10)
            assert link.stub is not old
            await link.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"tls_certificate": "a.pem"}, "--tls-key"),
        ({"tls_key": "a.pem"}, "--tls-certificate"),
        ({"tls_client_ca": "a.pem"}, "--tls-client-ca needs"),
        ({"metrics_tls": True}, "--metrics-tls needs"),
        ({"tls_certificate": "nowhere.pem", "tls_key": "nowhere-key.pem"}, "nowhere.pem"),
    ],
)
def test_half_of_tls_is_refused_by_name(settings: Settings, named: str) -> None:
    async def main() -> None:
        GrpcServer(ServerSettings(**settings))

    with pytest.raises(FailedPrecondition, match=named):
        asyncio.run(main())


def test_a_client_certificate_without_its_key_is_refused(certificates: Certificates) -> None:
    with pytest.raises(FailedPrecondition, match="give both or neither"):
        replace(certificates.client("a"), key="").pems()


def test_an_encrypted_key_is_refused_instead_of_asked_for(certificates: Certificates) -> None:
    settings = certificates.server()
    path = Path(settings["tls_key"])
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"secret")
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked))

    async def main() -> None:
        GrpcServer(ServerSettings(**settings))

    with pytest.raises(FailedPrecondition, match="protected by a password"):
        asyncio.run(main())


def test_a_tier_that_asks_for_certificates_may_listen_beyond_the_loopback(certificates: Certificates) -> None:
    async def main() -> None:
        with pytest.raises(FailedPrecondition, match="--tls-client-ca"):
            GrpcServer(ServerSettings(host="0.0.0.0", **certificates.server()))
        GrpcServer(ServerSettings(host="0.0.0.0", **certificates.server(ask=True)))

    asyncio.run(main())


def test_metrics_speak_tls_and_follow_the_files(certificates: Certificates) -> None:
    (port,) = free_ports(1)
    settings = ServerSettings(**certificates.server(), metrics_tls=True)
    serve_metrics("127.0.0.1", port, CollectorRegistry(), settings.tls)
    context = ssl.create_default_context(cafile=certificates.ca)
    with urllib.request.urlopen(f"https://127.0.0.1:{port}/metrics", context=context, timeout=10) as reply:
        assert reply.status == 200
    before = serial(f"127.0.0.1:{port}", certificates.ca)
    certificates.server()
    assert serial(f"127.0.0.1:{port}", certificates.ca) != before
    with socket.create_connection(("127.0.0.1", port)):  # makes no handshake, and keeps nobody from making one
        assert serial(f"127.0.0.1:{port}", certificates.ca) != before


def test_the_keys_of_a_development_ca_are_nobody_elses_to_read(certificates: Certificates) -> None:
    certificate, key = certificates.pair("someone")
    assert os.stat(key).st_mode & 0o777 == 0o600
    assert os.stat(certificates.folder / "ca-key.pem").st_mode & 0o777 == 0o600
    assert os.stat(certificate).st_mode & 0o777 == 0o644


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["nothing", "a beginning"])
@pytest.mark.parametrize("tls", [True, False], ids=["TLS", "plain"])
def test_grpc_gives_up_a_handshake_that_does_not_end(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch, said: bytes, tls: bool
) -> None:
    monkeypatch.setattr(channels, "HANDSHAKE_TIMEOUT_MS", 200)

    async def main() -> None:
        async with running(**(certificates.server() if tls else {})) as target:
            reader, writer = await asyncio.open_connection("127.0.0.1", int(target.rpartition(":")[2]))
            writer.write(said)
            async with asyncio.timeout(30):
                await reader.read(-1)
            writer.close()

    asyncio.run(main())
