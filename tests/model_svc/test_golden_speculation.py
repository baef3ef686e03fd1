"""Golden tests of speculative decoding: whatever is drafted, the tokens are those of the plain engine, one by one.

In fp32, over 200 prompts, greedy and sampled with filters, biases, bans and min_tokens, in batches that mix rows with
drafts and without, chunks of prompts, hits in the prefix cache and preemptions, steps overlapped and not.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest

from model_svc.engine.batch import ModelRunner
from model_svc.engine.drafting import DraftLimits
from model_svc.engine.sequence import Sequence
from model_svc.native.library import why_unavailable
from tests.fakes.drafts import RecordedLookup
from tests.fakes.engine_loop import EngineLoop
from tests.fakes.step_loop import GREEDY, outputs
from tests.fakes.tiny_models import VOCAB_SIZE, write_model
from tests.fakes.tiny_runner import tiny_runner_of
from tokenwire.sampling import NEUTRAL, SamplingParams, StopParams

Runners = Callable[[str], ModelRunner]

ALWAYS = DraftLimits(max_drafts=6, by_default=True, adaptive=False)
NUM_PROMPTS = 200
NUM_OUTPUTS = 24
CHUNK = 48
FEW_BLOCKS = 60
SAMPLED = replace(NEUTRAL, seed=5, temperature=1.0)
FILTERED = replace(NEUTRAL, seed=6, temperature=0.9, top_p=0.9, top_k=20, min_p=0.02)
CHANGED = replace(
    NEUTRAL, seed=7, temperature=0.8, logit_bias=((3, 2.0), (5, -4.0)),
    banned_sequences=((9,), *((a, b) for a in range(0, VOCAB_SIZE, 3) for b in (1, 5)), (2, 3, 4)),
)  # fmt: skip
RNG = random.Random(11)
PROMPTS = [[RNG.randrange(VOCAB_SIZE) for _ in range(RNG.choice((1, 2, 5, 9, 17, 30)))] for _ in range(NUM_PROMPTS)]
STOPS = StopParams(max_tokens=NUM_OUTPUTS, stop_token_ids=tuple(range(0, VOCAB_SIZE, 11)), min_tokens=9)


@pytest.fixture(scope="module", params=["on", "off"])
def runners(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Runners:
    """Runners with the CPU kernels, and without."""
    if request.param == "on" and (why := why_unavailable()):
        pytest.skip(why)
    return cache(
        lambda family: tiny_runner_of(
            str(write_model(tmp_path_factory.mktemp("drafts") / family, family)), cpu_kernels=request.param
        )
    )


def made_of(loop: EngineLoop, sequences: list[Sequence]) -> list[tuple[object, ...]]:
    terminals = [loop.terminals[sequence.sequence_id] for sequence in sequences]
    return [
        (outputs(s), t.reason, t.stop_token_id, t.usage.completion_tokens)
        for s, t in zip(sequences, terminals, strict=True)
    ]


def recorded(sequences: list[Sequence]) -> dict[tuple[tuple[int, ...], int], list[int]]:
    return {(tuple(s.token_ids[: s.num_prompt_tokens]), s.choice): outputs(s) for s in sequences}


@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlapped"])
@pytest.mark.parametrize("few_blocks", [False, True], ids=["chunked", "preempted"])
@pytest.mark.parametrize(
    "sampling", [GREEDY, SAMPLED, FILTERED, CHANGED], ids=["greedy", "sampled", "filtered", "changed"]
)
def test_200_prompts(runners: Runners, sampling: SamplingParams, few_blocks: bool, overlap: bool) -> None:
    runner = runners("qwen3")
    info = replace(runner.info, num_blocks=FEW_BLOCKS) if few_blocks else runner.info
    plain = EngineLoop(runner, step_tokens=CHUNK, info=info)
    wanted = plain.run(PROMPTS, NUM_OUTPUTS, sampling=sampling, stop=STOPS)
    loop = EngineLoop(runner, step_tokens=CHUNK, info=info, overlap=overlap, drafts=ALWAYS)
    loop.engine.scheduler.drafting.lookup = RecordedLookup(recorded(wanted), 3, VOCAB_SIZE)
    half = NUM_PROMPTS // 2
    made = loop.run(PROMPTS[:half], NUM_OUTPUTS, sampling=sampling, stop=STOPS)
    made += loop.run(PROMPTS[half:], NUM_OUTPUTS, sampling=sampling, stop=STOPS, staggered=True)
    assert made_of(loop, made) == made_of(plain, wanted)
    counts = loop.engine.scheduler.drafting.counts()
    assert 0 < counts.num_accepted < counts.num_drafted
    assert (loop.num_preemptions > 0) == few_blocks


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen2_window", "qwen3_moe", "gpt_oss"])
def test_what_the_prompt_and_output_repeat_is_found_and_right(runners: Runners, family: str) -> None:
    """The n-gram lookup itself, greedy: tiny models soon repeat themselves."""
    runner = runners(family)
    plain, loop = EngineLoop(runner), EngineLoop(runner, drafts=ALWAYS)
    prompts = [prompt + prompt[:2] for prompt in PROMPTS[:40]]
    wanted, made = plain.run(prompts, 60), loop.run(prompts, 60, staggered=True)
    assert made_of(loop, made) == made_of(plain, wanted)
    assert loop.engine.scheduler.drafting.counts().num_accepted > 100


@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlapped"])
def test_logprobs_of_accepted_drafts(runners: Runners, overlap: bool) -> None:
    runner = runners("llama")
    plain = EngineLoop(runner, step_tokens=CHUNK)
    wanted = plain.run(PROMPTS[:40], NUM_OUTPUTS, logprobs=3, prompt_logprobs=1)
    loop = EngineLoop(runner, step_tokens=CHUNK, drafts=ALWAYS, overlap=overlap)
    loop.engine.scheduler.drafting.lookup = RecordedLookup(recorded(wanted), 4, VOCAB_SIZE)
    made = loop.run(PROMPTS[:40], NUM_OUTPUTS, logprobs=3, prompt_logprobs=1)
    for one, other in zip(wanted, made, strict=True):
        first, second = plain.runner.logprobs[one.sequence_id], loop.runner.logprobs[other.sequence_id]
        assert outputs(other) == [entry.token_id for entry in second]
        assert [entry.token_id for entry in first] == [entry.token_id for entry in second]
        assert [entry.logprob for entry in first] == pytest.approx([entry.logprob for entry in second], abs=1e-4)
        tops = [[top.token_id for top in entry.top] for entry in first]
        assert tops == [[top.token_id for top in entry.top] for entry in second]


def test_requests_beside_each_other_with_drafts_and_without(runners: Runners) -> None:
    """Penalised ones, which are not drafted for, and ones that do not want any."""
    runner, rows = runners("qwen3"), PROMPTS[:30]
    penalised = replace(NEUTRAL, seed=0, repetition_penalty=1.2, frequency_penalty=0.3)
    loops = EngineLoop(runner, step_tokens=CHUNK), EngineLoop(runner, step_tokens=CHUNK, drafts=ALWAYS)
    options = ({}, {"sampling": penalised}, {"speculation": False}, {"sampling": SAMPLED, "choice": 2})
    results = []
    for loop in loops:
        made = [loop.sequence(prompt + prompt, 40, **options[number % 4]) for number, prompt in enumerate(rows)]
        loop.serve(made, staggered=True)
        results.append(made_of(loop, made))
    assert results[0] == results[1]
    assert loops[1].engine.scheduler.drafting.counts().num_accepted > 0


def test_lengths_that_adapt_change_no_token(runners: Runners) -> None:
    """Whatever steps take on the machine that runs this."""
    runner = runners("qwen3")
    prompts = [prompt + prompt for prompt in PROMPTS[:60]]
    for sampling in (GREEDY, FILTERED):
        # Each with a prefix cache of its own, and the one after the other: they write into the same memory.
        plain, loop = EngineLoop(runner), EngineLoop(runner, drafts=replace(ALWAYS, adaptive=True))
        wanted, made = plain.run(prompts, 60, sampling=sampling), loop.run(prompts, 60, sampling=sampling)
        assert made_of(loop, made) == made_of(plain, wanted)
