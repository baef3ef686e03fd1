"""What a request is and how it ends, as plain values: the words schedulers, routers and detokenizers speak.

Does not know the wire; `tokenwire.wire` turns these into messages and back.
"""

import random
import re
import time
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import lru_cache

from tokenwire.constraints import Constraint
from tokenwire.embeddings import Vector
from tokenwire.errors import FieldViolation, InvalidRequest, TokenwireError
from tokenwire.sampling import MAX_LOGPROBS, SamplingParams, StopParams, refuse

MAX_REQUEST_ID_CHARS = 128
MAX_PRIORITY = 100
MAX_TIMEOUT_S = 1e9
"""About thirty years: what every clock and transport on the way can count. A longer limit is none."""
MAX_NAME_BYTES = 256
"""Of a tenant and of a cache salt: the engine remembers them."""
MAX_MODEL_CHARS = 256
"""Of the name of a model or an adapter that is asked for, before it is looked up."""
ADAPTER_NAME_RULE = "1 to 128 ASCII letters, digits and . _ / : -, the first a letter or digit"
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_BYTES = 1024
MAX_CHOICES = 128
_IDS = random.Random()
"""Seeded by the kernel, once per process."""
NUM_REMEMBERED = 256
"""Options that are not looked at anew, of those seen last."""


class FinishReason(Enum):
    """Why a sequence ended; the names are those of the wire."""

    STOP_TOKEN = "stop_token"
    STOP_STRING = "stop_string"
    LENGTH = "length"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    ERROR = "error"


class CancelReason(Enum):
    """Why a request is taken back; the names are those of the wire."""

    CLIENT = "client"
    STOP_STRING = "stop_string"
    DEADLINE = "deadline"
    SHUTDOWN = "shutdown"


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one sequence."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    """Of the completion tokens, those of reasoning that is split from the text."""

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.completion_tokens + other.completion_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token with the natural logarithm of its probability, before temperature, penalties and filters."""

    token_id: int
    logprob: float
    top: tuple["TokenLogprob", ...] = ()
    """The likeliest tokens at this position, likeliest first; their own `top` is empty."""
    text: str = ""
    """The token's own text; empty between tiers."""
    text_offset: int = 0
    """Where in the whole text it begins, in Unicode characters."""


@dataclass(frozen=True, slots=True)
class ModelTimings:
    """Seconds in the model tier: waiting, up to the first token, from there to the last."""

    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TokenizerTimings:
    """Seconds in the tokenizer tier."""

    queue_s: float = 0.0
    tokenize_s: float = 0.0
    first_frame_s: float = 0.0
    total_s: float = 0.0


@dataclass(frozen=True, slots=True)
class GatewayTimings:
    """Seconds in the gateway."""

    first_text_s: float = 0.0
    total_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Terminal:
    """The one terminal event of a sequence."""

    reason: FinishReason
    usage: Usage = Usage()
    stop_token_id: int | None = None
    stop_string: str | None = None
    error: TokenwireError | None = None
    """Set if and only if reason is ERROR."""
    model_timings: ModelTimings | None = None
    tokenizer_timings: TokenizerTimings | None = None
    gateway_timings: GatewayTimings | None = None
    vector: Vector | None = None
    """Of a sequence that was embedded, and ends with LENGTH: nothing is generated after it. Never on a session."""


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Who asks, and until when they wait."""

    request_id: str
    priority: int = 0
    tenant: str = ""
    deadline_s: float | None = None
    """Monotonic clock of this machine; None: no limit."""
    traceparent: str = ""
    arrival_s: float = field(default_factory=time.monotonic)

    def remaining_s(self) -> float | None:
        """Seconds left, never below 0; None: no limit."""
        return None if self.deadline_s is None else max(0.0, self.deadline_s - time.monotonic())

    def violations(self, prefix: str = "context") -> list[FieldViolation]:
        """Everything wrong with these values, one entry per field."""
        found: list[FieldViolation] = []
        if len(self.request_id) > MAX_REQUEST_ID_CHARS or not (
            self.request_id.isascii() and self.request_id.isprintable()
        ):
            allowed = f"at most {MAX_REQUEST_ID_CHARS} printable ASCII characters"
            found.append(FieldViolation(f"{prefix}.request_id", f"{self.request_id[:200]!r} is not allowed: {allowed}"))
        if abs(self.priority) > MAX_PRIORITY:
            allowed = f"an integer from -{MAX_PRIORITY} to {MAX_PRIORITY}"
            found.append(FieldViolation(f"{prefix}.priority", f"{self.priority} is not allowed: {allowed}"))
        return found + name_violations(f"{prefix}.tenant", self.tenant)


def numbered(context: RequestContext, suffix: str) -> RequestContext:
    """The context of a part of a request, under an id of its own: the request's, and the suffix."""
    request_id = context.request_id[: MAX_REQUEST_ID_CHARS - len(suffix)] + suffix
    return replace(context, request_id=request_id)


