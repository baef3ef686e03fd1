"""Every prompt and call on its way through the tokenizer tiers, and what becomes of it when its tier fails.

What fails before any of its text came goes to another tier, once, within a budget that all share; what a tier that
stops sends elsewhere goes on whatever the budget. Does not know which tiers there are.
"""

import asyncio
import functools
import hashlib
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

import grpc

from gateway.backend import RETRY_AFTER_S, Backend, with_retry_time
from gateway.estimates import estimate_of
from gateway.identity.identity import identity_of_call
from gateway.limits.limiter import FREE, Estimate, Lease, Limiter
from gateway.metrics import GatewayMetrics
from gateway.room import Room
from gateway.settings import GatewaySettings
from gateway.submission import Sink, Submission
from gateway.text_requests import TextRequest
from gateway.tokenizer_tiers import TokenizerTiers
from tokenwire.errors import MessageTooLarge, TokenwireError, Unavailable
from tokenwire.requests import MAX_REQUEST_ID_CHARS, RequestContext
from tokenwire.routing.discovery import Resolve, resolve_all
from tokenwire.routing.outcomes import GOODBYES
from tokenwire.routing.retry_budget import RetryBudget
from tokenwire.status import from_rpc_error
from tokenwire.v1 import common_pb2, tokenizer_pb2
from tokenwire.version import __version__

MAX_TRIES = 2


def _nothing(submission: Submission) -> None:
    """Where nobody wants to know."""


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


