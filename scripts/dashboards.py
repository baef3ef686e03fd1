"""Writes the dashboards of deploy/grafana. Run by `make protos`; tests check the files, and the queries in Prometheus.

A dashboard is rows of panels, a panel a title, a unit and its queries. Nothing but this file is edited by hand.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "deploy" / "grafana" / "dashboards"
HEIGHT, WIDTH = 8, 24
SOURCE = {"type": "prometheus", "uid": "prometheus"}

Query = tuple[str, str]
"""PromQL, and the legend."""


@dataclass(frozen=True)
class Panel:
    """One picture. `unit` is one of Grafana's; the panels of a row share its width."""

    title: str
    unit: str
    queries: tuple[Query, ...]
    kind: str = "timeseries"
    help: str = ""


@dataclass(frozen=True)
class Dashboard:
    """`uid` is its file's name and its address in Grafana."""

    uid: str
    title: str
    rows: tuple[tuple[Panel, ...], ...]


def quantiles(histogram: str, by: str = "", *, window: str = "5m", of: tuple[float, ...] = (0.5, 0.95, 0.99)) -> Any:
    """Of a histogram, one query each."""
    legend = f"{{{{{by}}}}} " if by else ""
    inner = f"sum by (le{', ' + by if by else ''}) (rate({histogram}_bucket[{window}]))"
    return tuple((f"histogram_quantile({q:g}, {inner})", f"{legend}p{q * 100:g}") for q in of)


def rates(metric: str, by: str = "", *, window: str = "1m") -> Query:
    """How fast a counter grows, summed up."""
    query, legend = total(metric, by)
    return query.replace(metric, f"rate({metric}[{window}])"), legend


def seen(metric: str, by: str, *, window: str = "1m") -> str:
    """The rates by some labels of which many values are counted from 0: of those that happen."""
    return f"sum by ({by}) (rate({metric}[{window}])) > 0 or vector(0)"


def total(metric: str, by: str) -> Query:
    """The sum of a metric, or one for each value of some labels."""
    over = f" by ({by})" if by else ""
    return f"sum{over} ({metric})", " ".join(f"{{{{{label}}}}}" for label in by.split(", ") if by)


MODEL, TOKENIZER, GATEWAY = "tokenwire_model", "tokenwire_tokenizer", "tokenwire_gateway"
HIT_RATE = f"sum(rate({MODEL}_cached_tokens_total[5m])) / sum(rate({MODEL}_prompt_tokens_total[5m]))"
DETOKENIZING = (
    f"1e6 * sum(rate({TOKENIZER}_detokenize_seconds_total[5m])) / sum(rate({TOKENIZER}_output_tokens_total[5m]))"
)
HELD_S = f"sum(rate({TOKENIZER}_held_seconds_sum[5m])) / clamp_min(sum(rate({TOKENIZER}_held_seconds_count[5m])), 1e-9)"
FIRING = 'count by (alertname) (ALERTS{alertname=~"Tokenwire.*", alertstate="firing"}) or vector(0)'
ENDS = (0.5, 0.99)
BATCHES = quantiles(f"{MODEL}_batch_sequences", "instance", window="1m", of=ENDS)

