"""How one token is chosen and when a sequence stops, as plain values every tier shares.

Knows the ranges that make sense and says which field breaks them. Does not know the wire (see `wire.py`)
nor how a token is drawn (see `model_svc.runner.sampler`).
"""

import math
from dataclasses import dataclass, replace

from tokenwire.errors import FieldViolation, InvalidRequest

MAX_SEED = 2**64 - 1
MAX_TOP_K = 2**31 - 1
MAX_TOKENS = 2**32 - 1
MAX_TOKEN_ID = 2**32 - 1
MAX_STOP_TOKEN_IDS = 64


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """What the sampler is asked for. `None` means: the model's own generation_config decides."""

    temperature: float | None = None
    """≥ 0; 0 is greedy."""
    top_k: int | None = None
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float | None = None
    """Keep the smallest set of likeliest tokens whose probability reaches top_p; in (0, 1]."""
    min_p: float | None = None
    """Drop tokens less likely than min_p times the likeliest; in [0, 1]."""
    seed: int | None = None
    """Fixes the noise: equal seed, equal tokens, whatever shares the batch. Drawn by tokenizer_svc when absent."""

    def violations(self, prefix: str = "sampling") -> list[FieldViolation]:
        """Everything wrong with these values, one entry per field; empty when all is well."""
        found: list[FieldViolation] = []

        def check(name: str, ok: bool, allowed: str) -> None:
            if not ok:
                found.append(FieldViolation(f"{prefix}.{name}", f"{getattr(self, name)!r} is not allowed: {allowed}"))

        if self.temperature is not None:
            check("temperature", math.isfinite(self.temperature) and self.temperature >= 0, "a finite number ≥ 0")
        if self.top_k is not None:
            check("top_k", 0 <= self.top_k <= MAX_TOP_K, "an integer ≥ 0 (0 keeps every token), at most 2^31 - 1")
        if self.top_p is not None:
            check("top_p", 0 < self.top_p <= 1, "a number in (0, 1]")
        if self.min_p is not None:
            check("min_p", 0 <= self.min_p <= 1, "a number in [0, 1]")
        if self.seed is not None:
            check("seed", 0 <= self.seed <= MAX_SEED, "an integer in [0, 2^64)")
        return found

    def with_defaults(self, defaults: "SamplingParams") -> "SamplingParams":
        """These values, with each absent one taken from `defaults`."""
        absent = {
            name: getattr(defaults, name)
            for name in ("temperature", "top_k", "top_p", "min_p", "seed")
            if getattr(self, name) is None
        }
        return replace(self, **absent)


@dataclass(frozen=True, slots=True)
class StopParams:
    """When generation ends, apart from the stop strings, which only tokenizer_svc knows."""

    max_tokens: int | None = None
    """Most tokens to generate, ≥ 1; absent: as many as the context still holds."""
    stop_token_ids: tuple[int, ...] = ()
    """Ends the sequence besides the model's own end-of-sequence ids."""
    ignore_eos: bool = False
    """Go on past the model's own end-of-sequence ids (stop_token_ids still stop)."""

    def violations(self, prefix: str = "stop") -> list[FieldViolation]:
        """Everything wrong with these values, one entry per field; empty when all is well."""
        found: list[FieldViolation] = []
        if self.max_tokens is not None and not 1 <= self.max_tokens <= MAX_TOKENS:
            allowed = "an integer ≥ 1" if self.max_tokens < 1 else "an integer ≥ 1, at most 2^32 - 1"
            found.append(FieldViolation(f"{prefix}.max_tokens", f"{self.max_tokens} is not allowed: {allowed}"))
        for token in self.stop_token_ids:
            if not 0 <= token <= MAX_TOKEN_ID:
                allowed = "an id of the model's vocabulary"
                found.append(FieldViolation(f"{prefix}.stop_token_ids", f"{token} is not allowed: {allowed}"))
                break
        if len(self.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            found.append(
                FieldViolation(
                    f"{prefix}.stop_token_ids",
                    f"{len(self.stop_token_ids)} ids are too many: at most {MAX_STOP_TOKEN_IDS}",
                )
            )
        return found


def refuse(violations: list[FieldViolation]) -> None:
    """Raise `InvalidRequest` naming every violation; do nothing when there is none."""
    if violations:
        raise InvalidRequest("; ".join(f"{v.field}: {v.description}" for v in violations), violations=violations)
