"""What both gRPC clients send and how they read an end."""

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
    """Note the counts of a terminal event, or its error."""
    record.prompt_tokens = finish.usage.prompt_tokens
    record.completion_tokens = finish.usage.completion_tokens
    if finish.reason != common_pb2.FINISH_REASON_LENGTH:
        record.error = f"ended with {common_pb2.FinishReason.Name(finish.reason)}"
        if finish.HasField("error"):
            record.error += f", {CODES.get(finish.error.code, finish.error.code)}: {finish.error.message}"
