"""Sessions in any order of events, over all three tiers with the mock engine, against a simple model of each sequence.

SESSION_EXAMPLES=2000 python -m pytest tests/gateway/test_session_machine.py     # more than the usual number
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import grpc
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from model_svc.engine.mock_runner import mock_token
from tests.fakes.live_gateway import live_gateway
from tests.fakes.live_model_tier import live_model_tier
from tests.fakes.live_tokenizer_tier import TextPeer, live_tokenizer_tier
from tests.fakes.proxy import Proxy
from tests.fakes.whole_stack import VOCAB_SIZE, WholeStack
from tokenwire.channels import aio_channel
from tokenwire.requests import FinishReason, Terminal
from tokenwire.v1 import common_pb2, gateway_pb2_grpc, tokenizer_pb2

NUM_EXAMPLES = int(os.environ.get("SESSION_EXAMPLES", "60"))
LIMIT_S = 20
ENDLESS = 50_000
"""Tokens that nobody waits for: such a sequence ends by being cancelled."""
LOST_BELOW = {"TOKENIZER_TIER_LOST", "TOKENIZER_TIER_DOWN", "MODEL_TIER_LOST", "MODEL_TIER_DOWN"}
"""What a request may end with where a connection between tiers was lost."""
BACK = st.sampled_from([1, 1, 1, 2, 2, 3, 4, 6, -1])
"""From the next handle to that of a Cancel or a Credit: mostly what is new, also what has ended or is not there yet."""

GRANTS = st.tuples(BACK, st.integers(0, 9))


@dataclass
class Asked:
    """One Submit, as it may be."""

    prompt: str
    max_tokens: int
    seed: int
    num_choices: int
    credit: int | None
    timeout_ms: int | None
    is_wrong: bool

    def message(self, handle: int) -> tokenizer_pb2.Submit:
        request = tokenizer_pb2.TextRequest(text=self.prompt, model="nobody's" if self.is_wrong else "")
        request.context.CopyFrom(common_pb2.RequestContext(timeout_ms=self.timeout_ms))
        options = request.options
        options.output.return_token_ids, options.num_choices = True, self.num_choices
        options.stop.max_tokens, options.stop.ignore_eos = self.max_tokens, True
        options.sampling.temperature, options.sampling.seed = 1.0, self.seed
        return tokenizer_pb2.Submit(handle=handle, request=request, initial_credit=self.credit)


ASKED = st.builds(
    Asked,
    prompt=st.sampled_from(["Once upon a time", "The capital of France"]),
    max_tokens=st.sampled_from([1, 7, 40, ENDLESS, ENDLESS]),
    seed=st.integers(0, 3),
    num_choices=st.sampled_from([1, 1, 1, 3]),
    credit=st.sampled_from([None, None, 0, 1, 5, 12]),
    timeout_ms=st.sampled_from([None] * 5 + [20]),
    is_wrong=st.sampled_from([False] * 7 + [True]),
)


@dataclass
class Sequence:
    """What is promised of one handle."""

    asked: Asked
    choice: int
    granted: int | None
    cancelled: bool = False

    def token_ids(self, prompt: list[int], count: int) -> list[int]:
        """Its first ones."""
        return [mock_token(prompt, self.asked.seed, self.choice, position, VOCAB_SIZE) for position in range(count)]


@dataclass
class Proxied:
    """The stack, with a proxy before each tier."""

    stack: WholeStack
    to_gateway: Proxy
    to_tokenizer: Proxy
    to_model: Proxy

    async def reset(self, proxy: Proxy) -> None:
        """Every connection through it."""
        proxy.resets = True
        while proxy.resets:
            await asyncio.sleep(0.005)

    async def until_whole(self) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not (self.stack.gateway.server.backends.ready and self.stack.tokenizer.server.tier.router.num_ready):
                await asyncio.sleep(0.005)


@asynccontextmanager
async def proxied(folder: Path) -> AsyncIterator[Proxied]:
    async with (
        live_model_tier(model=str(folder), mock_vocab_size=VOCAB_SIZE, mock_max_context_tokens=2 * ENDLESS) as model,
        Proxy(model.port) as to_model,
        live_tokenizer_tier(folder, wait=False, model_targets=to_model.target) as tokenizer,
        Proxy(tokenizer.port) as to_tokenizer,
        live_gateway(tokenizer, wait=False, tokenizer_targets=to_tokenizer.target) as gateway,
        Proxy(gateway.server.grpc.port) as to_gateway,
    ):
        found = Proxied(WholeStack(gateway, tokenizer, model), to_gateway, to_tokenizer, to_model)
        await found.until_whole()
        yield found


class Peer:
    """A session with the gateway over a connection of its own, which is read all the time."""

    def __init__(self, target: str) -> None:
        self._target = target

    async def open(self) -> None:
        self._channel = aio_channel(self._target)
        self.session = TextPeer(gateway_pb2_grpc.GenerationServiceStub(self._channel).Session(wait_for_ready=True))
        await self.session.send(hello=common_pb2.Hello(protocol_version=1))
        await self.session.call.read()
        self._reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        try:
            while (frame := await self.session.call.read()) is not grpc.aio.EOF:
                self.session.take(frame)
        except (grpc.RpcError, asyncio.CancelledError):
            pass

    def check(self) -> None:
        """Raise what reading raised."""
        if self._reading.done():
            self._reading.result()

    async def ended(self) -> grpc.StatusCode:
        """Read to the end of the call, which must come."""
        async with asyncio.timeout(LIMIT_S):
            await self._reading
            return await self.session.call.code()

    async def close(self) -> None:
        self.session.call.cancel()
        await self._reading
        await self._channel.close()


class SessionMachine(RuleBasedStateMachine):
    """A client that may do anything at any time, and what it may see then."""

    runner: ClassVar[asyncio.Runner]
    tiers: ClassVar[Proxied]

    def __init__(self) -> None:
        super().__init__()
        self.peer: Peer | None = None
        self.lost_below = False

    def run(self, coroutine: Any) -> Any:
        """The tiers, which share the event loop, do something only meanwhile."""
        return self.runner.run(coroutine)

    @property
    def open_peer(self) -> Peer:
        assert self.peer is not None
        return self.peer

    @initialize(submits=st.lists(ASKED, min_size=2, max_size=4))
    def begin(self, submits: list[Asked]) -> None:
        """Much has been asked, so that there is something to go wrong."""
        self.open()
        self.submit(submits, [], [], 0)

    @precondition(lambda self: self.peer is None)
    @rule()
    def open(self) -> None:
        self.peer = Peer(self.tiers.to_gateway.target)
        self.run(self.peer.open())
        self.sequences: dict[int, Sequence] = {}
        self.next_handle = 1
        self.half_closed = False

    @precondition(lambda self: self.peer is not None and not self.half_closed)
    @rule(
        submits=st.lists(ASKED, min_size=1, max_size=3),
        cancelled=st.lists(BACK, max_size=1),
        granted=st.lists(GRANTS, max_size=1),
        gap=st.sampled_from([0, 0, 0, 2]),
    )
    def submit(self, submits: list[Asked], cancelled: list[int], granted: list[tuple[int, int]], gap: int) -> None:
        messages = []
        for asked in submits:
            self.next_handle += gap
            messages.append(asked.message(self.next_handle))
            for choice in range(asked.num_choices):
                self.sequences[self.next_handle + choice] = Sequence(asked, choice, asked.credit)
            self.next_handle += asked.num_choices
        self.send(messages, cancelled, granted)

    @precondition(lambda self: self.peer is not None and not self.half_closed)
    @rule(cancelled=st.lists(BACK, max_size=2), granted=st.lists(GRANTS, max_size=3))
    def take_back_and_grant(self, cancelled: list[int], granted: list[tuple[int, int]]) -> None:
        self.send([], cancelled, granted)

    def send(self, submits: list[tokenizer_pb2.Submit], cancelled: list[int], granted: list[tuple[int, int]]) -> None:
        """One frame."""
        cancels = [max(1, self.next_handle - back) for back in cancelled]
        credits = [(max(1, self.next_handle - back), tokens) for back, tokens in granted]
        for handle in cancels:
            if handle in self.sequences:
                self.sequences[handle].cancelled = True
        for handle, tokens in credits:
            if handle in self.sequences and self.sequences[handle].granted is not None:
                self.sequences[handle].granted += tokens
        self.run(
            self.open_peer.session.send(
                submits=submits,
                cancels=[common_pb2.Cancel(handle=handle) for handle in cancels],
                credits=[common_pb2.Credit(handle=handle, tokens=tokens) for handle, tokens in credits],
            )
        )

    @rule(ms=st.sampled_from([0, 1, 3, 10]))
    def time_passes(self, ms: int) -> None:
        self.run(asyncio.sleep(ms / 1000))

    @precondition(lambda self: self.peer is not None and not self.half_closed)
    @rule(now=st.sampled_from([False] * 3 + [True]))
    def half_close(self, now: bool) -> None:
        if now:
            self.half_closed = True
            self.run(self.open_peer.session.call.done_writing())

    @precondition(lambda self: self.peer is not None)
    @rule(how=st.sampled_from([""] * 4 + ["everything ends", "closed", "lost", "broken"]), asked=ASKED)
    def end(self, how: str, asked: Asked | None) -> None:
        if not how:
            return
        peer, allowed = self.open_peer, {grpc.StatusCode.OK} if self.half_closed else set()
        if how == "lost":
            self.run(self.tiers.reset(self.tiers.to_gateway))
            assert self.run(peer.ended()) in allowed | {grpc.StatusCode.UNAVAILABLE}
        elif how == "broken" and self.sequences and not self.half_closed:  # a handle that was used before
            self.run(peer.session.send(submits=[asked.message(self.next_handle - 1)]))
            assert self.run(peer.ended()) is grpc.StatusCode.INVALID_ARGUMENT
        elif how == "everything ends" and (not self.half_closed or not self.waits_for_ever()):
            self.everything_ends()
        self.run(peer.close())
        self.check()
        self.peer = None

    def waits_for_ever(self) -> list[int]:
        """Who may not end unless something is done about it."""
        return [
            handle
            for handle, each in self.sequences.items()
            if not each.cancelled
            and each.asked.timeout_ms is None
            and (each.granted is not None or each.asked.max_tokens == ENDLESS)
        ]

    def everything_ends(self) -> None:
        """What is endless is taken back, the rest is granted all it needs; each sequence ends, and then the call."""
        session = self.open_peer.session
        waiting = [(handle, self.sequences[handle]) for handle in self.waits_for_ever()]
        if waiting:
            cancels, credits = [], []
            for handle, sequence in waiting:
                if sequence.asked.max_tokens == ENDLESS:
                    sequence.cancelled = True
                    cancels.append(common_pb2.Cancel(handle=handle))
                else:
                    sequence.granted = ENDLESS
                    credits.append(common_pb2.Credit(handle=handle, tokens=ENDLESS))
            self.run(session.send(cancels=cancels, credits=credits))
        if not self.half_closed:
            self.run(session.call.done_writing())
        assert self.run(self.open_peer.ended()) is grpc.StatusCode.OK
        assert set(session.finishes) == set(self.sequences), "each has its end"

    @precondition(lambda self: self.peer is not None and self.sequences)
    @rule(above_model=st.sampled_from([None, None, True, False]))
    def lose_a_connection_below(self, above_model: bool | None) -> None:
        if above_model is None:
            return
        self.lost_below = True
        self.run(self.tiers.reset(self.tiers.to_model if above_model else self.tiers.to_tokenizer))

    @invariant()
    def check(self) -> None:
        if self.peer is None:
            return
        self.peer.check()
        session = self.peer.session
        assert set(session.num_tokens) | set(session.finishes) <= set(self.sequences), "rows of nobody"
        for handle, sequence in self.sequences.items():
            token_ids, num_tokens = session.token_ids.get(handle, []), session.num_tokens.get(handle, 0)
            prompt = self.tiers.stack.tokenizer.ids(sequence.asked.prompt)
            assert token_ids == sequence.token_ids(prompt, len(token_ids)), "each at its position, once"
            assert len(token_ids) <= num_tokens, "ids follow the last of the tokens that they stand for"
            assert sequence.granted is None or num_tokens <= sequence.granted
            if handle in session.terminals:
                self.check_end(sequence, session.terminals[handle], len(token_ids))

    def check_end(self, sequence: Sequence, terminal: Terminal, num_token_ids: int) -> None:
        match terminal.reason:
            case FinishReason.LENGTH:
                assert num_token_ids == terminal.usage.completion_tokens == sequence.asked.max_tokens
            case FinishReason.CANCELLED:
                assert sequence.cancelled
            case FinishReason.DEADLINE:
                assert sequence.asked.timeout_ms is not None
            case FinishReason.ERROR:
                assert terminal.error is not None
                allowed = LOST_BELOW if self.lost_below else set()
                assert terminal.error.reason in allowed | ({"MODEL_NOT_FOUND"} if sequence.asked.is_wrong else set())
            case other:
                raise AssertionError(other)
        assert not sequence.asked.is_wrong or terminal.reason is not FinishReason.LENGTH

    def teardown(self) -> None:
        if self.peer is not None:
            self.end("everything ends", None)
        self.run(self.tiers.stack.until_idle())
        self.run(self.tiers.until_whole())


def test_any_order_of_events_keeps_the_promises_of_a_session(trained_folder: Path) -> None:
    with asyncio.Runner() as runner:
        context = proxied(trained_folder)
        SessionMachine.runner, SessionMachine.tiers = runner, runner.run(context.__aenter__())
        try:
            run_state_machine_as_test(
                SessionMachine,
                settings=settings(
                    max_examples=NUM_EXAMPLES,
                    stateful_step_count=20,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(context.__aexit__(None, None, None))
