"""The runner with penalties, bans and log-probabilities, against transformers: `generate`, and a plain forward pass."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from model_svc.engine.batch import ModelRunner
from model_svc.runner.step_output import NO_TOKEN_ERROR, NOT_FINITE_ERROR
from tests.fakes.step_loop import GREEDY, StepLoop, outputs
from tests.fakes.tiny_models import VOCAB_SIZE
from tokenwire.requests import TokenLogprob
from tokenwire.sampling import NEUTRAL, SamplingParams

Folders = Callable[[str], str]
Runners = Callable[[str], ModelRunner]

NUM_OUTPUTS = 16


def prompts(num: int, longest: int = 30) -> list[list[int]]:
    rng = random.Random(num)
    return [[rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(2, longest))] for _ in range(num)]


def model_of(folder: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def generated(folder: str, prompt: list[int], **options: Any) -> list[int]:
    ids = torch.tensor([prompt])
    made = model_of(folder).generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NUM_OUTPUTS, **options
    )
    return made[0, len(prompt) :].tolist()


def run_all(
    runner: ModelRunner, given: list[list[int]], sampling: SamplingParams, chunk: int = 7, **options: Any
) -> list[list[int]]:
    loop = StepLoop(runner, chunk=chunk)
    sequences = [loop.add(prompt, NUM_OUTPUTS, sampling, **options) for prompt in given]
    loop.run()
    assert loop.errors == {}
    return [outputs(sequence) for sequence in sequences]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_repetition_penalty_equals_generate(tiny_folder: Folders, tiny_runner: Runners, family: str) -> None:
    folder, given = tiny_folder(family), prompts(6)
    wanted = [generated(folder, prompt, repetition_penalty=1.3) for prompt in given]
    assert wanted != [generated(folder, prompt) for prompt in given]
    sampling = replace(GREEDY, repetition_penalty=1.3)
    assert run_all(tiny_runner(family), given, sampling) == wanted
    assert run_all(tiny_runner(family), given[:1], sampling) == wanted[:1]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_banned_sequences_equal_generate(tiny_folder: Folders, tiny_runner: Runners, family: str) -> None:
    """Bans what each prompt would give without a ban: its first token, a pair and a triple of those that follow."""
    folder = tiny_folder(family)
    for prompt in prompts(4):
        free = generated(folder, prompt)
        banned = [free[:1], free[3:5], free[7:10]]
        wanted = generated(folder, prompt, bad_words_ids=banned)
        assert wanted != free
        sampling = replace(GREEDY, banned_sequences=tuple(map(tuple, banned)))
        assert run_all(tiny_runner(family), [prompt], sampling) == [wanted]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_min_tokens_equals_generate(tiny_folder: Folders, tiny_runner: Runners, family: str) -> None:
    """With an end-of-sequence id that would be drawn at once."""
    folder, ended = tiny_folder(family), 0
    for prompt in prompts(6):
        eos = generated(folder, prompt)[0]
        wanted = generated(folder, prompt, eos_token_id=eos, min_new_tokens=5)
        assert eos not in wanted[:5]
        ended += wanted[-1] == eos
        made = run_all(tiny_runner(family), [prompt], GREEDY, stop_token_ids=(eos,), min_tokens=5)
        assert made == [wanted]
    assert ended, "choose other prompts: none ends after its least tokens"


EVERYTHING = replace(
    NEUTRAL, temperature=1.2, top_k=40, top_p=0.98, min_p=0.001, repetition_penalty=1.3, presence_penalty=0.6,
    frequency_penalty=0.4, logit_bias=((3, 4.0), (4, -4.0), (5, 6.0)), banned_sequences=((6,), (3, 5), (5, 5)),
    allowed_token_ids=tuple(range(0, VOCAB_SIZE, 2)) + (3, 5),
)  # fmt: skip


def with_everything(seed: int) -> SamplingParams:
    return replace(EVERYTHING, seed=seed, temperature=0.0 if seed % 5 == 4 else 1.2)


def test_equal_seed_equal_tokens_alone_and_among_32(tiny_runner: Runners) -> None:
    """Half of the others ask for other things, or nothing; sequences come late and are preempted."""
    runner, given = tiny_runner("qwen3"), prompts(32)
    others = [GREEDY, replace(EVERYTHING, allowed_token_ids=(), seed=7), replace(NEUTRAL, temperature=1.0, seed=1)]
    watched = (0, 4, 14, 30)
    ends = [{"stop_token_ids": (2,), "min_tokens": i % 20} for i in range(32)]
    alone = {i: run_all(runner, given[i : i + 1], with_everything(i), chunk=100, **ends[i])[0] for i in watched}
    assert len({tuple(tokens) for tokens in alone.values()}) == len(watched)

    loop = StepLoop(runner, chunk=9)
    sequences = [loop.add(given[0], NUM_OUTPUTS, with_everything(0), **ends[0])]

    def disturb(step: int) -> None:
        for _ in range(5):
            if (i := len(sequences)) < 32:
                sampling = others[i % 3] if i % 2 else with_everything(i)
                sequences.append(loop.add(given[i], NUM_OUTPUTS, sampling, **ends[i]))
        if step in (5, 9, 12):
            loop.preempt(sequences[0])
            loop.preempt(sequences[14 if len(sequences) > 14 else 1])

    loop.run(disturb)
    assert {i: outputs(sequences[i]) for i in watched} == alone


def test_preempted_sequences_trade_slots_and_make_the_same_tokens(tiny_runner: Runners) -> None:
    runner, given = tiny_runner("llama"), prompts(3)
    alone = [run_all(runner, [prompt], with_everything(i), chunk=100)[0] for i, prompt in enumerate(given)]
    loop = StepLoop(runner, chunk=100)
    sequences = [loop.add(prompt, NUM_OUTPUTS, with_everything(i)) for i, prompt in enumerate(given)]
    slots: set[tuple[int, ...]] = set()

    def preempt(step: int) -> None:
        slots.add(tuple(sequence.slot for sequence in sequences))
        if step in (4, 7, 9):
            chosen = sequences[: 2 + step % 2]
            for sequence in chosen:
                loop.preempt(sequence)
            loop.running.reverse()  # so that another is the first to take a free slot

    loop.run(preempt)
    assert len({taken for taken in slots if -1 not in taken}) > 1
    assert [outputs(sequence) for sequence in sequences] == alone


def test_a_resumed_stream_goes_on_with_its_penalties(tiny_runner: Runners) -> None:
    runner, prompt = tiny_runner("qwen3"), prompts(1)[0]
    options = {"stop_token_ids": (2, 8), "min_tokens": 9}
    (whole,) = run_all(runner, [prompt], with_everything(3), **options)
    loop = StepLoop(runner)
    resumed = loop.add(prompt + whole[:6], NUM_OUTPUTS - 6, with_everything(3), before=6, **options)
    loop.run()
    assert outputs(resumed) == whole[6:]


def test_a_request_that_bans_every_token_ends_alone(tiny_folder: Folders, tiny_runner: Runners) -> None:
    runner, given = tiny_runner("llama"), prompts(3)
    loop = StepLoop(runner)
    fine = loop.add(given[0], NUM_OUTPUTS)
    stuck = loop.add(given[1], NUM_OUTPUTS, replace(GREEDY, allowed_token_ids=(7,), banned_sequences=((7, 7, 7),)))
    stuck.logprobs = 2
    loop.run()
    assert loop.errors == {stuck.sequence_id: NO_TOKEN_ERROR}
    assert NO_TOKEN_ERROR != NOT_FINITE_ERROR
    assert outputs(stuck) == [7, 7]
    assert len(loop.logprobs[stuck.sequence_id]) == 2
    assert outputs(fine) == generated(tiny_folder("llama"), given[0])
    assert not runner._tainted_blocks


def assert_scored(entries: list[TokenLogprob], token_ids: list[int], logprobs: torch.Tensor, num_top: int) -> None:
    """Whether entry i is that of token_ids[i] under logprobs[i], within 1e-4."""
    assert [entry.token_id for entry in entries] == token_ids
    for entry, row in zip(entries, logprobs, strict=True):
        top = row.topk(num_top)
        assert entry.logprob == pytest.approx(row[entry.token_id].item(), abs=1e-4)
        assert [likely.logprob for likely in entry.top] == pytest.approx(top.values.tolist(), abs=1e-4)
        assert [likely.token_id for likely in entry.top] == top.indices.tolist()


@pytest.mark.parametrize("chunk", [7, 1000])
@pytest.mark.parametrize("num", [1, 12])
@pytest.mark.parametrize("preempted", [False, True])
def test_logprobs_equal_a_plain_forward(
    tiny_folder: Folders, tiny_runner: Runners, chunk: int, num: int, preempted: bool
) -> None:
    """Before penalties and temperature, for prompt and output, whatever the neighbours ask for."""
    model, given = model_of(tiny_folder("llama")), prompts(num)
    loop = StepLoop(tiny_runner("llama"), chunk=chunk)
    wishes = [(3, 2), (None, 0), (0, None), (20, 20), (None, None)]
    sequences = []
    for index, prompt in enumerate(given):
        logprobs, prompt_logprobs = wishes[index % len(wishes)]
        sampling = with_everything(index) if index % 3 == 0 else GREEDY
        sequences.append(
            loop.add(prompt, NUM_OUTPUTS, sampling, logprobs=logprobs, prompt_logprobs=prompt_logprobs)
        )  # fmt: skip

    def preempt(step: int) -> None:
        if preempted and step in (1, 2, 8):
            for sequence in sequences[::3]:
                loop.preempt(sequence)

    loop.run(preempt)
    assert loop.errors == {}
    for sequence, prompt in zip(sequences, given, strict=True):
        with torch.inference_mode():
            logprobs = model(torch.tensor([sequence.token_ids])).logits[0].log_softmax(-1)
        made, of_prompt = loop.logprobs[sequence.sequence_id], loop.prompt_logprobs[sequence.sequence_id]
        if sequence.logprobs is None:
            assert made == []
        else:
            assert_scored(made, outputs(sequence), logprobs[len(prompt) - 1 : -1], sequence.logprobs)
        if sequence.prompt_logprobs is None:
            assert of_prompt == []
        else:
            assert_scored(of_prompt, prompt[1:], logprobs[: len(prompt) - 1], sequence.prompt_logprobs)


def test_a_resumed_stream_gives_the_logprobs_of_its_own_prompt(tiny_folder: Folders, tiny_runner: Runners) -> None:
    prompt, output = [5, 6, 7, 8], [9, 10, 11]
    loop = StepLoop(tiny_runner("llama"), chunk=3)
    sequence = loop.add(prompt + output, 2, before=3, logprobs=1, prompt_logprobs=1)
    one_token = loop.add([5], 2, prompt_logprobs=1)
    loop.run()
    with torch.inference_mode():
        logprobs = model_of(tiny_folder("llama"))(torch.tensor([sequence.token_ids])).logits[0].log_softmax(-1)
    assert_scored(loop.prompt_logprobs[sequence.sequence_id], prompt[1:], logprobs[:3], 1)
    assert_scored(loop.logprobs[sequence.sequence_id], outputs(sequence), logprobs[6:-1], 1)
    assert loop.prompt_logprobs[one_token.sequence_id] == []
