"""Block tables kept on the device, against tables written out whole, over random histories."""

import random
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_svc.engine import step_budget
from model_svc.engine.batch import OutOfMemory, ScheduledRow
from model_svc.engine.sequence import Sequence
from model_svc.runner.block_tables import BlockTables
from model_svc.runner.input_batch import InputBatch
from model_svc.runner.model_runner import TorchModelRunner
from model_svc.runner.transfer import StagingBlock
from tests.fakes.engine_loop import EngineLoop
from tests.fakes.reference import Reference
from tests.fakes.step_loop import GREEDY, outputs
from tests.fakes.tiny_models import VOCAB_SIZE, write_model
from tests.fakes.tiny_runner import tiny_runner_of
from tokenwire.errors import Internal
from tokenwire.sampling import StopParams

NUM_SLOTS, MAX_BLOCKS = 4, 6
DEVICE = torch.device("cpu")


def a_row(number: int, slot: int, blocks: list[int]) -> ScheduledRow:
    sequence = Sequence(number, [0] * 9, 9, GREEDY, StopParams(max_tokens=1), slot=slot, block_table=blocks)
    return ScheduledRow(sequence, 1)


def whole(rows: list[ScheduledRow], width: int) -> list[list[int]]:
    """What a step would get if everything were sent: a shorter table goes on with its own first block."""
    tables = [row.sequence.block_table[:width] for row in rows]
    return [table + [table[0]] * (width - len(table)) for table in tables]


def send(tables: BlockTables, rows: list[ScheduledRow]) -> int:
    """Bring the device up to date; how many numbers that took."""
    arrays = tables.changes(rows)
    tables.write(*(torch.from_numpy(array) for array in arrays))
    return sum(array.size for array in arrays)


def seen(tables: BlockTables, rows: list[ScheduledRow]) -> list[list[int]]:
    slots = torch.tensor([row.sequence.slot for row in rows])
    return tables.of_rows(slots, MAX_BLOCKS).tolist()


events = st.sampled_from(["extend", "extend", "extend", "end", "preempt", "come back", "replace", "fail", "fail early"])


class History:
    """Sequences that join, grow, end, are preempted and come back under any slot."""

    def __init__(self) -> None:
        self.running: dict[int, ScheduledRow] = {}
        self.waiting: list[int] = []
        self.ids = count(1)

    def start(self, number: int, rng: random.Random) -> None:
        slot = rng.choice([s for s in range(NUM_SLOTS) if s not in self.running])
        self.running[slot] = a_row(number, slot, [rng.randrange(100) for _ in range(rng.randint(1, MAX_BLOCKS))])

    def change(self, event: str, rng: random.Random) -> None:
        if len(self.running) < NUM_SLOTS and rng.random() < 0.6:
            self.start(next(self.ids), rng)
        if event == "come back" and self.waiting and len(self.running) < NUM_SLOTS:
            self.start(self.waiting.pop(rng.randrange(len(self.waiting))), rng)
        if not self.running:
            return
        slot = rng.choice(list(self.running))
        sequence = self.running[slot].sequence
        if event == "extend" and len(sequence.block_table) < MAX_BLOCKS:
            sequence.block_table.append(rng.randrange(100))
        elif event == "end":
            del self.running[slot]
        elif event == "preempt":
            self.waiting.append(self.running.pop(slot).sequence.sequence_id)
        elif event == "replace":
            sequence.block_table = [rng.randrange(100) for _ in sequence.block_table]

    def some_rows(self, rng: random.Random) -> list[ScheduledRow]:
        return rng.sample(list(self.running.values()), rng.randint(0, len(self.running)))


@settings(max_examples=200, deadline=None)
@given(history=st.lists(st.tuples(events, st.integers(0, 10**6)), max_size=40))
def test_whatever_happens_the_device_has_the_whole_tables(history: list[tuple[str, int]]) -> None:
    """A step takes some of the running sequences, in any order; steps fail before and after the write."""
    tables, sequences = BlockTables(NUM_SLOTS, MAX_BLOCKS, DEVICE), History()
    for event, seed in history:
        rng = random.Random(seed)
        sequences.change(event, rng)
        rows = sequences.some_rows(rng)
        if not rows:
            continue
        if event == "fail early":
            tables.changes(rows)  # and nothing is written
            tables.forget()
        elif event == "fail":
            send(tables, rows)
            tables.forget()
        send(tables, rows)
        assert seen(tables, rows) == whole(rows, MAX_BLOCKS)
        for row in rows:
            table = row.sequence.block_table
            assert tables.on_host[row.sequence.slot, : len(table)].tolist() == table


