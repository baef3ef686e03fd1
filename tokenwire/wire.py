"""Messages ↔ plain values, for what all tiers share. What is not built is refused here, by name, never ignored."""

import time
from collections.abc import Collection
from functools import lru_cache

from tokenwire.constraints import CallForm, Calls, Constraint, ConstraintForm, FreeText
from tokenwire.errors import FieldViolation, Unsupported
from tokenwire.logprobs import SequenceLogprobs
from tokenwire.parsed import Parsed, ToolCall
from tokenwire.requests import (
    NUM_REMEMBERED,
    CancelReason,
    FinishReason,
    GatewayTimings,
    GenerationOptions,
    ModelTimings,
    RequestContext,
    Terminal,
    TokenizerTimings,
    TokenLogprob,
    Usage,
    deadline_after,
    new_request_id,
)
from tokenwire.sampling import SCALARS, SamplingParams, StopParams, refuse
from tokenwire.status import from_wire, to_wire
from tokenwire.v1 import common_pb2 as pb
from tokenwire.v1 import tokenizer_pb2

FINISH_TO_WIRE: dict[FinishReason, pb.FinishReason] = {
    reason: getattr(pb, f"FINISH_REASON_{reason.name}") for reason in FinishReason
}
FINISH_FROM_WIRE = {number: reason for reason, number in FINISH_TO_WIRE.items()}
CANCEL_TO_WIRE: dict[CancelReason, pb.CancelReason] = {
    reason: getattr(pb, f"CANCEL_REASON_{reason.name}") for reason in CancelReason
}
CANCEL_FROM_WIRE = {number: reason for reason, number in CANCEL_TO_WIRE.items()}

MAX_REMEMBERED_BYTES = 512
"""Longer messages are read each time."""

CALL_MARGIN_S = 0.05
"""What a terminal event may need on its way up."""

CALL_ROUNDING = 0.01
"""gRPC sends a limit rounded up to two or three digits: the client's own timer may fire this part of it earlier."""


def context_from_wire(message: pb.RequestContext, *, call_remaining_s: float | None = None) -> RequestContext:
    """Who asks. The time left becomes a deadline on this machine's monotonic clock, the call's own counted in.

    The call's own time is cut by a margin, so that the terminal event reaches the client before its timer fires.
    Raises InvalidRequest.
    """
    now = time.monotonic()
    limits = [call_limit_s(call_remaining_s)] if call_remaining_s is not None else []
    if message.HasField("timeout_ms"):
        limits.append(message.timeout_ms / 1000)
    context = RequestContext(
        request_id=message.request_id or new_request_id(),
        priority=message.priority,
        tenant=message.tenant,
        deadline_s=deadline_after(now, min(limits, default=None)),
        traceparent=message.traceparent,
        arrival_s=now,
    )
    refuse(context.violations())
    return context


def call_limit_s(remaining_s: float) -> float:
    """How long the engine may take for a call with so much time left: its DEADLINE must still reach the client."""
    return remaining_s * (1 - CALL_ROUNDING) - min(CALL_MARGIN_S, remaining_s / 2)


def context_to_wire(context: RequestContext) -> pb.RequestContext:
    """Who asks, with the time left by now."""
    message = pb.RequestContext(
        request_id=context.request_id,
        priority=context.priority,
        tenant=context.tenant,
        traceparent=context.traceparent,
    )
    remaining_s = context.remaining_s()
    if remaining_s is not None:
        message.timeout_ms = round(remaining_s * 1000)
    return message


def options_from_wire(message: pb.GenerationOptions) -> GenerationOptions:
    """How to generate. Raises InvalidRequest for bad values and Unsupported for what is not built.

    Most requests ask for what one before them asked for: short messages are remembered.
    """
    data = message.SerializeToString()
    return _remembered_options(data) if len(data) <= MAX_REMEMBERED_BYTES else _options_from_wire(message)


@lru_cache(NUM_REMEMBERED)
def _remembered_options(data: bytes) -> GenerationOptions:
    return _options_from_wire(pb.GenerationOptions.FromString(data))


def _options_from_wire(message: pb.GenerationOptions) -> GenerationOptions:
    refuse_unbuilt(message)
    sampling, stop, output = message.sampling, message.stop, message.output
    options = GenerationOptions(
        sampling=SamplingParams(
            **{name: getattr(sampling, name) for name in SCALARS if sampling.HasField(name)},
            logit_bias=tuple(sorted(sampling.logit_bias.items())),
            allowed_token_ids=tuple(sampling.allowed_token_ids),
            banned_sequences=tuple(tuple(sequence.ids) for sequence in sampling.banned_sequences),
        ),
        stop=StopParams(
            max_tokens=stop.max_tokens if stop.HasField("max_tokens") else None,
            stop_token_ids=tuple(stop.stop_token_ids),
            ignore_eos=stop.ignore_eos,
            min_tokens=stop.min_tokens,
        ),
        stop_strings=tuple(stop.stop_strings),
        include_stop_string=stop.include_stop_string,
        skip_special_tokens=output.skip_special_tokens if output.HasField("skip_special_tokens") else True,
        spaces_between_special_tokens=(
            output.spaces_between_special_tokens if output.HasField("spaces_between_special_tokens") else True
        ),
        return_token_ids=output.return_token_ids,
        num_choices=message.num_choices or 1,
        logprobs=output.logprobs if output.HasField("logprobs") else None,
        prompt_logprobs=output.prompt_logprobs if output.HasField("prompt_logprobs") else None,
        adapter=message.adapter,
        constraint=constraint_from_wire(message.constraint),
        speculation=message.speculation if message.HasField("speculation") else None,
    )
    refuse(options.violations())
    return options