OVERVIEW = Dashboard(
    "tokenwire",
    "Tokenwire: overview",
    (
        (
            Panel("Requests by API and outcome", "reqps", (
                (seen(f"{GATEWAY}_requests_total", "api, outcome"), "{{api}} {{outcome}}"),
            )),
            Panel("Prompts being answered", "short", ((f"sum({GATEWAY}_open_streams)", "open"),)),
        ),
        (
            Panel("Time to the first text", "s", quantiles(f"{GATEWAY}_first_text_seconds")),
            Panel("Time between tokens, by request", "s", quantiles(f"{GATEWAY}_token_gap_seconds")),
            Panel("Whole requests", "s", quantiles(f"{GATEWAY}_request_seconds")),
        ),
        (
            Panel("Tokens a second", "short", (
                (rates(f"{GATEWAY}_output_tokens_total")[0], "out"), (rates(f"{GATEWAY}_prompt_tokens_total")[0], "in"),
            )),
            Panel("Sequences", "short", (
                (f"sum({MODEL}_running_sequences)", "computed"), (f"sum({MODEL}_queued_sequences)", "queued"),
                (f"sum({TOKENIZER}_held_requests)", "held back"),
            )),
            Panel("KV cache in use", "percentunit", (
                (f"{MODEL}_kv_used_blocks / {MODEL}_kv_total_blocks", "{{instance}}"),
            )),
        ),
        (
            Panel("Sessions to tokenizer tiers by state", "short", (total(f"{GATEWAY}_tokenizer_sessions", "state"),)),
            Panel("Model tiers by state", "short", (
                (f"max by (state) ({TOKENIZER}_model_replicas)", "{{state}}"),
            ), help="Each tokenizer tier knows them all: what the one says that sees most."),
            Panel("Tried again, and gone on elsewhere", "short", (
                (rates(f"{GATEWAY}_retries_total")[0], "gateway: tried again"),
                (rates(f"{TOKENIZER}_retries_total")[0], "tokenizer: tried again"),
                (rates(f"{TOKENIZER}_resumes_total")[0], "tokenizer: resumed"),
            )),
            Panel("Traces by what became of them", "short", tuple(
                (f"sum by (outcome) (rate({tier}_traces_total[1m])) or vector(0)", f"{tier}: {{{{outcome}}}}")
                for tier in (GATEWAY, TOKENIZER, MODEL)
            ), help="Sent, failed (the collector refused them or was not there), dropped (more came than it takes)."),
        ),
    ),
)  # fmt: skip

ENGINE = Dashboard(
    "tokenwire-engine",
    "Tokenwire: engine",
    (
        (
            Panel("Tokens a second", "short", (
                (rates(f"{MODEL}_output_tokens_total", "instance")[0], "{{instance}} generated"),
                (rates(f"{MODEL}_computed_tokens_total", "instance")[0], "{{instance}} computed"),
            )),
            Panel("Time of a step", "s", quantiles(f"{MODEL}_step_seconds", "instance", window="1m", of=ENDS)),
            Panel("Sequences in a step", "short", BATCHES),
        ),
        (
            Panel("Where the engine's time goes", "percentunit", (rates(f"{MODEL}_phase_seconds_total", "phase"),)),
            Panel("Ends by reason", "short", (rates(f"{MODEL}_ended_total", "reason"),)),
            Panel("Requests by model tier", "reqps", (rates(f"{MODEL}_ended_total", "instance"),)),
        ),
        (
            Panel("Waiting", "short", (
                (f"sum by (instance) ({MODEL}_queued_sequences)", "{{instance}} sequences"),
                (f"sum by (instance) ({MODEL}_queued_tokens)", "{{instance}} prompt tokens"),
            )),
            Panel("Oldest that waits", "s", ((f"{MODEL}_oldest_queued_seconds", "{{instance}}"),)),
            Panel("Time in the queue", "s", quantiles(f"{MODEL}_queue_seconds", of=(0.5, 0.99))),
            Panel("Room on credit", "short", ((f"{MODEL}_leased_requests", "{{instance}}"),)),
        ),
        (
            Panel("KV blocks", "short", (
                (f"sum({MODEL}_kv_used_blocks)", "used"), (f"sum({MODEL}_kv_cached_blocks)", "free, reusable"),
                (f"sum({MODEL}_kv_free_blocks)", "free"),
            )),
            Panel("Prompt tokens found in the prefix cache", "percentunit", ((HIT_RATE, "hits"),)),
            Panel("Preemptions", "short", (rates(f"{MODEL}_preemptions_total", "instance"),)),
        ),
        (
            Panel("First token, and gaps between tokens", "s", (
                *((query, f"first {legend}") for query, legend in quantiles(f"{MODEL}_first_token_seconds", of=ENDS)),
                *((query, f"gap {legend}") for query, legend in quantiles(f"{MODEL}_token_gap_seconds", of=ENDS)),
            )),
            Panel("Drafts accepted", "percentunit", ((f"{MODEL}_draft_acceptance_ratio", "{{instance}}"),)),
            Panel("Decode steps by graph", "short", (rates(f"{MODEL}_decode_graphs_total", "outcome"),)),
            Panel("Engines lost, steps without memory", "short", (
                (f"sum(increase({MODEL}_engine_restarts_total[15m]))", "engines lost"),
                (f"sum(increase({MODEL}_out_of_memory_total[15m]))", "without memory"),
            )),
        ),
    ),
)  # fmt: skip

