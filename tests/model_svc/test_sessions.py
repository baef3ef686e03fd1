import asyncio
import os
import signal

import grpc
import pytest

from model_svc.engine.mock_runner import mock_token
from tests.fakes.live_model_tier import RawSession, live_model_tier, token_request
from tokenwire.errors import AlreadyExists, FailedPrecondition, InvalidRequest, NotFound, Overloaded, Unsupported
from tokenwire.requests import CancelReason, FinishReason
from tokenwire.status import from_wire
from tokenwire.v1 import common_pb2, model_pb2
from tokenwire.wire import CANCEL_TO_WIRE, FINISH_TO_WIRE, terminal_from_wire

VOCAB = 49_152


def greedy(prompt: list[int], num_tokens: int) -> list[int]:
    return [mock_token(prompt, None, 0, position, VOCAB) for position in range(num_tokens)]


@pytest.mark.parametrize("overlap", ["off", "on"])
def test_many_requests_on_one_stream_each_get_their_tokens_and_one_end(overlap: str) -> None:
    async def main() -> None:
        async with live_model_tier(overlap=overlap) as live:
            session = await RawSession.open(live.stub)
            prompts = {handle: [handle, 2, 3] for handle in range(1, 41)}
            await session.submit({h: token_request(p, max_tokens=h) for h, p in prompts.items()})
            await session.read_until_finished(*prompts)
            for handle, prompt in prompts.items():
                assert session.tokens[handle] == greedy(prompt, handle)
                terminal = terminal_from_wire(session.finishes[handle])
                assert terminal.reason is FinishReason.LENGTH
                assert (terminal.usage.prompt_tokens, terminal.usage.completion_tokens) == (3, handle)
            await session.call.done_writing()
            assert await session.call.read() is grpc.aio.EOF
            await live.until_idle()

    asyncio.run(main())


def test_frames_grow_with_steps_not_with_tokens() -> None:
    async def main() -> None:
        async with live_model_tier(mock_step_ms=5.0) as live:
            session = await RawSession.open(live.stub)
            await session.submit({h: token_request([1, 2], max_tokens=20) for h in range(1, 33)})
            await session.read_until_finished(*range(1, 33))
            assert sum(map(len, session.tokens.values())) == 32 * 20
            assert sum(1 for frame in session.frames if frame.handles) <= 24

    asyncio.run(main())


def test_choices_take_consecutive_handles_and_differ_when_sampled() -> None:
    async def main() -> None:
        async with live_model_tier() as live:
            session = await RawSession.open(live.stub)
            request = token_request([4, 5], max_tokens=6)
            request.options.num_choices = 3
            request.options.sampling.temperature = 1.0
            request.options.sampling.seed = 7
            await session.submit({10: request, 13: token_request([1])})
            await session.read_until_finished(10, 11, 12, 13)
            for choice in range(3):
                expected = [mock_token([4, 5], 7, choice, position, VOCAB) for position in range(6)]
                assert session.tokens[10 + choice] == expected

    asyncio.run(main())


@pytest.mark.parametrize("reason", list(CancelReason))
def test_cancel_ends_the_sequence_and_frees_its_blocks(reason: CancelReason) -> None:
    async def main() -> None:
        async with live_model_tier(max_batch_size=1) as live:
            session = await RawSession.open(live.stub)
            await session.submit({1: token_request([1, 2], max_tokens=5000), 2: token_request([3], max_tokens=5000)})
            while not session.tokens.get(1):
                await session.read()
            cancels = [common_pb2.Cancel(handle=h, reason=CANCEL_TO_WIRE[reason]) for h in (1, 2, 77)]
            await session.send(cancels=cancels)
            await session.read_until_finished(1, 2)
            assert session.finishes[1].usage.completion_tokens == len(session.tokens[1])
            assert session.finishes[2].usage.completion_tokens == 0
            await live.until_idle()

    asyncio.run(main())


def test_deadline_queued_and_running_ends_with_deadline_and_partial_usage() -> None:
    async def main() -> None:
        async with live_model_tier(max_batch_size=1) as live:
            session = await RawSession.open(live.stub)
            running = token_request([1, 2], max_tokens=5000, timeout_ms=200)
            queued = token_request([3], max_tokens=5000, timeout_ms=50)
            await session.submit({1: running, 2: queued})
            await session.read_until_finished(1, 2)
            for handle in (1, 2):
                assert session.finishes[handle].reason == FINISH_TO_WIRE[FinishReason.DEADLINE]
            assert session.finishes[1].usage.completion_tokens == len(session.tokens[1]) > 0
            await live.until_idle()

    asyncio.run(main())


