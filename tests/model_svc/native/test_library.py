import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model_svc.native import library as module
from model_svc.native.library import available, library, library_path, missing_extension, why_unavailable
from tests.model_svc.native.cases import needs_kernels
from tokenwire.errors import FailedPrecondition


def test_a_cpu_without_an_extension_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu fma avx512f avx512bw avx512vl avx512dq avx512_bf16\n")
    assert missing_extension(cpuinfo) is None
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu fma avx512f avx512bw avx512vl avx512dq\n")
    assert missing_extension(cpuinfo) == "this CPU has no AVX512-BF16"
    assert "not known" in str(missing_extension(tmp_path / "nowhere"))


def test_another_architecture_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert missing_extension() == "they are for Linux on x86-64, and this is Linux on aarch64"


def test_without_a_compiled_file_the_reason_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for cached in (why_unavailable, library):
        cached.cache_clear()
    monkeypatch.setattr(module, "missing_extension", lambda: None)
    monkeypatch.setattr(module, "library_path", lambda: None)
    try:
        assert not available()
        with pytest.raises(FailedPrecondition, match="no C\\+\\+ compiler was found"):
            library()
    finally:
        why_unavailable.cache_clear()


def test_a_file_that_cannot_be_opened_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "_kernels.so"
    broken.write_bytes(b"no library")
    why_unavailable.cache_clear()
    monkeypatch.setattr(module, "missing_extension", lambda: None)
    monkeypatch.setattr(module, "library_path", lambda: broken)
    try:
        assert "cannot be opened" in str(why_unavailable())
    finally:
        why_unavailable.cache_clear()


@needs_kernels
def test_torch_and_the_kernels_share_one_openmp_runtime() -> None:
    program = (
        "from model_svc.native.library import library; library(); "
        "print({line.split()[-1] for line in open('/proc/self/maps') if 'gomp' in line or 'iomp' in line})"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.count("omp") == output.count("/torch/lib/libgomp") == 1, output


@needs_kernels
def test_torchs_number_of_threads_is_the_kernels() -> None:
    path, before = library_path(), torch.get_num_threads()
    assert path is not None
    library()
    most_threads = ctypes.CDLL(None).omp_get_max_threads if hasattr(ctypes.CDLL(None), "omp_get_max_threads") else None
    runtime = ctypes.CDLL(str(path)).omp_get_max_threads if most_threads is None else most_threads
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert runtime() == count
    finally:
        torch.set_num_threads(before)
