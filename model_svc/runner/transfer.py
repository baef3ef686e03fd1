"""Moves a step's small tensors between host and device so that the host waits once, at the end.

Up: many arrays in one copy, from pinned memory, in flight while the host goes on. Down: every tensor's copy is started
before the first is waited for. On a CPU nothing moves. Does not know what the numbers mean.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_svc.model.paged import Ints


def to_device(array: NDArray[np.int64] | NDArray[np.float32] | NDArray[np.uint8], device: torch.device) -> Tensor:
    """The array as a tensor on the device. It shares the array's memory on a CPU; do not change it afterwards."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def together(arrays: Sequence[Ints], device: torch.device) -> list[Tensor]:
    """Each array as a tensor on the device, all in one copy."""
    lengths = [len(array) for array in arrays]
    return list(torch.split(to_device(np.concatenate(arrays), device), lengths))


class HostCopies:
    """Copies of tensors on their way to the host. Started at once; `wait` is the only wait of a step."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        self._done: torch.cuda.Event | None = None
        if any(tensor.is_cuda for tensor in tensors):
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record()

    def wait(self) -> list[Tensor]:
        """The tensors on the host, in order."""
        if self._done is not None:
            self._done.synchronize()
        return self._copies
