"""Plots of a comparison as SVG. matplotlib is the extra `bench`; without it there are none, and that is said."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

NO_MATPLOTLIB = "no plots: matplotlib is not installed (pip install 'tokenwire[bench]')"


def available() -> bool:
    """Whether plots can be made."""
    return find_spec("matplotlib") is not None


def comparison_plots(contenders: Sequence[Mapping[str, Any]], name: str, folder: Path) -> list[Path]:
    """NAME-speed.svg, tokens/s against load, and NAME-latency.svg, TTFT against load; none without matplotlib."""
    if not available() or not any(each["loads"] for each in contenders):
        return []
    speed = folder / f"{name}-speed.svg"
    latency = folder / f"{name}-latency.svg"
    plot(contenders, speed, [("tokens_per_s", "", "-")], "output tokens/s", logarithmic=False)
    lines = [("ttft_ms_p50", " p50", "-"), ("ttft_ms_p99", " p99", "--")]
    plot(contenders, latency, lines, "time to first token, ms", logarithmic=True)
    return [speed, latency]


def plot(
    contenders: Sequence[Mapping[str, Any]],
    path: Path,
    lines: Sequence[tuple[str, str, str]],
    title: str,
    *,
    logarithmic: bool,
) -> None:
    """One figure: a line per contender and figure, over the loads in their order."""
    matplotlib: Any = import_module("matplotlib")
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "tokenwire"  # equal figures, equal files
    pyplot: Any = import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(6.4, 4.0))
    loads = list(dict.fromkeys(row["load"] for each in contenders for row in each["loads"]))
    for number, each in enumerate(contenders):
        rows = {row["load"]: row for row in each["loads"]}
        for figure_name, suffix, style in lines:
            points = [(at, rows[load][figure_name]) for at, load in enumerate(loads) if load in rows]
            points = [(at, value) for at, value in points if value is not None]
            if points:
                axes.plot(
                    *zip(*points, strict=True), style, color=f"C{number}", marker="o", label=each["label"] + suffix
                )
    axes.set_xticks(range(len(loads)), loads)
    axes.set_xlabel("load: c = requests at a time, /s = requests a second (Poisson)")
    axes.set_ylabel(title)
    axes.set_yscale("log" if logarithmic else "linear")
    if not logarithmic:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
