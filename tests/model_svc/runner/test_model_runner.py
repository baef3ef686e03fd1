"""What the runner promises: rows do not disturb each other, and noise depends on nothing but seed and position.

That each family gives the tokens of transformers is for `tests/model_svc/test_golden.py`.
"""

import random
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import pytest

from model_svc.engine.batch import ModelRunner
from model_svc.engine.sequence import Sequence
from model_svc.model import paged
from model_svc.runner.startup import start_runner
from model_svc.runner.step_output import NOT_FINITE_ERROR
from model_svc.settings import EngineSettings
from tests.fakes.engine_loop import EngineLoop
from tests.fakes.reference import Reference
from tests.fakes.step_loop import GREEDY, StepLoop, outputs
from tests.fakes.tiny_models import VOCAB_SIZE
from tests.fakes.tiny_runner import tiny_runner_of
from tokenwire.errors import Internal
from tokenwire.requests import FinishReason
from tokenwire.sampling import NEUTRAL, SamplingParams

Folders = Callable[[str], str]
Runners = Callable[[str], ModelRunner]

NUM_OUTPUTS = 12


def prompts(num: int, longest: int = 40) -> list[list[int]]:
    rng = random.Random(num)
    return [[rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, longest))] for _ in range(num)]


def greedy_reference(folder: str, prompt: list[int]) -> list[int]:
    return Reference(folder).greedy(prompt, NUM_OUTPUTS).token_ids


