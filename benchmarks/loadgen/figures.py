"""Records of a run → its figures. Pure arithmetic; knows neither clients nor servers."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.loadgen.records import Record

SHARES = {"p50": 0.50, "p90": 0.90, "p99": 0.99}
MAX_REASONS = 8


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed (nearest rank). Raises ValueError without any."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, math.ceil(share * len(values) - 1e-9) - 1)]


def spread_ms(seconds: Sequence[float]) -> dict[str, float] | None:
    """Percentiles and mean in milliseconds; None without values."""
    if not seconds:
        return None
    found = {name: round(1000 * percentile(seconds, share), 3) for name, share in SHARES.items()}
    return found | {"mean": round(1000 * math.fsum(seconds) / len(seconds), 3)}


def figures(records: Sequence[Record], output_tokens: int) -> dict[str, Any]:
    """Latencies over the answers that count; speed over the time from the first send to the last end.

    `records` have been judged. Without a good answer the latencies are None and the speeds zero.
    """
    good = [record for record in records if not record.error]
    reasons = Counter(record.error for record in records if record.error)
    began_s = min((record.sent_s for record in records), default=0.0)
    wall_s = max((record.ended_s for record in good), default=began_s) - began_s
    speed = len(good) / wall_s if wall_s > 0 else 0.0
    told = sorted({name for record in good for name in record.first_text_s})
    per_token = [(r.ended_s - r.pieces_s[0]) / (output_tokens - 1) for r in good if output_tokens > 1]
    return {
        "requests": len(records),
        "failures": len(records) - len(good),
        "failure_reasons": dict(reasons.most_common(MAX_REASONS)),
        "wall_s": round(wall_s, 4),
        "requests_per_s": round(speed, 4),
        "output_tokens_per_s": round(speed * output_tokens, 3),
        "output_tokens": len(good) * output_tokens,
        "pieces": sum(len(record.pieces_s) for record in good),
        "ttft_ms": spread_ms([record.ttft_s for record in good]),
        "inter_token_ms": spread_ms([gap for record in good for gap in record.gaps_s]),
        "time_per_output_token_ms": spread_ms(per_token),
        "e2e_ms": spread_ms([record.e2e_s for record in good]),
        "client_late_ms": spread_ms([max(0.0, record.sent_s - record.due_s) for record in records]),
        "first_text_ms": {
            name: spread_ms([r.first_text_s[name] for r in good if name in r.first_text_s]) for name in told
        },
        "slowest_to_median": slowest_to_median([record.e2e_s for record in good]),
    }


def slowest_to_median(seconds: Sequence[float]) -> float | None:
    """How many times as long as the median the slowest took: far above 1, somebody starved. None without values."""
    return round(max(seconds) / percentile(seconds, 0.5), 3) if seconds else None
