"""Holds tenants to their limits: requests a second, tokens a minute, streams at once.

A bucket holds what a tenant may use at once: a second of requests, a minute of tokens. What is asked for is charged
when it begins, tokens by an estimate, and put right at its end by what was used; a tenant may then owe, and waits.
Something larger than its bucket begins when the bucket is full, so that nothing waits forever. Knows no protocols.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from gateway.limits.table import UsageTable
from tokenwire.errors import InvalidRequest, Overloaded
from tokenwire.identity_file import TenantLimits

STREAM_RETRY_S = 1.0
TOKENS_PERIOD_S = 60.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """Tokens that a prompt and its outputs are expected to be."""

    prompt_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Allowance:
    """One limit as it stands: what the bucket holds, what is left in it, when it is full again. In OpenAI's words."""

    limit: int
    remaining: int
    reset_s: float


@dataclass(slots=True)
class Standing:
    """How a call's tenant stands, for whoever answers the call. None: no such limit."""

    requests: Allowance | None = None
    tokens: Allowance | None = None


STANDING: ContextVar[Standing | None] = ContextVar("tokenwire_standing", default=None)
"""Filled when a call is charged, where whoever answers has put one."""


class Lease(Protocol):
    """What was charged for one prompt. Ends once, by either."""

    def settle(self, prompt_tokens: int | None, completion_tokens: int) -> None:
        """It has ended, and was so many tokens. None: the prompt's are not known, and stay as estimated."""

    def give_back(self) -> None:
        """It did not begin."""


class Free:
    """The lease of a tenant without limits."""

    def settle(self, prompt_tokens: int | None, completion_tokens: int) -> None:
        """As Lease says."""

    def give_back(self) -> None:
        """As Lease says."""


FREE: Lease = Free()


@dataclass(frozen=True, slots=True)
class _Bucket:
    """Something that comes back at a rate."""

    rate: float
    """Per second; 0: without limit."""
    capacity: float

    def used(self, paid_s: float, now_s: float) -> float:
        return max(0.0, paid_s - now_s) * self.rate

    def wait_s(self, paid_s: float, now_s: float, amount: float) -> float:
        """How long until so much may begin; 0: now."""
        if not self.rate:
            return 0.0
        over = self.used(paid_s, now_s) + min(amount, self.capacity) - self.capacity
        return max(0.0, over / self.rate) if over > 1e-9 * self.capacity else 0.0

    def charged(self, paid_s: float, now_s: float, amount: float) -> float:
        return max(paid_s, now_s) + amount / self.rate if self.rate else paid_s

    def allowance(self, paid_s: float, now_s: float) -> Allowance | None:
        if not self.rate:
            return None
        left = max(0.0, self.capacity - self.used(paid_s, now_s))
        return Allowance(int(self.capacity), int(left + 1e-6), max(0.0, paid_s - now_s))


