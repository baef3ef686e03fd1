"""Figures as markdown tables. Pure text; measures nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

LATENCIES = (("TTFT", "ttft_ms"), ("between tokens", "inter_token_ms"), ("end to end", "e2e_ms"))


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """One table; cells are shown by `cell`, columns padded so that it reads in a terminal too."""
    shown = [[str(title) for title in head], *([cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in shown) for column in range(len(head))]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in shown
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def cell(value: Any) -> str:
    """Numbers with three or four digits that matter; a dash where nothing was measured."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def spread(found: Mapping[str, Any], key: str) -> str:
    """p50 / p90 / p99 of a latency."""
    values = found.get(key)
    return " / ".join(cell(float(values[share])) for share in ("p50", "p90", "p99")) if values else "-"


def load_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """The runs of one server: speed, latencies in ms, cost per tier, the client's own."""
    tiers = list(dict.fromkeys(name for run in runs for name in run["tiers"]))
    head = ["load", "tokens/s", "requests/s", *(f"{title} ms p50/p90/p99" for title, _ in LATENCIES), "failed"]
    head += [f"{tier} CPU-s/1k" for tier in tiers] + [f"{tier} peak MB" for tier in tiers] + ["client CPU-s/1k", "core"]
    rows = [
        [
            run["load"], run["output_tokens_per_s"], run["requests_per_s"], *(spread(run, key) for _, key in LATENCIES),
            f"{run['failures']}/{run['requests']}",
            *(run["tiers"][tier]["cpu_s_per_1000_tokens"] for tier in tiers),
            *(run["tiers"][tier]["peak_rss_bytes"] / 1e6 for tier in tiers),
            run["client"]["cpu_s_per_1000_tokens"], run["client"]["share_of_a_core"],
        ]
        for run in runs
    ]  # fmt: skip
    return "\n".join([markdown(head, rows), *notes(runs)])


def notes(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What makes runs doubtful, and why requests failed, one line each."""
    lines = [f"- {run['load']}: {warning}" for run in runs for warning in run["warnings"]]
    lines += [f"- {run['load']}: {n} × {reason}" for run in runs for reason, n in run["failure_reasons"].items()]
    return ["", *lines] if lines else []
