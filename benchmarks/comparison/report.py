"""A comparison as markdown: one row per load and contender, ratios to the first, and what makes it doubtful."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.comparison.medians import ratio
from benchmarks.loadgen.measure import OTHERS_SAID
from benchmarks.tables import cell, markdown


def comparison_table(contenders: Sequence[Mapping[str, Any]]) -> str:
    """Loads one after the other, each with all contenders; ratios say how many times the first is each of the others.

    A contender that was not measured has its row too, with the reason.
    """
    head = [
        "load", "contender", "tokens/s (range)", "first's ×", "TTFT ms p50/p99", "first's ×", "ms a token",
        "between tokens ms p50/p99", "end to end ms p50/p99", "CPU-s/1k tokens", "peak MB", "failed",
    ]  # fmt: skip
    rows: list[list[Any]] = []
    loads = list(dict.fromkeys(row["load"] for each in contenders for row in each["loads"]))
    by_name = {each["label"]: {row["load"]: row for row in each["loads"]} for each in contenders}
    for load in loads:
        first = by_name[contenders[0]["label"]].get(load)
        rows += [row_of(load, each, by_name[each["label"]].get(load), first) for each in contenders]
    if not loads:
        rows = [row_of("-", each, None, None) for each in contenders]
    return markdown(head, rows)


def row_of(
    load: str, contender: Mapping[str, Any], found: Mapping[str, Any] | None, first: Mapping[str, Any] | None
) -> list[Any]:
    """One row."""
    name = contender["label"]
    if found is None:
        reason = "not measured" + (": see below" if contender["absent"] else " at this load")
        return [load, name, reason, *[None] * 9]
    low, high = found["tokens_per_s_range"]
    itself = first is found
    speed = None if itself or first is None else ratio(first["tokens_per_s"], found["tokens_per_s"])
    ttft = None if itself or first is None else ratio(first["ttft_ms_p50"], found["ttft_ms_p50"])
    memory = found["peak_rss_bytes"]
    return [
        load, name, f"{cell(found['tokens_per_s'])} ({cell(low)}-{cell(high)})", speed,
        pair(found, "ttft_ms"), ttft, found["time_per_output_token_ms_p50"], pair(found, "inter_token_ms"),
        pair(found, "e2e_ms"), found["cpu_s_per_1000_tokens"], memory / 1e6 if memory else None,
        f"{found['failures']}/{found['requests']}",
    ]  # fmt: skip


def pair(found: Mapping[str, Any], name: str) -> str:
    """p50 / p99."""
    values = found[f"{name}_p50"], found[f"{name}_p99"]
    return "-" if None in values else " / ".join(map(cell, values))


def tier_table(contenders: Sequence[Mapping[str, Any]]) -> str:
    """What each tier costs at each load."""
    rows = [
        [row["load"], each["label"], tier, found["cpu_s_per_1000_tokens"], found["peak_rss_bytes"] / 1e6]
        for each in contenders
        for row in each["loads"]
        for tier, found in row["tiers"].items()
    ]
    return markdown(["load", "contender", "tier", "CPU-s/1k tokens", "peak MB"], rows)


def remarks(record: Mapping[str, Any]) -> list[str]:
    """Where it ran, who the contenders are, what failed and what to doubt; a list in markdown."""
    machine = record["machine"]
    lines = [
        f"- {machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, Python {machine['python']}, "
        f"commit {machine['commit'] or 'unknown'}, {record['date']}.",
        f"- Prompts of {record['prompt_tokens']} tokens ({record['prompt_form']}), outputs of "
        f"{record['output_tokens']}; {record['rounds']} round(s) in turn, medians; the idle contenders stay up.",
    ]
    for each in record["contenders"]:
        lines.append(f"- `{each['label']}`: {about(each)}")
    busiest = max((row["others_share_max"] for each in record["contenders"] for row in each["loads"]), default=0.0)
    lines.append(f"- Processes that are not measured used up to {busiest:.0%} of the machine.")
    for each in record["contenders"]:
        for row in each["loads"]:
            lines += [f"- `{each['label']}`, {row['load']}: {n} × {r}" for r, n in row["failure_reasons"].items()]
            lines += [
                f"- `{each['label']}`, {row['load']}: {warning}"
                for warning in row["warnings"]
                if OTHERS_SAID not in warning
            ]
    return lines


def about(contender: Mapping[str, Any]) -> str:
    """One contender in a line."""
    if contender["absent"] and not contender["loads"]:
        return f"**not measured**: {contender['absent']}"
    versions = ", ".join(f"{name} {version}" for name, version in contender["versions"].items() if version)
    parts = [versions, f"first answer {contender['startup_s']:.1f} s after its start"]
    if contender["idle_share"] is not None:
        parts.append(f"idle {contender['idle_share']:.1%} of a core")
    if not contender["right"]:
        parts.append(f"**does not answer the question as expected**: {contender['answer']!r}")
    if contender["absent"]:
        parts.append(f"**{contender['absent']}**")
    return "; ".join(filter(None, parts))
