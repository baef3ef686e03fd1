"""What the gRPC clients send and how they read an end."""

from typing import Any

import grpc

from benchmarks.loadgen.records import Record
from benchmarks.loadgen.work import Work
from tokenwire.v1 import common_pb2

CODES = {code.value[0]: code.name for code in grpc.StatusCode}


def generation_options(work: Work) -> common_pb2.GenerationOptions:
    """Greedy, past every end-of-sequence id, of the exact length."""
    return common_pb2.GenerationOptions(
        sampling=common_pb2.SamplingParams(temperature=0.0),
        stop=common_pb2.StopConditions(max_tokens=work.output_tokens, ignore_eos=True),
    )


def prompt_fields(prompt: list[int] | str) -> dict[str, Any]:
    """The oneof's field that a prompt goes into."""
    return {"text": prompt} if isinstance(prompt, str) else {"token_ids": common_pb2.TokenIds(ids=prompt)}


def settle(record: Record, finish: common_pb2.Finish) -> None:
    """Note the counts of a terminal event and the times it tells, or its error."""
    record.prompt_tokens = finish.usage.prompt_tokens
    record.completion_tokens = finish.usage.completion_tokens
    record.first_text_s = shares_of_first_text(finish.timings)
    if finish.reason != common_pb2.FINISH_REASON_LENGTH:
        record.error = f"ended with {common_pb2.FinishReason.Name(finish.reason)}"
        if finish.HasField("error"):
            record.error += f", {CODES.get(finish.error.code, finish.error.code)}: {finish.error.message}"


def shares_of_first_text(timings: common_pb2.Timings) -> dict[str, float]:
    """Seconds of the wait for the first text by tier, each with the way to the tier below it; empty where none tells.

    The tiers measure from receipt: what one waited for the tier below is taken off.
    """
    shares: dict[str, float] = {}
    model_s = (timings.model.queue_us + timings.model.prefill_us) / 1e6
    tokenizer_s = (timings.tokenizer.queue_us + timings.tokenizer.tokenize_us + timings.tokenizer.first_frame_us) / 1e6
    if timings.HasField("gateway"):
        shares["gateway"] = max(0.0, timings.gateway.first_text_us / 1e6 - tokenizer_s)
    if timings.HasField("tokenizer"):
        shares["tokenizer"] = max(0.0, tokenizer_s - model_s)
    if timings.HasField("model"):
        shares["model"] = model_s
    return shares
