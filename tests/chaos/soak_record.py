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
JUDGED_FROM_S = 3600.0
"""Over less time a slope says nothing: pools, arenas and caches still fill."""
MOST_MB_PER_H = 10.0
"""The upper end of a slope's 95 % interval, for each process."""


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


class SampleFile:
    """A CSV of samples, which holds each as soon as it was added."""

    def __init__(self, path: Path) -> None:
        self.samples: list[Sample] = []
        self._file = path.open("w", newline="")
        self._writer = csv.DictWriter(self._file, [field.name for field in fields(Sample)])
        self._writer.writeheader()

    def __enter__(self) -> "SampleFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, sample: Sample) -> None:
        self.samples.append(sample)
        self._writer.writerow({k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(sample).items()})
        self._file.flush()


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


@dataclass(frozen=True)
class Growth:
    """How one process's memory grew once the run was warm."""

    process: str
    from_mb: float
    to_mb: float
    mb_per_h: float
    half_width: float
    """Of the 95 % interval of `mb_per_h`."""
    judged: bool
    """Whether the samples are of `JUDGED_FROM_S` at least."""

    def __str__(self) -> str:
        judged = "" if self.judged else f" (not judged: less than {JUDGED_FROM_S / 60:.0f} minutes after the warm-up)"
        return (
            f"{self.process}: {self.from_mb:.0f} to {self.to_mb:.0f} MB, "
            f"{self.mb_per_h:+.1f} ± {self.half_width:.1f} MB/h{judged}"
        )

    @property
    def too_fast(self) -> bool:
        """It may be more than `MOST_MB_PER_H`, where that can be told."""
        return self.judged and self.mb_per_h + self.half_width > MOST_MB_PER_H


def growths(samples: Sequence[Sample], warm_s: float) -> list[Growth]:
    """Of every process, from its samples after `warm_s`; a process without one has none."""
    found = []
    late = [sample for sample in samples if sample.at_s >= warm_s]
    for process in dict.fromkeys(sample.process for sample in late):
        own = [sample for sample in late if sample.process == process]
        mb_per_h, half = slope([sample.at_s / 3600 for sample in own], [sample.rss_mb for sample in own])
        judged = own[-1].at_s - own[0].at_s >= JUDGED_FROM_S
        found.append(Growth(process, own[0].rss_mb, own[-1].rss_mb, mb_per_h, half, judged))
    return found
