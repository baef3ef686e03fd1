"""Launching a step makes the host wait for nothing. On a machine without a GPU: by looking at every operation.

`tests/gpu/test_device.py` has the same with torch's own sync debug mode. Where the code asks whether it is on a CPU,
the GPU's way is forced here.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_svc.engine.batch import ScheduledBatch, ScheduledRow
from model_svc.engine.sequence import Sequence
from model_svc.model.paged import PagedKV
from model_svc.runner import logits, model_runner, sampler
from model_svc.runner.encoder_startup import batch_of
from model_svc.runner.model_runner import TorchModelRunner
from tests.fakes.engine_loop import EngineLoop
from tests.fakes.no_waiting import Waits, no_waiting, no_waiting_inside
from tests.fakes.recorder import Recorder
from tests.fakes.step_loop import GREEDY, outputs
from tests.fakes.tiny_encoders import write_encoder
from tests.fakes.tiny_models import VOCAB_SIZE, write_model
from tests.fakes.tiny_runner import tiny_runner_of
from tests.model_svc.runner.test_decode_graphs import runner_with
from tokenwire.embeddings import EmbeddingOptions, Pooling
from tokenwire.sampling import NEUTRAL, SamplingParams, StopParams

PROMPTS = [[(7 * i + j * j) % VOCAB_SIZE for j in range(1 + 5 * i % 23)] for i in range(9)]
SAMPLED = replace(NEUTRAL, temperature=0.8, top_k=20, top_p=0.9, min_p=0.01, seed=3)
CHANGED = replace(
    SAMPLED, repetition_penalty=1.2, frequency_penalty=0.1, logit_bias=((3, 1.0),), banned_sequences=((5,), (6, 7))
)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is chosen by the kind of device."""

    def threshold(probabilities: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
        return sampler.nucleus_edge(probabilities.sort(dim=-1, descending=True).values, top_p)

    monkeypatch.setattr(sampler, "nucleus_threshold", threshold)
    monkeypatch.setattr(sampler, "likeliest", lambda logits: logits.argmax(dim=-1))
    monkeypatch.setattr(logits, "penalise_few", logits.penalise_all)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch, as_on_a_gpu: None) -> list[int]:
    """Every launch is watched; the tokens of each."""
    launch = TorchModelRunner.launch
    watched: list[int] = []

    def _launch(self: TorchModelRunner, batch: ScheduledBatch) -> Any:
        watched.append(batch.num_tokens)
        with no_waiting(monkeypatch):
            return launch(self, batch)

    monkeypatch.setattr(TorchModelRunner, "launch", _launch)
    return watched


@pytest.mark.parametrize("recorded", [False, True], ids=["computed", "replayed"])
@pytest.mark.parametrize("overlap", [False, True], ids=["step by step", "overlapped"])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_steps_of_every_kind(tmp_path: Path, launches: list[int], family: str, overlap: bool, recorded: bool) -> None:
    write_model(tmp_path, family)
    runner = runner_with(tmp_path, Recorder()) if recorded else tiny_runner_of(str(tmp_path))
    launches.clear()
    loop = EngineLoop(runner, step_tokens=20, overlap=overlap)
    for fields in (
        {}, {"sampling": SAMPLED}, {"sampling": replace(NEUTRAL, temperature=1.0, seed=1)}, {"sampling": CHANGED},
        {"logprobs": 2, "prompt_logprobs": 1}, {"sampling": CHANGED, "logprobs": 0},
    ):  # fmt: skip
        sequences = loop.run(PROMPTS, 6, staggered=True, **fields)
        assert all(terminal.error is None for terminal in loop.terminals.values())
        assert all(len(outputs(sequence)) == 6 for sequence in sequences)
    assert len(launches) > 6 * 8


def test_after_a_row_that_is_not_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launches: list[int]) -> None:
    """Its blocks are zeroed before anyone reads past their end, in a step like any other."""
    write_model(tmp_path, "llama")
    runner = tiny_runner_of(str(tmp_path))
    assert isinstance(runner, TorchModelRunner)
    poison = VOCAB_SIZE - 1
    runner._model.module.get_input_embeddings().weight.data[poison] = float("nan")
    cleared: list[int] = []
    clear = PagedKV.clear

    def _clear(self: PagedKV, blocks: torch.Tensor) -> None:
        cleared.append(len(blocks))
        clear(self, blocks)

    monkeypatch.setattr(PagedKV, "clear", _clear)
    loop = EngineLoop(runner)
    loop.run([[5, poison, 7], *PROMPTS[:3]], 6)
    loop.run(PROMPTS, 6)
    assert cleared


POOLINGS = [EmbeddingOptions(pooling) for pooling in (Pooling.MEAN, Pooling.CLS, Pooling.LAST)]