def test_a_broken_session_aborts_what_it_had_open() -> None:
    async def main() -> None:
        async with live_model_tier() as live:
            session = await RawSession.open(live.stub)
            await session.submit({h: token_request([h], max_tokens=8000) for h in range(1, 9)})
            await session.read()
            session.call.cancel()
            await live.until_idle()

    asyncio.run(main())


def test_each_bad_request_ends_alone_with_a_typed_error() -> None:
    async def main() -> None:
        async with live_model_tier(mock_max_context_tokens=100, max_queued_tokens=500, max_batch_size=2) as live:
            session = await RawSession.open(live.stub)
            good = token_request([1, 2, 3], max_tokens=40, request_id="twice")
            bad = {
                2: (token_request([]), InvalidRequest, "token_ids"),
                3: (token_request([1, VOCAB]), InvalidRequest, "49152 is outside the vocabulary"),
                4: (token_request([1] * 100), InvalidRequest, "100 tokens do not fit"),
                5: (token_request([1] * 50, max_tokens=51), InvalidRequest, "leaves 50"),
                6: (token_request([1], request_id="twice"), AlreadyExists, "twice"),
                7: (token_request([1], request_id="x" * 129), InvalidRequest, "128 printable"),
                8: (token_request([1], priority=101), InvalidRequest, "from -100 to 100"),
                9: (token_request([1], max_tokens=0), InvalidRequest, "max_tokens"),
            }
            for handle, field, value, allowed in (
                (10, "temperature", -1.0, "finite number ≥ 0"),
                (11, "temperature", float("nan"), "finite number ≥ 0"),
                (12, "top_p", 0.0, r"(0, 1]"),
                (13, "top_p", float("nan"), r"(0, 1]"),
                (14, "top_k", -1, "≥ 0"),
                (15, "min_p", 1.5, "[0, 1]"),
            ):
                request = token_request([1])
                setattr(request.options.sampling, field, value)
                bad[handle] = (request, InvalidRequest, allowed)
            biased, allowed, banned, least, salted = (token_request([1]) for _ in range(5))
            biased.options.sampling.logit_bias[VOCAB] = 1.0
            allowed.options.sampling.allowed_token_ids.extend([5, VOCAB + 1])
            banned.options.sampling.banned_sequences.add(ids=[1, VOCAB + 2])
            least.options.stop.ClearField("max_tokens")
            least.options.stop.min_tokens = 100
            salted.cache_salt = "x" * 257
            bad |= {
                19: (biased, InvalidRequest, "logit_bias: 49152 is outside the vocabulary"),
                20: (allowed, InvalidRequest, "allowed_token_ids: 49153 is outside the vocabulary"),
                21: (banned, InvalidRequest, "banned_sequences: 49154 is outside the vocabulary"),
                22: (least, InvalidRequest, "min_tokens: 100 is not allowed: the context of 100 leaves 99"),
                23: (salted, InvalidRequest, "cache_salt"),
                24: (token_request([1], tenant="x" * 257), InvalidRequest, "context.tenant"),
            }
            unknown, stops, schema = (token_request([1]) for _ in range(3))
            unknown.model = "other"
            stops.options.stop.stop_strings.append("x")
            schema.options.constraint.json_schema = "{}"
            bad |= {
                25: (unknown, NotFound, "other"),
                26: (stops, Unsupported, "stop_strings"),
                27: (schema, FailedPrecondition, "options.constraint"),
            }
            await session.submit({1: good, **{handle: request for handle, (request, _, _) in bad.items()}})
            await session.read_until_finished(1, *bad)
            for handle, (_, kind, words) in bad.items():
                error = from_wire(session.finishes[handle].error)
                assert type(error) is kind, (handle, error)
                assert words in error.message
                if kind is InvalidRequest:
                    assert error.violations
            assert session.tokens[1] == greedy([1, 2, 3], 40)
            await live.until_idle()

    asyncio.run(main())


