"""Sends a step's small arrays to the device without waiting for it. Does not know what the numbers mean."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """The array as a tensor on the device. It shares the array's memory on a CPU; do not change it afterwards.

    For a GPU it is copied into pinned memory first, which torch gives to nobody else until the GPU has read it.
    """
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def together(arrays: Sequence[NDArray[np.int64]], device: torch.device) -> list[Tensor]:
    """Each array as a tensor on the device, all in one copy."""
    lengths = [len(array) for array in arrays]
    return list(torch.split(to_device(np.concatenate(arrays), device), lengths))