class Backends:
    """All tokenizer tiers, and every prompt on its way through them."""

    def __init__(
        self,
        settings: GatewaySettings,
        metrics: GatewayMetrics,
        limiter: Limiter | None = None,
        *,
        resolve: Resolve = resolve_all,
    ) -> None:
        """`limiter`: holds tenants to their limits; None: there are none. `resolve`: how names become addresses."""
        self.changed = asyncio.Event()
        """Set when a tier came, went, or changed its mind about serving."""
        self.idle = asyncio.Event()
        """Set when the last prompt ended."""
        self.room = Room(settings.max_concurrent_requests)
        self._max_message_bytes = settings.max_message_bytes
        self._limiter = limiter
        self._metrics = metrics
        self._below = TokenizerTiers(settings, metrics, self, self.changed.set, resolve=resolve)
        self._budget = RetryBudget(settings.retry_budget)
        self.on_ended: Callable[[Submission], None] = _nothing
        """Told of every prompt that has ended, however."""
        self._open: dict[Submission, list[Backend]] = {}
        """Where each was sent, the last one being where it is."""
        self._request_ids: set[str] = set()
        self._closing: TokenwireError | None = None

    @property
    def ready(self) -> bool:
        """Whether a tokenizer tier with a model behind it can be reached."""
        return self._closing is None and self._below.ready

    @property
    def tiers(self) -> Sequence[Backend]:
        """The tokenizer tiers that are listed now."""
        return self._below.serving

    @property
    def num_open(self) -> int:
        """Prompts being answered."""
        return len(self._open)

    @property
    def submissions(self) -> Collection[Submission]:
        """Those prompts, the oldest first."""
        return self._open.keys()

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
        meant = card.fingerprint
        return _fingerprint(card.name, card.max_context_tokens, meant.vocabulary, meant.chat_template)

    def models(self) -> list[common_pb2.ModelCard]:
        """What the tiers said last that they serve, as far as the caller may use it."""
        return visible(self._below.cards().values())

    def _refuse_model(self, name: str, adapter: str = "") -> None:
        """Raise NotFound for a model that the caller may not use."""
        who = identity_of_call()
        if who.models is not None:
            who.refuse_model(name, adapter, self._below.cards())

    def _refuse_size(self, num_bytes: int) -> None:
        """Raise MessageTooLarge for what a tokenizer tier might not take: that would end the session of all callers."""
        if num_bytes > self._max_message_bytes:
            message = (
                f"the prompt with its options takes {num_bytes} bytes on its way: at most {self._max_message_bytes}"
            )
            raise MessageTooLarge(message)

    @property
    def max_open(self) -> int:
        """Most outputs that one client may have open and none is refused for want of room, while it is the only one."""
        below = self._below.max_open
        return self.room.max_outputs if below is None else min(below, self.room.max_outputs)

    def missing(self) -> str:
        """What keeps the gateway from answering, for people; empty when nothing does."""
        return str(self._closing) if self._closing is not None else self._below.missing()

    def show_tiers(self) -> None:
        """Tell the metrics how the tiers are."""
        self._below.show_states()

    def start(self) -> None:
        """Begin connecting to all."""
        self._below.start()

    async def close(self) -> None:
        """Cut everything; what is open ends with an error."""
        self.end_all(with_retry_time(Unavailable("the gateway is shutting down", reason="SHUTTING_DOWN")))
        await self._below.close()

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

    def require_tier(self, model: str, adapter: str = "") -> Backend:
        """The tier that takes the next request for this model. Raises NotFound for the caller's, and Unavailable."""
        if self._closing is not None:
            raise self._closing
        self._refuse_model(model, adapter)
        return self._below.choose()

    def require(self, requests: Sequence[TextRequest], num_choices: int, priority: int) -> Backend:
        """See that prompts of equal options can be sent down; what makes way for them ends, and nothing in vain.

        Returns the tier that takes the next. Raises as `submit`; of several, the size of each is its own matter.
        """
        if len(requests) == 1:
            self._refuse_size(requests[0].ByteSize())
        backend = self.require_tier(requests[0].model, requests[0].options.adapter)
        self.room.require(len(requests), num_choices, priority)
        return backend

    def submit(
        self,
        request: TextRequest,
        context: RequestContext,
        sinks: Sequence[Sink],
        give_up_s: float | None = None,
        lease: Lease | None = None,
        backend: Backend | None = None,
    ) -> Submission:
        """Send a prompt down; one sink per choice. Fills in the request's context.

        `give_up_s`: when, on the monotonic clock, the choices end here if no tier below has ended them.
        `lease`: what was charged for it; None: it is charged here. `backend`: what `require` has just returned for it
        alone; None: it is asked here.
        Raises InvalidRequest, NotFound, Overloaded and Unavailable.
        """
        lease = lease or self.charge(context.tenant, [request], len(sinks))[0]
        try:
            backend = backend or self.require([request], len(sinks), context.priority)
        except TokenwireError:
            lease.give_back()
            raise
        context = self._with_unique_id(context)
        submission = Submission(request, context, sinks, self._closed, give_up_s, lease)
        self._request_ids.add(context.request_id)
        self.room.enter(submission)
        self._metrics.open_streams.inc()
        self._open[submission] = [backend]
        backend.place(submission)
        return submission

    async def call(self, method: str, request: Any, *, timeout_s: float | None, request_id: str) -> Any:
        """A unary call to a tier, raw; tried on another one when the first is lost. Raises its error, and NotFound."""
        if not isinstance(request, tokenizer_pb2.ListModelsRequest):
            self._refuse_model(request.model)
        backend, tried = self._below.choose(), list[Backend]()
        while True:
            tried.append(backend)
            end = backend.outcomes.on_call()
            backend.num_open += 1
            try:
                metadata = (("x-request-id", request_id),)
                response = await getattr(backend.stub, method)(request, timeout=timeout_s, metadata=metadata)
            except grpc.aio.AioRpcError as rpc_error:
                error = with_retry_time(from_rpc_error(rpc_error))
                end(error)
                other = self._another(tried, error)
                if other is None:
                    raise error from None
                backend = other
                continue
            finally:
                tried[-1].num_open -= 1
            end(None)
            self._budget.on_success()
            if isinstance(response, tokenizer_pb2.ListModelsResponse):
                return tokenizer_pb2.ListModelsResponse(models=visible(response.models))
            return response

    async def stream(
        self, method: str, request: Any, *, timeout_s: float | None, request_id: str
    ) -> AsyncGenerator[Any]:
        """The answers of a streaming call to a tier, raw. Not tried again. Close it. Raises its error, and NotFound."""
        self._refuse_model(getattr(request, "model", ""))
        backend = self._below.choose()
        call = getattr(backend.stub, method)(request, timeout=timeout_s, metadata=(("x-request-id", request_id),))
        backend.num_open += 1
        try:
            async for response in call:
                yield response
        except grpc.aio.AioRpcError as rpc_error:
            raise with_retry_time(from_rpc_error(rpc_error)) from None
        finally:
            backend.num_open -= 1
            call.cancel()

    async def list_models(self, *, timeout_s: float | None, request_id: str) -> list[common_pb2.ModelCard]:
        """What can be asked for now."""
        request = tokenizer_pb2.ListModelsRequest()
        response = await self.call("ListModels", request, timeout_s=timeout_s, request_id=request_id)
        return list(response.models)

    def on_lost(self, submission: Submission, error: TokenwireError) -> None:
        """Its session broke: it goes on elsewhere or ends."""
        if not self.goes_on(submission, error):
            target = self._open[submission][-1].target
            lost = f"the tokenizer tier at {target} was lost: {error}"
            submission.fail(Unavailable(lost, reason="TOKENIZER_TIER_LOST", retry_after_s=RETRY_AFTER_S))

    def goes_on(self, submission: Submission, error: TokenwireError) -> bool:
        """One of its choices got this error. Returns whether all of it begins again at another tier."""
        if submission.started or submission.cancelled:
            return False
        tried = self._open[submission]
        other = self._another(tried, error)
        if other is None:
            return False
        submission.leave()
        tried[-1].num_open -= 1
        tried.append(other)
        other.place(submission)
        return True

    def _another(self, tried: Sequence[Backend], error: TokenwireError) -> Backend | None:
        """Where what got this error is to be tried again, which is then counted; None: it is not."""
        if self._closing is not None or not isinstance(error, Unavailable):
            return None
        if len(tried) >= MAX_TRIES and error.reason not in GOODBYES:
            return None
        try:
            other = self._below.choose(tried)
        except Unavailable:
            return None
        if not self._budget.take(error):
            return None
        self._metrics.retries.inc()
        return other

    def _closed(self, submission: Submission) -> None:
        self._open.pop(submission)[-1].num_open -= 1
        if submission.ended_well:
            self._budget.on_success()
        self.room.leave(submission)
        self.on_ended(submission)
        self._request_ids.discard(submission.context.request_id)
        self._metrics.open_streams.dec()
        if not self._open:
            self.idle.set()

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


@functools.lru_cache(maxsize=64)
def _fingerprint(*said: str | int) -> str:
    digest = hashlib.sha256("\0".join(map(str, (__version__, *said))).encode())
    return f"fp_{digest.hexdigest()[:12]}"
