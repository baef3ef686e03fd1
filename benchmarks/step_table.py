"""The table of a step's phases: what each took per step, and its share. Knows sums of seconds; measures nothing."""

from collections.abc import Mapping

OVERHEAD = ("schedule", "prepare", "publish")
"""What the engine itself costs: neither the model, nor drawing, nor waiting for the device."""


def per_step(before: Mapping[str, float], after: Mapping[str, float], num_steps: int) -> dict[str, float]:
    """Seconds per step by phase between two readings of the sums. Raises ValueError without a step in between."""
    if num_steps < 1:
        raise ValueError(f"{num_steps} steps were made between the readings; there is nothing to divide by")
    return {phase: (after[phase] - before[phase]) / num_steps for phase in after}


def lines(seconds: Mapping[str, float], num_steps: int) -> list[str]:
    """The table of `seconds` per step, one line per phase, then those of OVERHEAD together, then all."""
    total_s = sum(seconds.values())
    overhead_s = sum(seconds[phase] for phase in OVERHEAD)
    rows = [*seconds.items(), ("all", total_s), ("+".join(OVERHEAD), overhead_s)]
    width = max(len(name) for name, _ in rows)
    made = [f"{'phase':<{width}}  ms per step   share"]
    made += [f"{name:<{width}}  {1000 * s:11.3f}  {share(s, total_s):5.1f} %" for name, s in rows]
    return [*made, f"{num_steps} steps"]


def share(part: float, whole: float) -> float:
    """Percent; 0 of nothing."""
    return 100 * part / whole if whole else 0.0