def test_contexts_of_very_different_length_share_a_step(tiny_folder: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """So different that decodes are split into groups."""
    monkeypatch.setattr(paged, "SMALLEST_SPLIT_TOKENS", 8)
    settings = EngineSettings(
        model=tiny_folder("llama"), device="cpu", dtype="float32", threads=1, block_size=1, max_batch_size=8,
        kv_memory=16 * 2**20,
    )  # fmt: skip
    runner = start_runner(settings, {})
    given = [prompt[:length] for prompt, length in zip(prompts(4, 200), (100, 60, 3, 1), strict=True)]
    loop = StepLoop(runner)
    sequences = [loop.add(prompt, NUM_OUTPUTS) for prompt in given]
    loop.run()
    assert [outputs(s) for s in sequences] == [greedy_reference(settings.model, prompt) for prompt in given]


def test_recompute_after_preemption_changes_nothing(tiny_folder: Folders, tiny_runner: Runners) -> None:
    loop = StepLoop(tiny_runner("llama"), chunk=5)
    given = prompts(3)
    sequences = [loop.add(prompt, NUM_OUTPUTS) for prompt in given]

    def preempt_once(step: int) -> None:
        if step == 12:
            loop.preempt(sequences[1])

    loop.run(preempt_once)
    assert [outputs(s) for s in sequences] == [greedy_reference(tiny_folder("llama"), prompt) for prompt in given]


def stochastic(seed: int) -> SamplingParams:
    return replace(NEUTRAL, temperature=1.0, top_k=20, top_p=0.95, min_p=0.01, seed=seed)


def test_equal_seed_equal_tokens_alone_and_among_32(tiny_runner: Runners) -> None:
    runner = tiny_runner("qwen3")
    given = prompts(32)
    alone = []
    for index in (0, 9, 31):
        loop = StepLoop(runner)
        sequence = loop.add(given[index], NUM_OUTPUTS, stochastic(index))
        loop.run()
        alone.append(outputs(sequence))
    loop = StepLoop(runner, chunk=16)
    sequences = [loop.add(prompt, NUM_OUTPUTS, stochastic(index)) for index, prompt in enumerate(given)]
    loop.run()
    assert [outputs(sequences[index]) for index in (0, 9, 31)] == alone


def test_choices_and_seeds_draw_differently(tiny_runner: Runners) -> None:
    loop = StepLoop(tiny_runner("qwen3"))
    prompt = prompts(1)[0]
    plain = replace(NEUTRAL, temperature=1.5, seed=5)
    made = [loop.add(prompt, NUM_OUTPUTS, plain, choice=choice) for choice in (0, 1, 0)]
    made.append(loop.add(prompt, NUM_OUTPUTS, stochastic(6)))
    loop.run()
    first, second, again, other = (tuple(outputs(sequence)) for sequence in made)
    assert first == again
    assert len({first, second, other}) == 3


def test_a_resumed_stream_goes_on_with_the_same_noise(tiny_runner: Runners) -> None:
    runner = tiny_runner("qwen3")
    prompt = prompts(1)[0]
    loop = StepLoop(runner)
    whole = loop.add(prompt, NUM_OUTPUTS, stochastic(3))
    loop.run()
    resumed = loop.add(prompt + outputs(whole)[:5], NUM_OUTPUTS - 5, stochastic(3), before=5)
    loop.run()
    assert outputs(resumed) == outputs(whole)[5:]


def test_logits_that_are_not_finite_end_one_row_only(tiny_folder: Folders) -> None:
    """And a block that the broken sequence gave back serves its next owner rightly."""
    poison = 17
    settings = EngineSettings(
        model=tiny_folder("llama"), device="cpu", dtype="float32", threads=1, block_size=4, max_batch_size=8,
        kv_memory=2**20,
    )  # fmt: skip
    runner = start_runner(settings, {})
    runner._model.module.get_input_embeddings().weight.data[poison] = float("nan")
    given = [[token for token in prompt if token != poison] for prompt in prompts(6, 60)]
    given[2:5] = [[3, 4], [5, 6], [7, 8]]
    wanted = [greedy_reference(settings.model, prompt) for prompt in given]
    assert not any(poison in tokens for tokens in wanted), "choose another token to poison"

    loop = StepLoop(runner, chunk=6)
    sequences = [loop.add(prompt, NUM_OUTPUTS) for prompt in given[:2]]
    broken = loop.add([5, poison, 7, 8, 9, 10, 11, 12, 13], NUM_OUTPUTS)
    while broken in loop.running:
        loop.step()
    assert loop.errors == {broken.sequence_id: NOT_FINITE_ERROR}
    assert outputs(broken) == []
    loop.free = [block for block in loop.free if block not in broken.block_table]
    loop.run()
    # Short ones fill a reused block bit by bit; a longer one beside them makes their attention reach past their end.
    loop.chunk = 100
    loop.free += broken.block_table
    sequences += [loop.add(prompt, NUM_OUTPUTS) for prompt in given[2:]]
    loop.step()
    assert {sequence.block_table[0] for sequence in sequences[2:5]} == set(broken.block_table)
    loop.run()
    assert [outputs(sequence) for sequence in sequences] == wanted


def test_prompt_logprobs_that_are_not_finite_end_one_row_only(tiny_folder: Folders) -> None:
    """At the chunk that computes them, long before there is a token to draw."""
    settings = EngineSettings(
        model=tiny_folder("llama"), device="cpu", dtype="float32", threads=1, kv_memory=2**20, max_batch_size=2
    )
    runner = start_runner(settings, {})
    runner._model.module.get_input_embeddings().weight.data[17] = float("nan")
    loop = StepLoop(runner, chunk=6)
    broken = loop.add([5, 17, 7, 8, 9, 10, 11, 12, 13], 1, prompt_logprobs=0)
    fine = loop.add([5, 7, 8, 9, 10, 11, 12, 13], 1, prompt_logprobs=0)
    loop.step()
    assert loop.errors == {broken.sequence_id: NOT_FINITE_ERROR}
    assert loop.prompt_logprobs[broken.sequence_id] == []
    assert len(loop.prompt_logprobs[fine.sequence_id]) == 6
    assert runner._tainted_blocks == set(broken.block_table)


def test_close_frees_the_cache(tiny_folder: Folders) -> None:
    settings = EngineSettings(
        model=tiny_folder("llama"), device="cpu", dtype="float32", threads=1, kv_memory=2**20, max_batch_size=2
    )
    runner = start_runner(settings, {})
    keys = weakref.ref(runner._kv.layers[0].key)
    assert keys() is not None
    runner.close()
    assert keys() is None


def test_a_step_gives_its_time_to_the_phases(tiny_runner: Runners) -> None:
    runner = tiny_runner("llama")
    before, began_s = dict(runner.phases.seconds), time.perf_counter()
    runner.phases.restart()
    loop = StepLoop(runner)
    loop.add([1, 2, 3], 1)
    loop.step()
    took_s = time.perf_counter() - began_s
    spent = {phase: seconds - before[phase] for phase, seconds in runner.phases.seconds.items()}
    assert all(spent[phase] > 0 for phase in ("prepare", "forward", "sample", "wait"))
    assert spent["schedule"] == spent["publish"] == 0, "the engine's"
    assert spent["forward"] < sum(spent.values()) < took_s


@pytest.mark.parametrize("cpu_kernels", ["auto", "off"])
@pytest.mark.parametrize("overlap", [False, True])
def test_a_sequence_without_numbers_ends_and_its_batch_goes_on(
    tiny_folder: Folders, cpu_kernels: str, overlap: bool
) -> None:
    """However its token would be drawn: every logit of such a sequence is NaN, at its first output or later."""
    poison = 17
    ways: list[dict[str, Any]] = [
        {}, {"logprobs": 3}, {"sampling": stochastic(4)}, {"sampling": replace(NEUTRAL, temperature=1.0, seed=2)},
        {"sampling": replace(GREEDY, repetition_penalty=1.3)}, {"sampling": replace(GREEDY, logit_bias=((3, 2.0),))},
        {"sampling": replace(stochastic(6), allowed_token_ids=tuple(range(30, 60)))},
    ]  # fmt: skip
    runner = tiny_runner_of(tiny_folder("llama"), cpu_kernels=cpu_kernels)
    sound = [[token for token in prompt if token != poison] for prompt in prompts(len(ways), 20)]

    def serve(broken: list[Sequence]) -> tuple[EngineLoop, list[list[int]]]:
        loop = EngineLoop(runner, overlap=overlap)
        fine = [loop.sequence(prompt, NUM_OUTPUTS, **way) for prompt, way in zip(sound, ways, strict=True)]
        loop.serve([each for pair in zip_longest(fine, broken) for each in pair if each is not None])
        assert all(loop.terminals[each.sequence_id].reason is FinishReason.LENGTH for each in fine)
        return loop, [outputs(each) for each in fine]

    _, wanted = serve([])
    assert not any(poison in tokens for tokens in wanted), "choose another token to poison"
    runner._model.module.get_input_embeddings().weight.data[poison] = float("nan")  # type: ignore[attr-defined]
    maker = EngineLoop(runner)
    broken = [maker.sequence([5, poison, 7, number], NUM_OUTPUTS, **way) for number, way in enumerate(ways)]
    later = replace(GREEDY, allowed_token_ids=(poison,))
    broken.append(maker.sequence([5, 6, 7], NUM_OUTPUTS, sampling=later))
    loop, found = serve(broken)
    assert found == wanted
    for each in broken:
        error = loop.terminals[each.sequence_id].error
        assert isinstance(error, Internal) and error.reason == "SEQUENCE_FAILED" and error.message == NOT_FINITE_ERROR
        assert outputs(each) == ([poison] if each is broken[-1] else [])


def test_what_a_wrong_draft_broke_is_mended_also_when_its_sequence_is_left_out_of_a_step(tiny_folder: Folders) -> None:
    poison = 17
    runner = tiny_runner_of(tiny_folder("llama"), cpu_kernels="off")
    runner._model.module.get_input_embeddings().weight.data[poison] = float("nan")  # type: ignore[attr-defined]
    long, short = [token for token in prompts(1, 60)[0] if token != poison] * 3, [3, 4, 5, 6, 7]
    wanted = [greedy_reference(tiny_folder("llama"), prompt) for prompt in (long, short)]
    assert poison not in wanted[1], "choose another token to poison"

    loop = StepLoop(runner)
    beside, drafted = loop.add(long, NUM_OUTPUTS), loop.add(short, NUM_OUTPUTS)
    loop.step()
    loop.drafts[drafted.sequence_id] = [poison, 5]
    loop.step()
    loop.running.remove(drafted)
    loop.step()
    loop.running.append(drafted)
    loop.run()
    assert not loop.errors
    assert [outputs(beside), outputs(drafted)] == wanted
    assert not runner._broken_ends  # type: ignore[attr-defined]


@pytest.mark.parametrize("cpu_kernels", ["auto", "off"])
def test_a_wrong_draft_that_the_model_makes_no_numbers_of_does_no_harm(tiny_folder: Folders, cpu_kernels: str) -> None:
    """Neither to its own sequence, nor to the next owner of its blocks."""
    poison = 17
    settings = EngineSettings(
        model=tiny_folder("llama"), device="cpu", dtype="float32", threads=1, block_size=4, max_batch_size=8,
        kv_memory=2**20, cpu_kernels=cpu_kernels,
    )  # fmt: skip
    runner = start_runner(settings, {})
    runner._model.module.get_input_embeddings().weight.data[poison] = float("nan")
    given = [[token for token in prompt if token != poison] for prompt in prompts(6, 60)]
    given[1:3] = [[3, 4, 5], [5, 6]]
    wanted = [greedy_reference(settings.model, prompt) for prompt in given]
    assert not any(poison in tokens for tokens in wanted), "choose another token to poison"

    loop = StepLoop(runner)
    sequences = [loop.add(prompt, NUM_OUTPUTS) for prompt in given]
    loop.step()
    for number in range(NUM_OUTPUTS - 1):
        for sequence in sequences[:3]:
            right = wanted[sequences.index(sequence)][number + 1 : number + 2]
            loop.drafts[sequence.sequence_id] = [*right, poison, 5, poison][: NUM_OUTPUTS - 1 - number]
        loop.step()
        if not loop.running:
            break
    loop.run()
    assert [outputs(sequence) for sequence in sequences] == wanted
    again = [loop.add(prompt, NUM_OUTPUTS) for prompt in given]
    loop.run()
    assert [outputs(sequence) for sequence in again] == wanted