def test_a_step_sends_what_is_new() -> None:
    tables = BlockTables(NUM_SLOTS, MAX_BLOCKS, DEVICE)
    rows = [a_row(1, 0, [7, 8]), a_row(2, 3, [9])]
    assert send(tables, rows) == 2 * 2 + 2 * 3
    assert send(tables, rows) == 0
    rows[1].sequence.block_table.append(4)
    assert send(tables, rows) == 2
    assert seen(tables, rows) == [[7, 8, 7, 7, 7, 7], [9, 4, 9, 9, 9, 9]]


def test_a_failed_step_without_forgetting_would_be_noticed() -> None:
    """The history above can fail: what was not written is missing unless it is forgotten."""
    tables = BlockTables(NUM_SLOTS, MAX_BLOCKS, DEVICE)
    rows = [a_row(1, 0, [7, 8])]
    tables.changes(rows)
    send(tables, rows)
    assert seen(tables, rows) != whole(rows, MAX_BLOCKS)
    tables.forget()
    send(tables, rows)
    assert seen(tables, rows) == whole(rows, MAX_BLOCKS)


@pytest.mark.parametrize("slots", [(-1,), (NUM_SLOTS,), (2, 2)])
def test_rows_need_slots_of_their_own(slots: tuple[int, ...]) -> None:
    with pytest.raises(Internal, match="slots of their own below 4"):
        BlockTables(NUM_SLOTS, MAX_BLOCKS, DEVICE).changes([a_row(n, slot, [1]) for n, slot in enumerate(slots)])


NUM_OUTPUTS = 10
LARGE = 6
SHARED = [(5 * j + 1) % VOCAB_SIZE for j in range(14)]
PROMPTS = [SHARED + [(7 * i + j * j) % VOCAB_SIZE for j in range(1 + 5 * i % 23)] for i in range(12)]


@pytest.mark.parametrize("overlap", [False, True], ids=["step by step", "overlapped"])
def test_tokens_across_cache_hits_preemptions_and_failed_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overlap: bool
) -> None:
    """Every step's tables are compared with whole ones. Some large steps have no memory, before or after upload."""
    reference = Reference(str(write_model(tmp_path, "llama")))
    runner: Any = tiny_runner_of(str(tmp_path))
    counts = {"steps": 0, "uploads": 0}
    build, forward, upload = InputBatch.build, TorchModelRunner._forward, StagingBlock.upload

    def compared(self: InputBatch, batch: Any, last_tokens: torch.Tensor) -> Any:
        inputs = build(self, batch, last_tokens)
        by_slot = {row.sequence.slot: row for row in batch.rows}
        order = sorted(batch.rows, key=lambda row: (row.num_new_tokens > 1, -row.start))
        assert len(by_slot) == len(batch.rows)
        width = inputs.step.table.shape[1]
        assert sorted(inputs.step.table.tolist()) == sorted(whole(order, width))
        return inputs

    def fails_after(self: TorchModelRunner, inputs: Any, **options: Any) -> Any:
        counts["steps"] += 1
        if counts["steps"] % 3 == 0 and len(inputs.token_ids) > LARGE:
            raise OutOfMemory("none left")
        return forward(self, inputs, **options)

    def fails_before(self: StagingBlock, arrays: Any) -> Any:
        counts["uploads"] += 1
        if counts["uploads"] % 4 == 0 and len(arrays[5]) > LARGE:
            raise OutOfMemory("none left")
        return upload(self, arrays)

    monkeypatch.setattr(step_budget, "GOOD_STEPS", 4)
    monkeypatch.setattr(InputBatch, "build", compared)
    monkeypatch.setattr(TorchModelRunner, "_forward", fails_after)
    monkeypatch.setattr(StagingBlock, "upload", fails_before)
    loop = EngineLoop(runner, step_tokens=20, batch=8, overlap=overlap, info=replace(runner.info, num_blocks=34))
    sequences = loop.run(PROMPTS, NUM_OUTPUTS, staggered=True)
    assert [outputs(s) for s in sequences] == [reference.greedy(p, NUM_OUTPUTS).token_ids for p in PROMPTS]
    assert loop.num_preemptions > 0
    assert loop.engine.scheduler.load().num_out_of_memory > 3
    assert any(terminal.usage.cached_tokens for terminal in loop.terminals.values())
