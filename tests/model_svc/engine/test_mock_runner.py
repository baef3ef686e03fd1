"""What the mock runner honours without logits."""

from dataclasses import replace

import pytest

from model_svc.engine.mock_runner import MockRunner, build_runner
from model_svc.settings import EngineSettings
from tests.fakes.step_loop import GREEDY, StepLoop, outputs
from tokenwire.errors import FailedPrecondition
from tokenwire.requests import TokenLogprob

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture
def loop() -> StepLoop:
    return StepLoop(MockRunner(EngineSettings(mock_vocab_size=50, mock_step_ms=0)), chunk=3)


def test_every_token_is_certain(loop: StepLoop) -> None:
    asking = loop.add(PROMPT, 4, logprobs=5, prompt_logprobs=0)
    loop.add(PROMPT, 4)
    loop.run()
    made = [TokenLogprob(token, 0.0, (TokenLogprob(token, 0.0),)) for token in outputs(asking)]
    assert loop.logprobs == {asking.sequence_id: made}
    assert loop.prompt_logprobs[asking.sequence_id] == [TokenLogprob(token, 0.0) for token in PROMPT[1:]]


def test_allowed_ids_and_min_tokens_hold(loop: StepLoop) -> None:
    allowed = loop.add(PROMPT, 30, replace(GREEDY, allowed_token_ids=(7, 9)))
    free = loop.add(PROMPT, 30)
    late = loop.add(PROMPT, 30, stop_token_ids=tuple(range(40)), min_tokens=10)
    both = loop.add(PROMPT, 30, replace(GREEDY, allowed_token_ids=(7, 9)), stop_token_ids=(7,), min_tokens=5)
    loop.run()
    assert set(outputs(allowed)) == {7, 9}
    assert len(set(outputs(free))) > 5
    assert all(token >= 40 for token in outputs(late)[:10])
    assert outputs(late)[-1] < 40
    assert outputs(both)[:5] == [9] * 5


def test_a_context_without_room_for_a_new_token_is_refused() -> None:
    with pytest.raises(FailedPrecondition, match="max_context_tokens: 1 is not allowed"):
        build_runner(EngineSettings(max_context_tokens=1))
    assert build_runner(EngineSettings(max_context_tokens=2)).info.max_context_tokens == 2