def test_a_full_queue_is_refused_at_once_with_a_time_to_retry_and_the_rest_goes_on() -> None:
    async def main() -> None:
        async with live_model_tier(max_batch_size=1, max_queued_requests=2) as live:
            session = await RawSession.open(live.stub)
            await session.submit({h: token_request([h], max_tokens=30) for h in range(1, 6)})
            await session.read_until_finished(*range(1, 6))
            errors = [from_wire(f.error) for f in session.finishes.values() if f.HasField("error")]
            assert len(errors) == 3
            for error in errors:
                assert isinstance(error, Overloaded) and error.retry_after_s and error.reason == "QUEUE_FULL"

    asyncio.run(main())


def test_load_is_sent_when_idle_too() -> None:
    async def main() -> None:
        async with live_model_tier() as live:
            session = await RawSession.open(live.stub)
            async with asyncio.timeout(5):
                frame = await session.read()
            assert frame.load.kv_blocks_total > 0 and not frame.handles

    asyncio.run(main())


def test_a_draining_tier_asks_for_another_stream_and_finishes_what_runs() -> None:
    async def main() -> None:
        async with live_model_tier(drain_timeout_s=10.0) as live:
            session = await RawSession.open(live.stub)
            await session.submit({1: token_request([1, 2], max_tokens=200)})
            await session.read()
            draining = asyncio.ensure_future(live.tier.drain())
            await session.read_until_finished(1)
            assert any(frame.HasField("drain") for frame in session.frames)
            assert len(session.tokens[1]) == 200
            await session.call.done_writing()
            await draining

    asyncio.run(main())


def test_a_foreign_vocabulary_is_refused() -> None:
    async def main() -> None:
        async with live_model_tier() as live:
            live.tier.state._fingerprint.vocabulary = "sha256:" + "a" * 64
            session = await RawSession.open(live.stub)
            mine, foreign = token_request([1]), token_request([1])
            mine.fingerprint.vocabulary = "sha256:" + "a" * 64
            foreign.fingerprint.vocabulary = "sha256:" + "b" * 64
            await session.submit({1: mine, 2: foreign})
            await session.read_until_finished(1, 2)
            error = from_wire(session.finishes[2].error)
            assert isinstance(error, FailedPrecondition) and error.reason == "FINGERPRINT_MISMATCH"
            assert not session.finishes[1].HasField("error")

    asyncio.run(main())


def test_a_lost_engine_ends_its_sessions_after_their_terminal_events() -> None:
    async def main() -> None:
        async with live_model_tier() as live:
            session = await RawSession.open(live.stub)
            await session.submit({h: token_request([h], max_tokens=8000) for h in (1, 2)})
            while not (session.tokens.get(1) and session.tokens.get(2)):
                await session.read()
            assert live.tier.engine.pid is not None
            os.kill(live.tier.engine.pid, signal.SIGKILL)
            await session.read_until_finished(1, 2)
            for handle in (1, 2):
                assert from_wire(session.finishes[handle].error).reason == "ENGINE_LOST"
                assert session.finishes[handle].usage.completion_tokens == len(session.tokens[handle])
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await session.read()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    asyncio.run(main())


def test_after_half_close_frames_still_come_once_a_step_not_in_a_spin() -> None:
    async def main() -> None:
        async with live_model_tier(mock_step_ms=10.0) as live:
            session = await RawSession.open(live.stub)
            await session.submit({1: token_request([1], max_tokens=20)})
            await session.call.done_writing()
            await session.read_until_finished(1)
            assert len(session.tokens[1]) == 20
            assert len(session.frames) <= 25
            assert await session.call.read() is grpc.aio.EOF

    asyncio.run(main())


def test_a_request_that_is_taken_back_no_longer_holds_its_id() -> None:
    async def main() -> None:
        async with live_model_tier(mock_step_ms=50.0) as live:
            session = await RawSession.open(live.stub)
            await session.submit({1: token_request([1], max_tokens=5000, request_id="same")})
            await session.read()
            again = model_pb2.TokenSubmit(handle=2, request=token_request([2], max_tokens=2, request_id="same"))
            await session.send(cancels=[common_pb2.Cancel(handle=1)], submits=[again])
            await session.read_until_finished(1, 2)
            assert session.finishes[1].reason == FINISH_TO_WIRE[FinishReason.CANCELLED]
            assert session.tokens[2] == greedy([2], 2)
            third = token_request([3], max_tokens=5000, request_id="same")
            fourth = model_pb2.TokenSubmit(handle=4, request=token_request([4], request_id="same"))
            await session.submit({3: third})
            await session.send(submits=[fourth])
            await session.read_until_finished(4)
            assert isinstance(from_wire(session.finishes[4].error), AlreadyExists)

    asyncio.run(main())


