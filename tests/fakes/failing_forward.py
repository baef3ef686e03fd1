"""Forward passes that fail, as where a device has no memory for them."""

from collections.abc import Callable
from typing import Any

import pytest

from model_svc.runner.model_runner import TorchModelRunner


def failing_forward(
    monkeypatch: pytest.MonkeyPatch, fails: Callable[[int], bool], fail: Callable[[], object], *, after: bool
) -> None:
    """`fail`, which raises, is called in steps of so many tokens: before or after they have written to the cache."""
    forward = TorchModelRunner._forward

    def _forward(self: TorchModelRunner, inputs: Any, **options: Any) -> Any:
        failing = fails(len(inputs.token_ids))
        made = forward(self, inputs, **options) if after or not failing else None
        if failing:
            fail()
        return made

    monkeypatch.setattr(TorchModelRunner, "_forward", _forward)


def raising(error: Exception) -> Callable[[], object]:
    """What raises the error."""

    def fail() -> None:
        raise error

    return fail
