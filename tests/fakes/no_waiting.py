"""Fails on whatever would make the host wait for a GPU, on a machine that has none."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
READING = {
    aten._local_scalar_dense.default: "a number is read (.item(), int(), bool(), if on a tensor)",
    aten.is_nonzero.default: "a truth value is read",
    aten.equal.default: "two tensors are compared on the host",
    aten.nonzero.default: "a size is read (nonzero)",
    aten.masked_select.default: "a size is read (masked_select)",
    aten.repeat_interleave.Tensor: "a size is read (repeat_interleave without output_size)",
    aten._unique2.default: "a size is read (unique)",
    aten.unique_consecutive.default: "a size is read (unique_consecutive)",
    aten.bincount.default: "a size is read (bincount)",
}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class Waits(AssertionError):
    """Something on the way reads from the device."""


class NoWaiting(TorchDispatchMode):
    """Every operation within is looked at; tensors are on the CPU, where none of them waits."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in READING and kwargs.get("output_size") is None:
            raise Waits(READING[func])
        if func in INDEXING and any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
            raise Waits("a size is read (indexing by a mask)")
        with self:  # in inference mode operations made of others come whole
            parts = func.decompose(*args, **kwargs)
        return func(*args, **kwargs) if parts is NotImplemented else parts


@contextmanager
def no_waiting(monkeypatch: Any) -> Iterator[None]:
    """`NoWaiting`, and what never reaches an operation: copies to the host, lists and arrays of a tensor's numbers.

    What is copied to the host without waiting is allowed, as on a GPU. The host is "cpu" by name; a torch.device is the
    one that stands for a GPU.
    """
    to = Tensor.to

    def _to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        target = args[0] if args else kwargs.get("device")
        if target == "cpu" and isinstance(target, str) and not kwargs.get("non_blocking"):
            raise Waits("a copy to the host waits (.to('cpu') without non_blocking)")
        return to(self, *args, **kwargs)

    made = torch.tensor

    def _tensor(*args: Any, **kwargs: Any) -> Tensor:
        if kwargs.get("device") is not None:
            raise Waits("numbers are copied from memory that is not pinned (torch.tensor with a device)")
        return made(*args, **kwargs)

    def refuse(name: str) -> Any:
        def called(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            raise Waits(f"numbers are read (.{name}())")

        return called

    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "to", _to)
        patch.setattr(torch, "tensor", _tensor)
        for name in ("cpu", "tolist", "numpy", "item", "__array__", "__bool__", "__int__", "__float__", "__index__"):
            patch.setattr(Tensor, name, refuse(name))
        with NoWaiting():
            yield
