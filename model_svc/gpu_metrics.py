"""What the GPUs are doing, for the metrics: read through NVML whenever the metrics are scraped, never in between.

Needs PyPI's `nvidia-ml-py` (extra `gpu`); without it, or without a GPU, these metrics have no samples. Knows GPUs by
their UUIDs, which the engine tells; knows nothing of torch. In the metrics they are numbered as the engine has them.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from model_svc.nvml import SLOWDOWNS, GpuReadings, readings_of
from tokenwire.telemetry import TierMetrics

Family = TypeVar("Family", GaugeMetricFamily, CounterMetricFamily)

log = logging.getLogger(__name__)

GAUGES = {
    "gpu_utilization_ratio": ("Share of the last moments in which some kernel ran.", "utilization"),
    "gpu_memory_used_bytes": ("Memory that is taken, by whomever.", "memory_used_bytes"),
    "gpu_memory_total_bytes": ("Memory there is.", "memory_total_bytes"),
    "gpu_power_watts": ("Power drawn.", "power_watts"),
    "gpu_power_limit_watts": ("Most power it may draw.", "power_limit_watts"),
    "gpu_temperature_celsius": ("Temperature of the chip.", "temperature_c"),
    "gpu_sm_clock_hertz": ("Clock of the multiprocessors.", "sm_clock_hertz"),
    "gpu_memory_clock_hertz": ("Clock of the memory.", "memory_clock_hertz"),
}
"""By metric: its help, and the reading that it shows."""
SLOWDOWN, SLOWDOWN_HELP = "gpu_slowdown_state", "1 while this holds the clocks back."
ERRORS = {
    "gpu_corrected_errors_total": ("Memory errors that ECC corrected since the driver was loaded.", "corrected_errors"),
    "gpu_uncorrected_errors_total": ("Those that it could not correct.", "uncorrected_errors"),
}


class GpuMetrics(Collector):
    """Registers itself. `watch` says which GPUs."""

    def __init__(self, registry: CollectorRegistry) -> None:
        tier = TierMetrics("model", registry)
        self.described = tier.described
        self._names: dict[str, str] = {}
        for what, (help, _) in GAUGES.items():
            self._names[what] = tier.describe("gauge", what, help, ["gpu"])
        self._names[SLOWDOWN] = tier.describe("gauge", SLOWDOWN, SLOWDOWN_HELP, ["gpu", "reason"])
        for what, (help, _) in ERRORS.items():
            self._names[what] = tier.describe("counter", what, help, ["gpu"])
        self._uuids: tuple[str, ...] = ()
        self._said = ""
        """Why there are no readings, as logged last."""
        registry.register(self)

    def watch(self, uuids: Sequence[str]) -> None:
        """From now on these GPUs are read."""
        self._uuids = tuple(uuids)

    def describe(self) -> list[Metric]:
        """Nothing: names are claimed by what is collected."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Read every GPU. Runs on the thread that answers a scrape."""
        found = self._readings()
        if not found:
            return
        for what, (help, field) in GAUGES.items():
            yield self._filled(GaugeMetricFamily(self._names[what], help, labels=["gpu"]), field, found)
        slowed = GaugeMetricFamily(self._names[SLOWDOWN], SLOWDOWN_HELP, labels=["gpu", "reason"])
        for gpu, readings in found:
            if readings.slowdowns is not None:
                for reason in SLOWDOWNS.values():
                    slowed.add_metric([gpu, reason], float(reason in readings.slowdowns))
        yield slowed
        for what, (help, field) in ERRORS.items():
            yield self._filled(CounterMetricFamily(self._names[what], help, labels=["gpu"]), field, found)

    def _readings(self) -> list[tuple[str, GpuReadings]]:
        """By number, of the GPUs that tell; why another does not is logged once."""
        found: list[tuple[str, GpuReadings]] = []
        for number, uuid in enumerate(self._uuids):
            readings = readings_of(uuid)
            if isinstance(readings, GpuReadings):
                found.append((str(number), readings))
            elif readings != self._said:
                self._said = readings
                log.warning("no metrics of a GPU: %s", readings)
        return found

    @staticmethod
    def _filled(family: Family, field: str, found: Sequence[tuple[str, GpuReadings]]) -> Family:
        for gpu, readings in found:
            if (value := getattr(readings, field)) is not None:
                family.add_metric([gpu], value)
        return family
