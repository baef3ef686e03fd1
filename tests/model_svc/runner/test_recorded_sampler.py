"""The recorded sampler against the eager one, row for row, and when each of them draws."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model_svc.runner import recorded_sampler
from model_svc.runner.graph import Graph
from model_svc.runner.recorded_sampler import Draw, RecordedSampler, draw_of
from model_svc.runner.sampler import NOT_FINITE, RowSampling, sample
from tests.fakes.engine_loop import EngineLoop
from tests.fakes.recorder import Recorder
from tests.fakes.step_loop import StepLoop, outputs
from tests.fakes.tiny_models import VOCAB_SIZE, write_model
from tests.fakes.tiny_runner import tiny_runner_of
from tests.model_svc.runner.test_decode_graphs import PROMPTS, runner_with
from tokenwire.sampling import MAX_SEED, NEUTRAL, SamplingParams

WIDTH = 300
SIZE = 8
GREEDY = RowSampling(replace(NEUTRAL, seed=0), 0, 0)

samplings = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.0, 1e-40, 0.3, 0.8, 1.0, 2.0, 1e35]),
    top_k=st.sampled_from([0, 0, 1, 2, 7, 50, WIDTH - 1, WIDTH, 10_000]),
    top_p=st.sampled_from([1.0, 1.0, 1e-9, 0.3, 0.9, 0.999]),
    min_p=st.sampled_from([0.0, 0.0, 0.02, 0.5, 1.0]),
    seed=st.integers(0, MAX_SEED),
)
rows = st.builds(RowSampling, samplings, choice=st.integers(0, 5), position=st.integers(0, 10_000))


def a_sampler(logits: Tensor, record: Any = None) -> RecordedSampler:
    made = RecordedSampler(record or Recorder(), largest=SIZE, vocab_size=logits.shape[-1], device=torch.device("cpu"))
    made.record(logits)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@settings(max_examples=60, deadline=None)
@given(
    batches=st.lists(st.lists(rows, min_size=1, max_size=SIZE), min_size=1, max_size=3),
    noise=st.integers(0, 2**32),
    broken=st.dictionaries(
        st.integers(0, SIZE - 1), st.sampled_from(["nan", "inf", "nothing", "ties", "one"]), max_size=3
    ),
)
def test_every_mix_of_rows_gets_the_tokens_of_the_eager_sampler(
    dtype: torch.dtype, batches: list[list[RowSampling]], noise: int, broken: dict[int, str]
) -> None:
    """Batches one after the other over the same buffers, so that what one leaves meets the next."""
    generator = torch.Generator().manual_seed(noise)
    logits = torch.zeros(SIZE, WIDTH, dtype=dtype)
    recorded = a_sampler(logits)
    for batch in batches:
        logits.copy_(torch.randn(SIZE, WIDTH, generator=generator) * 3)
        for row, how in broken.items():
            if how == "ties":
                logits[row] = logits[row].round()
            elif how == "one":
                logits[row, 1:] = -torch.inf
            else:
                logits[row, 3 :: 1 if how == "nothing" else 100] = {"nan": torch.nan, "inf": torch.inf}.get(
                    how, -torch.inf
                )
                logits[row, :3] = -torch.inf if how == "nothing" else logits[row, :3]
        before = logits.clone()
        tokens = recorded.tokens(SIZE, batch)
        assert tokens is not None
        assert tokens.tolist() == sample(logits[: len(batch)], batch).tolist()
        assert torch.equal(logits, before) or bool(logits.isnan().any())
        assert all((tokens[row] == NOT_FINITE) == (how not in ("ties", "one"))
                   for row, how in broken.items() if row < len(batch))  # fmt: skip


def test_the_most_demanding_row_says_what_is_replayed() -> None:
    sampled = replace(NEUTRAL, temperature=0.7, seed=1)
    assert draw_of(GREEDY) is Draw.GREEDY
    assert draw_of(RowSampling(replace(NEUTRAL, top_k=3, seed=1, temperature=0.0), 0, 0)) is Draw.GREEDY
    assert draw_of(RowSampling(sampled, 0, 0)) is Draw.SAMPLED
    assert {draw_of(RowSampling(replace(sampled, **{name: value}), 0, 0))
            for name, value in (("top_k", 3), ("top_p", 0.5), ("min_p", 0.1))} == {Draw.FILTERED}  # fmt: skip


def test_large_batches_are_recorded_for_the_largest_logit_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_sampler, "MOST_SCORES", SIZE * WIDTH - 1)
    recorded = a_sampler(torch.randn(SIZE, WIDTH))
    assert recorded.tokens(SIZE, [GREEDY]) is not None
    assert recorded.tokens(SIZE, [GREEDY, RowSampling(replace(NEUTRAL, temperature=1.0, seed=0), 0, 0)]) is None


def test_a_draw_that_cannot_be_recorded_is_left_to_the_eager_sampler(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()

    def no_sorting(compute: Callable[[], Tensor]) -> Graph:
        if compute.args[-1] is Draw.FILTERED:  # type: ignore[attr-defined]
            raise RuntimeError("operation not permitted when stream is capturing")
        return recorder(compute)

    with caplog.at_level(logging.WARNING):
        recorded = a_sampler(torch.randn(SIZE, WIDTH), no_sorting)
    assert "filtered draws of 8 rows are not recorded: operation not permitted" in caplog.text
    assert recorded.tokens(SIZE, [GREEDY]) is not None
    assert recorded.tokens(SIZE, [RowSampling(replace(NEUTRAL, temperature=1.0, top_k=2, seed=0), 0, 0)]) is None


SAMPLED = replace(NEUTRAL, temperature=0.9, top_k=30, top_p=0.95, seed=5)
PLAIN: list[SamplingParams] = [replace(NEUTRAL, seed=0), replace(NEUTRAL, temperature=1.2, seed=3), SAMPLED]


@pytest.mark.parametrize("overlap", [False, True], ids=["step by step", "overlapped"])
def test_recorded_draws_are_those_of_a_runner_without(tmp_path: Path, overlap: bool) -> None:
    write_model(tmp_path, "llama")
    made = []
    for runner in (tiny_runner_of(str(tmp_path)), runner_with(tmp_path, Recorder())):
        loop = EngineLoop(runner, step_tokens=20, overlap=overlap)
        made.append([outputs(s) for p in PLAIN for s in loop.run(PROMPTS, 8, staggered=True, sampling=p)])
    assert made[0] == made[1]
    assert runner._graphs is not None  # type: ignore[attr-defined]
    assert runner._graphs.sampler.num_replays > 3 * 8  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("fields", "drawn_eagerly"),
    [
        ({}, False),
        ({"sampling": SAMPLED}, False),
        ({"sampling": replace(SAMPLED, repetition_penalty=1.3)}, True),
        ({"sampling": replace(SAMPLED, frequency_penalty=0.3)}, True),
        ({"sampling": replace(NEUTRAL, seed=0, logit_bias=((3, 2.0),))}, True),
        ({"sampling": replace(NEUTRAL, seed=0, allowed_token_ids=(3, 4, 5))}, True),
        ({"sampling": replace(NEUTRAL, seed=0, banned_sequences=((7,),))}, True),
        ({"logprobs": 2}, True),
        ({"stop_token_ids": (1,), "min_tokens": 8}, True),
    ],
    ids=["greedy", "sampled", "repetition", "frequency", "bias", "allowed", "banned", "logprobs", "min_tokens"],
)
def test_one_row_that_asks_for_more_has_the_batch_drawn_eagerly(
    tmp_path: Path, fields: dict[str, Any], drawn_eagerly: bool
) -> None:
    write_model(tmp_path, "llama")
    made = []
    for runner in (tiny_runner_of(str(tmp_path)), runner_with(tmp_path, Recorder())):
        loop = StepLoop(runner)
        sequences = [loop.add(prompt, 6) for prompt in PROMPTS[1:4]] + [loop.add([5, 6, 7], 6, **fields)]
        loop.run()
        made.append([outputs(s) for s in sequences])
    assert made[0] == made[1]
    replays = runner._graphs.sampler.num_replays  # type: ignore[attr-defined]
    assert replays == (0 if drawn_eagerly else 5)


def test_a_broken_row_ends_alone(tmp_path: Path) -> None:
    write_model(tmp_path, "llama")
    runner = runner_with(tmp_path, Recorder())
    poison = VOCAB_SIZE - 1
    runner._model.module.get_input_embeddings().weight.data[poison] = float("nan")
    loop = StepLoop(runner)
    fine = loop.add([5, 6, 7], 6)
    broken = loop.add([5, 6, 8], 6)
    loop.step()
    broken.token_ids[-1] = poison
    loop.run()
    assert list(loop.errors) == [broken.sequence_id]
    assert len(outputs(fine)) == 6
