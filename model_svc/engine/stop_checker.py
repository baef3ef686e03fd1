"""Decides whether a sequence ends with a token.

Knows stop ids and lengths. Stop strings are the tokenizer tier's; deadlines and cancels are the scheduler's.
"""

from model_svc.engine.sequence import Sequence
from tokenwire.requests import FinishReason


def reason_to_stop(sequence: Sequence, index: int, max_context_tokens: int) -> FinishReason | None:
    """STOP_TOKEN or LENGTH when `token_ids[index]` ends the sequence, else None. Changes nothing.

    Of a PENDING token only the length is known.
    """
    stop = sequence.stop
    if sequence.token_ids[index] in stop.stop_token_ids:
        return FinishReason.STOP_TOKEN
    if stop.max_tokens is not None and index + 1 - sequence.num_original_prompt_tokens >= stop.max_tokens:
        return FinishReason.LENGTH
    return FinishReason.LENGTH if index + 1 >= max_context_tokens else None
