"""The whole engine on a GPU, in fp32, gives the tokens that `transformers` gives on the same GPU.

As `tests/model_svc/test_golden.py` does on the CPU, for fewer families. Where tokens first differ at a near-tie of
`transformers`' own logits, the rest of that sequence is not compared.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch

from model_svc.engine.batch import ModelRunner
from model_svc.engine.sequence import Sequence
from model_svc.runner.graph import record_on_cuda
from model_svc.runner.model_runner import TorchModelRunner
from model_svc.runner.recorded_sampler import RecordedSampler
from model_svc.runner.sampler import RowSampling, sample
from tests.fakes.engine_loop import EngineLoop
from tests.fakes.failing_forward import failing_forward
from tests.fakes.reference import Reference, check_greedy
from tests.fakes.step_loop import StepLoop, outputs
from tests.fakes.tiny_models import VOCAB_SIZE
from tests.fakes.tiny_runner import tiny_runner_of
from tokenwire.errors import Internal
from tokenwire.requests import FinishReason
from tokenwire.sampling import NEUTRAL, SamplingParams

Folders = Callable[[str], str]
Runners = Callable[[str], ModelRunner]
References = Callable[[str], Reference]

each_family = pytest.mark.parametrize("family", ["llama", "qwen2_window", "qwen3", "gemma2", "gemma3", "phi3"])
NUM_OUTPUTS = 12
CHUNK = 7
FEW_BLOCKS = 36
RNG = random.Random(1)


def random_tokens(length: int) -> list[int]:
    return [RNG.randrange(VOCAB_SIZE) for _ in range(length)]


BATCH = [random_tokens(length) for length in (40, 1, 3, 17, 8, 29, 2, 12, 33, 5, 9, 24, 1, 14, 7, 20)]
SHARED = random_tokens(26)
SHARING = [SHARED + random_tokens(length) for length in (1, 4, 9, 2)]


def check(sequences: list[Sequence], reference: Reference) -> None:
    check_greedy(sequences, reference, NUM_OUTPUTS)


@each_family
def test_in_a_batch_of_16_that_fills_up_while_it_runs(runners: Runners, references: References, family: str) -> None:
    check(EngineLoop(runners(family)).run(BATCH, NUM_OUTPUTS, staggered=True), references(family))


@each_family
def test_prompts_in_chunks_of_7(runners: Runners, references: References, family: str) -> None:
    check(EngineLoop(runners(family), step_tokens=CHUNK).run(BATCH, NUM_OUTPUTS), references(family))


@each_family
def test_across_preemptions(runners: Runners, references: References, family: str) -> None:
    runner = runners(family)
    loop = EngineLoop(runner, info=replace(runner.info, num_blocks=FEW_BLOCKS))
    sequences = loop.run(BATCH, NUM_OUTPUTS)
    assert loop.num_preemptions > 0
    check(sequences, references(family))


@each_family
def test_after_hits_in_the_prefix_cache(runners: Runners, references: References, family: str) -> None:
    loop = EngineLoop(runners(family))
    check(loop.run(SHARING[:1], NUM_OUTPUTS), references(family))
    again = loop.run(SHARING, NUM_OUTPUTS, staggered=True)
    assert all(loop.terminals[sequence.sequence_id].usage.cached_tokens > 0 for sequence in again)
    check(again, references(family))


@each_family
def test_logprobs(runners: Runners, references: References, family: str) -> None:
    loop = EngineLoop(runners(family), step_tokens=CHUNK * 4)
    for sequence in loop.run(BATCH[:6], NUM_OUTPUTS, logprobs=0, prompt_logprobs=0):
        wanted = references(family).logprobs(sequence.token_ids)
        target = torch.tensor(sequence.token_ids[1:], device=wanted.device)[:, None]
        given = loop.runner.prompt_logprobs[sequence.sequence_id] + loop.runner.logprobs[sequence.sequence_id]
        found = torch.tensor([entry.logprob for entry in given])
        torch.testing.assert_close(found, wanted.gather(-1, target)[:, 0].cpu(), rtol=0, atol=1e-3)


def stochastic(seed: int) -> SamplingParams:
    return replace(NEUTRAL, temperature=1.0, top_k=20, top_p=0.95, min_p=0.01, seed=seed)


def test_equal_seeds_give_equal_tokens_alone_and_among_32(runners: Runners) -> None:
    runner = runners("qwen3")
    given = [random_tokens(length) for length in range(1, 33)]
    alone: list[list[int]] = []
    for index in (0, 9, 31):
        loop = StepLoop(runner)
        sequence = loop.add(given[index], NUM_OUTPUTS, stochastic(index))
        loop.run()
        alone.append(outputs(sequence))
    loop = StepLoop(runner, chunk=16)
    sequences = [loop.add(prompt, NUM_OUTPUTS, stochastic(index)) for index, prompt in enumerate(given)]
    loop.run()
    assert [outputs(sequences[index]) for index in (0, 9, 31)] == alone


def test_a_row_that_is_not_numbers_ends_alone(folders: Folders, references: References, device: str) -> None:
    poison = 17
    runner = tiny_runner_of(folders("llama"), device=device)
    assert isinstance(runner, TorchModelRunner)
    runner._model.module.get_input_embeddings().weight.data[poison] = float("nan")
    fine = [[token for token in prompt if token != poison] or [1] for prompt in BATCH[:5]]
    fine = [prompt for prompt in fine if poison not in references("llama").greedy(prompt, NUM_OUTPUTS).token_ids]
    assert len(fine) > 2
    loop = EngineLoop(runner)
    broken, *others = loop.run([[5, poison, 7, 8, 9], *fine], NUM_OUTPUTS)
    check(others, references("llama"))
    error = loop.terminals[broken.sequence_id].error
    assert isinstance(error, Internal) and error.reason == "SEQUENCE_FAILED"
    check(loop.run(fine, NUM_OUTPUTS), references("llama"))


def test_running_out_of_memory_loses_no_token(
    folders: Folders, references: References, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of more than 9 tokens ask the real allocator for more than any GPU has."""
    runner = tiny_runner_of(folders("llama"), device=device)
    too_much = partial(torch.empty, 2**60, dtype=torch.uint8, device=device)
    failing_forward(monkeypatch, lambda num_tokens: num_tokens > 9, too_much, after=True)
    loop = EngineLoop(runner, batch=8)
    sequences = loop.run(BATCH[:6], NUM_OUTPUTS)
    assert loop.engine.scheduler.load().num_out_of_memory > 0
    assert {terminal.reason for terminal in loop.terminals.values()} == {FinishReason.LENGTH}
    check(sequences, references("llama"))