class Limiter:
    """All tenants of this gateway."""

    def __init__(
        self,
        table: UsageTable,
        defaults: TenantLimits,
        overrides: Callable[[], Mapping[str, TenantLimits]],
        on_refused: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`overrides`: by tenant, what is not the default. `on_refused`: told which limit. `clock`: of all workers."""
        self._table = table
        self._defaults = defaults
        self._overrides = overrides
        self._on_refused = on_refused
        self._clock = clock

    def admit(self, tenant: str, estimates: Sequence[Estimate], num_streams: int = 1) -> list[Lease]:
        """Charge a tenant for prompts that begin together, all or none; a lease for each.

        `num_streams`: of each prompt. Raises Overloaded, and InvalidRequest for more streams than ever may be open.
        """
        requests, tokens, most_streams = self._limits_of(tenant)
        if not (requests.rate or tokens.rate or most_streams):
            return [FREE] * len(estimates)
        num_tokens = sum(each.prompt_tokens + each.output_tokens for each in estimates)
        streams = len(estimates) * num_streams
        if most_streams and streams > most_streams:
            field = "options.num_choices" if num_streams > 1 else "prompts"
            description = f"{streams} outputs in one call: the tenant may have {most_streams} at once"
            raise InvalidRequest.of(field, description)
        now_s = self._clock()
        table = self._table
        with table.locked():
            place = table.find(tenant, now_s)
            requests_s, tokens_s = table.paid_s(place)
            waits = requests.wait_s(requests_s, now_s, len(estimates)), tokens.wait_s(tokens_s, now_s, num_tokens)
            full = most_streams and table.num_open(place) + streams > most_streams
            if not (waits[0] or waits[1] or full):
                requests_s = requests.charged(requests_s, now_s, len(estimates))
                tokens_s = tokens.charged(tokens_s, now_s, num_tokens)
                table.set_paid_s(place, requests_s, tokens_s)
                table.add_open(place, streams)
        if (standing := STANDING.get()) is not None:
            standing.requests = requests.allowance(requests_s, now_s)
            standing.tokens = tokens.allowance(tokens_s, now_s)
        if waits[0]:
            raise self._refusal("requests_per_s", tenant, f"{requests.rate:g} requests a second", waits[0])
        if waits[1]:
            raise self._refusal("tokens_per_min", tenant, f"{tokens.capacity:g} tokens a minute", waits[1])
        if full:
            raise self._refusal("max_streams", tenant, f"{most_streams} streams at once", STREAM_RETRY_S)
        return [_Charged(self, tenant, place, num_streams, estimate) for estimate in estimates]

    def close(self) -> None:
        """Nothing is open any more."""
        self._table.close()

    def correct(self, tenant: str, place: int, num_streams: int, num_requests: int, num_tokens: int) -> None:
        """Count streams out, and charge what was used beyond the estimate; below 0: give back."""
        requests, tokens, _ = self._limits_of(tenant)
        table = self._table
        with table.locked():
            requests_s, tokens_s = table.paid_s(place)
            if requests.rate:
                requests_s += num_requests / requests.rate
            if tokens.rate:
                now_s = self._clock()
                tokens_s = tokens_s if num_tokens < 0 else max(tokens_s, now_s)
                tokens_s += num_tokens / tokens.rate
            table.set_paid_s(place, requests_s, tokens_s)
            table.add_open(place, -num_streams)

    def _limits_of(self, tenant: str) -> tuple[_Bucket, _Bucket, int]:
        own, usual = self._overrides().get(tenant), self._defaults
        rate, per_min, streams = usual.requests_per_s, usual.tokens_per_min, usual.max_streams
        if own is not None:
            rate = rate if own.requests_per_s is None else own.requests_per_s
            per_min = per_min if own.tokens_per_min is None else own.tokens_per_min
            streams = streams if own.max_streams is None else own.max_streams
        rate, per_min = rate or 0.0, per_min or 0.0
        return _Bucket(rate, max(1.0, rate)), _Bucket(per_min / TOKENS_PERIOD_S, max(1.0, per_min)), streams or 0

    def _refusal(self, limit: str, tenant: str, allowed: str, wait_s: float) -> Overloaded:
        self._on_refused(limit)
        whose = f"tenant {tenant!r:.80}" if tenant else "requests without a tenant"
        message = f"{whose} may use {allowed}, and has used them"
        return Overloaded(message, reason=f"TENANT_{limit.upper()}", retry_after_s=max(0.001, wait_s))


class _Charged:
    """A lease that counts."""

    __slots__ = ("_ended", "_estimate", "_limiter", "_num_streams", "_place", "_tenant")

    def __init__(self, limiter: Limiter, tenant: str, place: int, num_streams: int, estimate: Estimate) -> None:
        self._limiter = limiter
        self._tenant = tenant
        self._place = place
        self._num_streams = num_streams
        self._estimate = estimate
        self._ended = False

    def settle(self, prompt_tokens: int | None, completion_tokens: int) -> None:
        """As Lease says."""
        estimate = self._estimate
        known = estimate.prompt_tokens if prompt_tokens is None else prompt_tokens
        self._end(0, known + completion_tokens - estimate.prompt_tokens - estimate.output_tokens)

    def give_back(self) -> None:
        """As Lease says."""
        self._end(-1, -(self._estimate.prompt_tokens + self._estimate.output_tokens))

    def _end(self, num_requests: int, num_tokens: int) -> None:
        if not self._ended:
            self._ended = True
            self._limiter.correct(self._tenant, self._place, self._num_streams, num_requests, num_tokens)
