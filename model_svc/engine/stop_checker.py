"""Decides whether a sequence ends with the token just appended.

Knows stop ids and lengths. Stop strings are the tokenizer tier's; deadlines and cancels are the scheduler's.
"""

from model_svc.engine.sequence import Sequence
from tokenwire.requests import FinishReason


def reason_to_stop(sequence: Sequence, max_context_tokens: int) -> FinishReason | None:
    """STOP_TOKEN or LENGTH when the last token ends the sequence, else None. Changes nothing."""
    if sequence.token_ids[-1] in sequence.stop.stop_token_ids:
        return FinishReason.STOP_TOKEN
    if sequence.stop.max_tokens is not None and sequence.num_outputs >= sequence.stop.max_tokens:
        return FinishReason.LENGTH
    if sequence.num_tokens >= max_context_tokens:
        return FinishReason.LENGTH
    return None