TOKENIZERS = Dashboard(
    "tokenwire-tokenizer",
    "Tokenwire: tokenizer tier",
    (
        (
            Panel("Choices by reason", "short", (rates(f"{TOKENIZER}_choices_total", "reason"),)),
            Panel("Errors by reason", "short", (
                (seen(f"{TOKENIZER}_errors_total", "reason"), "{{reason}}"),
            )),
            Panel("Tokens a second", "short", (
                (rates(f"{TOKENIZER}_output_tokens_total")[0], "out"),
                (rates(f"{TOKENIZER}_prompt_tokens_total")[0], "in"),
            )),
        ),
        (
            Panel("Template and encoding", "s", quantiles(f"{TOKENIZER}_encode_seconds")),
            Panel("Waiting for the encoder", "s", quantiles(f"{TOKENIZER}_encode_queue_seconds")),
            Panel("Prompts by what the encoding cache had", "short", (
                rates(f"{TOKENIZER}_encoding_cache_prompts_total", "outcome"),
            )),
        ),
        (
            Panel("Detokenizing, seconds for a million tokens", "s", ((DETOKENIZING, "seconds"),)),
            Panel("Frames a second", "short", (rates(f"{TOKENIZER}_token_frames_total", "instance"),)),
            Panel("Text held back for stop strings", "short", (rates(f"{TOKENIZER}_stop_string_holds_total"),)),
        ),
        (
            Panel("Held back", "short", (
                (f"sum({TOKENIZER}_held_requests)", "held"), (f"sum({TOKENIZER}_credit_requests)", "room on credit"),
            )),
            Panel("How long", "s", (
                (f"max({TOKENIZER}_oldest_held_seconds)", "oldest"),
                (HELD_S, "mean of those let go"),
            )),
            Panel("Credits that lapsed, requests that bounced", "short", (
                (rates(f"{TOKENIZER}_lapsed_credits_total")[0], "lapsed"),
                (rates(f"{TOKENIZER}_bounced_total")[0], "bounced"),
            )),
        ),
        (
            Panel("Model tiers chosen, by why", "short", (rates(f"{TOKENIZER}_picks_total", "reason"),)),
            Panel("Model tiers by state", "short", (total(f"{TOKENIZER}_model_replicas", "instance, state"),)),
            Panel("First tokens of a model tier", "s", quantiles(f"{TOKENIZER}_first_frame_seconds")),
        ),
    ),
)  # fmt: skip


def budget(ratio: str, of: str) -> Query:
    """How much of an error budget is left, over three days."""
    return f"1 - tokenwire:{ratio}:ratio_rate3d / {of}", "left"


def burn(ratio: str, of: str) -> tuple[Query, ...]:
    """How fast an error budget goes: at 1 it lasts just as long as the objective's time."""
    return tuple((f"tokenwire:{ratio}:ratio_rate{window} / {of}", window) for window in ("5m", "1h", "6h"))


