"""Fails on whatever would make the host wait for a GPU, on a machine that has none."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
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
INSIDE = {"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::equal"}
"""What waits where an operation uses it within itself."""
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


def is_ours(caller: FrameType) -> bool:
    """Whether no library calls: `transformers` says where a tensor should be that is there already."""
    return caller.f_globals["__name__"].partition(".")[0] in ("model_svc", "tests")


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
        if func is aten.segment_reduce.default and not kwargs.get("unsafe"):
            raise Waits("lengths are checked (segment_reduce without unsafe)")
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
        if isinstance(target, torch.device) and not kwargs.get("non_blocking") and is_ours(sys._getframe(1)):
            raise Waits("numbers are copied to the device from memory that is not pinned (.to(device))")
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


@contextmanager
def no_waiting_inside() -> Iterator[None]:
    """Looks into operations, where a dispatch mode does not see; slow, and tells at the end."""
    with torch.autograd.profiler.profile(use_kineto=False) as watched:
        yield
    for event in watched.function_events:
        if event.name in INSIDE:
            outer = event.cpu_parent.name if event.cpu_parent is not None else "the caller"
            raise Waits(f"{outer} reads from the device ({event.name})")
