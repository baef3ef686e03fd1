from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
import torch

from model_svc.engine.batch import ScheduledBatch, ScheduledRow
from model_svc.engine.sequence import PENDING, Sequence
from model_svc.model.paged import LayerKVSpec, allocate
from model_svc.runner.input_batch import InputBatch, PromptSpan
from tests.fakes.step_loop import GREEDY
from tokenwire.errors import Internal
from tokenwire.sampling import StopParams

LAST_TOKENS = torch.tensor([100, 101, 102, 103])


IDS = count()


def row(token_ids: list[int], computed: int, num_new: int, blocks: list[int], **fields: Any) -> ScheduledRow:
    """Each row a sequence of its own, and unless `slot` says otherwise in the next of four slots."""
    number = next(IDS)
    fields.setdefault("slot", number % 4)
    sequence = Sequence(number, token_ids, len(token_ids), GREEDY, StopParams(max_tokens=5), **fields)
    sequence.num_computed_tokens = computed
    sequence.block_table = blocks
    return ScheduledRow(sequence, num_new)


def test_drafts_follow_a_rows_own_token_and_are_sampled_after(input_batch: InputBatch) -> None:
    decode, chunk = row([20, 21, 22], 2, 1, [5]), row([30, 31, 32], 0, 2, [9])
    drafting, more = row([10, 11, 12, 13, 14], 4, 1, [7, 2]), row([40, 41], 1, 1, [3, 8])
    rows = (
        ScheduledRow(drafting.sequence, 1, [15, 16, 17]), decode, chunk, ScheduledRow(more.sequence, 1, [42]),
    )  # fmt: skip
    step = input_batch.build(ScheduledBatch(rows), LAST_TOKENS)
    assert step.token_ids.tolist() == [22, 14, 15, 16, 17, 30, 31, 41, 42]
    assert step.positions.tolist() == [2, 4, 5, 6, 7, 0, 1, 1, 2]
    assert step.step.slots.tolist()[1:5] == [2 * 4, 2 * 4 + 1, 2 * 4 + 2, 2 * 4 + 3]
    assert step.kept_tokens.tolist() == [0, 1, 2, 3, 4, 7, 8], "the chunk does not reach its end"
    assert step.sampled_rows == [1, 0, 0, 0, 0, 3, 3] and step.num_sampled_decodes == 1
    assert step.drafts_before == [[], [], [15], [15, 16], [15, 16, 17], [], [42]]
    assert step.sampled_slots.tolist() == [rows[at].sequence.slot for at in step.sampled_rows]
    assert (rows[0].end, rows[0].own_end, rows[0].samples) == (8, 5, True)
    assert input_batch.build(ScheduledBatch((decode,)), LAST_TOKENS).drafts_before is None


@pytest.fixture
def input_batch() -> Iterator[InputBatch]:
    kv = allocate([LayerKVSpec(1, 2, 2)], 20, 4, torch.float32, torch.device("cpu"))
    with torch.inference_mode():
        yield InputBatch(kv, max_tokens=16, max_rows=4, max_blocks=5)


def test_rows_are_flattened_decodes_first(input_batch: InputBatch) -> None:
    batch = ScheduledBatch(
        (
            row([10, 11, 12, 13, 14, 15, 16], 2, 3, [7, 2]),  # a chunk that does not reach the end
            row([20, 21, 22], 2, 1, [5]),  # a decode
            row([30, 31], 0, 2, [9, 11]),  # a whole prompt; a block more than it needs
            row([40, 41, 42, 43, 44, 45], 5, 1, [1, 3]),  # a longer decode
        )
    )
    step = input_batch.build(batch, LAST_TOKENS)
    assert step.token_ids.tolist() == [45, 22, 12, 13, 14, 30, 31]
    assert step.positions.tolist() == [5, 2, 2, 3, 4, 0, 1]
    assert step.step.slots.tolist() == [3 * 4 + 1, 5 * 4 + 2, 30, 31, 2 * 4, 36, 37]
    assert step.kept_tokens.tolist() == [0, 1, 6]
    assert step.sampled_rows == [3, 1, 2]
    (group,) = step.step.decodes
    assert (group.start, group.stop, group.num_positions) == (0, 2, 6)
    assert group.blocks.tolist() == [1, 3, 5, 5], "a shorter row repeats its own first block"
    assert [(c.start, c.stop, c.num_computed, c.blocks.tolist()) for c in step.step.chunks] == [
        (2, 5, 2, [7, 2]),
        (5, 7, 0, [9]),
    ]


def test_prompt_positions_are_kept_after_the_sampled_ones(input_batch: InputBatch) -> None:
    asking = row([10, 11, 12, 13, 14, 15, 16], 2, 3, [7, 2], prompt_logprobs=4)
    whole = row([30, 31, 32], 0, 3, [9], prompt_logprobs=0)
    decode = row([20, 21, 22], 2, 1, [5], prompt_logprobs=2)
    # Computed again after its first two were given out.
    again = row([50, 51, 52, 53], 0, 4, [11], prompt_logprobs=1, num_prompt_logprobs=2)
    step = input_batch.build(ScheduledBatch((asking, whole, decode, again)), LAST_TOKENS)
    assert step.token_ids.tolist() == [22, 12, 13, 14, 30, 31, 32, 50, 51, 52, 53]
    assert step.sampled_rows == [2, 1, 3]
    assert step.kept_tokens.tolist() == [0, 6, 10, 1, 2, 3, 4, 5, 9]
    assert step.prompt_spans == [PromptSpan(0, [13, 14, 15], 4), PromptSpan(1, [31, 32], 0), PromptSpan(3, [53], 1)]
    assert step.prompt_targets.tolist() == [13, 14, 15, 31, 32, 53]


def test_a_batch_beyond_the_limits_is_a_bug_and_says_so(input_batch: InputBatch) -> None:
    long = list(range(40))
    for rows, text in (
        ((), "at least one row"),
        ((row([1], 1, 0, [0]),), "at least one token"),
        ((row([1], 0, 1, [0]),) * 5, "5 rows"),
        ((row(long, 0, 17, [0, 1, 2, 3, 4]),), "17 tokens"),
        ((row(long, 20, 4, [0, 1, 2, 3, 4, 5]),), "6 blocks"),
        ((row([1], 0, 1, [3]), row([1, 2, 3, 4, 5], 0, 5, [0])), "row 1 has 1 blocks where its tokens need 2"),
    ):
        with pytest.raises(Internal, match=text):
            input_batch.build(ScheduledBatch(rows), LAST_TOKENS)


def test_a_pending_token_is_what_the_step_before_sampled_under_the_slot(input_batch: InputBatch) -> None:
    rows = [
        row([20, 21, PENDING], 2, 1, [5], slot=2),
        row([1, 2, 3, 4, 5, PENDING], 5, 1, [1, 3], slot=0),
        row([7, 8], 0, 2, [9], slot=1),
    ]
    step = input_batch.build(ScheduledBatch(tuple(rows)), LAST_TOKENS)
    assert step.token_ids.tolist() == [100, 102, 7, 8]
    again = input_batch.build(ScheduledBatch((row([1, 2], 0, 2, [9]),)), LAST_TOKENS)
    assert again.token_ids.tolist() == [1, 2]
    assert step.token_ids.tolist() == [100, 102, 7, 8], "still in flight"