@pytest.mark.usefixtures("gpu")
def test_recorded_draws_are_those_of_the_eager_sampler(device: str) -> None:
    """Rows of every kind beside each other, for a vocabulary that torch sorts in another way than a small one."""
    generator = torch.Generator(device).manual_seed(0)
    logits = torch.zeros(8, 32_000, device=device)
    recorded = RecordedSampler(
        record_on_cuda(torch.device(device)), largest=8, vocab_size=32_000, device=torch.device(device)
    )  # fmt: skip
    recorded.record(logits)
    kinds = [replace(NEUTRAL, seed=0), replace(NEUTRAL, temperature=0.9, seed=1), stochastic(2)]
    for batch in ([kinds[0]] * 8, [kinds[0], kinds[1]] * 4, [*kinds, *kinds], kinds[2:]):
        for position in range(20):
            logits.copy_(torch.randn(8, 32_000, device=device, generator=generator) * 3)
            logits[0, 5] = float("nan") if position == 3 else 0.0
            rows = [RowSampling(params, 0, position) for params in batch]
            tokens = recorded.tokens(8, rows)
            assert tokens is not None
            assert tokens.tolist() == sample(logits[: len(rows)], rows).tolist()
    assert recorded.num_replays == 4 * 20


@pytest.mark.usefixtures("gpu")
@pytest.mark.filterwarnings("ignore")
def test_compiled_layers_give_the_same_tokens(folders: Folders, references: References, device: str) -> None:
    """With graphs recorded over them, and overlapped, as a server runs them."""
    runner = tiny_runner_of(folders("llama"), device=device, compile="on")
    assert isinstance(runner, TorchModelRunner) and runner._graphs is not None
    loop = EngineLoop(runner, overlap=True)
    check(loop.run(BATCH, NUM_OUTPUTS, staggered=True), references("llama"))
    assert runner._graphs.num_replays and runner._graphs.sampler.num_replays


def test_bf16_decodes_near_fp32(folders: Folders, references: References, device: str) -> None:
    """Teacher-forced: the log-probabilities of what bf16 chose, in fp32."""
    loop = EngineLoop(tiny_runner_of(folders("qwen3"), device=device, dtype="bfloat16"))
    for sequence in loop.run(BATCH[:6], NUM_OUTPUTS, logprobs=0):
        wanted = references("qwen3").logprobs(sequence.token_ids)[sequence.num_prompt_tokens - 1 :]
        target = torch.tensor(outputs(sequence), device=wanted.device)[:, None]
        found = torch.tensor([entry.logprob for entry in loop.runner.logprobs[sequence.sequence_id]])
        assert (found - wanted.gather(-1, target)[:, 0].cpu()).abs().mean() < 0.3
