"""Reasons of errors that are a tier's own, its faults and its full queues, and no client's: counted from 0.

What clients do wrong has many reasons more, which appear in the metrics when they happen.
"""

MODEL_FAILURES = (
    "INTERNAL", "STEP_FAILED", "SEQUENCE_FAILED", "ADAPTER_NOT_READ", "ENGINE_LOST", "ENGINE_DOWN", "SHUTTING_DOWN",
    "DRAINING", "QUEUE_FULL", "DEADLINE_UNREACHABLE", "OUT_OF_MEMORY", "CONSTRAINTS_FULL", "SLOW_READER",
    "DEADLINE_EXCEEDED",
)  # fmt: skip
"""What a model tier ends sequences with."""

TOKENIZER_FAILURES = (
    *MODEL_FAILURES, "BAD_ANSWER", "BAD_FRAME", "MODEL_TIER_DOWN", "MODEL_TIER_LOST", "HELD_QUEUE_FULL",
    "ENCODE_QUEUE_FULL", "TOO_MANY_REQUESTS",
)  # fmt: skip
"""What a tokenizer tier ends choices with: what the model tiers say is passed on."""