@pytest.mark.parametrize("overlap", [False, True], ids=["step by step", "overlapped"])
def test_steps_that_embed(tmp_path: Path, launches: list[int], overlap: bool) -> None:
    """Whole prompts and chunks of them, beside sequences that generate."""
    write_model(tmp_path, "llama")
    loop = EngineLoop(tiny_runner_of(str(tmp_path)), step_tokens=20, overlap=overlap)
    embedded = [loop.sequence(p, 0, embedding=how) for p in PROMPTS for how in POOLINGS]
    loop.serve([*(loop.sequence(p, 6) for p in PROMPTS), *embedded], staggered=True)
    assert all(sequence.vector for sequence in embedded)


def test_an_encoders_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = tiny_runner_of(str(write_encoder(tmp_path, "bert")), kv_memory=0)
    with no_waiting(monkeypatch), no_waiting_inside():
        launched = runner.launch(batch_of([3, 5, 30, 40]))
    assert len(runner.collect(launched).vectors) == 4


def test_nothing_waits_inside_an_operation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_on_a_gpu: None) -> None:
    """Of whatever kind the rows are: a step of prompts, and one of tokens after them."""
    write_model(tmp_path, "llama")
    runner, launch = tiny_runner_of(str(tmp_path)), TorchModelRunner.launch

    def looked_into(self: TorchModelRunner, batch: ScheduledBatch) -> Any:
        with no_waiting_inside():
            return launch(self, batch)

    monkeypatch.setattr(TorchModelRunner, "launch", looked_into)
    loop = EngineLoop(runner)
    kinds: list[dict[str, Any]] = [
        {}, {"sampling": SAMPLED}, {"sampling": CHANGED, "logprobs": 2, "prompt_logprobs": 1},
        *({"embedding": how} for how in POOLINGS),
    ]  # fmt: skip
    loop.serve([loop.sequence(prompt, 0 if "embedding" in kind else 2, **kind) for kind in kinds for prompt in PROMPTS])
    assert all(terminal.error is None for terminal in loop.terminals.values())


MISTAKES: dict[str, Callable[[torch.Tensor], object]] = {
    "item": lambda t: t[0, 0].item(),
    "int": lambda t: int(t.argmax()),
    "bool": lambda t: bool((t > 0).all()),
    "if": lambda t: 1 if t[0, 0] > 0 else 2,
    "tolist": lambda t: t[0].tolist(),
    "cpu": lambda t: t.cpu(),
    "to": lambda t: t.to("cpu"),
    "to a device": lambda t: t.to(t.device),
    "to by name": lambda t: t.to(device="cpu", dtype=torch.float64),
    "numpy": lambda t: t.numpy(),
    "array": lambda t: np.asarray(t),
    "nonzero": lambda t: t.nonzero(),
    "where": lambda t: torch.where(t > 0),
    "mask": lambda t: t[t > 0],
    "masked assignment": lambda t: t.clone().__setitem__(t > 0, torch.zeros(1)[0]),
    "masked_select": lambda t: t.masked_select(t > 0),
    "unique": lambda t: t.unique(),
    "repeat_interleave": lambda t: t[0].repeat_interleave(torch.ones(t.shape[1], dtype=torch.int64)),
    "torch.tensor": lambda t: torch.tensor([1, 2], device=t.device),
    "equal": lambda t: torch.equal(t, t),
    "segment_reduce": lambda t: torch.segment_reduce(t, "sum", lengths=torch.ones(len(t), dtype=torch.int64)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launches: list[int], mistake: str
) -> None:
    write_model(tmp_path, "llama")
    runner = tiny_runner_of(str(tmp_path))
    next_tokens = model_runner.next_tokens

    def with_mistake(given: torch.Tensor, *rest: Any) -> torch.Tensor:
        MISTAKES[mistake](given)
        return next_tokens(given, *rest)

    monkeypatch.setattr(model_runner, "next_tokens", with_mistake)
    with pytest.raises(Waits):
        runner.launch(a_batch())


def a_batch(sampling: SamplingParams = GREEDY) -> ScheduledBatch:
    sequence = Sequence(1, [1, 2, 3], 3, sampling, StopParams(max_tokens=4), slot=0, block_table=[0])
    return ScheduledBatch((ScheduledRow(sequence, 3),))


def test_a_mistake_inside_an_operation_is_caught() -> None:
    lengths = torch.tensor([1, 2])
    with pytest.raises(Waits, match="aten::segment_reduce reads"), no_waiting_inside():
        torch.segment_reduce(torch.ones(3), "sum", lengths=lengths)
    with no_waiting_inside():
        torch.segment_reduce(torch.ones(3), "sum", lengths=lengths, unsafe=True)


def test_the_cpus_own_ways_would_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So what `as_on_a_gpu` forces is needed, and a branch on the device that forgets the GPU is found."""
    write_model(tmp_path, "llama")
    runner = tiny_runner_of(str(tmp_path))
    for sampling in (SAMPLED, CHANGED):
        with pytest.raises(Waits), no_waiting(monkeypatch):
            runner.launch(a_batch(sampling))
