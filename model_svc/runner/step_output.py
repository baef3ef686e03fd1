"""Brings what a step made to the host, with one wait, and puts it into the words of the scheduler.

Knows which row of the batch each number belongs to. Does not know how any of them was made.
"""

from dataclasses import dataclass
from itertools import chain, repeat

from model_svc.engine.batch import AfterDrafts, MaskTimes, ScheduledBatch, StepOutput
from model_svc.grammar.bench import StepMasks
from model_svc.runner.input_batch import PromptSpan, StepInput
from model_svc.runner.logprobs import Scores, entries
from model_svc.runner.next_token import NO_TOKEN
from model_svc.runner.pooling import LaunchedVectors
from model_svc.runner.sampler import NOT_FINITE
from model_svc.runner.transfer import HostCopies
from tokenwire.errors import Internal, InvalidRequest, TokenwireError
from tokenwire.requests import TokenLogprob

NOT_FINITE_ERROR = "the model's scores for the next token are not finite (NaN or infinity), so none can be drawn"
NO_TOKEN_ERROR = (
    "what the request asks for (constraint, allowed_token_ids, banned_sequences, min_tokens) together leave no token "
    "that may be drawn"
)


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """A step whose results are on their way to the host."""

    batch: ScheduledBatch
    block_tables: list[list[int]]
    """Each row's when it was launched: a sequence that was preempted since has another."""
    inputs: StepInput
    """Of its tensors nothing is read any more."""
    copies: HostCopies
    """No tensors where nobody wants logits; else the tokens [S] as `next_tokens` gives them, then the scores. Waiting
    for them is waiting for the end of the step, either way."""
    has_sampled: bool
    """Whether there are scores of sampled tokens, of the rows that ask."""
    has_prompt: bool
    """Whether there are scores of the prompt's tokens."""
    vectors: LaunchedVectors | None = None
    """Of sequences that are embedded; None: there are none."""
    masks: StepMasks | None = None
    """Of the constrained sequences that sample; filled."""
    replayed: bool | None = None
    """See `StepOutput`."""


def make_step_output(launched: LaunchedStep) -> StepOutput:
    """The step's output, once it is there.

    A row whose prompt log-probabilities are not numbers is in `errors`, like one whose next token is none.
    """
    batch, inputs = launched.batch, launched.inputs
    vectors, broken = launched.vectors.take() if launched.vectors is not None else ({}, {})
    fetched = launched.copies.wait()
    if not fetched:
        return StepOutput(
            token_ids=(None,) * len(batch.rows), errors=broken, vectors=vectors, replayed=launched.replayed
        )
    width = len(Scores._fields)
    sampled = Scores(*fetched[1 : 1 + width]) if launched.has_sampled else None
    prompt = Scores(*fetched[-width:]) if launched.has_prompt else None
    token_ids: list[int] = fetched[0].tolist()
    sampled_logprobs = sampled_entries(batch, inputs.sampled_rows, token_ids, sampled)
    firsts, after_drafts = dict(zip(inputs.sampled_rows, token_ids, strict=True)), {}
    logprobs = {row: made[0] for row, made in sampled_logprobs.items()}
    if inputs.drafts_before is not None:
        by_row: dict[int, list[int]] = {}
        for row, token_id in zip(inputs.sampled_rows, token_ids, strict=True):
            by_row.setdefault(row, []).append(token_id)
        firsts = {row: tokens[0] for row, tokens in by_row.items()}
        after_drafts = {
            row: after(tokens[1:], sampled_logprobs.get(row, [])[1:]) for row, tokens in by_row.items() if tokens[1:]
        }
    errors: dict[int, TokenwireError] = broken
    if min(token_ids, default=0) < 0:
        errors |= {row: error_of(token_id) for row, token_id in firsts.items() if token_id in (NOT_FINITE, NO_TOKEN)}
    prompt_logprobs: dict[int, list[TokenLogprob]] = {}
    if prompt is not None:
        prompt_logprobs = by_span(prompt, inputs.prompt_spans)
        for row, made in prompt_logprobs.items():
            if any(entry.logprob != entry.logprob for entry in made):
                errors[row] = error_of(NOT_FINITE)
    completed, mask_times = frozenset[int](), MaskTimes()
    if launched.masks is not None:
        completed = take_outcomes(launched.masks, batch, firsts, errors)
        mask_times = MaskTimes(len(launched.masks.outcomes), launched.masks.busy_s, launched.masks.waited_s)
    left_out = errors.keys() | completed
    sound = firsts if not left_out else {row: token_id for row, token_id in firsts.items() if row not in left_out}
    return StepOutput(
        token_ids=tuple(map(sound.get, range(len(batch.rows)))),
        errors=errors,
        logprobs={row: entry for row, entry in logprobs.items() if row not in left_out},
        prompt_logprobs={row: made for row, made in prompt_logprobs.items() if row not in errors},
        completed=completed,
        masks=mask_times,
        after_drafts={row: made for row, made in after_drafts.items() if row not in errors},
        vectors=vectors,
        replayed=launched.replayed,
    )


