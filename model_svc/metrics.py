"""Metrics of the model tier."""

import time
from collections.abc import Callable, Collection

from prometheus_client import CollectorRegistry, Counter

from model_svc.credits import Lease
from model_svc.engine.drafting import UNDRAFTED
from model_svc.engine.events import StepResult
from model_svc.engine.phase_clock import PHASES
from model_svc.engine.sequence import Sequence
from tokenwire.constraints import ConstraintForm
from tokenwire.failures import MODEL_FAILURES
from tokenwire.requests import FinishReason, Terminal
from tokenwire.telemetry import TierMetrics

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class EngineMetrics:
    """What the engine did; entered once per step, never per token."""

    def __init__(self, registry: CollectorRegistry) -> None:
        tier = TierMetrics("model", registry)
        self.described = tier.described
        self.ended = tier.counter("ended_total", "Sequences that ended, by reason.", ["reason"])
        self.prompt_tokens = tier.counter("prompt_tokens_total", "Prompt tokens of ended sequences.")
        self.cached_tokens = tier.counter("cached_tokens_total", "Prompt tokens that were found in the prefix cache.")
        self.embedded = tier.counter("embedded_total", "Sequences that were embedded.")
        self.embedded_tokens = tier.counter("embedded_tokens_total", "Their tokens.")
        self.output_tokens = tier.counter("output_tokens_total", "Tokens generated.")
        self.computed_tokens = tier.counter("computed_tokens_total", "Tokens computed, prefill and decode together.")
        self.steps = tier.histogram("step_seconds", "Time of one engine step.")
        self.batch = tier.histogram("batch_sequences", "Sequences in one step.", buckets=BATCH_SIZES)
        self.errors = tier.counter(
            "errors_total", "Sequences that ended in an error, by its reason.", ["reason"], known=MODEL_FAILURES
        )
        self.refused = tier.counter(
            "refused_total", "Requests that were not let in, by reason.", ["reason"], known=["QUEUE_FULL"]
        )
        self.queue = tier.histogram("queue_seconds", "From receipt until first scheduled, of ended sequences.")
        self.first_token = tier.histogram("first_token_seconds", "From receipt until the first token, likewise.")
        self.token_gap = tier.histogram(
            "token_gap_seconds", "Mean time from one token to the next of each ended sequence with at least two."
        )
        self.sequence_time = tier.histogram("sequence_seconds", "From receipt until the end.")
        self.running = tier.gauge("running_sequences", "Sequences being computed.")
        self.queued = tier.gauge("queued_sequences", "Sequences that wait.")
        self.queued_tokens = tier.gauge("queued_tokens", "Their prompt tokens.")
        self.queue_age = tier.gauge(
            "oldest_queued_seconds", "How long the sequence has waited that waits longest for its start."
        )
        self._oldest_queued_s: float | None = None
        self.queue_age.set_function(self._oldest_age_s)
        self.kv_used = tier.gauge("kv_used_blocks", "KV blocks in use.")
        self.kv_cached = tier.gauge("kv_cached_blocks", "Free KV blocks whose content can be reused.")
        self.kv_total = tier.gauge("kv_total_blocks", "KV blocks there are.")
        self.kv_free = tier.gauge("kv_free_blocks", "KV blocks that nobody uses, those with reusable content included.")
        self.leased_requests = tier.gauge("leased_requests", "Requests that sessions may submit on their credits.")
        self.leased_tokens = tier.gauge("leased_tokens", "Prompt tokens that they may submit.")
        self.step_budget = tier.gauge("step_budget_tokens", "Most tokens of a step at present.")
        self.traces = tier.traces()
        self.restarts = tier.counter("engine_restarts_total", "Times the engine process was lost.")
        self.adapters = tier.gauge("loaded_adapters", "Adapters that can be asked for.")
        self.adapters_on_device = tier.gauge("device_adapters", "Adapters on the device.")
        self.adapter_bytes = tier.gauge("device_adapter_bytes", "What these take.")
        self.adapter_requests = tier.counter(
            "adapter_requests_total", "Requests by adapter, of those that are loaded.", ["adapter"]
        )
        self._adapter_names: set[str] = set()
        """Those that have a label: as many as may be loaded at most."""
        self.mask_wait = tier.histogram("mask_wait_seconds", "Time a step waited for constraints' masks.")
        self.masks = tier.counter("constrained_rows_total", "Rows whose next token had to keep to a constraint.")
        self.mask_time = tier.counter("mask_seconds_total", "Time of the threads that fill constraints' masks.")
        phases = tier.counter("phase_seconds_total", "Host time of the engine process, by phase of a step.", ["phase"])
        undrafted = tier.counter("undrafted_rows_total", "Decode rows without drafts, by reason.", ["reason"])
        graphs = tier.counter(
            "decode_graphs_total", "Steps with decodes where graphs are recorded: replayed, or launched one by one.",
            ["outcome"],
        )  # fmt: skip
        self.acceptance = tier.gauge("draft_acceptance_ratio", "Drafts accepted, of those of the last steps with any.")
        self._engine_sums = [
            Grown(tier.counter("steps_total", "Engine steps that computed something.")),
            Grown(tier.counter("preemptions_total", "Sequences that gave their blocks up and are computed anew.")),
            *(Grown(graphs.labels(outcome)) for outcome in ("replayed", "launched")),
            Grown(tier.counter("out_of_memory_total", "Steps for which the device had no memory.")),
            Grown(tier.counter("adapter_uploads_total", "Times that an adapter was brought to the device.")),
            Grown(tier.counter("drafted_tokens_total", "Tokens drafted and verified.")),
            Grown(tier.counter("accepted_drafts_total", "Drafts that were what the model chose.")),
            Grown(tier.counter("drafted_rows_total", "Decode rows with drafts.")),
            Grown(tier.counter("forced_drafts_total", "Drafts that a constraint left no choice about.")),
            Grown(tier.counter("accepted_forced_drafts_total", "Forced drafts that were what the model chose.")),
            *(Grown(undrafted.labels(reason)) for reason in UNDRAFTED),
            *(Grown(phases.labels(phase)) for phase in PHASES),
        ]
        self._by_reason = {reason: self.ended.labels(reason.value) for reason in FinishReason}

    def follow_leases(self, leased: Callable[[], Lease]) -> None:
        """Where the gauges of credits read from, whenever they are scraped and from another thread."""
        self.leased_requests.set_function(lambda: leased().requests)
        self.leased_tokens.set_function(lambda: leased().tokens)

    def record(self, result: StepResult) -> None:
        """Enter one step."""
        if result.num_batch_sequences:
            self.steps.observe(result.step_s)
            self.batch.observe(result.num_batch_sequences)
            self.computed_tokens.inc(result.num_batch_tokens)
            self.output_tokens.inc(len(result.new.token_ids))
        if (masks := result.new.masks).num_rows:
            self.masks.inc(masks.num_rows)
            self.mask_time.inc(masks.busy_s)
            self.mask_wait.observe(masks.waited_s)
        for ended in result.ended:
            self._enter_end(ended.terminal)
        self.running.set(result.load.running)
        self.queued.set(result.load.queued)
        self.kv_used.set(result.load.kv_blocks_used)
        self.kv_cached.set(result.load.kv_blocks_cached)
        self.kv_total.set(result.load.kv_blocks_total)
        self.kv_free.set(result.load.kv_blocks_total - result.load.kv_blocks_used)
        self.queued_tokens.set(result.load.queued_tokens)
        self._oldest_queued_s = result.load.oldest_queued_s
        load, drafts = result.load, result.load.drafts
        sums = (
            load.step, load.num_preemptions, load.num_replayed, load.num_not_replayed, load.num_out_of_memory,
            load.num_adapter_uploads, drafts.num_drafted, drafts.num_accepted, drafts.num_rows, drafts.num_forced,
            drafts.num_forced_accepted, *drafts.undrafted, *result.phases_s,
        )  # fmt: skip
        self.acceptance.set(drafts.acceptance)
        for counter, total in zip(self._engine_sums, sums, strict=True):
            counter.follow(total)
        self.step_budget.set(load.step_budget_tokens)
        self.adapters_on_device.set(load.num_adapters_on_device)
        self.adapter_bytes.set(load.adapter_bytes)

    def adapter_request(self, sequence: Sequence) -> None:
        """A request with an adapter goes to the engine; its choices come one by one."""
        if sequence.request == sequence.sequence_id:
            self.adapter_requests.labels(sequence.adapter).inc()
            self._adapter_names.add(sequence.adapter)

    def keep_adapters(self, names: Collection[str]) -> None:
        """These are loaded; what was counted for others is dropped, so that labels stay few."""
        self.adapters.set(len(names))
        for gone in self._adapter_names.difference(names):
            self.adapter_requests.remove(gone)
        self._adapter_names.intersection_update(names)

    def engine_lost(self) -> None:
        """The next result comes from another engine process, whose sums begin at 0."""
        self.restarts.inc()
        self._oldest_queued_s = None
        for counter in self._engine_sums:
            counter.last = 0.0

    def _enter_end(self, terminal: Terminal) -> None:
        usage, timings = terminal.usage, terminal.model_timings
        self._by_reason[terminal.reason].inc()
        self.prompt_tokens.inc(usage.prompt_tokens)
        self.cached_tokens.inc(usage.cached_tokens)
        if terminal.error is not None:
            self.errors.labels(terminal.error.reason).inc()
        if terminal.vector is not None:
            self.embedded.inc()
            self.embedded_tokens.inc(usage.prompt_tokens)
        if timings is None:
            return
        self.queue.observe(timings.queue_s)
        self.sequence_time.observe(timings.queue_s + timings.prefill_s + timings.decode_s)
        if usage.completion_tokens:
            self.first_token.observe(timings.queue_s + timings.prefill_s)
        if usage.completion_tokens > 1:
            self.token_gap.observe(timings.decode_s / (usage.completion_tokens - 1))

    def _oldest_age_s(self) -> float:
        """Asked when the metrics are read, from another thread."""
        oldest_s = self._oldest_queued_s
        return 0.0 if oldest_s is None else max(0.0, time.monotonic() - oldest_s)


class ConstraintMetrics:
    """What compiling constraints took."""

    def __init__(self, registry: CollectorRegistry) -> None:
        tier = TierMetrics("model", registry)
        self.described = tier.described
        self._seconds = tier.histogram("constraint_compile_seconds", "Time to compile and try a constraint.", ["form"])
        self._refused = tier.counter(
            "constraint_refused_total",
            "Constraints that were refused when compiled.",
            ["form"],
            known=[form.value for form in ConstraintForm],
        )
        self._known = tier.counter("constraint_cache_hits_total", "Constraints whose verdict was remembered.")

    def compiled(self, form: ConstraintForm, took_s: float, *, refused: bool) -> None:
        """A constraint was compiled."""
        self._seconds.labels(form.value).observe(took_s)
        if refused:
            self._refused.labels(form.value).inc()

    def remembered(self) -> None:
        """One was asked for whose verdict was known."""
        self._known.inc()


class Grown:
    """A counter that follows a sum kept in the engine process, which may be started again."""

    def __init__(self, counter: Counter) -> None:
        self.counter = counter
        self.last = 0.0
        """The sum as last reported."""

    def follow(self, total: float) -> None:
        """The sum stands at `total`."""
        self.counter.inc(total - self.last)
        self.last = total