def test_a_request_holds_its_id_until_each_choice_was_taken_back_or_has_ended() -> None:
    async def main() -> None:
        async with live_model_tier(mock_step_ms=20.0) as live:
            session = await RawSession.open(live.stub)
            twice = token_request([1], max_tokens=5000, request_id="same")
            twice.options.num_choices = 2
            await session.submit({1: twice})
            await session.read()
            await session.send(cancels=[common_pb2.Cancel(handle=1)])
            await session.read_until_finished(1)
            await session.submit({3: token_request([2], max_tokens=2, request_id="same")})
            await session.read_until_finished(3)
            assert isinstance(from_wire(session.finishes[3].error), AlreadyExists)
            again = model_pb2.TokenSubmit(handle=4, request=token_request([2], max_tokens=2, request_id="same"))
            await session.send(cancels=[common_pb2.Cancel(handle=2)], submits=[again])
            await session.read_until_finished(2, 4)
            assert session.tokens[4] == greedy([2], 2)
            await session.submit({5: token_request([2], max_tokens=2, request_id="same")})
            await session.read_until_finished(5)
            assert session.tokens[5] == greedy([2], 2)

    asyncio.run(main())


def test_token_ids_named_by_options_count_against_the_queue() -> None:
    async def main() -> None:
        async with live_model_tier(max_queued_tokens=1000, max_batch_size=1) as live:
            session = await RawSession.open(live.stub)
            requests = {handle: token_request([handle], max_tokens=30) for handle in range(1, 4)}
            for request in requests.values():
                request.options.sampling.allowed_token_ids.extend(range(600))
            await session.submit(requests)
            await session.read_until_finished(1, 2, 3)
            errors = {h: from_wire(f.error).reason for h, f in session.finishes.items() if f.HasField("error")}
            assert errors == {2: "QUEUE_FULL", 3: "QUEUE_FULL"}
            again = token_request([9], max_tokens=2)
            again.options.sampling.allowed_token_ids.extend(range(600))
            await session.submit({4: again})
            await session.read_until_finished(4)
            assert not session.finishes[4].HasField("error")

    asyncio.run(main())


def test_named_token_ids_are_held_until_the_last_choice_has_ended() -> None:
    async def main() -> None:
        async with live_model_tier(max_queued_tokens=1000) as live:
            session = await RawSession.open(live.stub)
            request = token_request([1], max_tokens=5000)
            request.options.num_choices = 2
            request.options.sampling.allowed_token_ids.extend(range(600))
            await session.submit({1: request})
            await session.send(cancels=[common_pb2.Cancel(handle=1)])
            await session.read_until_finished(1)
            await session.submit({3: request})
            await session.read_until_finished(3)
            assert from_wire(session.finishes[3].error).reason == "QUEUE_FULL"
            await session.send(cancels=[common_pb2.Cancel(handle=2)])
            await session.read_until_finished(2)
            request.options.stop.max_tokens = 2
            await session.submit({5: request})
            await session.read_until_finished(5, 6)
            assert not session.finishes[5].HasField("error")

    asyncio.run(main())


@pytest.mark.parametrize("timeout_ms", [2**40, 2**64 - 1])
def test_a_limit_nobody_lives_to_see_is_none_even_while_paused(timeout_ms: int) -> None:
    async def main() -> None:
        async with live_model_tier() as live:
            live.tier.engine.pause(True)
            epoch = live.tier.engine.epoch
            session = await RawSession.open(live.stub)
            await session.submit({1: token_request([1], max_tokens=2, timeout_ms=timeout_ms)})
            await asyncio.sleep(0.2)
            live.tier.engine.pause(False)
            await session.read_until_finished(1)
            assert session.finishes[1].usage.completion_tokens == 2 and live.tier.engine.epoch == epoch

    asyncio.run(main())
