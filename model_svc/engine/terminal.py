"""The terminal event of a sequence: why it ended, what it counts and where its time went. Decides nothing."""

from model_svc.engine.sequence import Sequence
from tokenwire.errors import TokenwireError
from tokenwire.requests import CancelReason, FinishReason, ModelTimings, Terminal, Usage

FINISH_OF_CANCEL = {
    CancelReason.CLIENT: FinishReason.CANCELLED,
    CancelReason.STOP_STRING: FinishReason.STOP_STRING,
    CancelReason.DEADLINE: FinishReason.DEADLINE,
    CancelReason.SHUTDOWN: FinishReason.CANCELLED,
}


def terminal_of(sequence: Sequence, reason: FinishReason, now_s: float, error: TokenwireError | None) -> Terminal:
    """The terminal event of a sequence that ends at `now_s`."""
    drawn = reason is FinishReason.STOP_TOKEN and sequence.num_outputs > 0
    stopped = drawn and sequence.token_ids[-1] in sequence.stop.stop_token_ids  # else a constraint's end
    started_s = sequence.first_scheduled_s or now_s
    first_s = sequence.first_token_s or now_s
    timings = ModelTimings(
        queue_s=max(0.0, started_s - sequence.arrival_s),
        prefill_s=max(0.0, first_s - started_s),
        decode_s=max(0.0, now_s - first_s),
    )
    usage = Usage(
        prompt_tokens=sequence.num_original_prompt_tokens,
        cached_tokens=sequence.num_cached_tokens,
        completion_tokens=sequence.num_outputs - stopped,
    )
    return Terminal(
        reason=reason,
        usage=usage,
        stop_token_id=sequence.token_ids[-1] if stopped else None,
        error=error,
        model_timings=timings,
        vector=sequence.vector,
    )
