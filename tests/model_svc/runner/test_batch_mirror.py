"""What a follower rebuilds of a batch is what the leader has, at the size of what changed."""

import pickle
import random
from dataclasses import fields, replace

from model_svc.engine.batch import ScheduledBatch, ScheduledRow
from model_svc.engine.sequence import Sequence
from model_svc.runner.batch_mirror import CONSTANT, MOVING, UNREAD, BatchDecoder, BatchEncoder, Continued
from tokenwire.sampling import NEUTRAL, StopParams


def sequence_of(number: int, num_tokens: int) -> Sequence:
    return Sequence(number, list(range(num_tokens)), num_tokens, replace(NEUTRAL, seed=number), StopParams(99))


def seen(batch: ScheduledBatch) -> list[tuple[object, ...]]:
    names = (*CONSTANT, *MOVING, "token_ids", "block_table")
    return [(row.num_own_tokens, row.drafts, *(getattr(row.sequence, name) for name in names)) for row in batch.rows]


def test_every_field_of_a_sequence_is_told_or_left_out_on_purpose() -> None:
    assert {field.name for field in fields(Sequence)} == {*MOVING, *CONSTANT, *UNREAD, "token_ids", "block_table"}


def test_a_follower_sees_what_the_leader_schedules() -> None:
    """Sequences grow, pause, are preempted, get other blocks, and leave."""
    rng, encoder, decoder = random.Random(3), BatchEncoder(), BatchDecoder()
    alive = [sequence_of(number, rng.randrange(1, 30)) for number in range(8)]
    for step in range(200):
        rows = []
        for sequence in rng.sample(alive, rng.randrange(1, len(alive) + 1)):
            if rng.random() < 0.1:  # preempted
                sequence.block_table = [rng.randrange(1000) for _ in range(rng.randrange(4))]
                sequence.num_computed_tokens = 0
            sequence.slot = rng.randrange(8)
            sequence.num_prompt_logprobs += rng.randrange(2)
            sequence.block_table.append(rng.randrange(1000))
            drafts = [rng.randrange(99) for _ in range(rng.randrange(1, 4))] if rng.random() < 0.3 else None
            rows.append(ScheduledRow(sequence, rng.randrange(1, 5), drafts))
        batch = ScheduledBatch(tuple(rows))
        told = pickle.loads(pickle.dumps(encoder.encode(batch)))
        assert seen(decoder.decode(told)) == seen(batch)
        for row in rows:
            row.sequence.num_computed_tokens = row.own_end
            row.sequence.token_ids.append(step)
        if rng.random() < 0.1:
            alive[rng.randrange(len(alive))] = sequence_of(100 + step, 5)


def test_a_decode_tells_one_token_whatever_the_context() -> None:
    encoder = BatchEncoder()
    sequence = sequence_of(1, 5000)
    sequence.block_table = list(range(313))
    encoder.encode(ScheduledBatch((ScheduledRow(sequence, 5000),)))
    sequence.token_ids.append(7)
    message = encoder.encode(ScheduledBatch((ScheduledRow(sequence, 1),)))
    assert message.sequences == [Continued(1, [7], 313, [], (0, 0, -1, -1))]
    assert len(pickle.dumps(message)) < 500
