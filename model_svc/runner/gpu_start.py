"""What the start does with a GPU before anything is loaded: takes it, and says what it is and how it does.

Knows the order of these things, and what refuses a start; the diagnostics themselves are elsewhere.
"""

import logging

import torch

from model_svc import doctor_gpu
from model_svc.runner.gpu_check import compute_float32_in_full, first_line_of
from tokenwire.checks import Check, Status
from tokenwire.errors import FailedPrecondition
from tokenwire.logs import fields

log = logging.getLogger(__name__)


def prepare_gpu(device: torch.device) -> None:
    """Make this GPU the calling thread's current one, for good, and log each finding of the diagnostics about it, once.

    Triton's launches, events and recorded graphs go to the current GPU, whatever their tensors are on; a thread begins
    with the first. Has the process compute float32 in full. Takes 512 MiB of the GPU meanwhile. Raises
    FailedPrecondition with reason DEVICE_UNUSABLE, saying what went wrong and what to do.
    """
    compute_float32_in_full()
    try:
        torch.cuda.set_device(device)
        found = doctor_gpu.check_gpu(device.index, doctor_gpu.nvidia_driver())
    except RuntimeError as error:  # CUDA's errors: another process has the device to itself, a bad state, no memory
        raise _unusable(device, first_line_of(error), doctor_gpu.SEE) from error
    failed = [check for check in found if check.status is Status.FAIL]
    for check in found:
        if check not in failed:
            _log(check)
    for check in failed:
        raise _unusable(device, check.detail, check.fix)


def _log(check: Check) -> None:
    level = logging.WARNING if check.status is Status.WARN else logging.INFO
    log.log(level, "%s: %s", check.name, check.detail, extra=fields(fix=check.fix or None))


def _unusable(device: torch.device, detail: str, fix: str) -> FailedPrecondition:
    return FailedPrecondition(f"device: {device} cannot be used: {detail}; {fix}", reason="DEVICE_UNUSABLE")
