"""Golden tests of adapters: in a batch that mixes three of them and none, every row has PEFT's own tokens.

PEFT merges each adapter into the weights; transformers' greedy loop over the merged model says what is right, in fp32.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from model_svc.engine.__main__ import load_adapters
from model_svc.engine.batch import ModelRunner
from model_svc.engine.drafting import DraftLimits
from model_svc.engine.sequence import Sequence
from model_svc.native.library import why_unavailable
from tests.fakes.engine_loop import EngineLoop
from tests.fakes.peft_adapters import MLP, write_adapter, write_merged
from tests.fakes.reference import Reference
from tests.fakes.step_loop import outputs
from tests.fakes.tiny_models import VOCAB_SIZE, write_model
from tests.fakes.tiny_runner import tiny_runner_of

ADAPTERS = {
    "everything": {"r": 4, "lora_alpha": 8, "seed": 1},
    "attention": {"r": 7, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj", "o_proj"], "seed": 2},
    "scaled": {"r": 16, "use_rslora": True, "target_modules": ["k_proj", *MLP], "rank_pattern": {"up_proj": 3},
               "alpha_pattern": {"mlp.down_proj": 5}, "seed": 3},
}  # fmt: skip
NAMES = ["", *ADAPTERS]
NUM_OUTPUTS = 12
TIE = 1e-5
FEW_BLOCKS = 36
RNG = random.Random(2)
FAMILIES = ["llama", "qwen2", "qwen3", "gemma2", "olmo2"]
OTHER_LAYERS = {
    "mixtral": ["q_proj", "v_proj"], "deepseek_v3": ["q_a_proj", "kv_b_proj", "o_proj"],
    "gpt_neox": ["query_key_value", "dense_h_to_4h"], "phi3": ["qkv_proj", "gate_up_proj", "down_proj"],
}  # fmt: skip
KINDS = {"native": "on", "torch": "off"}
each_family = pytest.mark.parametrize("family", FAMILIES)


def random_tokens(length: int) -> list[int]:
    return [RNG.randrange(VOCAB_SIZE) for _ in range(length)]


PROMPTS = [random_tokens(length) for length in (40, 1, 17, 8, 29, 2, 33, 5, 24, 9, 14, 7)]


class Adapted:
    """A model, its adapters, and what PEFT makes of each."""

    def __init__(self, folder: Path, family: str) -> None:
        self.model = write_model(folder / "model", family)
        self.adapters = {
            name: write_adapter(self.model, folder / name, **config) for name, config in ADAPTERS.items()
        }  # fmt: skip
        self.references = {"": Reference(str(self.model))}
        for name, adapter in self.adapters.items():
            self.references[name] = Reference(str(write_merged(self.model, adapter, folder / f"{name}-merged")))

    def runner(self, **settings: object) -> ModelRunner:
        return tiny_runner_of(str(self.model), **({"adapter_folder": str(self.model.parent)} | settings))

    def loop(self, runner: ModelRunner, **options: object) -> EngineLoop:
        """An engine that has loaded the adapters."""
        loop = EngineLoop(runner, **options)  # type: ignore[arg-type]
        found = load_adapters(loop.engine, tuple((name, str(path)) for name, path in self.adapters.items()))
        assert [outcome.error for outcome in found] == [None] * len(ADAPTERS)
        return loop

    def check(self, sequences: list[Sequence]) -> None:
        """Under the tie-break rule of `test_golden`."""
        assert {sequence.adapter for sequence in sequences} == set(NAMES)
        differ = set()
        for sequence in sequences:
            prompt = sequence.token_ids[: sequence.num_prompt_tokens]
            made, wanted = outputs(sequence), self.references[sequence.adapter].greedy(prompt, NUM_OUTPUTS)
            wrong = [at for at, pair in enumerate(zip(made, wanted.token_ids, strict=True)) if len(set(pair)) > 1]
            assert not wrong or wanted.gaps[wrong[0]] < TIE, (sequence.adapter, made, wanted)
            differ.add(sequence.adapter if made != self.references[""].greedy(prompt, NUM_OUTPUTS).token_ids else "")
        assert differ == set(NAMES), "an adapter that changes nothing shows nothing"


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Adapted]:
    return cache(lambda family: Adapted(tmp_path_factory.mktemp(f"adapted-{family}"), family))


@pytest.fixture(scope="module", params=KINDS)
def runners(adapted: Callable[[str], Adapted], request: pytest.FixtureRequest) -> Callable[[str], ModelRunner]:
    """Runners with the CPU kernels, and without. Adapters stay in a runner, so each is used by one loop."""
    if request.param == "native" and (why := why_unavailable()):
        pytest.skip(why)
    return lambda family: adapted(family).runner(cpu_kernels=KINDS[request.param])


def run(loop: EngineLoop, **fields: object) -> list[Sequence]:
    """Every prompt with every adapter and with none, in one engine, arriving one by one."""
    sequences: list[Sequence] = []
    for at, prompt in enumerate(PROMPTS):
        sequences.append(loop.sequence(prompt, NUM_OUTPUTS, **named(NAMES[at % len(NAMES)]), **fields))
    loop.serve(sequences, staggered=True)
    return sequences


def named(adapter: str) -> dict[str, str]:
    return {"adapter": adapter, "cache_root": f"\0\0{adapter}" if adapter else "\0"}


@each_family
def test_a_batch_of_three_adapters_and_none(
    adapted: Callable[[str], Adapted], runners: Callable[[str], ModelRunner], family: str
) -> None:
    with_chunks = adapted(family).loop(runners(family), step_tokens=40)
    adapted(family).check(run(with_chunks))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_across_preemptions(
    adapted: Callable[[str], Adapted], runners: Callable[[str], ModelRunner], family: str
) -> None:
    runner = runners(family)
    loop = adapted(family).loop(runner, info=replace(runner.info, num_blocks=FEW_BLOCKS))
    adapted(family).check(run(loop))
    assert loop.num_preemptions > 0


def test_drafts_change_no_token(adapted: Callable[[str], Adapted], runners: Callable[[str], ModelRunner]) -> None:
    """Tokens drafted from the text before are verified with the sequence's own adapter."""
    repeating = [each * 4 for each in ([5, 9, 2], [7], [11, 3])]
    loop = adapted("llama").loop(runners("llama"), drafts=DraftLimits(max_drafts=6, by_default=True, adaptive=False))
    sequences = [loop.sequence(prompt, NUM_OUTPUTS, **named(name)) for prompt in repeating for name in NAMES]
    loop.serve(sequences)
    adapted("llama").check(sequences)
    assert loop.engine.load().drafts.num_accepted > 0


