"""Rounds → medians and ratios. Pure arithmetic."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

FIGURES = {
    "tokens_per_s": ("output_tokens_per_s",),
    "requests_per_s": ("requests_per_s",),
    "ttft_ms_p50": ("ttft_ms", "p50"),
    "ttft_ms_p99": ("ttft_ms", "p99"),
    "inter_token_ms_p50": ("inter_token_ms", "p50"),
    "inter_token_ms_p99": ("inter_token_ms", "p99"),
    "time_per_output_token_ms_p50": ("time_per_output_token_ms", "p50"),
    "e2e_ms_p50": ("e2e_ms", "p50"),
    "e2e_ms_p99": ("e2e_ms", "p99"),
    "client_cpu_s_per_1000_tokens": ("client", "cpu_s_per_1000_tokens"),
    "client_share_of_a_core": ("client", "share_of_a_core"),
    "others_share": ("others_share",),
}
"""Name of a median → where a round's figures have it."""


def medians(rounds: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """One dict per load, in the order of the loads: medians over the rounds, the spread of the speed, sums of failures.

    A figure that no round has is None. Rounds that broke off count as far as they went.
    """
    by_load: dict[str, list[Mapping[str, Any]]] = {}
    for runs in rounds:
        for run in runs:
            by_load.setdefault(run["load"], []).append(run)
    return [{"load": load, **medians_of(runs)} for load, runs in by_load.items()]


def medians_of(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of one load's rounds."""
    found: dict[str, Any] = {name: median(at(run, path) for run in runs) for name, path in FIGURES.items()}
    speeds = [run["output_tokens_per_s"] for run in runs]
    tiers = {
        tier: {
            "cpu_s_per_1000_tokens": median(run["tiers"][tier]["cpu_s_per_1000_tokens"] for run in runs),
            "peak_rss_bytes": max(run["tiers"][tier]["peak_rss_bytes"] for run in runs),
        }
        for tier in runs[0]["tiers"]
    }
    costs = [tier["cpu_s_per_1000_tokens"] for tier in tiers.values()]
    return {
        **found,
        "tokens_per_s_range": [min(speeds), max(speeds)],
        "cpu_s_per_1000_tokens": None if not costs or None in costs else round(sum(costs), 4),
        "peak_rss_bytes": sum(tier["peak_rss_bytes"] for tier in tiers.values()) or None,
        "tiers": tiers,
        "others_share_max": max((run["others_share"] or 0.0 for run in runs), default=0.0),
        "rounds": len(runs),
        "requests": sum(run["requests"] for run in runs),
        "failures": sum(run["failures"] for run in runs),
        "failure_reasons": {reason: n for run in runs for reason, n in run["failure_reasons"].items()},
        "warnings": sorted({warning for run in runs for warning in run["warnings"]}),
    }


def median(values: Any) -> float | None:
    """Of those that are there."""
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None


def at(run: Mapping[str, Any], path: Sequence[str]) -> Any:
    """A figure by its path; None where it is missing."""
    found: Any = run
    for key in path:
        found = None if found is None else found.get(key)
    return found


def ratio(mine: float | None, theirs: float | None) -> float | None:
    """How many times `theirs` is `mine`; None where one of them is missing or zero."""
    return round(mine / theirs, 3) if mine and theirs else None
