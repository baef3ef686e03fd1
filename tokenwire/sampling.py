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
MAX_PENALTY = 2.0
MAX_REPETITION_PENALTY = 100.0
MAX_BIAS = 100.0
MAX_BIASED_TOKENS = 1024
MAX_ALLOWED_TOKENS = 65_536
MAX_BANNED_SEQUENCES = 256
MAX_BANNED_SEQUENCE_TOKENS = 64
MAX_LOGPROBS = 20


SCALARS = (
    "temperature", "top_k", "top_p", "min_p", "seed", "repetition_penalty", "presence_penalty", "frequency_penalty",
)  # fmt: skip
"""The fields of SamplingParams that a model may have defaults for."""


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
    repetition_penalty: float | None = None
    """Divides positive logits, multiplies negative ones, of tokens seen in prompt or output; > 0, 1 changes nothing."""
    presence_penalty: float | None = None
    """Subtracted once from the logits of tokens seen in the output; in [-2, 2]."""
    frequency_penalty: float | None = None
    """Subtracted per occurrence from the logits of tokens seen in the output; in [-2, 2]."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, what is added to its logit), each id once; values in [-100, 100]."""
    allowed_token_ids: tuple[int, ...] = ()
    """If not empty, only these may be drawn."""
    banned_sequences: tuple[tuple[int, ...], ...] = ()
    """Runs of token ids of which the last may not follow the others."""

    @property
    def is_penalised(self) -> bool:
        """Whether what came before may change what comes next. Of resolved values."""
        return self.repetition_penalty != 1.0 or bool(self.presence_penalty) or bool(self.frequency_penalty)

    @property
    def num_named_ids(self) -> int:
        """Token ids that these values name: what they take in memory."""
        return len(self.allowed_token_ids) + 2 * len(self.logit_bias) + sum(map(len, self.banned_sequences))

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
        if self.repetition_penalty is not None:
            allowed = f"a number above 0, at most {MAX_REPETITION_PENALTY:g}"
            check("repetition_penalty", 0 < self.repetition_penalty <= MAX_REPETITION_PENALTY, allowed)
        for name in ("presence_penalty", "frequency_penalty"):
            if getattr(self, name) is not None:
                check(name, abs(getattr(self, name)) <= MAX_PENALTY, "a number in [-2, 2]")
        return found + self._token_violations(prefix)

    def _token_violations(self, prefix: str) -> list[FieldViolation]:
        """What is wrong with the fields that name token ids."""
        found: list[FieldViolation] = []

        def check(name: str, ok: bool, description: str) -> None:
            if not ok:
                found.append(FieldViolation(f"{prefix}.{name}", description))

        biased, banned = [token for token, _ in self.logit_bias], self.banned_sequences
        allowed = f"at most {MAX_BIASED_TOKENS}"
        check("logit_bias", len(biased) <= MAX_BIASED_TOKENS, f"{len(biased)} entries are too many: {allowed}")
        wrong = [value for _, value in self.logit_bias if not abs(value) <= MAX_BIAS]
        check("logit_bias", not wrong, f"{wrong[:1]} is not allowed: numbers in [-100, 100]")
        num_allowed = len(self.allowed_token_ids)
        allowed = f"at most {MAX_ALLOWED_TOKENS}"
        check("allowed_token_ids", num_allowed <= MAX_ALLOWED_TOKENS, f"{num_allowed} ids are too many: {allowed}")
        allowed = f"at most {MAX_BANNED_SEQUENCES}"
        check("banned_sequences", len(banned) <= MAX_BANNED_SEQUENCES, f"{len(banned)} are too many: {allowed}")
        lengths = [len(ids) for ids in banned if not 1 <= len(ids) <= MAX_BANNED_SEQUENCE_TOKENS]
        allowed = f"1 to {MAX_BANNED_SEQUENCE_TOKENS} ids each"
        check("banned_sequences", not lengths, f"a sequence of {lengths[:1]} ids is not allowed: {allowed}")
        for name, ids in (
            ("logit_bias", biased),
            ("allowed_token_ids", self.allowed_token_ids),
            ("banned_sequences", [token for sequence in banned for token in sequence]),
        ):
            beyond = [token for token in ids if not 0 <= token <= MAX_TOKEN_ID]
            check(name, not beyond, f"{beyond[:1]} is not allowed: an id of the model's vocabulary")
        return found

    def with_defaults(self, defaults: "SamplingParams") -> "SamplingParams":
        """These values, with each absent one taken from `defaults`."""
        absent = {name: getattr(defaults, name) for name in SCALARS if getattr(self, name) is None}
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
    min_tokens: int = 0
    """No end before this many tokens: until then no stop id can be drawn and no stop string is looked for."""

    def violations(self, prefix: str = "stop") -> list[FieldViolation]:
        """Everything wrong with these values, one entry per field; empty when all is well."""
        found: list[FieldViolation] = []
        if self.max_tokens is not None and not 1 <= self.max_tokens <= MAX_TOKENS:
            allowed = "an integer ≥ 1" if self.max_tokens < 1 else "an integer ≥ 1, at most 2^32 - 1"
            found.append(FieldViolation(f"{prefix}.max_tokens", f"{self.max_tokens} is not allowed: {allowed}"))
        if not 0 <= self.min_tokens <= MAX_TOKENS:
            allowed = "an integer ≥ 0, at most 2^32 - 1"
            found.append(FieldViolation(f"{prefix}.min_tokens", f"{self.min_tokens} is not allowed: {allowed}"))
        elif self.max_tokens is not None and self.min_tokens > max(0, self.max_tokens):
            description = f"{self.min_tokens} is not allowed: at most max_tokens, {self.max_tokens}"
            found.append(FieldViolation(f"{prefix}.min_tokens", description))
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


NEUTRAL = SamplingParams(
    temperature=0.0, top_k=0, top_p=1.0, min_p=0.0,
    repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0,
)  # fmt: skip
"""Greedy, and nothing else: what a model without a generation_config defaults to."""


def refuse(violations: list[FieldViolation]) -> None:
    """Raise `InvalidRequest` naming every violation; do nothing when there is none."""
    if violations:
        raise InvalidRequest("; ".join(f"{v.field}: {v.description}" for v in violations), violations=violations)
