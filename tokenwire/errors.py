"""Every error a Tokenwire tier gives or a client catches.

    TokenwireError
    ├── InvalidRequest          bad input; `violations` name the fields
    │   └── MessageTooLarge     a body or message over its limit
    ├── NotFound                a model, adapter or resource that is not there
    ├── AlreadyExists           a request_id that is in use
    ├── FailedPrecondition      right request, wrong state (fingerprint mismatch, protocol version)
    ├── Unauthenticated         no identity
    ├── PermissionDenied        an identity that may not
    ├── Overloaded              refused for now; `retry_after_s` says when to try again
    ├── DeadlineExceeded        the time given ran out before the work could start
    ├── Cancelled               the caller took it back
    ├── Unavailable             a tier is not up, is draining, or was lost
    ├── Unsupported             understood, and not built
    └── Internal                ours; a bug

Each class has one row in the table: its gRPC code, its HTTP status, OpenAI's `type`, and whether it may be retried.
`reason` is the stable string that programs may compare (ErrorInfo.reason). Knows nothing of grpc: `tokenwire.status`
turns these into google.rpc.Status and back.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Self

from tokenwire.cutting import MAX_TOLD_BYTES, cut


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field that is wrong: its dotted path in the request, and the value and what is allowed."""

    field: str
    description: str


@dataclass(eq=False)
class TokenwireError(Exception):
    """Base of all. Raise a subclass."""

    message: str
    reason: str = field(default="", kw_only=True)
    violations: list[FieldViolation] = field(default_factory=list, kw_only=True)
    retry_after_s: float | None = field(default=None, kw_only=True)

    code: ClassVar[str] = "UNKNOWN"
    """Name of the gRPC status code."""
    http_status: ClassVar[int] = 500
    openai_type: ClassVar[str] = "api_error"
    default_reason: ClassVar[str] = "UNKNOWN"

    @classmethod
    def of(cls, field: str, description: str, *, reason: str = "") -> Self:
        """The refusal of one field."""
        return cls(f"{field}: {description}", reason=reason, violations=[FieldViolation(field, description)])

    def __post_init__(self) -> None:
        Exception.__init__(self, self.message)
        self.reason = self.reason or self.default_reason

    def __str__(self) -> str:
        return self.message

    @property
    def told(self) -> str:
        """The message as it goes to others: what they chose of it is not sent back at any length."""
        return cut(self.message)

    @property
    def noted(self) -> str:
        """The message as logs and traces keep it: of fields that are wrong the names, not what was written there."""
        if not self.violations:
            return self.told
        return f"{self.reason}: {', '.join(each.field for each in self.told_violations)}"

    @property
    def told_violations(self) -> list[FieldViolation]:
        """The violations as they go to others: the first, cut, and those behind it that there is room for."""
        room, told = MAX_TOLD_BYTES, list[FieldViolation]()
        for each in self.violations:
            shown = FieldViolation(cut(each.field, MAX_TOLD_BYTES // 4), cut(each.description, MAX_TOLD_BYTES // 2))
            room -= len(shown.field.encode(errors="replace")) + len(shown.description.encode(errors="replace"))
            if told and room < 0:
                break
            told.append(shown)
        return told

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross from the engine process to the gRPC process by pickle."""
        return _rebuild, (type(self), self.message, self.reason, self.violations, self.retry_after_s)


def _rebuild(
    cls: type[TokenwireError], message: str, reason: str, violations: list[FieldViolation], retry_after_s: float | None
) -> TokenwireError:
    return cls(message, reason=reason, violations=violations, retry_after_s=retry_after_s)


class InvalidRequest(TokenwireError):
    """Bad input; retrying it unchanged cannot help."""

    code, http_status, openai_type, default_reason = "INVALID_ARGUMENT", 400, "invalid_request_error", "INVALID_REQUEST"


class MessageTooLarge(InvalidRequest):
    """A body or message over its limit."""

    http_status, default_reason = 413, "MESSAGE_TOO_LARGE"


class NotFound(TokenwireError):
    """A model, adapter or resource that is not there."""

    code, http_status, openai_type, default_reason = "NOT_FOUND", 404, "invalid_request_error", "NOT_FOUND"


class AlreadyExists(TokenwireError):
    """A request_id that is in use on this session."""

    code, http_status, openai_type, default_reason = "ALREADY_EXISTS", 409, "invalid_request_error", "ALREADY_EXISTS"


class FailedPrecondition(TokenwireError):
    """The request is right, the state is not: another vocabulary, another protocol version."""

    code, http_status, openai_type = "FAILED_PRECONDITION", 412, "invalid_request_error"
    default_reason = "FAILED_PRECONDITION"


class Unauthenticated(TokenwireError):
    """No or a wrong identity."""

    code, http_status, openai_type, default_reason = "UNAUTHENTICATED", 401, "authentication_error", "UNAUTHENTICATED"


class PermissionDenied(TokenwireError):
    """A known identity that may not."""

    code, http_status, openai_type, default_reason = "PERMISSION_DENIED", 403, "permission_error", "PERMISSION_DENIED"


class Overloaded(TokenwireError):
    """A bounded queue is full; `retry_after_s` says when to come back."""

    code, http_status, openai_type, default_reason = "RESOURCE_EXHAUSTED", 429, "rate_limit_error", "OVERLOADED"


class DeadlineExceeded(TokenwireError):
    """The time given ran out before the work could start."""

    code, http_status, openai_type, default_reason = "DEADLINE_EXCEEDED", 504, "timeout_error", "DEADLINE_EXCEEDED"


class Cancelled(TokenwireError):
    """The caller took the request back."""

    code, http_status, openai_type, default_reason = "CANCELLED", 499, "invalid_request_error", "CANCELLED"


class Unavailable(TokenwireError):
    """A tier is not up, is draining, or was lost; another try may succeed."""

    code, http_status, openai_type, default_reason = "UNAVAILABLE", 503, "service_unavailable_error", "UNAVAILABLE"


class Unsupported(TokenwireError):
    """Understood, and not built: never accepted and ignored."""

    code, http_status, openai_type, default_reason = "UNIMPLEMENTED", 501, "invalid_request_error", "UNSUPPORTED"


class Internal(TokenwireError):
    """Ours; a bug. The message carries no traceback."""

    code, http_status, openai_type, default_reason = "INTERNAL", 500, "api_error", "INTERNAL"


def let_go(error: BaseException) -> None:
    """Take the tracebacks from an error and from those that it came of, so that it can be kept, or sent, by itself.

    Their frames hold what was asked, and often the error too: a circle, which only a look for garbage would find.
    """
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            each.__traceback__ = None
            waiting += (each.__context__, each.__cause__)


BY_CODE: dict[str, type[TokenwireError]] = {
    cls.code: cls
    for cls in (
        InvalidRequest, NotFound, AlreadyExists, FailedPrecondition, Unauthenticated, PermissionDenied, Overloaded,
        DeadlineExceeded, Cancelled, Unavailable, Unsupported, Internal,
    )
}  # fmt: skip
"""The class for each gRPC code; `TokenwireError` itself for the rest."""
