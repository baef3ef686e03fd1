"""What the scripted server's words mean, and what a script may ask for besides. Does not know the wire."""

from dataclasses import dataclass, field

from tokenwire.errors import FieldViolation, InvalidRequest, Overloaded, TokenwireError, Unavailable
from tokenwire.requests import MAX_CHOICES, FinishReason, Terminal, Usage
from tokenwire.v1 import common_pb2 as pb

RETRY_AFTER_S = 1.5
FIELD = "options.sampling.temperature"
CHOICES_FIELD = "options.num_choices"

ENDS = {
    "slow": Terminal(FinishReason.DEADLINE, Usage(2, 0, 1)),
    "lost": Terminal(FinishReason.ERROR, error=Unavailable("the model tier was lost", reason="MODEL_TIER_LOST")),
}
"""How a text ends after its first word."""

WRONG_ROWS: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "mute": ((), ()),
    "overrun": (("overrun",), (100,)),
    "crooked": (("crooked", "frame"), (1,)),
}
"""Texts and num_tokens of one frame for the handle, after which nothing more comes: what a right server never does."""


@dataclass
class Script:
    """How a session behaves in one case."""

    max_requests: int = 0
    """What hello says."""
    num_waves: int = 0
    """Begins to answer only when no more Submits come, so many times; see `Waves`."""
    greets: bool = True
    """Says Hello."""
    drains: bool = False
    """Sends Drain after the text of a `hold`, which goes on once another stream has a Submit."""
    breaks: bool = False
    """Ends the call with UNAVAILABLE after the text of a `hold`."""
    future: bool = False
    """Sends what later contracts might hold: unknown fields, an unknown reason; and frames with nothing new."""
    most_ungranted: int = field(default=0)
    """Most tokens that a client may have granted and not been sent; 0: not looked at."""


def refusal_of(order: str) -> TokenwireError | None:
    """With what a prompt is refused that begins with this word."""
    if order == "refuse":
        said = "-1 is not allowed: a finite number of 0 or more"
        return InvalidRequest(f"{FIELD}: {said}", violations=[FieldViolation(FIELD, said)])
    if order == "overload":
        return Overloaded("the queue is full", reason="QUEUE_FULL", retry_after_s=RETRY_AFTER_S)
    if not order:
        return InvalidRequest("the prompt is empty", violations=[FieldViolation("text", "empty")])
    return None


def num_sequences(options: pb.GenerationOptions) -> int:
    """How many handles a Submit has."""
    return options.num_choices if 1 <= options.num_choices <= MAX_CHOICES else 1


def refusal_of_choices(options: pb.GenerationOptions) -> TokenwireError | None:
    """With what a request is refused that asks for too many."""
    if options.num_choices <= MAX_CHOICES:
        return None
    said = f"{options.num_choices} is not allowed: an integer from 1 to {MAX_CHOICES}"
    return InvalidRequest(f"{CHOICES_FIELD}: {said}", violations=[FieldViolation(CHOICES_FIELD, said)])


def whole_end(words: list[str], options: pb.GenerationOptions) -> tuple[list[str], Terminal]:
    """The words that are sent of these, and how the text ends then."""
    limit = options.stop.max_tokens if options.stop.HasField("max_tokens") else len(words) + 1
    sent = words[:limit]
    reason = FinishReason.LENGTH if limit <= len(words) else FinishReason.STOP_TOKEN
    stop_token = 0 if reason is FinishReason.STOP_TOKEN else None
    return sent, Terminal(reason, Usage(len(words), 0, len(sent)), stop_token_id=stop_token)
