"""Writes the tables of docs/observability.md from the metrics that each tier makes. Run by `make protos`."""

from pathlib import Path

from prometheus_client import CollectorRegistry

from gateway.metrics import GatewayMetrics
from model_svc.gpu_metrics import GpuMetrics
from model_svc.metrics import ConstraintMetrics, EngineMetrics
from scripts.marked_section import with_section
from tokenizer_svc.metrics import TokenizerMetrics
from tokenwire.telemetry import Described

PAGE = Path(__file__).resolve().parent.parent / "docs" / "observability.md"
BEGIN, END = "<!-- metrics: made by scripts/metrics_table.py -->", "<!-- end of metrics -->"


def metrics() -> dict[str, list[Described]]:
    """By tier, what it makes."""
    registry = CollectorRegistry()
    return {
        "gateway": GatewayMetrics(registry).described,
        "tokenizer": TokenizerMetrics(registry).described,
        "model": [
            *EngineMetrics(registry).described,
            *ConstraintMetrics(registry).described,
            *GpuMetrics(registry).described,
        ],
    }


def table() -> str:
    """One table per tier, every metric a row."""
    parts: list[str] = []
    for tier, described in metrics().items():
        parts += [f"**{tier}**", "", "| Metric | Kind | Labels | What it is |", "| --- | --- | --- | --- |"]
        parts += [row(each) for each in described]
        parts.append("")
    return "\n".join(parts)


def row(described: Described) -> str:
    """One metric."""
    labels = ", ".join(f"`{label}`" for label in described.labels)
    return f"| `{described.name}` | {described.kind} | {labels} | {described.help.rstrip('.')} |"


def with_table(text: str) -> str:
    """The page's text with fresh tables between its two marks."""
    return with_section(text, BEGIN, END, table())


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