def constraint_from_wire(message: pb.Constraint) -> Constraint | None:
    """What the output must look like; None where no form is given. Raises InvalidRequest for a form that says no."""
    name = message.WhichOneof("form")
    if name is None:
        return None
    form = ConstraintForm(name)
    given = message.before
    before = FreeText(given.opening, given.closing, given.is_open) if message.HasField("before") else None
    if form is ConstraintForm.CALLS:
        forms = tuple(CallForm(f.before, f.schema_json, f.after, f.field) for f in message.calls.forms)
        return Constraint(form, calls=Calls(forms, message.calls.separator, message.calls.max_calls), before=before)
    if form is ConstraintForm.CHOICE:
        return Constraint(form, texts=tuple(message.choice.texts), before=before)
    if form is ConstraintForm.JSON_OBJECT:
        if not message.json_object:
            description = "false is not allowed: true, or leave the constraint out"
            refuse([FieldViolation("options.constraint.json_object", description)])
        return Constraint(form, before=before)
    return Constraint(form, getattr(message, name), before=before)


def constraint_to_wire(constraint: Constraint, message: pb.Constraint) -> None:
    """Write what the output must look like into an empty message."""
    if (before := constraint.before) is not None:
        message.before.opening, message.before.closing = before.opening, before.closing
        message.before.is_open = before.is_open
    if constraint.calls is not None:
        for form in constraint.calls.forms:
            message.calls.forms.add(
                before=form.before, schema_json=form.schema_json, after=form.after, field=form.field
            )  # fmt: skip
        message.calls.separator, message.calls.max_calls = constraint.calls.separator, constraint.calls.max_calls
    elif constraint.form is ConstraintForm.CHOICE:
        message.choice.texts.extend(constraint.texts)
    elif constraint.form is ConstraintForm.JSON_OBJECT:
        message.json_object = True
    else:
        setattr(message, constraint.form.value, constraint.text)


def refuse_unbuilt(message: pb.GenerationOptions) -> None:
    """Raise Unsupported for the first field that asks for something this release does not do."""
    asked = ["output.echo"] if message.output.echo else []
    if asked:
        violations = [FieldViolation(f"options.{name}", "not built in this release; leave it out") for name in asked]
        raise Unsupported(f"options.{asked[0]} is not built in this release; leave it out", violations=violations)


def shared_options_to_wire(options: GenerationOptions) -> pb.GenerationOptions:
    """As `options_to_wire`, of options that many requests have: the message is shared, and to be copied."""
    return _remembered_message(options) if options.is_short else options_to_wire(options)


@lru_cache(NUM_REMEMBERED)
def _remembered_message(options: GenerationOptions) -> pb.GenerationOptions:
    return options_to_wire(options)


def options_to_wire(options: GenerationOptions) -> pb.GenerationOptions:
    """How to generate, as a message."""
    message = pb.GenerationOptions(num_choices=options.num_choices, adapter=options.adapter)
    sampling = options.sampling
    for name in SCALARS:
        value = getattr(sampling, name)
        if value is not None:
            setattr(message.sampling, name, value)
    if sampling.logit_bias:
        message.sampling.logit_bias.update(sampling.logit_bias)
    if sampling.allowed_token_ids:
        message.sampling.allowed_token_ids.extend(sampling.allowed_token_ids)
    if sampling.banned_sequences:
        message.sampling.banned_sequences.extend(pb.TokenIds(ids=ids) for ids in sampling.banned_sequences)
    if options.stop.max_tokens is not None:
        message.stop.max_tokens = options.stop.max_tokens
    message.stop.stop_token_ids.extend(options.stop.stop_token_ids)
    message.stop.ignore_eos = options.stop.ignore_eos
    message.stop.min_tokens = options.stop.min_tokens
    message.stop.stop_strings.extend(options.stop_strings)
    message.stop.include_stop_string = options.include_stop_string
    message.output.skip_special_tokens = options.skip_special_tokens
    if not options.spaces_between_special_tokens:
        message.output.spaces_between_special_tokens = False
    message.output.return_token_ids = options.return_token_ids
    if options.logprobs is not None:
        message.output.logprobs = options.logprobs
    if options.prompt_logprobs is not None:
        message.output.prompt_logprobs = options.prompt_logprobs
    if options.constraint is not None:
        constraint_to_wire(options.constraint, message.constraint)
    if options.speculation is not None:
        message.speculation = options.speculation
    return message


