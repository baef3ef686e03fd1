"""What goes over a token Session, as messages: requests and demand down, tokens and terminal events up.

A bug with one receiver ends its sequence alone. Does not know streams, nor what their frames say of a replica.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from tokenizer_svc.held_queue import Held
from tokenizer_svc.router import EmbeddingSubmission, TokenReceiver, TokenSubmission
from tokenwire.embedding_wire import embedding_options_to_wire
from tokenwire.errors import Internal
from tokenwire.requests import Terminal
from tokenwire.v1 import common_pb2, model_pb2
from tokenwire.wire import context_to_wire, logprobs_from_wire, options_to_wire, terminal_from_wire

log = logging.getLogger(__name__)

MAX_DEMANDS = 64
"""Entries of demand in one frame; what smaller ones hold is told as that of nobody in particular."""


def submit_to_wire(handle: int, submission: TokenSubmission) -> model_pb2.TokenSubmit:
    """A request, as a message; its first choice goes by `handle`."""
    return model_pb2.TokenSubmit(
        handle=handle,
        request=model_pb2.TokenRequest(
            context=context_to_wire(submission.context),
            token_ids=submission.token_ids,
            options=options_to_wire(submission.options),
            fingerprint=common_pb2.Fingerprint(vocabulary=submission.vocabulary),
            cache_salt=submission.cache_salt,
            num_generated_tokens=submission.num_generated_tokens,
            first_choice=submission.first_choice,
        ),
    )


def embedding_to_wire(submission: EmbeddingSubmission) -> model_pb2.ModelServiceEmbedRequest:
    """Inputs to embed, as a message."""
    return model_pb2.ModelServiceEmbedRequest(
        context=context_to_wire(submission.context),
        inputs=[common_pb2.TokenIds(ids=ids) for ids in submission.inputs],
        options=embedding_options_to_wire(submission.options),
        fingerprint=common_pb2.Fingerprint(vocabulary=submission.vocabulary),
    )


def add_demand(frame: Any, held: Sequence[Held]) -> None:
    """Write into a frame up what is held; beyond MAX_DEMANDS the smallest together."""
    if len(held) > MAX_DEMANDS:
        held = sorted(held, key=lambda each: each.num_requests, reverse=True)
        rest = held[MAX_DEMANDS - 1 :]
        requests, tokens = sum(each.num_requests for each in rest), sum(each.num_tokens for each in rest)
        held = [*held[: MAX_DEMANDS - 1], Held(0, "", requests, tokens)]
    for each in held:
        frame.demand.add(priority=each.priority, tenant=each.tenant, requests=each.num_requests, tokens=each.num_tokens)


def hand_out(target: str, receivers: dict[int, TokenReceiver], frame: Any, vocab_size: int = 0) -> None:
    """Call the receivers of a frame's tokens. Linear in them.

    Raises Internal for columns that do not match, and for ids that are none of a vocabulary of this size; 0: not known.
    """
    handles, token_ids, counts = list(frame.handles), list(frame.token_ids), list(frame.counts)
    counted = len(counts) == len(handles) and sum(counts) == len(token_ids)
    if not (counted if counts else len(handles) == len(token_ids)):
        raise Internal(
            f"{target} sent a frame whose columns do not match: {len(handles)} handles, "
            f"{len(counts)} counts, {len(token_ids)} token ids",
            reason="BAD_FRAME",
        )
    if vocab_size and token_ids and max(token_ids) >= vocab_size:
        message = f"{target} sent token id {max(token_ids)}, of a vocabulary of {vocab_size}"
        raise Internal(message, reason="BAD_FRAME")
    if not counts and not frame.logprobs:
        _hand_out_singly(receivers, handles, token_ids)
        return
    logprobs = {message.handle: logprobs_from_wire(message.tokens, message.prompt) for message in frame.logprobs}
    begin = 0
    for handle, count in zip(handles, counts or [1] * len(handles), strict=True):
        end = begin + count
        receiver = receivers.get(handle)
        if receiver is not None:
            try:
                receiver.on_tokens(token_ids[begin:end], logprobs.pop(handle, None) if logprobs else None)
            except Exception as error:
                _fail(receiver, error)
        begin = end
    for handle, found in logprobs.items():  # of prompts whose first token is yet to come
        receiver = receivers.get(handle)
        if receiver is not None:
            guard(receiver, receiver.on_tokens, (), found)


def _hand_out_singly(receivers: dict[int, TokenReceiver], handles: Sequence[int], token_ids: Sequence[int]) -> None:
    """One token each, which is what most frames have."""
    for handle, token_id in zip(handles, token_ids, strict=True):
        receiver = receivers.get(handle)
        if receiver is not None:
            try:
                receiver.on_token(token_id)
            except Exception as error:
                _fail(receiver, error)


def take_finishes(
    receivers: dict[int, TokenReceiver], finishes: Sequence[common_pb2.Finish]
) -> list[tuple[TokenReceiver, int, Terminal]]:
    """Receiver, handle and terminal event of what has ended; those receivers are taken out."""
    return [
        (receiver, finish.handle, terminal_from_wire(finish))
        for finish in finishes
        if (receiver := receivers.pop(finish.handle, None)) is not None
    ]


def guard(receiver: TokenReceiver, call: Callable[..., None], *arguments: Any) -> None:
    """A bug with one sequence ends that sequence, not the session of all."""
    try:
        call(*arguments)
    except Exception as error:
        _fail(receiver, error)


def _fail(receiver: TokenReceiver, error: Exception) -> None:
    log.error("a sequence failed", exc_info=error)
    receiver.on_failed(Internal(f"text could not be made of the model's tokens: {type(error).__name__}"))
