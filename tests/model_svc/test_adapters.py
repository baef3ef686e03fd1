"""Adapters of a running model tier: loaded, asked for, unloaded; over the mock engine, which has no weights."""

import asyncio
import os
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import grpc
import pytest

from model_svc.adapters import folder_below
from model_svc.engine.mock_runner import mock_token
from model_svc.settings import adapters_of
from tests.fakes.adapter_folders import adapter_folder
from tests.fakes.live_model_tier import LiveTier, RawSession, live_model_tier, token_request
from tokenwire.block_hash import SHARED_SCHEME, block_hashes, cache_root
from tokenwire.errors import FailedPrecondition, InvalidRequest, PermissionDenied
from tokenwire.status import from_rpc_error, from_wire
from tokenwire.v1 import common_pb2, model_pb2, model_pb2_grpc

VOCABULARY = 49_152


def admin(live: LiveTier) -> model_pb2_grpc.ModelAdminServiceStub:
    return model_pb2_grpc.ModelAdminServiceStub(live.channel)


async def load(live: LiveTier, name: str, path: str) -> None:
    await admin(live).LoadAdapter(model_pb2.LoadAdapterRequest(name=name, path=path))


async def unload(live: LiveTier, name: str, timeout: float | None = None) -> None:
    await admin(live).UnloadAdapter(model_pb2.UnloadAdapterRequest(name=name), timeout=timeout)


