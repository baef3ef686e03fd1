"""The frontend benchmark as markdown: the bars, a table for each pace, memory and latency by tier. Pure text."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.frontend_suite.summary import Figures
from benchmarks.tables import cell, markdown


def bars_table(bars: Sequence[Mapping[str, Any]]) -> str:
    """What is asked, and what was found."""
    rows = []
    for each in bars:
        sign = "at most" if each["most"] else "at least"
        asked = f"{sign} {each['bound']:g}" + (f", aim {each['aim']:g}" if each["aim"] is not None else "")
        said = "not measured" if each["holds"] is None else "holds" if each["holds"] else "**does not hold**"
        rows.append([each["what"], asked, each["value"], said])
    return markdown(["bar", "asked", "measured", ""], rows)


def pace_table(figures: Figures) -> str:
    """Speed, cost and latency; a row per load and contender."""
    head = [
        "streams", "contender", "tokens/s", "requests/s", "edge CPU-s/M tokens", "by tier", "edge CPU-s/1k requests",
        "events/token", "TTFT ms p50/p99", "between tokens ms p50/p99", "slowest/median",
        "client CPU-s/M tokens", "failed",
    ]  # fmt: skip
    rows = []
    for concurrency in sorted({c for loads in figures.values() for c in loads}):
        for name, loads in figures.items():
            if (found := loads.get(concurrency)) is not None:
                tiers = ", ".join(f"{tier} {cell(cost)}" for tier, cost in found["cpu_s_per_million_tokens"].items())
                rows.append(
                    [
                        concurrency, name, found["tokens_per_s"], found["requests_per_s"],
                        found["edge_cpu_s_per_million_tokens"], tiers, found["edge_cpu_s_per_1000_requests"],
                        found["events_per_token"], pair(found, "ttft_ms"), pair(found, "between_tokens_ms"),
                        found["slowest_to_median"], found["client_cpu_s_per_million_tokens"],
                        f"{found['failures']}/{found['requests']}",
                    ]
                )  # fmt: skip
    return markdown(head, rows)


def memory_table(figures: Figures) -> str:
    """Peak resident memory by tier against the number of streams; what each further stream takes, in kB."""
    rows = []
    for name, loads in figures.items():
        counts = sorted(loads)
        for tier in dict.fromkeys(tier for found in loads.values() for tier in found["peak_rss_mb"]):
            peaks = [loads[count]["peak_rss_mb"].get(tier) for count in counts]
            growth = " → ".join(
                f"{1000 * (after - before) / (more - fewer):.0f}"
                for fewer, more, before, after in zip(counts, counts[1:], peaks, peaks[1:], strict=False)
                if before is not None and after is not None
            )
            rows.append([name, tier, " / ".join(map(cell, peaks)), growth])
    counts = sorted({c for loads in figures.values() for c in loads})
    return markdown(
        ["contender", "tier", f"peak MB at {' / '.join(map(str, counts))} streams", "kB a further stream"], rows
    )


def first_text_table(figures: Figures) -> str:
    """What each tier adds to the wait for the first text, by the timings in the terminal events."""
    rows = [
        [concurrency, name, tier, *values]
        for name, loads in figures.items()
        for concurrency, found in sorted(loads.items())
        for tier, values in found["first_text_ms"].items()
    ]
    return markdown(["streams", "contender", "tier", "ms p50", "ms p99"], rows) if rows else ""


def remarks(record: Mapping[str, Any]) -> str:
    """Where it ran, what was compared, what makes it doubtful."""
    machine = record["machine"]
    lines = [
        f"- {machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, Python {machine['python']}, "
        f"commit {machine['commit'] or 'unknown'}, {record['date']}. Everything shares these cores: client, frontends, "
        "mocks.",
        f"- Prompts of {record['prompt_tokens']} tokens as text and what the chat template adds, outputs of "
        f"{record['output_tokens']}; {record['rounds']} round(s) in turn, medians.",
        "- Edge: gateway and tokenizer_svc together, or smg. What is behind it is told apart: a mock worker each.",
        "- Whole stack: the same gateway and tokenizer_svc before our model tier, its scheduler over the mock engine.",
    ]
    for pace in record["paces"]:
        for each in pace["about"]:
            versions = ", ".join(f"{name} {version}" for name, version in each["versions"].items())
            lines.append(f"- {pace['label']}: `{each['label']}` ({versions})")
        lines += [f"- {pace['label']}: {name} was not measured: {why}" for name, why in pace["absent"].items()]
        for name, loads in pace["figures"].items():
            for concurrency, found in loads.items():
                where = f"{pace['label']}, {name}, {concurrency} streams"
                lines += [f"- {where}: {warning}" for warning in found["warnings"]]
                lines += [f"- {where}: {number} × {reason}" for reason, number in found["failure_reasons"].items()]
    return "\n".join(lines)


def pair(found: Mapping[str, Any], name: str) -> str:
    """p50 / p99."""
    values = found[f"{name}_p50"], found[f"{name}_p99"]
    return "-" if None in values else " / ".join(map(cell, values))