SLO = Dashboard(
    "tokenwire-slo",
    "Tokenwire: objectives",
    (
        (
            Panel("Requests that fail: budget left", "percentunit", (budget("failed_requests", "0.005"),), "stat",
                  "Objective: 99.5 % of requests do not fail for a fault of ours."),
            Panel("Requests that fail: burn rate", "short", burn("failed_requests", "0.005"),
                  help="Pages above 14.4 over 1 h, or 6 over 6 h; a ticket above 1 over 3 d."),
        ),
        (
            Panel("Answers that begin late: budget left", "percentunit", (budget("slow_answers", "0.05"),), "stat",
                  "Objective: 95 % of answers begin within 2.5 s."),
            Panel("Answers that begin late: burn rate", "short", burn("slow_answers", "0.05"),
                  help="Pages above 14.4 over 1 h, or 6 over 6 h; a ticket above 1 over 3 d."),
        ),
        (
            Panel("Requests by outcome", "reqps", (rates(f"{GATEWAY}_requests_total", "outcome"),)),
            Panel("Refused", "short", (
                (seen(f"{GATEWAY}_http_refusals_total", "reason", window="5m"), "HTTP: {{reason}}"),
                (seen(f"{GATEWAY}_limited_total", "limit", window="5m"), "tenant's limit: {{limit}}"),
                (seen(f"{MODEL}_refused_total", "reason", window="5m"), "queue: {{reason}}"),
            )),
            Panel("Alerts that fire", "short", (
                (FIRING, "{{alertname}}"),
            )),
        ),
    ),
)  # fmt: skip

GPU = Dashboard(
    "tokenwire-gpu",
    "Tokenwire: GPUs",
    (
        (
            Panel("Some kernel ran", "percentunit", ((f"{MODEL}_gpu_utilization_ratio", "{{instance}} {{gpu}}"),)),
            Panel("Memory", "bytes", (
                (f"{MODEL}_gpu_memory_used_bytes", "{{instance}} {{gpu}} taken"),
                (f"{MODEL}_gpu_memory_total_bytes", "{{instance}} {{gpu}} all"),
            )),
            Panel("Power", "watt", (
                (f"{MODEL}_gpu_power_watts", "{{instance}} {{gpu}}"),
                (f"{MODEL}_gpu_power_limit_watts", "{{instance}} {{gpu}} limit"),
            )),
        ),
        (
            Panel("Clocks", "hertz", (
                (f"{MODEL}_gpu_sm_clock_hertz", "{{instance}} {{gpu}} multiprocessors"),
                (f"{MODEL}_gpu_memory_clock_hertz", "{{instance}} {{gpu}} memory"),
            )),
            Panel("What holds the clocks back", "short", (
                (f"{MODEL}_gpu_slowdown_state", "{{instance}} {{gpu}} {{reason}}"),
            )),
            Panel("Temperature", "celsius", ((f"{MODEL}_gpu_temperature_celsius", "{{instance}} {{gpu}}"),)),
            Panel("Memory errors in a day", "short", (
                (f"increase({MODEL}_gpu_corrected_errors_total[1d])", "{{instance}} {{gpu}} corrected"),
                (f"increase({MODEL}_gpu_uncorrected_errors_total[1d])", "{{instance}} {{gpu}} not corrected"),
            )),
        ),
    ),
)  # fmt: skip

DASHBOARDS = (OVERVIEW, ENGINE, TOKENIZERS, SLO, GPU)


def as_grafana_has_it(dashboard: Dashboard) -> dict[str, Any]:
    """The dashboard as Grafana's JSON."""
    panels: list[dict[str, Any]] = []
    for number, row in enumerate(dashboard.rows):
        width = WIDTH // len(row)
        for place, panel in enumerate(row):
            panels.append(
                {
                    "id": len(panels) + 1,
                    "title": panel.title,
                    "description": panel.help,
                    "type": panel.kind,
                    "datasource": SOURCE,
                    "gridPos": {"x": place * width, "y": number * HEIGHT, "w": width, "h": HEIGHT},
                    "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
                    "targets": [
                        {"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": query, "legendFormat": legend}
                        for index, (query, legend) in enumerate(panel.queries)
                    ],
                }
            )
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "tags": ["tokenwire"],
        "schemaVersion": 39,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "links": [{"type": "dashboards", "tags": ["tokenwire"], "title": "Tokenwire", "asDropdown": True}],
        "panels": panels,
    }


def files() -> dict[Path, str]:
    """What stands in each file."""
    return {
        FOLDER / f"{dashboard.uid}.json": json.dumps(as_grafana_has_it(dashboard), indent=1) + "\n"
        for dashboard in DASHBOARDS
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
