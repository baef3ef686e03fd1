"""The leading rank: what it refuses before any other is started, and which failed steps end its process."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from model_svc.engine.batch import OutOfMemory, ScheduledBatch
from model_svc.runner import leader
from model_svc.runner.leader import LeadingRunner, start_leader
from model_svc.settings import EngineSettings
from tests.fakes.runner import FakeRunner, runner_info
from tokenwire.errors import FailedPrecondition


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"overlap": "on"}, "RANKS_NOT_OVERLAPPED"),
        ({"compile": "on"}, "RANKS_NOT_COMPILED"),
        ({"quantization": "int8"}, "RANKS_NOT_MERGED_OR_QUANTISED"),
        ({"adapter_folder": "adapters"}, "ADAPTERS_EXCLUDED"),
        ({"draft_model": "small"}, "DRAFT_MODEL_OF_RANKS"),
    ],
)
def test_settings_that_exclude_ranks_are_refused_before_a_rank_starts(
    given: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def followers(*_: Any) -> None:
        raise AssertionError("a rank was started")

    monkeypatch.setattr(leader, "Followers", followers)
    monkeypatch.setattr(leader, "check_ranks", lambda folder, size: None)
    with pytest.raises(FailedPrecondition) as caught:
        start_leader(EngineSettings(device="cpu", tensor_parallel=2, **given), {})
    assert caught.value.reason == reason


@pytest.mark.parametrize("error", [OutOfMemory("no room"), RuntimeError("no such kernel")])
@pytest.mark.parametrize("where", ["launch", "collect"])
def test_every_step_that_fails_ends_the_process(error: Exception, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Running out of memory too: a rank that leaves a step leaves the others waiting in it."""

    def failing(*_: Any) -> None:
        raise error

    runner: Any = FakeRunner(runner_info())
    monkeypatch.setattr(runner, where, failing)
    followers: Any = SimpleNamespace(pids=[1], send=lambda message: None, give_way=lambda: None)
    leading = LeadingRunner(runner, followers, SimpleNamespace(), [torch.device("cpu")])  # type: ignore[arg-type]
    with pytest.raises(SystemExit):
        leading.collect(leading.launch(ScheduledBatch(())))
