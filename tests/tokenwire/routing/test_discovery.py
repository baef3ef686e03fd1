"""Fixed addresses, a resolver that the test plays, and files that change."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from tokenwire.errors import FailedPrecondition, TokenwireError
from tokenwire.routing.discovery import MAX_FILE_BYTES, Discovery, resolve_all
from tokenwire.routing.targets import parse_targets


class FakeDns:
    """Names and what they resolve to now; a name that is not there cannot be resolved."""

    def __init__(self, **names: list[str]) -> None:
        self.names = names
        self.asked = 0

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked += 1
        if host not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [f"{address}:{port}" for address in self.names[host]]


class Followed:
    def __init__(self) -> None:
        self.told: list[list[str]] = []
        self.refusal: TokenwireError | None = None
        """What it answers whoever tells it."""
        self.num_refused = 0

    def tell(self, found: Sequence[str]) -> None:
        if self.refusal is not None:
            self.num_refused += 1
            raise self.refusal
        self.told.append(list(found))

    async def until(self, *addresses: str) -> None:
        async with asyncio.timeout(5):
            while not self.told or self.told[-1] != list(addresses):
                await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def following(text: str, dns: FakeDns | None = None) -> AsyncIterator[tuple[Discovery, Followed]]:
    followed = Followed()
    discovery = Discovery(parse_targets(text), followed.tell, interval_s=0.005, resolve=dns or FakeDns())
    discovery.start()
    try:
        yield discovery, followed
    finally:
        await discovery.close()


def test_fixed_addresses_are_told_at_once_and_only_once() -> None:
    async def main() -> None:
        dns = FakeDns()
        async with following("a:1,b:2", dns) as (_, followed):
            assert followed.told == [["a:1", "b:2"]]
            await asyncio.sleep(0.02)
            assert len(followed.told) == 1 and not dns.asked

    asyncio.run(main())


def test_a_name_is_resolved_again_and_its_addresses_come_and_go() -> None:
    async def main() -> None:
        dns = FakeDns(model=["10.0.0.2", "10.0.0.1"])
        async with following("a:1,dns:///model:50053", dns) as (discovery, followed):
            await followed.until("a:1", "10.0.0.1:50053", "10.0.0.2:50053")
            dns.names["model"] = ["10.0.0.1", "10.0.0.2"]
            asked = dns.asked
            while dns.asked < asked + 3:
                await asyncio.sleep(0.002)
            assert len(followed.told) == 2, "the same in another order is the same"
            dns.names["model"] = ["10.0.0.3", "10.0.0.1"]
            await followed.until("a:1", "10.0.0.1:50053", "10.0.0.3:50053")
            assert not discovery.problem()

    asyncio.run(main())


def test_what_cannot_be_resolved_keeps_what_was_known_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        dns = FakeDns(model=["10.0.0.1"])
        async with following("dns:model:1", dns) as (discovery, followed):
            await followed.until("10.0.0.1:1")
            found = dns.names.pop("model")
            asked = dns.asked
            while dns.asked < asked + 3:
                await asyncio.sleep(0.002)
            assert followed.told[-1] == ["10.0.0.1:1"]
            assert "dns:model:1: [Errno -2] Name or service not known" in discovery.problem()
            assert len(caplog.records) == 1
            dns.names["model"] = [*found, "10.0.0.2"]
            await followed.until("10.0.0.1:1", "10.0.0.2:1")
            assert not discovery.problem()

    asyncio.run(main())


def test_what_is_told_is_told_again_until_it_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        dns = FakeDns(model=["10.0.0.1"])
        async with following("dns:model:1", dns) as (discovery, followed):
            await followed.until("10.0.0.1:1")
            followed.refusal = FailedPrecondition("the certificate has no key")
            dns.names["model"] = ["10.0.0.2"]
            async with asyncio.timeout(5):
                while followed.num_refused < 3:
                    await asyncio.sleep(0.002)
            assert "the certificate has no key" in discovery.problem()
            assert len(caplog.records) == 1
            followed.refusal = None
            await followed.until("10.0.0.2:1")
            assert not discovery.problem() and len(followed.told) == 2

    asyncio.run(main())


def test_a_source_that_refuses_is_asked_again() -> None:
    class Refusing(FakeDns):
        refusal: TokenwireError | None = None

        async def __call__(self, host: str, port: int) -> Sequence[str]:
            if self.refusal is not None:
                raise self.refusal
            return await super().__call__(host, port)

    async def main() -> None:
        dns = Refusing(model=["10.0.0.1"])
        async with following("dns:model:1", dns) as (discovery, followed):
            await followed.until("10.0.0.1:1")
            dns.refusal = FailedPrecondition("the certificate has no key")
            async with asyncio.timeout(5):
                while not discovery.problem():
                    await asyncio.sleep(0.002)
            dns.names["model"], dns.refusal = ["10.0.0.2"], None
            await followed.until("10.0.0.2:1")
            assert not discovery.problem()

    asyncio.run(main())


def test_one_source_that_fails_does_not_hold_up_another_and_an_address_of_two_is_one(tmp_path: Path) -> None:
    async def main() -> None:
        dns = FakeDns(model=["10.0.0.1"])
        async with following(f"file:{tmp_path / 'missing'},dns:model:1,10.0.0.1:1", dns) as (discovery, followed):
            await followed.until("10.0.0.1:1")
            while not discovery.problems:
                await asyncio.sleep(0.002)
            assert "missing: [Errno 2]" in discovery.problem()

    asyncio.run(main())


def test_a_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "targets"

    def write(text: str) -> None:
        fresh = tmp_path / "fresh"
        fresh.write_text(text)
        os.replace(fresh, path)

    async def main() -> None:
        write("# model tiers\n b:2 \n\na:1\n")
        async with following(f"file:{path}") as (discovery, followed):
            await followed.until("a:1", "b:2")
            write("a:1\n[::1]:3\n")
            await followed.until("[::1]:3", "a:1")
            write("a:1\nnowhere\n")
            async with asyncio.timeout(5):
                while not discovery.problem():
                    await asyncio.sleep(0.002)
            assert "line 2: 'nowhere' is not host:port" in discovery.problem()
            assert followed.told[-1] == ["[::1]:3", "a:1"], "a bad file takes nothing away"
            write("a:1\n" * (MAX_FILE_BYTES // 4) + "b:2\n")
            async with asyncio.timeout(5):
                while "larger than" not in discovery.problem():
                    await asyncio.sleep(0.002)
            assert followed.told[-1] == ["[::1]:3", "a:1"], "nor does one that is too large to be read whole"
            write("\ufeffc:4\n")
            await followed.until("c:4")
            write("")
            await followed.until()
            assert not discovery.problem(), "an empty file means none"

    asyncio.run(main())


def test_a_bad_file_is_not_taken_for_good_when_it_is_looked_at_again(tmp_path: Path) -> None:
    path = tmp_path / "targets"
    path.write_text("nowhere")

    async def main() -> None:
        async with following(f"file:{path}") as (discovery, followed):
            await asyncio.sleep(0.05)
            assert discovery.problem() and followed.told == []

    asyncio.run(main())


def test_the_machines_own_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        assert await resolve_all("127.0.0.1", 5) == ["127.0.0.1:5"]
        assert await resolve_all("[::1]", 5) == ["[::1]:5"]
        assert len(await resolve_all("localhost", 5)) == 1, "one family"

        async def both(*_: object, **__: object) -> list[tuple[object, ...]]:
            v6 = [(socket.AF_INET6, 1, 6, "", (f"fd00::{n}", 5, 0, 0)) for n in (1, 2)]
            return [*v6, (socket.AF_INET, 1, 6, "", ("10.0.0.1", 5))]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", both, raising=False)
        assert await resolve_all("model", 5) == ["[fd00::1]:5", "[fd00::2]:5"]

    asyncio.run(main())
