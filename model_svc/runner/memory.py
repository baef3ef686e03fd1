"""The device's memory: what is free, what the largest step takes, and running out of it while serving.

Knows bytes, steps and torch's errors. How large the cache becomes is for `kv_cache` to say, what to do when a step has
no memory for the scheduler.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from model_svc.engine.batch import ModelRunner, OutOfMemory, ScheduledBatch, ScheduledRow, run_step
from model_svc.engine.drafting import MOST_DRAFTS_PER_STEP
from model_svc.engine.roster import MAX_PROMPT_LOGPROBS_PER_STEP
from model_svc.engine.sequence import Sequence
from model_svc.grammar.matching import Matching
from model_svc.host import available_memory_bytes
from tokenwire.errors import FailedPrecondition
from tokenwire.sampling import NEUTRAL, StopParams

PROFILE_BLOCKS = 16
"""Blocks of the cache that the largest steps are tried on; their sequences share them, so it holds nonsense."""
PROFILE_CONTEXT_TOKENS = 2048
"""Context of each decode that is tried, where the model has so much."""
SIGNS = ("DefaultCPUAllocator", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""What a RuntimeError says when an allocator is behind it."""
ASKS_FOR_ALL = replace(
    NEUTRAL, temperature=1.0, top_p=0.9, top_k=50, seed=0, repetition_penalty=1.1, logit_bias=((0, 0.0),)
)
"""Sampling that makes every table the sampler may want."""


@dataclass(frozen=True, slots=True)
class StepMemory:
    """What steps take on a GPU besides weights and cache."""

    activation_bytes: int
    """The most that one step takes while it runs."""
    graph_bytes: int
    """What recorded decode steps keep."""

    @property
    def total_bytes(self) -> int:
        """Both."""
        return self.activation_bytes + self.graph_bytes


def mib(num_bytes: int) -> str:
    """The size for people."""
    return f"{num_bytes / 2**20:.0f} MiB"


def free_memory_bytes(device: torch.device) -> int:
    """What can still be had on the device."""
    return available_memory_bytes() if device.type == "cpu" else int(torch.cuda.mem_get_info(device)[0])


def peak_bytes(device: torch.device, work: Callable[[], None]) -> int:
    """The most memory that `work` took on a GPU beyond what was taken before."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.empty_cache()
    return int(peak)


@torch.inference_mode()
def kept_bytes(device: torch.device, work: Callable[[], None]) -> int:
    """Memory that `work` keeps from other uses on a GPU; 0 when it fails, which is for others to tell."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(device)
    try:
        work()
    except RuntimeError:
        return 0
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    return max(0, torch.cuda.memory_reserved(device) - before)


def run_largest_steps(runner: ModelRunner) -> None:
    """A step with the most tokens of prefill, a full batch of decodes, and one with the most drafts.

    Each with all that a request may ask for.

    `runner.info` says how large they are; its cache need have no more than PROFILE_BLOCKS. Raises FailedPrecondition.
    """
    info = runner.info
    longest = info.max_context_tokens - 1
    try:
        rows: list[ScheduledRow] = []
        for start in range(0, info.max_step_tokens, longest)[: info.max_batch_size]:
            chunk = min(longest, info.max_step_tokens - start)
            rows.append(ScheduledRow(_aliased(runner, len(rows), chunk, computed=0), chunk))
        first = rows[0].sequence
        first.prompt_logprobs = 5
        first.num_prompt_logprobs = max(0, first.num_tokens - 1 - MAX_PROMPT_LOGPROBS_PER_STEP)
        run_step(runner, ScheduledBatch(tuple(rows)))
        context = min(longest, PROFILE_CONTEXT_TOKENS)
        batch = min(info.max_batch_size, info.max_step_tokens)
        decodes = [_aliased(runner, slot, context, computed=context - 1) for slot in range(batch)]
        run_step(runner, ScheduledBatch(tuple(ScheduledRow(sequence, 1) for sequence in decodes)))
        num_drafts = min(MOST_DRAFTS_PER_STEP, info.max_step_tokens - 1, longest // 2) if info.takes_drafts else 0
        if num_drafts:
            num_own = min(context, longest - num_drafts)
            drafted = _aliased(runner, 0, num_own + num_drafts, computed=num_own - 1)
            del drafted.token_ids[num_own:]
            drafted.sampling = replace(ASKS_FOR_ALL, repetition_penalty=1.0)  # with one there are no drafts
            run_step(runner, ScheduledBatch((ScheduledRow(drafted, 1, [0] * num_drafts),)))
    except OutOfMemory as error:
        raise FailedPrecondition(
            f"max_step_tokens: {runner.info.device} has no memory for the largest step ({info.max_step_tokens} tokens, "
            f"{info.max_batch_size} sequences): {error}; lower --max-step-tokens or --max-batch-size",
            reason="STEP_MEMORY",
        ) from error
    except Exception as error:  # whatever a model's unknown code raises
        raise FailedPrecondition(
            f"model: it cannot be served: its largest step failed: {type(error).__name__}: {error}",
            reason="MODEL_UNSUPPORTED",
        ) from error


def _aliased(runner: ModelRunner, slot: int, num_tokens: int, *, computed: int) -> Sequence:
    """A sequence whose table names the few blocks there are over and over."""
    num_blocks = -(-num_tokens // runner.info.block_size)
    return Sequence(
        sequence_id=-2 - slot, token_ids=[0] * num_tokens, num_prompt_tokens=num_tokens, sampling=ASKS_FOR_ALL,
        stop=StopParams(max_tokens=1), num_computed_tokens=computed, slot=slot, logprobs=5,
        block_table=[index % PROFILE_BLOCKS for index in range(num_blocks)],
        constraint=any_text() if runner.grammars is not None else None,
    )  # fmt: skip


def any_text() -> Matching:
    """A constraint without a matcher: its masks are made and applied as any other's, and allow every token."""
    matching = Matching("")
    matching.is_ready = True
    return matching


@contextmanager
def raising_out_of_memory(device: torch.device) -> Iterator[None]:
    """Turn an allocator's error into OutOfMemory, and give back what the block held by then."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        message = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        traceback.clear_frames(error.__traceback__)  # the error's frames would keep their tensors alive
        if device.type == "cuda":
            torch.cuda.empty_cache()
        raise OutOfMemory(message) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator is behind it: torch's own class, Python's, or a RuntimeError that says so."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)
