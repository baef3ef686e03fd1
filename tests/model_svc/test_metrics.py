"""What the model tier's metrics make of the engine's steps."""

import time

from prometheus_client import CollectorRegistry

from model_svc.engine.batch import MaskTimes
from model_svc.engine.drafting import UNDRAFTED, DraftCounts
from model_svc.engine.events import Ended, EngineLoad, NewTokens, StepResult
from model_svc.engine.phase_clock import PHASES
from model_svc.metrics import EngineMetrics
from tokenwire.errors import Internal
from tokenwire.requests import FinishReason, ModelTimings, Terminal, Usage


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


def test_ends_are_timed_and_counted_by_reason() -> None:
    registry = CollectorRegistry()
    metrics = EngineMetrics(registry)
    timings = ModelTimings(queue_s=1.0, prefill_s=2.0, decode_s=4.5)
    ended = [
        Ended(1, Terminal(FinishReason.LENGTH, Usage(10, 6, 10), model_timings=timings)),
        Ended(2, Terminal(FinishReason.LENGTH, Usage(10, 0, 1), model_timings=timings)),
        Ended(3, Terminal(FinishReason.ERROR, Usage(4), error=Internal("bad", reason="STEP_FAILED"))),
        Ended(4, Terminal(FinishReason.CANCELLED, Usage(4), model_timings=ModelTimings(queue_s=3.0))),
    ]
    metrics.record(StepResult(NewTokens(), ended, EngineLoad(), 0))
    value = registry.get_sample_value
    assert value("tokenwire_model_ended_total", {"reason": "length"}) == 2
    assert value("tokenwire_model_errors_total", {"reason": "STEP_FAILED"}) == 1
    assert (value("tokenwire_model_prompt_tokens_total"), value("tokenwire_model_cached_tokens_total")) == (28, 6)
    assert value("tokenwire_model_queue_seconds_sum") == 5.0
    assert value("tokenwire_model_first_token_seconds_sum") == 6.0, "of the two that had one"
    assert value("tokenwire_model_token_gap_seconds_sum") == 0.5, "4.5 s for the nine after the first"
    assert value("tokenwire_model_token_gap_seconds_count") == 1
    assert value("tokenwire_model_sequence_seconds_sum") == 18.0


def test_the_age_of_the_queue_goes_on_between_steps() -> None:
    registry = CollectorRegistry()
    metrics = EngineMetrics(registry)
    name = "tokenwire_model_oldest_queued_seconds"
    assert registry.get_sample_value(name) == 0.0
    metrics.record(StepResult(NewTokens(), [], EngineLoad(oldest_queued_s=time.monotonic() - 60), 0))
    first, second = registry.get_sample_value(name), registry.get_sample_value(name)
    assert first is not None and second is not None and 60 <= first < second
    metrics.engine_lost()
    assert registry.get_sample_value(name) == 0.0


def test_blocks_graphs_and_preemptions() -> None:
    registry = CollectorRegistry()
    metrics = EngineMetrics(registry)
    load = EngineLoad(kv_blocks_used=3, kv_blocks_total=10, num_preemptions=2, num_replayed=7, num_not_replayed=1)
    metrics.record(StepResult(NewTokens(), [], load, 0))
    value = registry.get_sample_value
    assert value("tokenwire_model_kv_free_blocks") == 7
    assert value("tokenwire_model_preemptions_total") == 2
    assert value("tokenwire_model_decode_graphs_total", {"outcome": "replayed"}) == 7
    assert value("tokenwire_model_decode_graphs_total", {"outcome": "launched"}) == 1


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