async def refusal(call: Coroutine[Any, Any, Any]) -> tuple[str, str, str]:
    """Code, reason and message of a call that is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    return error.code, error.reason, error.message


def with_adapter(name: str, prompt: list[int], max_tokens: int = 5, **context: object) -> model_pb2.TokenRequest:
    request = token_request(prompt, max_tokens=max_tokens, **context)
    request.options.adapter = name
    request.options.sampling.temperature = 0
    return request


async def names(live: LiveTier) -> list[str]:
    return list((await live.stub.GetModelInfo(model_pb2.GetModelInfoRequest())).model.adapters)


def test_loaded_at_start_and_at_run_time_asked_for_and_unloaded(tmp_path: Path) -> None:
    async def main() -> None:
        first = adapter_folder(tmp_path / "first")
        adapter_folder(tmp_path / "second")
        async with live_model_tier(adapters=(("one", str(first)),), adapter_folder=str(tmp_path)) as live:
            session = await RawSession.open(live.stub)
            assert list(session.frames[0].hello.models[0].adapters) == ["one"]
            await load(live, "two", "second")
            assert await names(live) == ["one", "two"]
            await session.submit({n: with_adapter(name, [n]) for n, name in ((1, "one"), (2, "two"), (3, ""))})
            await session.read_until_finished(1, 2, 3)
            for handle, name in ((1, "one"), (2, "two"), (3, "")):
                wanted = [mock_token([handle], None, 0, at, VOCABULARY, name) for at in range(5)]
                assert session.tokens[handle] == wanted
            announced = [list(frame.models[0].adapters) for frame in session.frames if frame.models]
            assert announced == [["one", "two"]]
            await unload(live, "two")
            assert await names(live) == ["one"]
            await session.submit({4: with_adapter("two", [1])})
            await session.read_until_finished(4)
            error = from_wire(session.finishes[4].error)
            assert (error.code, error.reason) == ("NOT_FOUND", "ADAPTER_NOT_FOUND") and "one" in error.message
            assert await refusal(unload(live, "two")) == ("NOT_FOUND", "ADAPTER_NOT_FOUND", error.message)

    asyncio.run(main())


def test_an_unknown_adapter_is_the_status_of_a_call(tmp_path: Path) -> None:
    async def main() -> None:
        async with live_model_tier() as live:
            call = live.stub.Generate(model_pb2.ModelServiceGenerateRequest(request=with_adapter("x", [1])))
            assert (await refusal(call.read()))[:2] == ("NOT_FOUND", "ADAPTER_NOT_FOUND")

    asyncio.run(main())


def test_an_unload_waits_for_the_last_request_and_refuses_new_ones_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        adapter_folder(tmp_path / "a")
        async with live_model_tier(adapter_folder=str(tmp_path), mock_step_ms=5.0) as live:
            await load(live, "a", "a")
            session = await RawSession.open(live.stub)
            await session.submit({1: with_adapter("a", [1], 200)})
            await session.read()
            assert (await refusal(unload(live, "a", timeout=0.05)))[0] == "DEADLINE_EXCEEDED"
            waiting = [asyncio.ensure_future(unload(live, "a")) for _ in range(2)]
            await session.submit({2: with_adapter("a", [1])})
            await session.read_until_finished(2)
            assert from_wire(session.finishes[2].error).code == "NOT_FOUND"
            assert (await refusal(load(live, "a", "a")))[0] == "ALREADY_EXISTS"
            assert not any(each.done() for each in waiting)
            await session.read_until_finished(1)
            assert len(session.tokens[1]) == 200
            await asyncio.gather(*waiting)
            await load(live, "a", "a")
            await live.until_idle()

    asyncio.run(main())


def test_what_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    async def main() -> None:
        adapter_folder(tmp_path / "below" / "good")
        adapter_folder(tmp_path / "below" / "dora", use_dora=True)
        adapter_folder(tmp_path / "outside")
        adapter_folder(tmp_path / "below" / "deep")
        (tmp_path / "below" / "deep" / "adapter_config.json").write_text("[" * 200_000)
        (tmp_path / "below" / "link").symlink_to(tmp_path / "outside")
        root = str(tmp_path / "below")
        async with live_model_tier(adapter_folder=root, max_adapters=1, served_name="base") as live:

            async def found(name: str, path: str) -> tuple[str, str]:
                return (await refusal(load(live, name, path)))[:2]

            assert await found("x", "../outside") == ("PERMISSION_DENIED", "ADAPTER_PATH_OUTSIDE")
            assert await found("x", "link") == ("PERMISSION_DENIED", "ADAPTER_PATH_OUTSIDE")
            assert await found("x", str(tmp_path)) == ("PERMISSION_DENIED", "ADAPTER_PATH_OUTSIDE")
            assert await found("x", "") == ("INVALID_ARGUMENT", "INVALID_REQUEST")
            assert await found("x", "nowhere") == ("NOT_FOUND", "ADAPTER_FILES_NOT_FOUND")
            assert await found("x", "a" * 10_240) == ("FAILED_PRECONDITION", "ADAPTER_UNSUPPORTED")
            assert await found("x", "deep") == ("FAILED_PRECONDITION", "ADAPTER_UNSUPPORTED")
            assert await found("x", "dora") == ("FAILED_PRECONDITION", "ADAPTER_UNSUPPORTED")
            assert await found("../x", "good") == ("INVALID_ARGUMENT", "INVALID_REQUEST")
            assert await found("base", "good") == ("ALREADY_EXISTS", "ADAPTER_EXISTS")
            await load(live, "x", "good")
            assert await found("x", "good") == ("ALREADY_EXISTS", "ADAPTER_EXISTS")
            assert await found("y", "good") == ("FAILED_PRECONDITION", "TOO_MANY_ADAPTERS")
        async with live_model_tier() as live:
            assert await found("x", "good") == ("FAILED_PRECONDITION", "ADAPTER_FOLDER_NOT_SET")

    asyncio.run(main())


def test_an_adapter_that_cannot_be_loaded_at_start_refuses_the_start(tmp_path: Path) -> None:
    async def main() -> None:
        folder = adapter_folder(tmp_path / "a", bias="all")
        with pytest.raises(FailedPrecondition, match="bias"):
            async with live_model_tier(adapters=(("a", str(folder)),)):
                pass

    asyncio.run(main())


@pytest.mark.parametrize(
    ("settings", "reason"), [({"served_name": "a"}, "ADAPTER_EXISTS"), ({"max_adapters": 1}, "TOO_MANY_ADAPTERS")]
)
def test_names_at_start_are_told_apart_and_counted(tmp_path: Path, settings: dict[str, Any], reason: str) -> None:
    async def main() -> None:
        folder = str(adapter_folder(tmp_path / "x"))
        with pytest.raises(FailedPrecondition) as caught:
            async with live_model_tier(adapters=(("a", folder), ("b", folder)), **settings):
                pass
        assert caught.value.reason == reason

    asyncio.run(main())


@pytest.mark.parametrize("text", ["a", "a=", "=x", "a=x,a=y", " =x", "-a=x", "a b=x", "a" * 129 + "=x"], ids=repr)
def test_the_setting_is_names_with_folders(text: str) -> None:
    with pytest.raises(ValueError, match="NAME=FOLDER|one folder for each name"):
        adapters_of(text)
    assert adapters_of("a=/x, org/b=y=z,") == (("a", "/x"), ("org/b", "y=z"))


def test_adapters_come_back_with_the_next_engine_but_for_those_whose_files_are_gone(tmp_path: Path) -> None:
    async def main() -> None:
        adapter_folder(tmp_path / "stays")
        leaves = adapter_folder(tmp_path / "leaves")
        async with live_model_tier(adapter_folder=str(tmp_path)) as live:
            await load(live, "stays", "stays")
            await load(live, "leaves", "leaves")
            (leaves / "adapter_config.json").unlink()
            epoch = live.tier.engine.epoch
            os.kill(live.tier.engine.pid or 0, signal.SIGKILL)
            async with asyncio.timeout(20):
                while live.tier.engine.epoch in (0, epoch):
                    await asyncio.sleep(0.01)
            assert await names(live) == ["stays"]
            session = await RawSession.open(live.stub)
            await session.submit({1: with_adapter("stays", [1])})
            await session.read_until_finished(1)
            assert len(session.tokens[1]) == 5

    asyncio.run(main())


def test_cache_events_are_of_the_adapter_and_what_is_unloaded_is_forgotten(tmp_path: Path) -> None:
    async def main() -> None:
        adapter_folder(tmp_path / "a")
        async with live_model_tier(adapter_folder=str(tmp_path), block_size=4) as live:
            await load(live, "a", "a")
            session, prompt = await RawSession.open(live.stub), list(range(8))
            await session.submit({1: with_adapter("a", prompt, 1), 2: with_adapter("", prompt, 1)})
            await session.read_until_finished(1, 2)
            roots = [cache_root("", "", SHARED_SCHEME, adapter) for adapter in ("", "a")]
            plain, adapted = (set(block_hashes(root, prompt, 4)) for root in roots)
            held = await snapshot(live)
            assert plain | adapted <= held and not plain & adapted
            await unload(live, "a")
            held = await snapshot(live)
            assert plain <= held and not adapted & held

    asyncio.run(main())


async def snapshot(live: LiveTier) -> set[int]:
    async for event in live.stub.SubscribeCacheEvents(model_pb2.SubscribeCacheEventsRequest()):
        return set(event.snapshot.hashes)
    raise AssertionError("no event came")


def test_requests_are_counted_by_adapter_while_it_is_loaded(tmp_path: Path) -> None:
    async def main() -> None:
        adapter_folder(tmp_path / "a")
        async with live_model_tier(adapter_folder=str(tmp_path)) as live:
            await load(live, "a", "a")
            session = await RawSession.open(live.stub)
            request = with_adapter("a", [1])
            request.options.num_choices = 3
            await session.submit({1: request})
            await session.read_until_finished(1, 2, 3)
            metrics = live.tier.metrics
            counted = {"adapter": "a"}
            (family,) = metrics.adapter_requests.collect()
            assert [(s.labels, s.value) for s in family.samples if s.name.endswith("_total")] == [(counted, 1.0)]
            await unload(live, "a")
            (family,) = metrics.adapter_requests.collect()
            assert not family.samples

    asyncio.run(main())


def test_a_path_is_below_its_root_or_refused(tmp_path: Path) -> None:
    (tmp_path / "root" / "in").mkdir(parents=True)
    root = str(tmp_path / "root")
    assert folder_below(root, "in") == folder_below(root, f"{root}/in") == f"{root}/in"
    assert folder_below(root, "in/../in/.") == f"{root}/in"
    for path in ("..", "in/../..", "/etc", f"{root}-not"):
        with pytest.raises(PermissionDenied):
            folder_below(root, path)
    with pytest.raises(InvalidRequest):
        folder_below(root, "in\0")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapters_files_are_below_the_root_too(tmp_path: Path, name: str) -> None:
    (tmp_path / "root" / "in").mkdir(parents=True)
    (tmp_path / "root" / "kept").write_text("{}")
    (tmp_path / "secret").write_text("{}")
    (tmp_path / "root" / "in" / name).symlink_to(tmp_path / "root" / "kept")
    assert folder_below(str(tmp_path / "root"), "in")
    (tmp_path / "root" / "in" / name).unlink()
    (tmp_path / "root" / "in" / name).symlink_to(tmp_path / "secret")
    with pytest.raises(PermissionDenied, match=name):
        folder_below(str(tmp_path / "root"), "in")


def test_options_of_a_request_name_their_adapter_in_the_contract() -> None:
    assert common_pb2.GenerationOptions.DESCRIPTOR.fields_by_name["adapter"].number == 6
