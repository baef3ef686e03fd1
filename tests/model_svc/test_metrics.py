"""What the model tier's metrics make of the engine's steps."""

from prometheus_client import CollectorRegistry

from model_svc.engine.events import EngineLoad, NewTokens, StepResult
from model_svc.metrics import EngineMetrics


def test_steps_without_memory_are_counted_across_engines() -> None:
    registry = CollectorRegistry()
    metrics = EngineMetrics(registry)
    for number in (0, 2, 2, 3, 1):  # the last is another engine's first
        load = EngineLoad(num_out_of_memory=number, step_budget_tokens=100 - number)
        metrics.record(StepResult(NewTokens(), [], load, 0))
    assert registry.get_sample_value("tokenwire_model_out_of_memory_total") == 4
    assert registry.get_sample_value("tokenwire_model_step_budget_tokens") == 99
