"""Moves a step's small tensors between host and device so that the host waits once, at the end.

Up: many arrays in one copy, from pinned memory, in flight while the host goes on. Down: every tensor's copy is started
before the first is waited for. Both go where the step is computed, in its order
(docs/decisions/0033-copies-go-on-the-steps-own-stream.md). On a CPU nothing moves. Does not know what the numbers mean.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from model_svc.model.paged import Ints


def mark(device: torch.device) -> Callable[[], None]:
    """Marks the end of what the device has been given so far. What it gives waits until the device has got there."""
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event.synchronize


class StagingBlock:
    """One block of memory on the host, pinned where a GPU reads it, from which a step's arrays go up in one copy."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        """`capacity`: int64 values."""
        self._device = device
        with torch.inference_mode():  # like all else that a step makes: compiled code asks which kind a tensor is
            self._host = torch.zeros(capacity, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._array: Ints = self._host.numpy()
        self._wait_until_read = mark(device)

    def upload(self, arrays: Sequence[Ints]) -> list[Tensor]:
        """Each array as an int64 tensor on the device, flattened; on a CPU they are the block itself.

        Waits until the device has read what was uploaded last. It has, where the end of that step was waited for.
        """
        sizes = [array.size for array in arrays]
        used = sum(sizes)
        self._wait_until_read()
        np.concatenate([array.ravel() for array in arrays], out=self._array[:used])
        sent = self._host[:used].to(self._device, non_blocking=True)
        self._wait_until_read = mark(self._device)
        return list(sent.split_with_sizes(sizes))


class HostCopies:
    """Copies of tensors on their way to the host, all started at once. `wait` is the only wait of a step."""

    def __init__(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        """`device`: where the tensors are, and the step is computed that ends here, also where there are none."""
        self._copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        self._wait = mark(device)

    def wait(self) -> list[Tensor]:
        """The tensors on the host, in order, once the device has done all that it was given before them."""
        self._wait()
        return self._copies
