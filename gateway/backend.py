"""One tokenizer tier: its channel, its session, whether it says that it can answer, and how requests to it end.

Hands what a frame brings to the choices that it is for. Does not choose among tiers (see `tokenizer_tiers`), nor decide
what becomes of requests that it gave up (see `backends`).
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.metrics import GatewayMetrics
from gateway.submission import Choice, Submission
from tokenwire.channels import TierChannel
from tokenwire.errors import Internal, TokenwireError, Unavailable
from tokenwire.routing.breaker import Breaker
from tokenwire.routing.outcomes import Outcomes
from tokenwire.session import SessionClient, SessionStream
from tokenwire.status import from_rpc_error
from tokenwire.tasks import cancel_and_wait
from tokenwire.tls import ClientTls
from tokenwire.v1 import common_pb2, tokenizer_pb2, tokenizer_pb2_grpc
from tokenwire.wire import logprobs_from_wire, parsed_from_wire, terminal_from_wire

log = logging.getLogger(__name__)

HEALTH_RETRY_S = 0.25
RETRY_AFTER_S = 1.0


def with_retry_time(error: TokenwireError) -> TokenwireError:
    """The same error; where a tier is missing and nobody below said when to come back, with a time to do so."""
    if isinstance(error, Unavailable) and error.retry_after_s is None:
        error.retry_after_s = RETRY_AFTER_S
    return error


class SubmissionOwner(Protocol):
    """Who placed the submissions of a session."""

    def on_lost(self, submission: Submission, error: TokenwireError) -> None:
        """Its session broke: it goes on elsewhere or ends."""

    def goes_on(self, submission: Submission, error: TokenwireError) -> bool:
        """The tier ended one of its choices with this. Returns whether all of it begins again at another tier."""


class Backend:
    """One tokenizer tier: its channel, its session, and whether it says that it can answer."""

    def __init__(
        self,
        target: str,
        metrics: GatewayMetrics,
        owner: SubmissionOwner,
        changed: Callable[[], None],
        tls: ClientTls | None = None,
        breaker: Breaker | None = None,
    ) -> None:
        """`changed` is called when it came, went, or changed its mind. `breaker`: a plain one where none is given."""
        self.target = target
        self.leaving = False
        """No longer listed: it gets nothing new, and runs out."""
        self.breaker = breaker or Breaker()
        self.outcomes = Outcomes(target, self.breaker, changed)
        self._link: TierChannel[Any] = TierChannel(target, tokenizer_pb2_grpc.TokenizerServiceStub, tls)
        self.session: SessionClient[Choice] = SessionClient(
            target,
            lambda: self._link.refreshed().Session(),
            tokenizer_pb2.SessionRequest,
            self,
            self._link.told_to_move,
            beats=True,
        )
        self.serving = False
        """What the tier's health service says."""
        self.models: list[common_pb2.ModelCard] = []
        self.num_open = 0
        """Prompts and calls on their way through this tier."""
        self._health: asyncio.Task[None] | None = None
        self._metrics = metrics
        self._owner = owner
        self._accepted: SessionStream[Choice] | None = None
        """The last stream that was opened."""
        self._changed = changed

    @property
    def stub(self) -> Any:
        """The tier's methods."""
        return self._link.stub

    @property
    def process(self) -> tuple[str, int]:
        """Which process answers, among those that share the target; while there is none, which did last."""
        return self.target, self._accepted.hello.epoch if self._accepted is not None else 0

    @property
    def connected(self) -> bool:
        """Whether a request can be sent there."""
        return self.session.stream is not None and not self.leaving

    @property
    def state(self) -> str:
        """One of `gateway.metrics.TIER_STATES`."""
        if self.leaving:
            return "leaving"
        if self.session.stream is None:
            return "unreachable"
        if not self.serving:
            return "not_serving"
        return "ready" if self.breaker.admits else "ejected"

    def problem(self) -> str:
        """What keeps requests away, for people; empty when nothing does."""
        if self.session.stream is None:
            return str(self.session.last_error)
        return self.breaker.problem() if self.serving else "connected, but no model is ready behind it"

    @property
    def ready(self) -> bool:
        """Whether a request sent there now would be answered, as far as is known."""
        return self.connected and self.serving

    async def tier_load(self, timeout_s: float) -> tokenizer_pb2.GetTierLoadResponse:
        """How busy it and the model tiers behind it are, as far as it knows. Raises AioRpcError."""
        found: tokenizer_pb2.GetTierLoadResponse = await self.stub.GetTierLoad(
            tokenizer_pb2.GetTierLoadRequest(), timeout=timeout_s
        )
        return found

    def start(self) -> None:
        """Begin connecting."""
        self.session.start()
        self._health = asyncio.get_running_loop().create_task(self._watch_health())

    async def close(self) -> None:
        """Cut everything."""
        if self._health is not None:
            await cancel_and_wait(self._health)
        await self.session.close()
        await self._link.close()

    def place(self, submission: Submission) -> None:
        """Send a prompt down. Only while connected."""
        stream = self.session.stream
        assert stream is not None, "only connected tiers are chosen, and nothing awaits in between"
        self.num_open += 1
        submission.place(stream)
        self.outcomes.on_submit(submission.choices[0].handle)

    def on_ready(self, stream: SessionStream[Choice]) -> None:
        """The session is open."""
        self._accepted = stream
        self.outcomes.on_stream()
        self.models = list(stream.hello.models)
        log.info("tokenizer tier %s is connected", self.target)
        self._changed()

    def on_frame(self, stream: SessionStream[Choice], frame: tokenizer_pb2.SessionResponse) -> None:
        """Hand each row to whom it is for, then the terminal events. A frame that makes no sense ends the session."""
        if frame.models:
            self.models = list(frame.models)
        handles, texts, counts = frame.handles, frame.texts, frame.num_tokens
        if not len(handles) == len(texts) == len(counts):
            raise Internal(f"{self.target} sent a frame whose columns differ in length", reason="BAD_FRAME")
        if counts:
            self._metrics.output_tokens.inc(sum(counts))
        extras = {message.handle: message for message in frame.extras}
        receivers = stream.receivers
        bursts = len(set(handles)) < len(handles)
        for handle, text, num_tokens in zip(handles, texts, counts, strict=True):
            choice = receivers.get(handle)
            if choice is None:
                continue
            if not extras or (extra := extras.get(handle)) is None:
                direct = choice.sink.burst if bursts else choice.sink.direct
                if direct is not None and text:
                    choice.num_tokens += num_tokens
                    direct(text, num_tokens)
                else:
                    choice.on_text(text, num_tokens, ())
            else:
                logprobs = logprobs_from_wire(extra.logprobs, extra.prompt_logprobs)
                parsed = parsed_from_wire(extra.reasoning, extra.tool_calls)
                choice.on_text(text, num_tokens, extra.token_ids, logprobs, parsed)
        if handles:
            self.outcomes.on_tokens(stream is self._accepted, handles)
        if frame.finishes:
            self._end(stream, frame.finishes)

    def on_lost(self, stream: SessionStream[Choice], receivers: dict[int, Choice], error: TokenwireError) -> None:
        """The session broke: each request goes on elsewhere or ends."""
        quiet = error.reason == "SESSION_CLOSED" or (stream.draining and not receivers)
        level = logging.DEBUG if quiet else logging.WARNING
        log.log(level, "tokenizer tier %s is lost: %s", self.target, error)
        self._changed()
        if not stream.draining:
            self.outcomes.on_lost(stream is self._accepted, receivers, error)
        for submission in {choice.submission: None for choice in receivers.values()}:
            self._owner.on_lost(submission, error)

    def _end(self, stream: SessionStream[Choice], finishes: Sequence[common_pb2.Finish]) -> None:
        """Hand out terminal events. How they ended is told first: some begin again elsewhere at once."""
        receivers = stream.receivers
        ended = [(finish.handle, terminal_from_wire(finish)) for finish in finishes if finish.handle in receivers]
        self.outcomes.on_finishes(stream is self._accepted, ended)
        for handle, terminal in ended:
            choice = receivers.pop(handle, None)  # gone, where another choice of its submission moved on
            if choice is None:
                continue
            if terminal.error is not None:
                with_retry_time(terminal.error)
                if self._owner.goes_on(choice.submission, terminal.error):
                    continue
            choice.on_finish(terminal)

    async def _watch_health(self) -> None:
        """Follow its health. Where the connection is to be left, it is asked again on a new one."""
        while True:
            following = asyncio.ensure_future(self._follow_health())
            leaving = asyncio.ensure_future(self._link.told_to_move())
            try:
                await asyncio.wait({following, leaving}, return_when=asyncio.FIRST_COMPLETED)
                lost = following.done()
            finally:
                await cancel_and_wait(following, leaving)
            if lost:
                self._set_serving(False)
                await asyncio.sleep(HEALTH_RETRY_S)

    async def _follow_health(self) -> None:
        """What it says until the stream ends."""
        stub = health_pb2_grpc.HealthStub(self._link.channel)
        try:
            async for response in stub.Watch(health_pb2.HealthCheckRequest()):
                self._set_serving(response.status == health_pb2.HealthCheckResponse.SERVING)
        except grpc.RpcError as error:
            log.debug("health of %s: %s", self.target, from_rpc_error(error))

    def _set_serving(self, serving: bool) -> None:
        if serving != self.serving:
            self.serving = serving
            self._changed()
