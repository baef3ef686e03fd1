"""A call to embed: its inputs go to model tiers in parts, a few at a time, and their vectors come back in order.

A part goes where the router says, is held where no model tier has room, and goes to another one when its own is lost:
embedding it again does no harm. Small parts let other requests in between and spread a large call over the replicas.
Plain values; does not know the wire.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tokenizer_svc.embedding_inputs import EmbeddingInputs, encode_inputs
from tokenizer_svc.part import AVOID_S
from tokenizer_svc.passage import QUEUE_FULL, context_below, lost_with
from tokenizer_svc.router import EmbeddingAnswer, EmbeddingSubmission, Replica, RoutingQuery
from tokenizer_svc.tier import Tier
from tokenwire.embeddings import EmbeddingOptions, Vector, refuse_answer_size, refuse_inputs
from tokenwire.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Overloaded,
    TokenwireError,
    Unavailable,
)
from tokenwire.requests import RequestContext, Usage, numbered
from tokenwire.sampling import refuse
from tokenwire.tasks import all_of

PART_INPUTS, PART_TOKENS = 64, 16_384
"""Most of one part; a longer input is a part of its own."""
MAX_PARTS = 4
"""Parts of one call that are on their way at once."""
MAX_REFUSALS = 8
"""How often a part may find a queue full that was thought to have room."""


@dataclass(frozen=True, slots=True)
class EmbeddingCall:
    """What a client wants."""

    context: RequestContext
    model: str
    inputs: EmbeddingInputs
    options: EmbeddingOptions


class EmbeddingPart:
    """Some of a call's inputs: what the dispatcher sends to one model tier, or holds."""

    def __init__(self, submission: EmbeddingSubmission, loss: TokenwireError | None, avoided: Replica | None) -> None:
        """`loss`, `avoided`: why it has to go once more, and the replica that had it."""
        self.priority = submission.context.priority
        self.tenant = submission.context.tenant
        self.num_requests = len(submission.inputs)
        self.num_tokens = sum(map(len, submission.inputs))
        self.begun = loss is not None
        self.query = RoutingQuery(tenant=self.tenant)
        self.replica: Replica | None = None
        self.answer: asyncio.Future[EmbeddingAnswer] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[EmbeddingAnswer] | None = None
        self._submission = submission
        self._longest = max(map(len, submission.inputs))
        self._avoided = avoided
        self._avoid_until_s = time.monotonic() + AVOID_S

    def suits(self, replica: Replica) -> bool:
        """Whether this replica embeds, takes inputs so long, and was not lost just now."""
        if replica is self._avoided and time.monotonic() < self._avoid_until_s:
            return False
        return bool(replica.embedding_size) and self._longest <= (replica.max_context_tokens or self._longest)

    def go(self, replica: Replica) -> None:
        """Send it there."""
        self.replica = replica
        self._task = replica.embed(self._submission)
        self._task.add_done_callback(self._done)

    def turn_away(self, error: TokenwireError) -> None:
        """No model tier takes it."""
        if not self.answer.done():
            self.answer.set_exception(error)

    def cancel(self) -> None:
        """Take it back where a model tier has it."""
        if self._task is not None:
            self._task.cancel()

    def _done(self, task: asyncio.Task[EmbeddingAnswer]) -> None:
        if self.answer.done():
            if not task.cancelled():
                task.exception()  # nobody waits for it any more
        elif task.cancelled():
            self.answer.cancel()
        elif (error := task.exception()) is not None:
            self.answer.set_exception(error)
        else:
            self.answer.set_result(task.result())