def logprob_to_wire(logprob: TokenLogprob) -> pb.TokenLogprob:
    """One token's log-probability, as a message."""
    return pb.TokenLogprob(
        token_id=logprob.token_id,
        logprob=logprob.logprob,
        text=logprob.text,
        text_offset=logprob.text_offset,
        top=[pb.TokenLogprob(token_id=t.token_id, logprob=t.logprob, text=t.text) for t in logprob.top],
    )


def logprob_from_wire(message: pb.TokenLogprob) -> TokenLogprob:
    """One token's log-probability, as plain values."""
    top = tuple(TokenLogprob(t.token_id, t.logprob, text=t.text) for t in message.top)
    return TokenLogprob(message.token_id, message.logprob, top, message.text, message.text_offset)


def logprobs_from_wire(
    tokens: Collection[pb.TokenLogprob], prompt: Collection[pb.TokenLogprob]
) -> SequenceLogprobs | None:
    """What one message says of one sequence; None when it says nothing."""
    if not tokens and not prompt:
        return None
    return SequenceLogprobs([logprob_from_wire(t) for t in tokens], [logprob_from_wire(t) for t in prompt])


def tool_call_to_wire(call: ToolCall) -> tokenizer_pb2.ToolCall:
    """A tool call, or a piece of one, as a message."""
    return tokenizer_pb2.ToolCall(id=call.id, name=call.name, arguments=call.arguments, index=call.index)


def parsed_from_wire(reasoning: str, tool_calls: Collection[tokenizer_pb2.ToolCall]) -> Parsed | None:
    """What one message says was split from a text; None when it says nothing."""
    if not reasoning and not tool_calls:
        return None
    return Parsed(reasoning, [ToolCall(call.id, call.name, call.arguments, call.index) for call in tool_calls])


def usage_to_wire(usage: Usage) -> pb.Usage:
    """Token counts as a message."""
    return pb.Usage(
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
        reasoning_tokens=usage.reasoning_tokens,
    )


def usage_from_wire(message: pb.Usage) -> Usage:
    """Token counts as plain values."""
    return Usage(message.prompt_tokens, message.cached_tokens, message.completion_tokens, message.reasoning_tokens)


def terminal_to_wire(terminal: Terminal, handle: int = 0) -> pb.Finish:
    """The terminal event as a message."""
    finish = pb.Finish(
        handle=handle,
        reason=FINISH_TO_WIRE[terminal.reason],
        usage=usage_to_wire(terminal.usage),
    )
    if terminal.stop_token_id is not None:
        finish.stop_token_id = terminal.stop_token_id
    if terminal.stop_string is not None:
        finish.stop_string = terminal.stop_string
    if terminal.error is not None:
        finish.error.CopyFrom(to_wire(terminal.error))
    if (m := terminal.model_timings) is not None:
        finish.timings.model.queue_us = _us(m.queue_s)
        finish.timings.model.prefill_us = _us(m.prefill_s)
        finish.timings.model.decode_us = _us(m.decode_s)
    if (t := terminal.tokenizer_timings) is not None:
        finish.timings.tokenizer.queue_us = _us(t.queue_s)
        finish.timings.tokenizer.tokenize_us = _us(t.tokenize_s)
        finish.timings.tokenizer.first_frame_us = _us(t.first_frame_s)
        finish.timings.tokenizer.total_us = _us(t.total_s)
    if (g := terminal.gateway_timings) is not None:
        finish.timings.gateway.first_text_us = _us(g.first_text_s)
        finish.timings.gateway.total_us = _us(g.total_s)
    return finish


def terminal_from_wire(finish: pb.Finish) -> Terminal:
    """The terminal event as plain values. A reason this release does not know reads as ERROR with what was sent."""
    matched = finish.WhichOneof("matched")
    timings = finish.timings
    return Terminal(
        reason=FINISH_FROM_WIRE.get(finish.reason, FinishReason.ERROR),
        usage=usage_from_wire(finish.usage),
        stop_token_id=finish.stop_token_id if matched == "stop_token_id" else None,
        stop_string=finish.stop_string if matched == "stop_string" else None,
        error=from_wire(finish.error) if finish.HasField("error") else None,
        model_timings=ModelTimings(
            timings.model.queue_us / 1e6, timings.model.prefill_us / 1e6, timings.model.decode_us / 1e6
        )
        if timings.HasField("model")
        else None,
        tokenizer_timings=TokenizerTimings(
            timings.tokenizer.queue_us / 1e6,
            timings.tokenizer.tokenize_us / 1e6,
            timings.tokenizer.first_frame_us / 1e6,
            timings.tokenizer.total_us / 1e6,
        )
        if timings.HasField("tokenizer")
        else None,
        gateway_timings=GatewayTimings(timings.gateway.first_text_us / 1e6, timings.gateway.total_us / 1e6)
        if timings.HasField("gateway")
        else None,
    )


def _us(seconds: float) -> int:
    return max(0, round(seconds * 1e6))
