"""What a client wants, and what can be refused before any work. Plain values; does not know the wire."""

from dataclasses import dataclass

from tokenizer_svc.chat_template import Conversation
from tokenizer_svc.tier import Tier
from tokenwire.errors import FailedPrecondition, FieldViolation, InvalidRequest
from tokenwire.requests import GenerationOptions, RequestContext


@dataclass(frozen=True, slots=True)
class TextRequest:
    """One request, with one or more choices."""

    context: RequestContext
    model: str
    input: str | tuple[int, ...] | Conversation
    """A text, token ids used as they are, or a conversation."""
    options: GenerationOptions
    truncate: bool = False
    cache_salt: str = ""
    vocabulary: str = ""
    """Fingerprint of what the client means by token ids; empty: not checked."""


def check_request(request: TextRequest, tier: Tier) -> None:
    """Raise NotFound, FailedPrecondition, InvalidRequest, or Unavailable when no model tier is there."""
    tier.check_model(request.model)
    ours = tier.tokenizer.fingerprint
    if request.vocabulary and request.vocabulary != ours:
        raise FailedPrecondition(
            f"fingerprint.vocabulary: {request.vocabulary!r} is not this model's ({ours!r}): "
            "fetch the tokenizer that is served",
            reason="VOCABULARY_MISMATCH",
        )
    if request.input == "":
        violation = FieldViolation("text", "is empty: at least one character is needed")
        raise InvalidRequest(f"{violation.field}: {violation.description}", violations=[violation])
    replica = tier.router.pick()
    if isinstance(request.input, tuple):
        tier.tokenizer.check_ids(request.input, "token_ids.ids", replica.vocab_size or None)
