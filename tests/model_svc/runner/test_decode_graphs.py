"""Recorded decode steps, with a recorder that runs the function again: padding, buckets and mixed steps."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model_svc.model.paged import PagedStep
from model_svc.model.step_adapters import step_adapters
from model_svc.runner import decode_graphs, recorded_sampler
from model_svc.runner.decode_graphs import EAGER_STEPS, DecodeGraphs, buckets
from model_svc.runner.graph import Graph, Record
from model_svc.runner.model_runner import TorchModelRunner
from model_svc.runner.recorded_sampler import Draw
from tests.fakes.engine_loop import EngineLoop
from tests.fakes.recorder import Recorder, recorded
from tests.fakes.reference import Reference
from tests.fakes.step_loop import outputs
from tests.fakes.tiny_models import VOCAB_SIZE, write_model
from tests.fakes.tiny_runner import tiny_runner_of
from tokenwire.sampling import NEUTRAL

NUM_OUTPUTS = 8
PROMPTS = [[(7 * i + j * j) % VOCAB_SIZE for j in range(1 + 5 * i % 23)] for i in range(13)]
families = pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3_moe"])


def runner_with(folder: Path, record: Record, *, lazily: bool = False) -> TorchModelRunner:
    return recorded(tiny_runner_of(str(folder)), record, lazily=lazily)


@families
@pytest.mark.parametrize("overlap", [False, True], ids=["step by step", "overlapped"])
def test_replayed_steps_give_transformers_tokens(tmp_path: Path, family: str, overlap: bool) -> None:
    """Batches that grow and shrink through the buckets, with chunks of prompts beside the decodes."""
    recorder, reference = Recorder(), Reference(str(write_model(tmp_path, family)))
    runner = runner_with(tmp_path, recorder)
    loop = EngineLoop(runner, step_tokens=20, overlap=overlap)
    sequences = loop.run(PROMPTS, NUM_OUTPUTS, staggered=True)
    assert [outputs(s) for s in sequences] == [reference.greedy(p, NUM_OUTPUTS).token_ids for p in PROMPTS]
    assert recorder.num_recorded == len(buckets(16)) * (1 + len(Draw))
    assert runner._graphs is not None and runner._graphs.num_replays > NUM_OUTPUTS
    load = loop.engine.load()
    assert (load.num_replayed, load.num_not_replayed) == (runner._graphs.num_replays, 0)


@families
def test_whatever_is_asked_for_is_what_steps_give_that_are_not_replayed(tmp_path: Path, family: str) -> None:
    write_model(tmp_path, family)
    made = []
    for runner in (tiny_runner_of(str(tmp_path)), runner_with(tmp_path, Recorder())):
        loop = EngineLoop(runner, step_tokens=20)
        options = replace(NEUTRAL, temperature=0.8, top_k=20, repetition_penalty=1.2, seed=3)
        sequences = loop.run(PROMPTS, NUM_OUTPUTS, staggered=True, sampling=options, logprobs=2, prompt_logprobs=1)
        made.append([(outputs(s), [e.token_id for e in loop.runner.logprobs[s.sequence_id]]) for s in sequences])
    assert made[0] == made[1]


def test_recordings_go_with_their_last_user(tmp_path: Path) -> None:
    """The trial's at start, whose memory the cache is to have, without a search for garbage."""
    write_model(tmp_path, "llama")
    runner = runner_with(tmp_path, lambda compute: Graph(lambda: None, compute()))
    assert runner._graphs is not None
    graphs, output = weakref.ref(runner._graphs), weakref.ref(runner._graphs._graphs[1].output)
    gc.disable()
    try:
        runner._graphs = None
        assert graphs() is None and output() is None
    finally:
        gc.enable()