def test_cached_prefixes_are_an_adapter_s_own(
    adapted: Callable[[str], Adapted], runners: Callable[[str], ModelRunner]
) -> None:
    """The same prompt with each adapter and with none, twice: the second time it is found."""
    family, prompt = "llama", PROMPTS[0]
    loop = adapted(family).loop(runners(family))
    for cached in (0, 36):
        sequences = [loop.sequence(prompt, NUM_OUTPUTS, **named(name)) for name in NAMES]
        loop.serve(sequences)
        adapted(family).check(sequences)
        assert {loop.terminals[s.sequence_id].usage.cached_tokens for s in sequences} == {cached}


def test_fewer_slots_than_adapters(adapted: Callable[[str], Adapted], runners: Callable[[str], ModelRunner]) -> None:
    """Adapters take turns; each comes back to the device when it is wanted again."""
    runner = adapted("llama").runner(adapter_slots=1)
    loop = adapted("llama").loop(runner)
    adapted("llama").check(run(loop) + run(loop))
    assert loop.engine.load().num_adapter_uploads > len(ADAPTERS)
    assert loop.engine.load().num_adapters_on_device == 1


@pytest.mark.parametrize("overlap", [False, True])
def test_rows_without_an_adapter_have_the_tokens_they_have_alone(
    adapted: Callable[[str], Adapted], runners: Callable[[str], ModelRunner], overlap: bool
) -> None:
    """To the bit with the CPU kernels: log-probabilities too."""
    plain, mixed = adapted("llama").loop(runners("llama")), adapted("llama").loop(runners("llama"), overlap=overlap)
    alone = plain.run(PROMPTS[::4], NUM_OUTPUTS, logprobs=1)
    beside = [each for each in run(mixed, logprobs=1) if not each.adapter]
    for one, other in zip(alone, beside, strict=True):
        assert outputs(one) == outputs(other)
        first, second = (loop.runner.logprobs[s.sequence_id] for loop, s in ((plain, one), (mixed, other)))
        assert [each.logprob for each in first] == pytest.approx([each.logprob for each in second], abs=1e-5)


def test_an_adapter_of_another_name_and_the_same_content_gives_the_same(
    adapted: Callable[[str], Adapted], runners: Callable[[str], ModelRunner]
) -> None:
    """Unloaded and loaded anew under the name of another: nothing of the other is left, in slots or cached blocks."""
    loop = adapted("llama").loop(runners("llama"))
    (before,) = loop.run(PROMPTS[:1], NUM_OUTPUTS, **named("everything"))
    loop.engine.adapters.remove("everything")
    loop.engine.scheduler.forget_adapter("everything")
    (outcome,) = load_adapters(loop.engine, (("everything", str(adapted("llama").adapters["scaled"])),))
    assert outcome.error is None
    (after,) = loop.run(PROMPTS[:1], NUM_OUTPUTS, **named("everything"))
    wanted = adapted("llama").references["scaled"].greedy(PROMPTS[0], NUM_OUTPUTS)
    assert outputs(after) == wanted.token_ids != outputs(before)
    assert loop.terminals[after.sequence_id].usage.cached_tokens == 0


@pytest.mark.parametrize("cpu_kernels", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("family", OTHER_LAYERS)
def test_layers_of_other_families(tmp_path: Path, family: str, cpu_kernels: str) -> None:
    """Whatever a family calls its layers, however they are merged: beside rows without the adapter."""
    if cpu_kernels == "on" and (why := why_unavailable()):
        pytest.skip(why)
    model = write_model(tmp_path / "model", family)
    adapter = write_adapter(model, tmp_path / "a", target_modules=OTHER_LAYERS[family], size=0.3)
    references = {
        "": Reference(str(model)), "a": Reference(str(write_merged(model, adapter, tmp_path / "merged")))
    }  # fmt: skip
    loop = EngineLoop(tiny_runner_of(str(model), adapter_folder=str(tmp_path), cpu_kernels=cpu_kernels))
    assert load_adapters(loop.engine, (("a", str(adapter)),))[0].error is None
    sequences = [loop.sequence(prompt, 6, **named(name)) for prompt in PROMPTS[:3] for name in references]
    loop.serve(sequences)
    for sequence in sequences:
        prompt = sequence.token_ids[: sequence.num_prompt_tokens]
        assert outputs(sequence) == references[sequence.adapter].greedy(prompt, 6).token_ids
        other = references["" if sequence.adapter else "a"].greedy(prompt, 6).token_ids
        assert outputs(sequence) != other
