"""The tokenizer tiers below: which of them takes the next request, and what becomes of it when its tier is lost.

All requests of this gateway share one session per tier. A request whose tier is lost before any of its text came goes
to another one, once. Does not know who asked.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace
from typing import Any

import grpc

from gateway.backend import RETRY_AFTER_S, Backend, with_retry_time
from gateway.identity.identity import identity_of_call
from gateway.limits.limiter import FREE, Estimate, Lease, Limiter
from gateway.metrics import GatewayMetrics
from gateway.room import Room
from gateway.settings import GatewaySettings
from gateway.submission import Sink, Submission
from gateway.text_requests import TextRequest
from tokenwire.errors import TokenwireError, Unavailable
from tokenwire.requests import MAX_REQUEST_ID_CHARS, RequestContext
from tokenwire.status import from_rpc_error
from tokenwire.v1 import common_pb2, tokenizer_pb2
from tokenwire.version import __version__

MAX_TRIES = 2
BYTES_PER_TOKEN = 4
USUAL_OUTPUT_TOKENS = 256
"""What a request that does not say is expected to generate, until it has."""


def visible(cards: Iterable[common_pb2.ModelCard]) -> list[common_pb2.ModelCard]:
    """Those that the caller may use, without the adapters that they may not. The cards themselves are left alone."""
    who = identity_of_call()
    if who.models is None:
        return list(cards)
    shown: list[common_pb2.ModelCard] = []
    for card in cards:
        adapters = list(filter(who.may_use, card.adapters))
        if adapters or who.may_use(card.name):
            shown.append(common_pb2.ModelCard())
            shown[-1].CopyFrom(card)
            shown[-1].adapters[:] = adapters
    return shown


def estimate_of(request: TextRequest, num_choices: int) -> Estimate:
    """What a request is expected to use, from its size; a token is taken for four bytes."""
    if request.WhichOneof("input") == "token_ids":
        prompt_tokens = len(request.token_ids.ids)
    else:
        prompt_tokens = -(-request.ByteSize() // BYTES_PER_TOKEN)
    stop = request.options.stop
    output_tokens = stop.max_tokens if stop.HasField("max_tokens") else USUAL_OUTPUT_TOKENS
    return Estimate(prompt_tokens, output_tokens * num_choices)


class Backends:
    """All tokenizer tiers, and every prompt on its way through them."""

    def __init__(self, settings: GatewaySettings, metrics: GatewayMetrics, limiter: Limiter | None = None) -> None:
        """`limiter`: holds tenants to their limits; None: there are none."""
        self.changed = asyncio.Event()
        """Set when a tier came, went, or changed its mind about serving, and when the last prompt ended."""
        self.room = Room(settings.max_concurrent_requests)
        self._limiter = limiter
        self._metrics = metrics
        targets = settings.tokenizer_targets.split(",") * settings.sessions_per_target
        self.tiers = [
            Backend(target, metrics, self._lost, self.changed.set, settings.upstream_tls) for target in targets
        ]
        self._open: dict[Submission, Backend] = {}
        self._request_ids: set[str] = set()
        self._closing: TokenwireError | None = None

    @property
    def ready(self) -> bool:
        """Whether a tokenizer tier with a model behind it can be reached."""
        return self._closing is None and any(backend.ready for backend in self.tiers)

    @property
    def num_open(self) -> int:
        """Prompts being answered."""
        return len(self._open)

    @property
    def default_model(self) -> str:
        """What a request that names no model gets; empty when that is not clear here."""
        names = [card.name for card in self.models()]
        return names[0] if len(names) == 1 else ""

    def system_fingerprint(self, model: str) -> str | None:
        """Changes with the gateway's release and what a model's card says of it; None where no card has that name."""
        cards = self.models()
        card = next((card for card in cards if card.name == model or (not model and len(cards) == 1)), None)
        if card is None:
            return None
        said = f"{__version__}\0{card.name}\0{card.max_context_tokens}\0".encode()
        said += card.fingerprint.SerializeToString(deterministic=True)
        return f"fp_{hashlib.sha256(said).hexdigest()[:12]}"

    def models(self) -> list[common_pb2.ModelCard]:
        """What the tiers said last that they serve, as far as the caller may use it."""
        return visible(self._served().values())

    def _served(self) -> dict[str, common_pb2.ModelCard]:
        return {card.name: card for backend in self.tiers if backend.session.stream for card in backend.models}

    def _refuse_model(self, name: str, adapter: str = "") -> None:
        """Raise NotFound for a model that the caller may not use."""
        who = identity_of_call()
        if who.models is not None:
            who.refuse_model(name, adapter, self._served())

    def missing(self) -> str:
        """What keeps the gateway from answering, for people; empty when nothing does."""
        if self._closing is not None:
            return str(self._closing)
        if self.ready:
            return ""
        said = [
            f"{b.target}: connected, but no model is ready behind it" if b.session.stream else
            f"{b.target}: {b.session.last_error}"
            for b in self.tiers
        ]  # fmt: skip
        return "no tokenizer tier can answer (" + "; ".join(dict.fromkeys(said)) + ")"

    def start(self) -> None:
        """Begin connecting to all."""
        for backend in self.tiers:
            backend.start()

    async def close(self) -> None:
        """Cut everything; what is open ends with an error."""
        self.end_all(with_retry_time(Unavailable("the gateway is shutting down", reason="SHUTTING_DOWN")))
        await asyncio.gather(*(backend.close() for backend in self.tiers))

    def end_all(self, error: TokenwireError) -> None:
        """End every open prompt with this error and refuse new ones."""
        self._closing = error
        for submission in list(self._open):
            submission.fail(error)

    def charge(self, tenant: str, requests: Sequence[TextRequest], num_choices: int) -> list[Lease]:
        """Charge a tenant for prompts that begin together, all or none; one lease for each. Raises Overloaded."""
        if self._limiter is None:
            return [FREE] * len(requests)
        return self._limiter.admit(tenant, [estimate_of(request, num_choices) for request in requests], num_choices)

    def charge_call(self, tenant: str, num_tokens: int = 0) -> Lease:
        """Charge a tenant for a call that generates nothing. Raises Overloaded."""
        if self._limiter is None:
            return FREE
        return self._limiter.admit(tenant, [Estimate(num_tokens)])[0]

    def submit(
        self,
        request: TextRequest,
        context: RequestContext,
        sinks: Sequence[Sink],
        give_up_s: float | None = None,
        lease: Lease | None = None,
    ) -> Submission:
        """Send a prompt down; one sink per choice. Fills in the request's context.

        `give_up_s`: when, on the monotonic clock, the choices end here if no tier below has ended them.
        `lease`: what was charged for it; None: it is charged here.
        Raises InvalidRequest, NotFound, Overloaded and Unavailable.
        """
        lease = lease or self.charge(context.tenant, [request], len(sinks))[0]
        try:
            if self._closing is not None:
                raise self._closing
            self._refuse_model(request.model, request.options.adapter)
            self.room.require(1, len(sinks), context.priority)
            backend = self._choose()
        except TokenwireError:
            lease.give_back()
            raise
        context = self._with_unique_id(context)
        submission = Submission(request, context, sinks, self._closed, give_up_s, lease)
        self._request_ids.add(context.request_id)
        self.room.enter(submission)
        self._metrics.open_streams.inc()
        self._place(submission, backend)
        return submission

    async def call(self, method: str, request: Any, *, timeout_s: float | None, request_id: str) -> Any:
        """A unary call to a tier, raw; tried on another one when the first is lost. Raises its error, and NotFound."""
        if not isinstance(request, tokenizer_pb2.ListModelsRequest):
            self._refuse_model(request.model)
        tried: list[Backend] = []
        while True:
            backend = self._choose(tried)
            tried.append(backend)
            try:
                metadata = (("x-request-id", request_id),)
                response = await getattr(backend.stub, method)(request, timeout=timeout_s, metadata=metadata)
                if isinstance(response, tokenizer_pb2.ListModelsResponse):
                    return tokenizer_pb2.ListModelsResponse(models=visible(response.models))
                return response
            except grpc.aio.AioRpcError as rpc_error:
                error = with_retry_time(from_rpc_error(rpc_error))
                if not isinstance(error, Unavailable) or len(tried) >= min(MAX_TRIES, len(self.tiers)):
                    raise error from None

    async def stream(
        self, method: str, request: Any, *, timeout_s: float | None, request_id: str
    ) -> AsyncIterator[Any]:
        """The answers of a streaming call to a tier, raw. Not tried again. Raises its error, and NotFound."""
        self._refuse_model(getattr(request, "model", ""))
        backend = self._choose()
        call = getattr(backend.stub, method)(request, timeout=timeout_s, metadata=(("x-request-id", request_id),))
        try:
            async for response in call:
                yield response
        except grpc.aio.AioRpcError as rpc_error:
            raise with_retry_time(from_rpc_error(rpc_error)) from None
        finally:
            call.cancel()

    async def list_models(self, *, timeout_s: float | None, request_id: str) -> list[common_pb2.ModelCard]:
        """What can be asked for now."""
        request = tokenizer_pb2.ListModelsRequest()
        response = await self.call("ListModels", request, timeout_s=timeout_s, request_id=request_id)
        return list(response.models)

    def _choose(self, avoid: Sequence[Backend] = ()) -> Backend:
        """The ready tier with the fewest prompts, else one that is connected. Raises Unavailable.

        Several sessions may lead to one process, which its epoch shows: the first of them is used, so that what goes to
        one process at a time goes in one frame.
        """
        connected = [b for b in self.tiers if b.session.stream is not None and b not in avoid]
        ready = [b for b in connected if b.serving]
        if not connected:
            raise Unavailable(
                self.missing() or "the other tokenizer tiers are down",
                reason="TOKENIZER_TIER_DOWN",
                retry_after_s=RETRY_AFTER_S,
            )
        candidates = ready or connected
        if len(candidates) == 1:
            return candidates[0]
        loads = Counter[tuple[str, int]]()
        for backend in candidates:
            loads[backend.process] += backend.num_open
        return min(candidates, key=lambda backend: loads[backend.process])

    def _place(self, submission: Submission, backend: Backend) -> None:
        stream = backend.session.stream
        assert stream is not None, "_choose returns connected tiers, and nothing awaits in between"
        backend.num_open += 1
        self._open[submission] = backend
        submission.place(stream)

    def _lost(self, submission: Submission, error: TokenwireError) -> None:
        backend = self._open[submission]
        if not submission.started and submission.num_tries < MAX_TRIES and self._closing is None:
            try:
                other = self._choose([backend])
            except Unavailable:
                other = None
            if other is not None:
                backend.num_open -= 1
                self._place(submission, other)
                return
        lost = f"the tokenizer tier at {backend.target} was lost: {error}"
        submission.fail(Unavailable(lost, reason="TOKENIZER_TIER_LOST", retry_after_s=RETRY_AFTER_S))

    def _closed(self, submission: Submission) -> None:
        self._open.pop(submission).num_open -= 1
        self.room.leave(submission)
        self._request_ids.discard(submission.context.request_id)
        self._metrics.open_streams.dec()
        if not self._open:
            self.changed.set()

    def _with_unique_id(self, context: RequestContext) -> RequestContext:
        """All callers share the sessions below, where a request id may run once: a second one gets `~2`, and so on."""
        request_id, number = context.request_id, 1
        if request_id not in self._request_ids:
            return context
        while request_id in self._request_ids:
            number += 1
            suffix = f"~{number}"
            request_id = context.request_id[: MAX_REQUEST_ID_CHARS - len(suffix)] + suffix
        return replace(context, request_id=request_id)
