"""A call to embed: its inputs become sequences that generate nothing, and their vectors are waited for together.

Knows what the loaded model allows. Does not know the wire, nor how the engine computes.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from model_svc.admission import Admission
from model_svc.engine.batch import RunnerInfo
from model_svc.engine.sequence import Sequence as EngineSequence
from tokenwire.block_hash import cache_root
from tokenwire.embeddings import MAX_CALL_TOKENS, EmbeddingOptions, Vector, refuse_answer_size, refuse_inputs
from tokenwire.errors import Cancelled, DeadlineExceeded, FailedPrecondition, FieldViolation, Internal
from tokenwire.requests import FinishReason, RequestContext, Terminal, TokenLogprob, Usage
from tokenwire.sampling import NEUTRAL, StopParams, refuse

NOTHING = StopParams(max_tokens=0)
"""What a sequence that is embedded generates."""


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """One call in token ids, as plain values."""

    context: RequestContext
    inputs: list[list[int]]
    options: EmbeddingOptions
    model: str = ""
    vocabulary: str = ""
    """The caller's vocabulary fingerprint; empty: not checked."""


def embedding_sequences(
    request: EmbeddingRequest, admission: Admission, next_id: Callable[[], int]
) -> list[EngineSequence]:
    """One sequence per input, in order. Raises NotFound, FailedPrecondition or InvalidRequest naming what is wrong."""
    info = admission.info
    admission.check_model(request.model, request.vocabulary)
    options = resolved(request.options, info)
    _check_inputs(request.inputs, info)
    refuse_answer_size(len(request.inputs), options.dimensions or info.embedding_size, "inputs")
    context = request.context
    root = cache_root(context.tenant, "", admission.hash_scheme)
    found = []
    for token_ids in request.inputs:
        sequence_id = next_id()
        found.append(
            EngineSequence(
                sequence_id=sequence_id,
                token_ids=list(token_ids),
                num_prompt_tokens=len(token_ids),
                sampling=NEUTRAL,
                stop=NOTHING,
                embedding=options,
                cache_root=root if admission.hash_scheme else f"{sequence_id}\0{root}",
                priority=context.priority,
                tenant=context.tenant,
                arrival_s=context.arrival_s,
                deadline_s=context.deadline_s,
            )
        )
    return found


def resolved(options: EmbeddingOptions, info: RunnerInfo) -> EmbeddingOptions:
    """The options with a pooling. Raises FailedPrecondition where the model has none, or gives no embeddings."""
    if not info.embedding_size:
        raise FailedPrecondition(f"model: {info.model!r} gives no embeddings", reason="MODEL_DOES_NOT_EMBED")
    refuse(options.violations(info.embedding_size))
    if options.pooling is not None:
        return options
    if info.pooling is None:
        raise FailedPrecondition(
            f"options.pooling: the pooling that {info.model!r} was trained for is not computed here (the model tier's "
            "log says why): name one, mean, last or cls",
            reason="POOLING_UNKNOWN",
        )
    return replace(options, pooling=info.pooling)


def _check_inputs(inputs: Sequence[Sequence[int]], info: RunnerInfo) -> None:
    refuse_inputs([len(ids) for ids in inputs], "inputs")
    num_tokens = sum(map(len, inputs))
    if num_tokens > MAX_CALL_TOKENS:
        refuse([FieldViolation("inputs", f"{num_tokens} tokens are too many: at most {MAX_CALL_TOKENS} in one call")])
    whole = info.whole_sequences and info.max_step_tokens < info.max_context_tokens
    most = info.max_step_tokens if whole else info.max_context_tokens
    for index, token_ids in enumerate(inputs):
        field = f"inputs[{index}].ids"
        if (highest := max(token_ids)) >= info.vocab_size:
            description = f"{highest} is outside the vocabulary: 0 to {info.vocab_size - 1}"
            refuse([FieldViolation(field, description)])
        if len(token_ids) > most:
            because = (
                "one step computes (max_step_tokens), and an encoder reads an input whole" if whole else "it takes"
            )
            refuse([FieldViolation(field, f"{len(token_ids)} tokens are too many: at most {most}, all that {because}")])


class VectorCollector:
    """The sink of one call's sequences; their handles are their places in it."""

    def __init__(self, num_inputs: int) -> None:
        self.usage = Usage()
        """Of those that have ended."""
        self._vectors: list[Vector] = [b""] * num_inputs
        self._num_open = num_inputs
        self._done: asyncio.Future[list[Vector]] = asyncio.get_running_loop().create_future()

    async def vectors(self) -> list[Vector]:
        """Wait for all, in the order of the inputs. Raises what the first of them that ended otherwise ended with."""
        return await self._done

    def on_token(self, handle: int, token_id: int, logprob: TokenLogprob | None) -> None:
        """Not called: nothing is generated."""

    def on_prompt_logprobs(self, handle: int, logprobs: list[TokenLogprob]) -> None:
        """Not called: nobody asks for them."""

    def on_end(self, handle: int, terminal: Terminal) -> None:
        """An input's sequence has ended."""
        self.usage += terminal.usage
        self._num_open -= 1
        if terminal.vector is not None:
            self._vectors[handle] = terminal.vector
        elif not self._done.done():
            self._done.set_exception(_error_of(terminal))
        if not self._num_open and not self._done.done():
            self._done.set_result(self._vectors)

    def flush(self) -> None:
        """A step is complete; `on_end` has said all."""


def _error_of(terminal: Terminal) -> Exception:
    if terminal.error is not None:
        return terminal.error
    if terminal.reason is FinishReason.DEADLINE:
        return DeadlineExceeded("the time given ran out before every input was embedded")
    if terminal.reason is FinishReason.CANCELLED:
        return Cancelled("the request was cancelled")
    return Internal("the engine ended an input without a vector")