async def embed(call: EmbeddingCall, tier: Tier) -> tuple[list[Vector], Usage]:
    """The vectors, in the order of the inputs, and the tokens read. Cancelled, it takes back what is on its way.

    Raises NotFound, FailedPrecondition, InvalidRequest, Overloaded, Unavailable, DeadlineExceeded.
    """
    tier.check_base(call.model)
    inputs = call.inputs
    sizes = [len(each) for each in (*inputs.texts, *inputs.token_ids)]
    refuse_inputs(sizes, inputs.field)
    replica = _an_embedding_replica(tier)
    refuse(call.options.violations(replica.embedding_size))
    refuse_answer_size(len(inputs), call.options.dimensions or replica.embedding_size, inputs.field)
    tier.admit(len(inputs))
    try:
        async with asyncio.timeout(call.context.remaining_s()):
            encoded = await encode_inputs(inputs, tier, replica.max_context_tokens, replica.vocab_size)
            vectors, usage = await _send_all(call, encoded, tier)
    except TimeoutError:
        raise DeadlineExceeded("the time given ran out before every input was embedded") from None
    finally:
        tier.leave(len(inputs))
    tier.metrics.embedded.inc(len(inputs))
    tier.metrics.embedded_tokens.inc(usage.prompt_tokens)
    return vectors, usage


def _an_embedding_replica(tier: Tier) -> Replica:
    """The model tier that takes the shortest inputs. Raises Unavailable for none, FailedPrecondition for the wrong."""
    tier.router.any_ready()
    embedding = [replica for replica in tier.router.ready_replicas() if replica.embedding_size]
    if not embedding:
        raise FailedPrecondition(f"model: {tier.model!r} gives no embeddings", reason="MODEL_DOES_NOT_EMBED")
    return min(embedding, key=lambda replica: replica.max_context_tokens or 2**32)


async def _send_all(call: EmbeddingCall, encoded: list[list[int]], tier: Tier) -> tuple[list[Vector], Usage]:
    places = asyncio.Semaphore(MAX_PARTS)
    context = context_below(call.context)

    async def send(number: int, part: Sequence[list[int]]) -> EmbeddingAnswer:
        async with places:
            named = numbered(context, f".{number}") if number else context
            return await _send(EmbeddingSubmission(named, part, call.options, tier.tokenizer.fingerprint), tier)

    answers = await all_of(send(number, part) for number, part in enumerate(parts_of(encoded)))
    usage = sum((answer.usage for answer in answers), Usage())
    return [vector for answer in answers for vector in answer.vectors], usage


async def _send(submission: EmbeddingSubmission, tier: Tier) -> EmbeddingAnswer:
    """One part, once more where a model tier is lost. Raises its error."""
    num_losses = num_refusals = 0
    loss: TokenwireError | None = None
    avoided: Replica | None = None
    while True:
        part = EmbeddingPart(submission, loss, avoided)
        try:
            tier.dispatcher.place(part)
            answer = await part.answer
            tier.retry_budget.on_success()
            return answer
        except Unavailable as error:
            if part.replica is None:  # it was not sent: nobody could take it
                raise loss or error from None
            num_losses, loss, avoided = num_losses + 1, error, part.replica
            if num_losses > tier.max_resumes or not tier.retry_budget.take(error):
                raise lost_with(avoided, error) from None
            tier.metrics.retries.inc()
        except Overloaded as error:
            num_refusals += 1
            if part.replica is None or error.reason != QUEUE_FULL or num_refusals > MAX_REFUSALS:
                raise
            tier.metrics.bounced.inc()
            loss, avoided = error, part.replica
            await asyncio.sleep(AVOID_S)
        finally:
            tier.dispatcher.forget(part)
            part.cancel()


def parts_of(inputs: Sequence[list[int]]) -> Iterator[Sequence[list[int]]]:
    """The inputs in runs of at most PART_INPUTS and PART_TOKENS, a longer one alone."""
    start = num_tokens = 0
    for index, ids in enumerate(inputs):
        full = index - start == PART_INPUTS or num_tokens + len(ids) > PART_TOKENS
        if index > start and full:
            yield inputs[start:index]
            start, num_tokens = index, 0
        num_tokens += len(ids)
    yield inputs[start:]