def take_outcomes(
    masks: StepMasks, batch: ScheduledBatch, drawn: dict[int, int], errors: dict[int, TokenwireError]
) -> frozenset[int]:
    """The rows that end because their text is whole; they are taken out of `errors`, and failed constraints added.

    A text that is whole before its min_tokens ends with `NO_TOKEN` like any other that nothing may follow. What the
    model got wrong outranks both.
    """
    completed = set()
    for row in drawn:
        sequence = batch.rows[row].sequence
        num_outputs = batch.rows[row].own_end - sequence.num_original_prompt_tokens
        if isinstance(errors.get(row), Internal):
            continue
        if (error := masks.error_of(sequence.sequence_id)) is not None:
            errors[row] = error
        elif masks.is_complete(sequence.sequence_id) and num_outputs >= sequence.stop.min_tokens:
            completed.add(row)
            errors.pop(row, None)
    return frozenset(completed)


def sampled_entries(
    batch: ScheduledBatch, sampled_rows: list[int], token_ids: list[int], scores: Scores | None
) -> dict[int, list[TokenLogprob]]:
    """By row of the batch that asks: the log-probabilities of its sampled tokens, in order."""
    found: dict[int, list[TokenLogprob]] = {}
    if scores is not None:
        asked = [(row, t, batch.rows[row].sequence.logprobs) for row, t in zip(sampled_rows, token_ids, strict=True)]
        asking = [(row, token_id, num) for row, token_id, num in asked if num is not None]
        made = entries(scores, [token_id for _, token_id, _ in asking], [num for _, _, num in asking])
        for (row, _, _), entry in zip(asking, made, strict=True):
            found.setdefault(row, []).append(entry)
    return found


def after(token_ids: list[int], logprobs: list[TokenLogprob]) -> AfterDrafts:
    """What was sampled after a row's drafts, up to the first place where no token can be drawn."""
    num = next((at for at, token_id in enumerate(token_ids) if token_id < 0), len(token_ids))
    return AfterDrafts(token_ids[:num], logprobs[:num])


def error_of(token_id: int) -> TokenwireError:
    """What stands behind `NOT_FINITE`, the model's fault, and `NO_TOKEN`, the request's."""
    if token_id == NO_TOKEN:
        return InvalidRequest(NO_TOKEN_ERROR, reason="NO_TOKEN_LEFT")
    return Internal(NOT_FINITE_ERROR, reason="SEQUENCE_FAILED")


def by_span(scores: Scores, spans: list[PromptSpan]) -> dict[int, list[TokenLogprob]]:
    """Prompt log-probabilities by row of the batch, in the prompt's order."""
    token_ids = list(chain.from_iterable(span.token_ids for span in spans))
    num_top = list(chain.from_iterable(repeat(span.num_top, len(span.token_ids)) for span in spans))
    made = iter(entries(scores, token_ids, num_top))
    return {span.row: [next(made) for _ in span.token_ids] for span in spans}
