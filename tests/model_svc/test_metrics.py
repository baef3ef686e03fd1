"""What the model tier's metrics make of the engine's steps."""

from prometheus_client import CollectorRegistry

from model_svc.engine.batch import MaskTimes
from model_svc.engine.drafting import UNDRAFTED, DraftCounts
from model_svc.engine.events import EngineLoad, NewTokens, StepResult
from model_svc.engine.phase_clock import PHASES
from model_svc.metrics import EngineMetrics


def test_steps_without_memory_are_counted_across_engines() -> None:
    registry = CollectorRegistry()
    metrics = EngineMetrics(registry)
    for number in (0, 2, 2, 3, 1):  # the last is another engine's first
        load = EngineLoad(num_out_of_memory=number, step_budget_tokens=100 - number)
        if number == 1:
            metrics.engine_lost()
        metrics.record(StepResult(NewTokens(), [], load, 0))
    assert registry.get_sample_value("tokenwire_model_out_of_memory_total") == 4
    assert registry.get_sample_value("tokenwire_model_step_budget_tokens") == 99


def test_seconds_by_phase_and_steps_are_counted_across_engines() -> None:
    registry = CollectorRegistry()
    metrics = EngineMetrics(registry)
    for step, forward_s in ((1, 0.5), (3, 2.0)):
        metrics.record(result(step, forward_s))
    metrics.engine_lost()
    metrics.record(result(4, 3.0))  # more than the one before it had: only `engine_lost` can tell
    assert registry.get_sample_value("tokenwire_model_phase_seconds_total", {"phase": "forward"}) == 5.0
    assert registry.get_sample_value("tokenwire_model_phase_seconds_total", {"phase": "wait"}) == 0.0
    assert registry.get_sample_value("tokenwire_model_steps_total") == 7
    assert registry.get_sample_value("tokenwire_model_engine_restarts_total") == 1


def result(step: int, forward_s: float) -> StepResult:
    phases_s = tuple(forward_s if phase == "forward" else 0.0 for phase in PHASES)
    return StepResult(NewTokens(), [], EngineLoad(step=step), 0, phases_s=phases_s)


def test_masks_are_counted_with_the_tokens_they_are_of() -> None:
    registry = CollectorRegistry()
    metrics = EngineMetrics(registry)
    for masks in (MaskTimes(3, 0.25, 0.125), MaskTimes(), MaskTimes(1, 0.5, 0.0)):
        metrics.record(StepResult(NewTokens(masks=masks), [], EngineLoad(), 0))
    value = registry.get_sample_value
    assert value("tokenwire_model_constrained_rows_total") == 4
    assert value("tokenwire_model_mask_seconds_total") == 0.75
    assert value("tokenwire_model_mask_wait_seconds_sum") == 0.125
    assert value("tokenwire_model_mask_wait_seconds_count") == 2, "of steps with masks"


def test_drafts_are_counted_and_the_acceptance_of_late_is_told() -> None:
    registry = CollectorRegistry()
    metrics = EngineMetrics(registry)
    undrafted = tuple(range(len(UNDRAFTED)))
    for drafts in (DraftCounts(8, 2, 1, undrafted, 0.25, 3, 1), DraftCounts(20, 11, 3, undrafted, 0.5, 7, 6)):
        metrics.record(StepResult(NewTokens(), [], EngineLoad(drafts=drafts), 0))
    value = registry.get_sample_value
    assert value("tokenwire_model_drafted_tokens_total") == 20 and value("tokenwire_model_accepted_drafts_total") == 11
    assert value("tokenwire_model_drafted_rows_total") == 3 and value("tokenwire_model_draft_acceptance_ratio") == 0.5
    assert value("tokenwire_model_forced_drafts_total") == 7
    assert value("tokenwire_model_accepted_forced_drafts_total") == 6
    for reason, count in zip(UNDRAFTED, undrafted, strict=True):
        assert value("tokenwire_model_undrafted_rows_total", {"reason": reason}) == count
