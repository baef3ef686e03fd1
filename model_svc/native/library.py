"""Finds and opens the compiled kernels, where this CPU can run them. Knows their signatures and not what they compute.

Nothing is opened before the CPU's flags are checked: the kernels are compiled for these extensions and would end the
process elsewhere. torch is imported first: both then share one OpenMP runtime, and `torch.set_num_threads` rules both.
"""

import ctypes
import platform
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch  # noqa: F401  before the library is opened, see above

from tokenwire.errors import FailedPrecondition

FLAGS = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "fma")
"""As /proc/cpuinfo calls them; the same as those in pyproject.toml."""
NAMES = {"avx512_bf16": "AVX512-BF16", "fma": "FMA"}
FOLDER = Path(__file__).parent

_INT, _SIZE, _FLOAT, _POINTER = ctypes.c_int, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
SIGNATURES = {
    "tokenwire_linear": [_INT] + [_POINTER] * 6 + [_SIZE] * 3 + [_POINTER] * 2,
    "tokenwire_rms_norm": [_INT, _POINTER, _POINTER, _FLOAT, _POINTER, _POINTER, _SIZE, _SIZE],
    "tokenwire_activate_mul": [_INT, _INT, _POINTER, _POINTER, _SIZE, _SIZE],
    "tokenwire_rope_store": [_INT] + [_POINTER] * 9 + [_FLOAT] + [_SIZE] * 5,
    "tokenwire_attention": [_INT] + [_POINTER] * 4 + [_SIZE] + [_POINTER] * 2
    + [_SIZE, _FLOAT, _SIZE, _POINTER] + [_SIZE] * 5,
    "tokenwire_decoder": [_POINTER, _POINTER],
}  # fmt: skip


def available() -> bool:
    """Whether the kernels can be called here."""
    return why_unavailable() is None


@cache
def why_unavailable() -> str | None:
    """Why they cannot, as the end of a sentence; None where they can."""
    missing = missing_extension()
    if missing is not None:
        return missing
    path = library_path()
    if path is None:
        return "they were not compiled when tokenwire was installed: no C++ compiler was found, or it failed"
    try:
        _open(path)
    except (OSError, AttributeError) as error:
        return f"{path.name} cannot be opened: {error}"
    return None


@cache
def library() -> ctypes.CDLL:
    """The opened library; raises FailedPrecondition where it is not `available`."""
    reason = why_unavailable()
    path = library_path()
    if reason is not None or path is None:
        raise FailedPrecondition(f"the native kernels cannot be used: {reason}", reason="KERNELS_UNAVAILABLE")
    return _open(path)


def missing_extension(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """What this machine lacks to run them, in words; None: nothing."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"they are for Linux on x86-64, and this is {platform.system()} on {platform.machine()}"
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError as error:
        return f"this CPU's extensions are not known: {error}"
    flags = next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())
    missing = [NAMES.get(flag, flag.upper()) for flag in FLAGS if flag not in flags]
    return f"this CPU has no {', '.join(missing)}" if missing else None


def library_path(folder: Path = FOLDER) -> Path | None:
    """The compiled file, if there is one."""
    paths = (folder / f"_kernels{suffix}" for suffix in EXTENSION_SUFFIXES)
    return next((path for path in paths if path.exists()), None)


@cache
def _open(path: Path) -> ctypes.CDLL:
    opened = ctypes.CDLL(str(path))
    for name, arguments in SIGNATURES.items():
        function = getattr(opened, name)
        function.argtypes, function.restype = arguments, None
    return opened