def deadline_after(now_s: float, timeout_s: float | None) -> float | None:
    """When a time limit runs out; None: never, as for one that nobody lives to see."""
    return None if timeout_s is None or timeout_s > MAX_TIMEOUT_S else now_s + timeout_s


def name_violations(field: str, name: str) -> list[FieldViolation]:
    """What is wrong with a tenant or a cache salt."""
    if len(name.encode(errors="replace")) <= MAX_NAME_BYTES and "\0" not in name:
        return []
    allowed = f"at most {MAX_NAME_BYTES} bytes, none of them zero"
    return [FieldViolation(field, f"{name[:40]!r}… is not allowed: {allowed}")]


def refuse_model_name(name: str, field: str = "model") -> None:
    """Raise InvalidRequest for a name that no model has, before it is written down anywhere."""
    if len(name) > MAX_MODEL_CHARS:
        allowed = f"at most {MAX_MODEL_CHARS} characters"
        raise InvalidRequest.of(field, f"{name[:40]!r}… ({len(name)} characters) is not allowed: {allowed}")


def is_adapter_name(name: str) -> bool:
    """Whether an adapter may be called so."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/:-]{0,127}", name) is not None


def is_unicode(text: str) -> bool:
    """Whether the text can be sent: UTF-8 has no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def new_id(prefix: str, num_digits: int) -> str:
    """An id nobody else has: the prefix and so many hex digits. No secret: the kernel is not asked for each."""
    return f"{prefix}{_IDS.getrandbits(4 * num_digits):0{num_digits}x}"


def new_request_id() -> str:
    """A request id nobody else has: "req-" and 16 hex digits."""
    return new_id("req-", 16)


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """Everything about how to generate."""

    sampling: SamplingParams = SamplingParams()
    stop: StopParams = StopParams()
    stop_strings: tuple[str, ...] = ()
    include_stop_string: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    """Keep the spaces that the decoder puts between special tokens that follow each other."""
    return_token_ids: bool = False
    num_choices: int = 1
    logprobs: int | None = None
    """Log-probability of each sampled token, and of this many likeliest ones; None: none."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens but the first."""
    adapter: str = ""
    """Name of a loaded adapter; empty: none."""
    constraint: Constraint | None = None
    """What the output must look like; None: free text."""
    speculation: bool | None = None
    """Whether tokens may be drafted ahead, which changes none of them; None: as the server does by default."""

    @property
    def is_short(self) -> bool:
        """Whether it can be remembered: nothing in it is as long as a client likes."""
        return self.constraint is None and not self.stop_strings and self.sampling.num_named_ids == 0

    def refuse_violations(self) -> None:
        """Raise InvalidRequest naming everything wrong. Most requests have the options of one before them."""
        if self.is_short:
            _refuse_once(self)
        else:
            refuse(self.violations())

    def violations(self, prefix: str = "options") -> list[FieldViolation]:
        """Everything wrong with these values, one entry per field."""
        found = self.sampling.violations(f"{prefix}.sampling") + self.stop.violations(f"{prefix}.stop")
        if len(self.stop_strings) > MAX_STOP_STRINGS:
            description = f"{len(self.stop_strings)} strings are too many: at most {MAX_STOP_STRINGS}"
            found.append(FieldViolation(f"{prefix}.stop.stop_strings", description))
        for text in self.stop_strings[:MAX_STOP_STRINGS]:
            if not 1 <= len(text.encode(errors="replace")) <= MAX_STOP_STRING_BYTES or not is_unicode(text):
                allowed = f"1 to {MAX_STOP_STRING_BYTES} bytes of valid Unicode"
                found.append(FieldViolation(f"{prefix}.stop.stop_strings", f"{text[:80]!r} is not allowed: {allowed}"))
        if not 1 <= self.num_choices <= MAX_CHOICES:
            allowed = f"an integer from 1 to {MAX_CHOICES}"
            found.append(FieldViolation(f"{prefix}.num_choices", f"{self.num_choices} is not allowed: {allowed}"))
        if self.adapter and not is_adapter_name(self.adapter):
            description = f"{self.adapter[:80]!r} is not allowed: {ADAPTER_NAME_RULE}"
            found.append(FieldViolation(f"{prefix}.adapter", description))
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= MAX_LOGPROBS:
                allowed = f"an integer from 0 to {MAX_LOGPROBS}"
                found.append(FieldViolation(f"{prefix}.output.{name}", f"{value} is not allowed: {allowed}"))
        if self.constraint is not None:
            found += self.constraint.violations(f"{prefix}.constraint")
        return found


@lru_cache(NUM_REMEMBERED)
def _refuse_once(options: GenerationOptions) -> None:
    """Of equal options, what raises is looked at each time and what does not, once."""
    refuse(options.violations())
