"""What a client wants, and the first steps towards it: checks, the prompt's token ids, the start of a choice's text.

Plain values; knows neither the wire nor what becomes of the request.
"""

from dataclasses import dataclass, replace

from tokenizer_svc.chat_template import Conversation
from tokenizer_svc.detokenizer import Detokenizer
from tokenizer_svc.encoder import EncodedPrompt
from tokenizer_svc.generation import ChoiceText
from tokenizer_svc.logprob_texts import LogprobTexts
from tokenizer_svc.prompt import Truncation
from tokenizer_svc.prompt_encoder import CacheOutcome
from tokenizer_svc.stop_strings import StopStringMatcher
from tokenizer_svc.tier import Tier
from tokenwire.block_hash import TENANT_SCHEME, cache_root
from tokenwire.constraints import Constraint, ConstraintForm
from tokenwire.embeddings import generates_nothing
from tokenwire.errors import FailedPrecondition, FieldViolation, InvalidRequest
from tokenwire.requests import GenerationOptions, RequestContext
from tokenwire.sampling import refuse


@dataclass(frozen=True, slots=True)
class TextRequest:
    """One request, with one or more choices."""

    context: RequestContext
    model: str
    input: str | tuple[int, ...] | Conversation
    """A text, token ids used as they are, or a conversation."""
    options: GenerationOptions
    truncation: Truncation | None = None
    """How a prompt that is too long is cut; None: it is refused."""
    split_special_tokens: bool = False
    """What stands for special tokens in the input's text is plain text."""
    cache_salt: str = ""
    vocabulary: str = ""
    """Fingerprint of what the client means by token ids; empty: not checked."""


def with_adapter(request: TextRequest, tier: Tier) -> TextRequest:
    """The request with the adapter that it asks for as its model among its options. Raises NotFound, InvalidRequest."""
    adapter = tier.adapter_of(request.model, request.options.adapter)
    if adapter == request.options.adapter:
        return request
    return replace(request, options=replace(request.options, adapter=adapter))


def check_request(request: TextRequest, tier: Tier) -> None:
    """Raise NotFound, FailedPrecondition, InvalidRequest, or Unavailable when no model tier is there."""
    tier.check_model(request.model)
    ours = tier.tokenizer.fingerprint
    if request.vocabulary and request.vocabulary != ours:
        raise FailedPrecondition(
            f"fingerprint.vocabulary: {request.vocabulary!r:.80} is not this model's ({ours!r}): "
            "fetch the tokenizer that is served",
            reason="VOCABULARY_MISMATCH",
        )
    if request.input == "":
        violation = FieldViolation("text", "is empty: at least one character is needed")
        raise InvalidRequest(f"{violation.field}: {violation.description}", violations=[violation])
    replica = tier.router.any_ready()
    if not replica.generates:
        raise generates_nothing(request.model or tier.model)
    if isinstance(request.input, Conversation):
        tier.answers.check(request.input)
    if isinstance(request.input, tuple):
        tier.tokenizer.check_ids(request.input, "token_ids.ids", replica.vocab_size or None)


def encoding_salt(request: TextRequest, tier: Tier) -> str:
    """Who shares encodings with this request: whoever shares a cache with it at every model tier."""
    if any(replica.cache.scheme == TENANT_SCHEME for replica in tier.router.ready_replicas()):
        return cache_root(request.context.tenant, request.cache_salt, TENANT_SCHEME)
    return request.cache_salt


async def encode_prompt(request: TextRequest, tier: Tier) -> EncodedPrompt:
    """Check the request and encode its prompt. Raises what `check_request` and `Encoder.encode` raise."""
    check_request(request, tier)
    if isinstance(request.input, tuple):
        return EncodedPrompt("", list(request.input))
    prompt = await tier.encoder.encode(
        request.input,
        split_special_tokens=request.split_special_tokens,
        salt=encoding_salt(request, tier),
        max_context_tokens=tier.longest_context_tokens if request.truncation is None else 0,
    )
    tier.metrics.encode.observe(prompt.encode_s)
    tier.metrics.queue.observe(prompt.queue_s)
    if prompt.cache_outcome is not None:
        tier.metrics.cache_prompts[prompt.cache_outcome].inc()
        tier.metrics.cache_saved_tokens.inc(prompt.num_cached)
        if prompt.cache_outcome is not CacheOutcome.HIT:
            tier.metrics.cache_bytes.set(tier.encoder.cache_bytes)
    return prompt


def constraint_of(request: TextRequest, tier: Tier, prompt: EncodedPrompt) -> Constraint | None:
    """What the output must look like: what the client says, or the call it asks for, behind the model's reasoning.

    Raises InvalidRequest where the client asks for both, or for a call that cannot be forced or of too many tools.
    """
    constraint = request.options.constraint
    calls = tier.answers.forced_calls(request.input)
    if calls is not None:
        if constraint is not None:
            field, description = "options.constraint", "is not allowed with a tool that must be called"
            raise InvalidRequest.of(field, description)
        refuse([FieldViolation("conversation.tools", each.description) for each in calls.violations("")])
        constraint = Constraint(ConstraintForm.CALLS, calls=calls)
    if constraint is None or constraint.before is not None:
        return constraint
    before = tier.answers.free_text(request.input, prompt.text)
    return constraint if before is None else replace(constraint, before=before)


def begin_text(request: TextRequest, tier: Tier, prompt: EncodedPrompt) -> ChoiceText:
    """The text of a choice before its first token."""
    options, tokenizer, prompt_ids = request.options, tier.tokenizer, prompt.token_ids
    skip, spaces = options.skip_special_tokens, options.spaces_between_special_tokens
    splitter = tier.answers.split(request.input, prompt.text, skip_special_tokens=skip)
    make = Detokenizer if splitter is None else tier.answers.detokenizer
    detokenizer = make(tokenizer, prompt_ids=prompt_ids, skip_special_tokens=skip, spaces_between_special_tokens=spaces)
    matcher = None
    if options.stop_strings:
        matcher = StopStringMatcher(options.stop_strings, include_stop_string=options.include_stop_string)
    logprob_texts = None
    if options.logprobs is not None or options.prompt_logprobs is not None:
        logprob_texts = LogprobTexts(tokenizer, prompt_ids, every_token=options.logprobs is not None)
    return ChoiceText(
        detokenizer,
        matcher,
        len(prompt_ids),
        min_tokens=options.stop.min_tokens,
        logprob_texts=logprob_texts,
        splitter=splitter,
    )
