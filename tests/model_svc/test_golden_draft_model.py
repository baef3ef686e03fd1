"""Golden tests of a draft model: the tokens are those of the target alone, however alike the two are.

Pairs of tiny random models in fp32: one that drafts for itself, so that nearly all is right, and one of another family,
whose drafts are nearly all wrong.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from model_svc.engine.batch import ModelRunner
from model_svc.engine.drafting import UNDRAFTED, DraftLimits
from tests.fakes.engine_loop import EngineLoop
from tests.fakes.step_loop import GREEDY, outputs
from tests.fakes.tiny_models import VOCAB_SIZE, write_model
from tests.fakes.tiny_runner import tiny_runner_of
from tests.model_svc.test_golden_speculation import CHANGED, CHUNK, FEW_BLOCKS, FILTERED, PROMPTS, STOPS, made_of
from tokenwire.errors import FailedPrecondition
from tokenwire.sampling import SamplingParams

MODEL_ONLY = DraftLimits(max_drafts=4, by_default=True, by_lookup=False, adaptive=False)
NUM_OUTPUTS = 24
Runners = Callable[[str, str], ModelRunner]


@pytest.fixture(scope="module")
def runners(tmp_path_factory: pytest.TempPathFactory) -> Runners:
    """Of a target and its draft model."""
    folder = cache(lambda family: str(write_model(tmp_path_factory.mktemp("pairs") / family, family)))
    return cache(lambda target, draft: tiny_runner_of(folder(target), draft_model=folder(draft)))


@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlapped"])
@pytest.mark.parametrize("few_blocks", [False, True], ids=["chunked", "preempted"])
@pytest.mark.parametrize("sampling", [GREEDY, FILTERED, CHANGED], ids=["greedy", "filtered", "changed"])
@pytest.mark.parametrize("draft", ["qwen3", "llama"])
def test_the_tokens_are_the_targets(
    runners: Runners, draft: str, sampling: SamplingParams, few_blocks: bool, overlap: bool
) -> None:
    """Prompts longer than a chunk, beginnings in common, preemptions; a draft that is alike, and one that is not."""
    runner, prompts = runners("qwen3", draft), [PROMPTS[at % 7][:8] + PROMPTS[at] * 2 for at in range(40)]
    info = replace(runner.info, num_blocks=FEW_BLOCKS) if few_blocks else runner.info
    plain = EngineLoop(runner, step_tokens=CHUNK, info=info)
    wanted = plain.run(prompts, NUM_OUTPUTS, sampling=sampling, stop=STOPS)
    loop = EngineLoop(runner, step_tokens=CHUNK, info=info, overlap=overlap, drafts=MODEL_ONLY)
    made = loop.run(prompts, NUM_OUTPUTS, sampling=sampling, stop=STOPS, staggered=True)
    assert made_of(loop, made) == made_of(plain, wanted)
    counts = loop.engine.scheduler.drafting.counts()
    assert counts.num_drafted > 100 and (loop.num_preemptions > 0) == few_blocks
    share = counts.num_accepted / counts.num_drafted
    assert share > 0.9 if draft == "qwen3" else share < 0.7
    assert not runner.draft_model._followed  # type: ignore[union-attr]


def test_a_long_context_is_caught_up_with_over_several_steps(runners: Runners) -> None:
    """With the look-up too, which is asked first; the draft model's step budget is 512 tokens."""
    runner = runners("llama", "llama")
    prompts = [(PROMPTS[at] * 100)[:90] for at in range(20)]
    plain = EngineLoop(runner)
    loop = EngineLoop(runner, drafts=replace(MODEL_ONLY, max_drafts=6))
    wanted, made = plain.run(prompts, NUM_OUTPUTS), loop.run(prompts, NUM_OUTPUTS)
    assert made_of(loop, made) == made_of(plain, wanted)
    counts = loop.engine.scheduler.drafting.counts()
    assert dict(zip(UNDRAFTED, counts.undrafted, strict=True))["catching_up"] > 0
    both = EngineLoop(runner, drafts=replace(MODEL_ONLY, by_lookup=True, adaptive=True))
    assert [outputs(one) for one in both.run(prompts, NUM_OUTPUTS)] == [outputs(one) for one in wanted]


def test_a_sequence_past_the_draft_models_context_is_not_drafted_for(runners: Runners) -> None:
    runner = runners("llama", "qwen2")
    assert runner.draft_model is not None
    inner = runner.draft_model._runner  # type: ignore[attr-defined]
    inner.info = replace(inner.info, max_context_tokens=30)
    loop = EngineLoop(runner, drafts=MODEL_ONLY)
    made = loop.run([PROMPTS[0][:5]], 60)
    assert outputs(made[0]) == outputs(EngineLoop(runner).run([PROMPTS[0][:5]], 60)[0])
    assert dict(zip(UNDRAFTED, loop.engine.scheduler.drafting.counts().undrafted, strict=True))["no_room"] > 20


def with_tokenizer(folder: Path, tokens: list[str]) -> Path:
    document = {"model": {"vocab": {token: number for number, token in enumerate(tokens)}}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"draft_model": "other"}, "DRAFT_MODEL_VOCABULARY"),
        ({"draft_model": "same", "tensor_parallel": 2}, "DRAFT_MODEL_OF_RANKS"),
        ({"speculation": "draft"}, "DRAFT_MODEL_MISSING"),
        ({"draft_quantization": "int8"}, "DRAFT_MODEL_MISSING"),
        ({"draft_model": "same", "draft_quantization": "fp8"}, "QUANTIZATION_UNSUPPORTED"),
        ({"draft_model": "same", "speculation": "ngram"}, "DRAFT_MODEL_UNUSED"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, settings: dict[str, Any], reason: str) -> None:
    words = [f"word{number}" for number in range(VOCAB_SIZE)]
    target = with_tokenizer(write_model(tmp_path / "target", "llama"), words)
    shutil.copytree(target, tmp_path / "same")
    with_tokenizer(Path(shutil.copytree(target, tmp_path / "other")), ["another", *words[1:]])
    if "draft_model" in settings:
        settings = settings | {"draft_model": str(tmp_path / settings["draft_model"])}
    with pytest.raises(FailedPrecondition) as caught:
        tiny_runner_of(str(target), **settings)
    assert caught.value.reason == reason
    assert str(caught.value).partition(":")[0] in settings, "the setting that is wrong is named"
