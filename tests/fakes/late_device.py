"""A device that does a copy only when somebody waits for what comes after it, on a machine without a GPU.

That is the latest a GPU may do it: whatever the host writes too early or reads too early shows. What is computed is
computed at once; the copies around it are late.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from model_svc.engine.batch import ScheduledBatch
from model_svc.runner import transfer
from model_svc.runner.model_runner import TorchModelRunner

NOT_THERE = -77
"""What the host reads of a copy before it is done."""


class LateDevice:
    """Stands in for a GPU's stream, for every runner there is; of two runners each launch counts as a step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.overwritten: list[list[int]] = []
        """What the device was to read, and the host wrote over before it did."""
        self.num_waits_in_launch = 0
        """For what was not done by then."""
        self.most_steps_ahead = 0
        """Steps that had been launched and not done, their own included."""
        self._queue: list[Callable[[], None]] = []
        self._num_done = 0
        self._num_steps_ahead = 0
        self._is_launching = False
        self._to, self._launch = Tensor.to, TorchModelRunner.launch
        copy, launch = self._copy, self._launch_step
        monkeypatch.setattr(transfer, "mark", self.mark)
        monkeypatch.setattr(Tensor, "to", lambda tensor, *args, **kwargs: copy(tensor, *args, **kwargs))
        monkeypatch.setattr(TorchModelRunner, "launch", lambda runner, batch: launch(runner, batch))

    def mark(self, device: torch.device) -> Callable[[], None]:
        """See `transfer.mark`."""
        here = self._num_done + len(self._queue)

        def wait() -> None:
            if here > self._num_done:
                self.num_waits_in_launch += self._is_launching
            while here > self._num_done:
                self._queue.pop(0)()
                self._num_done += 1

        return wait

    def _copy(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not kwargs.get("non_blocking"):
            return self._to(tensor, *args, **kwargs)
        here, now = tensor.clone(), tensor.clone()
        if args[0] == "cpu" and isinstance(args[0], str):  # the device is a torch.device, the host is "cpu" by name
            self._queue.append(torch.inference_mode()(lambda: here.copy_(now)))
            return here.fill_(NOT_THERE)

        def read() -> None:
            if not tensor.equal(now):
                self.overwritten.append(now.tolist())

        self._queue.append(read)
        return here

    def _launch_step(self, runner: TorchModelRunner, batch: ScheduledBatch) -> Any:
        self._num_steps_ahead += 1
        self.most_steps_ahead = max(self.most_steps_ahead, self._num_steps_ahead)
        self._queue.append(self._step_is_done)
        self._is_launching = True
        try:
            return self._launch(runner, batch)
        finally:
            self._is_launching = False

    def _step_is_done(self) -> None:
        self._num_steps_ahead -= 1