def test_padding_writes_into_the_scratch_block_alone(tmp_path: Path) -> None:
    write_model(tmp_path, "llama")
    runner = runner_with(tmp_path, Recorder())
    before = [layer.key.clone() for layer in runner._kv.layers]
    sequences = EngineLoop(runner).run(PROMPTS[:3], NUM_OUTPUTS)
    touched = {
        int(block)
        for layer, old in zip(runner._kv.layers, before, strict=True)
        for block in (layer.key != old).flatten(1).any(-1).nonzero()
    }
    num_needed = sum(-(-s.num_tokens // runner.info.block_size) for s in sequences)
    assert len(touched - {runner.info.num_blocks}) <= num_needed
    assert all(len(outputs(s)) == NUM_OUTPUTS for s in sequences)


def test_what_is_recorded_later_sees_no_adapters_of_a_larger_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be those of tokens that are not there: kernels write to where these would be."""
    monkeypatch.setattr(decode_graphs, "EAGER_STEPS", 0)
    write_model(tmp_path, "llama")
    runner = tiny_runner_of(str(tmp_path))
    assert isinstance(runner, TorchModelRunner)
    model, kv = runner._model, runner._kv
    seen: list[tuple[int, list[int]]] = []

    def watched(token_ids: Tensor, positions: Tensor, last: Tensor, step: PagedStep, backend: Any) -> Tensor:
        if step.adapters is not None:
            seen.append((len(token_ids), step.adapters.tokens[: int(step.adapters.starts[-1])].tolist()))
        return model.logits(token_ids, positions, last, step, backend)

    graphs = DecodeGraphs(
        SimpleNamespace(logits=watched, vocab_size=model.vocab_size), kv, runner._backend, Recorder(),  # type: ignore[arg-type]
        max_batch_size=8, max_blocks=runner._input_batch.max_blocks, scratch_block=runner.info.num_blocks - 1,
        num_adapter_slots=2,
    )  # fmt: skip
    for slots in ([1, 0, 0, 1, 1, 0, 1, 0], [1], [-1, 0]):
        rows = torch.arange(len(slots))
        adapters = step_adapters(np.array(slots), 2, kv.device)
        step = PagedStep(
            kv, rows * kv.block_size, rows[:, None], rows * 0 + 1, torch.arange(len(slots) + 1), len(slots),
            (1,) * len(slots), (1,) * len(slots), adapters=adapters,
        )  # fmt: skip
        with torch.inference_mode():
            assert graphs.ready(step)
            graphs.logits(rows, rows * 0, step)
    assert seen == [(8, []), (8, [1, 2, 5, 7, 0, 3, 4, 6]), (1, []), (1, [0]), (2, []), (2, [1])]


def test_a_model_that_cannot_be_recorded_is_served_without(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    def refuse(compute: Callable[[], Tensor]) -> Graph:
        raise RuntimeError("operation not permitted when stream is capturing")

    write_model(tmp_path, "llama")
    for lazily in (False, True):
        runner = runner_with(tmp_path, refuse, lazily=lazily)
        assert runner._graphs is None and "not recorded: operation not permitted" in caplog.text
    (sequence,) = EngineLoop(runner).run(PROMPTS[3:4], NUM_OUTPUTS)
    assert len(outputs(sequence)) == NUM_OUTPUTS


@pytest.mark.parametrize("overlap", [False, True], ids=["step by step", "overlapped"])
def test_lazily_a_size_is_recorded_when_it_has_been_wanted_often_enough(tmp_path: Path, overlap: bool) -> None:
    write_model(tmp_path, "llama")
    recorder = Recorder()
    runner = runner_with(tmp_path, recorder, lazily=True)
    assert recorder.num_recorded == 1 + len(Draw)
    loop = EngineLoop(runner, overlap=overlap)
    loop.run(PROMPTS[:8], EAGER_STEPS // 2, staggered=True)
    assert recorder.num_recorded == 1 + len(Draw)
    assert loop.engine.load().num_not_replayed > EAGER_STEPS // 2
    loop.run(PROMPTS[:3], EAGER_STEPS + 10)
    assert recorder.num_recorded == 2 * (1 + len(Draw))
    assert runner._graphs is not None and 9 <= runner._graphs.num_replays <= 10 + EAGER_STEPS


@pytest.mark.parametrize("overlap", [False, True], ids=["step by step", "overlapped"])
def test_a_recording_that_fails_while_serving_ends_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, overlap: bool
) -> None:
    """It is not tried again; the sizes that can be recorded are replayed."""
    monkeypatch.setattr(decode_graphs, "EAGER_STEPS", 2)
    reference = Reference(str(write_model(tmp_path, "llama")))
    tried: list[int] = []
    recorder = Recorder()

    def failing(compute: Callable[[], Tensor]) -> Graph:
        graph = recorder(compute)
        tried.append(len(graph.output))
        if tried[-1] == 4:
            raise torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture")
        return graph

    runner = runner_with(tmp_path, failing, lazily=True)
    loop = EngineLoop(runner, overlap=overlap)
    for prompts in (PROMPTS[:3], PROMPTS[:8], PROMPTS[:4]):
        sequences = loop.run(prompts, NUM_OUTPUTS)
        assert [outputs(s) for s in sequences] == [reference.greedy(p, NUM_OUTPUTS).token_ids for p in prompts]
    assert tried.count(4) == 1 and tried.count(8) > 1
    assert runner._graphs is not None and runner._graphs.num_replays > 0
    assert "decode steps of 4 rows are not recorded: CUDA error" in caplog.text


def test_memory_is_tried_with_the_largest_size_and_the_largest_that_sorts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path, "llama")
    runner = runner_with(tmp_path, Recorder(), lazily=True)
    for most_scores, expected in ((4 * VOCAB_SIZE, 1 + 1 + 1 + len(Draw)), (0, 1 + 1), (2**20, 1 + len(Draw))):
        monkeypatch.setattr(recorded_sampler, "MOST_SCORES", most_scores)
        recorder = Recorder()
        graphs = DecodeGraphs(
            runner._model, runner._kv, runner._backend, recorder, max_batch_size=16,
            max_blocks=runner._input_batch.max_blocks, scratch_block=runner.info.num_blocks,
        )  # fmt: skip
        with torch.inference_mode():
            graphs.record_largest()
        assert recorder.num_recorded == expected


def test_buckets_reach_the_limit() -> None:
    assert buckets(1) == [1]
    assert buckets(6) == [1, 2, 4, 6]
    assert buckets(64) == [1, 2, 4, 8, 16, 24, 32, 48, 64]
    assert buckets(256)[-5:] == [128, 160, 192, 224, 256]
