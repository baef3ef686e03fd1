"""Which attention backend serves: the one place that decides, and says why.

A backend other than the reference is imported only when it may be taken (Triton need not be installed), and taken only
after a real call on the device has given the right numbers.
"""

import importlib
import logging
import os
from collections.abc import Mapping

import torch

from model_svc.model.attention import AttentionBackend, SdpaBackend
from model_svc.model.attention_trial import failure_of
from model_svc.model.native_attention import NativeBackend
from tokenwire.errors import FailedPrecondition

log = logging.getLogger(__name__)

IMPLEMENTATIONS = {
    "flash": ("model_svc.model.flash_attention", "FlashBackend"),
    "triton": ("model_svc.model.triton_attention", "TritonBackend"),
}
NAMES = ("auto", *IMPLEMENTATIONS, NativeBackend.name, SdpaBackend.name)


def choose_backend(
    name: str,
    device: torch.device,
    block_size: int,
    environ: Mapping[str, str] = os.environ,
    without_kernels: str | None = None,
) -> AttentionBackend:
    """The backend called `name`, shown to work on `device` with blocks of this size; `auto` takes the best there is.

    `without_kernels`: why the project's CPU kernels are not used; None where they are. Logs the choice and its reason.
    Raises FailedPrecondition for an unknown name and for a backend that cannot be used.
    """
    if name not in NAMES:
        raise FailedPrecondition(f"attention: {name!r} is not allowed: {', '.join(NAMES)}")
    if name == "native" and without_kernels is not None:
        raise FailedPrecondition(
            f"attention: 'native' cannot be used: {without_kernels}", reason="ATTENTION_UNAVAILABLE"
        )
    if name in ("sdpa", "native") or (name == "auto" and device.type == "cpu"):
        backend: AttentionBackend = (
            NativeBackend() if name == "native" or (name == "auto" and without_kernels is None) else SdpaBackend()
        )
        log.info("attention: %s, %s", backend.name, "the backend for CPUs" if name == "auto" else "as asked for")
        return backend
    wanted = "triton" if name == "auto" else name
    interpreted = environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")
    found = obstacle(wanted, device, interpreted) or working_backend(wanted, device, block_size)
    if not isinstance(found, str):
        if interpreted:
            log.warning(
                "attention: triton, interpreted on the CPU (TRITON_INTERPRET): for checking, far too slow to serve"
            )
        else:
            log.info("attention: %s, %s", wanted, "the backend for GPUs" if name == "auto" else "as asked for")
        return found
    if name == "auto":
        log.warning("attention: sdpa, much slower than triton, which cannot be used: %s", found)
        return SdpaBackend()
    raise FailedPrecondition(f"attention: {name!r} cannot be used: {found}", reason="ATTENTION_UNAVAILABLE")


def obstacle(name: str, device: torch.device, interpreted: bool) -> str | None:
    """What rules this backend out before it is tried."""
    if device.type == "cpu" and not (name == "triton" and interpreted):
        more = " (Triton's interpreter can check it on a CPU: set TRITON_INTERPRET=1)" if name == "triton" else ""
        return f"it needs a GPU, and the device is the CPU{more}; use auto or sdpa"
    if device.type != "cpu" and name == "triton" and interpreted:
        return "TRITON_INTERPRET is set, which keeps Triton from compiling for the GPU; unset it"
    return None


def working_backend(name: str, device: torch.device, block_size: int) -> AttentionBackend | str:
    """The backend, or why it does not work here."""
    module, class_name = IMPLEMENTATIONS[name]
    try:
        backend: AttentionBackend = getattr(importlib.import_module(module), class_name)(device)
    except Exception as error:  # not installed, half installed, or of another version: each means the same here
        return f"{type(error).__name__}: {error}"
    return failure_of(backend, device, block_size) or backend
