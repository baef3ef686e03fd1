"""What was sampled in a long run, as CSV, as a plot, and as slopes with their confidence. Knows no servers."""

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot  # noqa: E402  after the backend is chosen

PANELS = {
    "rss_mb": "resident memory, MB",
    "descriptors": "file descriptors",
    "threads": "threads",
    "kv_used_blocks": "KV blocks in use",
    "p50_ms": "latency p50, ms",
    "p99_ms": "latency p99, ms",
}


@dataclass(frozen=True)
class Sample:
    """One process (with its children) at one time."""

    at_s: float
    process: str
    rss_mb: float
    descriptors: int
    threads: int
    open_requests: float
    """What its metrics say is under way."""
    kv_used_blocks: float
    """Model tiers'; 0 elsewhere."""
    p50_ms: float
    """Of the requests served in full since the sample before, as clients see them; the same for all processes."""
    p99_ms: float
    num_served: int


def write_csv(samples: Sequence[Sample], path: Path) -> None:
    """One line for each sample."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Sample)])
        writer.writeheader()
        for sample in samples:
            writer.writerow({k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(sample).items()})


def write_plot(samples: Sequence[Sample], path: Path) -> None:
    """SVG: one panel for each of `PANELS`, one line for each process."""
    figure, axes = pyplot.subplots(len(PANELS) // 2, 2, figsize=(12, 10), sharex=True, layout="constrained")
    for axis, (name, title) in zip(axes.flat, PANELS.items(), strict=True):
        for process in dict.fromkeys(sample.process for sample in samples):
            own = [sample for sample in samples if sample.process == process]
            axis.plot([sample.at_s / 60 for sample in own], [getattr(sample, name) for sample in own], label=process)
        axis.set_title(title)
        axis.set_ylim(bottom=0)
    for axis in axes[-1]:
        axis.set_xlabel("minutes")
    axes.flat[0].legend(fontsize="small")
    figure.savefig(path)
    pyplot.close(figure)


def slope(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Least squares: the slope, and half the width of its 95 % interval (normal errors; infinite below 3 points)."""
    count = len(xs)
    if count < 3:
        return 0.0, math.inf
    x_mean, y_mean = math.fsum(xs) / count, math.fsum(ys) / count
    spread = math.fsum((x - x_mean) ** 2 for x in xs)
    if spread == 0:
        return 0.0, math.inf
    found = math.fsum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True)) / spread
    left = math.fsum((y - y_mean - found * (x - x_mean)) ** 2 for x, y in zip(xs, ys, strict=True))
    return found, 1.96 * math.sqrt(left / (count - 2) / spread)


def rss_slopes(samples: Sequence[Sample]) -> dict[str, tuple[float, float]]:
    """MB an hour by process, and half the interval's width; of the second half, when caches have filled."""
    found = {}
    for process in dict.fromkeys(sample.process for sample in samples):
        own = [sample for sample in samples if sample.process == process]
        late = own[len(own) // 2 :]
        found[process] = slope([sample.at_s / 3600 for sample in late], [sample.rss_mb for sample in late])
    return found
