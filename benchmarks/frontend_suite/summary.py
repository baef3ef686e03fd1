"""Rounds of the frontend benchmark → its figures and the bars they are held against. Pure arithmetic."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.comparison.medians import medians_of, ratio
from benchmarks.frontend_suite.turns import DIRECT, OURS, OURS_SESSION, PEER

EDGE = ("gateway", "tokenizer", "smg")
"""Tiers above the engine. A mock engine's or mock worker's cost is told apart."""


def summary_of(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One contender at one load, over the rounds: medians."""
    found = medians_of(runs)
    tiers = found["tiers"]
    million = {
        name: 1000 * tier["cpu_s_per_1000_tokens"] for name, tier in tiers.items() if tier["cpu_s_per_1000_tokens"]
    }
    edge = [million[name] for name in EDGE if name in million]
    tokens = sum(run["output_tokens"] for run in runs)
    requests = sum(run["requests"] - run["failures"] for run in runs)
    told = {name for run in runs for name in run["first_text_ms"]}
    per_request = tokens / requests if requests else 0.0
    return {
        "tokens_per_s": found["tokens_per_s"],
        "requests_per_s": found["requests_per_s"],
        "edge_cpu_s_per_million_tokens": round(sum(edge), 2) if edge else None,
        "edge_cpu_s_per_1000_requests": round(sum(edge) * per_request / 1000, 3) if edge else None,
        "cpu_s_per_million_tokens": {name: round(value, 2) for name, value in million.items()},
        "client_cpu_s_per_million_tokens": times(1000, found["client_cpu_s_per_1000_tokens"]),
        "client_share_of_a_core": found["client_share_of_a_core"],
        "events_per_token": round(sum(run["pieces"] for run in runs) / tokens, 4) if tokens else None,
        "ttft_ms_p50": found["ttft_ms_p50"],
        "ttft_ms_p99": found["ttft_ms_p99"],
        "between_tokens_ms_p50": found["inter_token_ms_p50"],
        "between_tokens_ms_p99": found["inter_token_ms_p99"],
        "first_text_ms": {
            name: [spread_at(runs, name, "p50"), spread_at(runs, name, "p99")] for name in sorted(told)
        },
        "slowest_to_median": max((run["slowest_to_median"] or 0.0 for run in runs), default=None),
        "peak_rss_mb": {name: round(tier["peak_rss_bytes"] / 1e6, 1) for name, tier in tiers.items()},
        "requests": found["requests"],
        "failures": found["failures"],
        "failure_reasons": found["failure_reasons"],
        "warnings": found["warnings"],
    }  # fmt: skip


def spread_at(runs: Sequence[Mapping[str, Any]], tier: str, share: str) -> float | None:
    """The least of the rounds: what others add to a latency is noise."""
    return min((run["first_text_ms"][tier][share] for run in runs if run["first_text_ms"].get(tier)), default=None)


def times(factor: float, value: float | None) -> float | None:
    """The product, where there is a value."""
    return None if value is None else round(factor * value, 2)


def by_load(rounds: Sequence[Sequence[Mapping[str, Any]]]) -> dict[int, dict[str, Any]]:
    """Concurrency → figures."""
    found: dict[int, list[Mapping[str, Any]]] = {}
    for runs in rounds:
        for run in runs:
            found.setdefault(run["concurrency"], []).append(run)
    return {concurrency: summary_of(runs) for concurrency, runs in found.items()}


Figures = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""Contender → concurrency → figures."""


def bars(paced: Figures, unpaced: Figures) -> list[dict[str, Any]]:
    """What is asked of the frontend, what was measured, and whether it holds; None where one side is missing."""
    found: list[dict[str, Any]] = []
    cost, speed = "edge_cpu_s_per_million_tokens", "tokens_per_s"
    for concurrency in (128, 1000):
        mine, theirs = at(paced, OURS, concurrency, cost), at(paced, PEER, concurrency, cost)
        found.append(
            bar(f"paced, c={concurrency}: CPU-s per million tokens against smg's", ratio(mine, theirs), 1.0, aim=0.7)
        )
    for concurrency in (32, 128):
        mine, theirs = at(unpaced, OURS, concurrency, speed), at(unpaced, PEER, concurrency, speed)
        found.append(bar(f"unpaced, c={concurrency}: tokens/s against smg's", ratio(mine, theirs), 1.0, most=False))
    for concurrency in (128, 1000):
        session, http = at(paced, OURS_SESSION, concurrency, cost), at(paced, OURS, concurrency, cost)
        found.append(
            bar(f"paced, c={concurrency}: Session's CPU-s per million tokens against HTTP's", ratio(session, http), 0.5)
        )
    for concurrency in (128, 1000):
        mine, theirs = (at(paced, name, concurrency, "events_per_token") for name in (OURS, PEER))
        found.append(
            bar(f"paced, c={concurrency}: events per token against smg's", ratio(mine, theirs), 0.98, most=False)
        )
    through, direct = at(unpaced, OURS, 1, "ttft_ms_p50"), at(unpaced, DIRECT, 1, "ttft_ms_p50")
    added = None if through is None or direct is None else round(through - direct, 3)
    found.append(bar("c=1: median ms that gateway and tokenizer_svc add to the first token", added, 2.0, aim=1.0))
    return found


def at(figures: Figures, name: str, concurrency: int, key: str) -> float | None:
    """One figure; None where it was not measured."""
    value: float | None = figures.get(name, {}).get(concurrency, {}).get(key)
    return value


def bar(what: str, value: float | None, bound: float, *, most: bool = True, aim: float | None = None) -> dict[str, Any]:
    """One bar. `most`: the bound is an upper one."""
    holds = None if value is None else value <= bound if most else value >= bound
    return {"what": what, "value": value, "bound": bound, "most": most, "aim": aim, "holds": holds}
