"""The model tier's diagnostics, with this machine's torch and with machines made up."""

import json
from pathlib import Path

import pytest
import torch

from model_svc import doctor
from tokenwire.checks import Status, from_json

X86 = "processor\t: 0\nmodel name\t: Made-up CPU @ 3 GHz\nflags\t\t: fpu {flags} sse4_2\n"


def cpuinfo(tmp_path: Path, text: str) -> Path:
    (tmp_path / "cpuinfo").write_text(text)
    return tmp_path / "cpuinfo"


def test_features_are_read_from_cpuinfo(tmp_path: Path) -> None:
    name, features = doctor.check_cpu(cpuinfo(tmp_path, X86.format(flags="avx2 avx512f avx512_bf16 amx_bf16")))
    assert name.detail == "Made-up CPU @ 3 GHz"
    assert features.status is Status.OK
    assert features.detail == "AVX2, AVX-512, AVX-512 BF16, AMX BF16"


def test_a_cpu_without_avx2_is_a_warning(tmp_path: Path) -> None:
    assert doctor.check_cpu(cpuinfo(tmp_path, X86.format(flags="avx")))[1].status is Status.WARN
    arm = doctor.check_cpu(cpuinfo(tmp_path, "Features\t: fp asimd bf16 i8mm\n"))[1]
    assert (arm.status, arm.detail) == (Status.OK, "NEON, BF16, I8MM")
    assert doctor.check_cpu(tmp_path / "none")[1].status is Status.WARN


def test_the_tiers_environment_is_checked() -> None:
    assert doctor.check_settings({"TOKENWIRE_MODEL_PORT": "1"})[0].status is Status.OK
    for environ in ({"TOKENWIRE_MODEL_PROT": "1"}, {"TOKENWIRE_MODEL_PORT": "many"}):
        (check,) = doctor.check_settings(environ)
        assert check.status is Status.FAIL
        assert next(iter(environ)) in check.detail


def test_missing_packages_fail_and_skip_what_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MISSING", ["torch", "transformers"])
    checks = doctor.findings()
    (packages,) = [check for check in checks if check.status is Status.FAIL]
    assert "torch, transformers" in packages.detail
    assert "tokenwire[model]" in packages.fix
    assert not {"memory", "cpu arithmetic"} & {check.name for check in checks}


def test_a_broken_installation_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "BROKEN", "OSError: libgomp.so.1: cannot open shared object file")
    assert [check.detail for check in doctor.findings() if check.status is Status.FAIL] == [
        "installed but not loading: OSError: libgomp.so.1: cannot open shared object file"
    ]


VERSIONS = {"2.8.1": Status.FAIL, "2.9.0+cu130": Status.OK, "2.13.0": Status.OK, "3.0": Status.OK}


@pytest.mark.parametrize(("version", "status"), VERSIONS.items())
def test_versions_are_compared_as_numbers(version: str, status: Status) -> None:
    assert doctor.version_check("torch", version, (2, 9), "").status is status


@pytest.mark.parametrize(("free", "status"), [(2**29, Status.FAIL), (3 * 2**29, Status.WARN), (2**33, Status.OK)])
def test_little_memory(free: int, status: Status, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "available_memory_bytes", lambda: free)
    assert doctor.check_memory()[0].status is status


def test_one_core_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "usable_cores", lambda: 1)
    assert doctor.check_cores()[0].status is Status.WARN


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_right_here(dtype: torch.dtype) -> None:
    assert doctor.product_is_right("cpu", dtype)


def test_a_wrong_product_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch.Tensor.__matmul__

    def off_by_a_little(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return right(a, b) * (1.0 if a.dtype == torch.float64 else 1.2)

    monkeypatch.setattr(torch.Tensor, "__matmul__", off_by_a_little)
    (check,) = doctor.check_cpu_arithmetic()
    assert check.status is Status.FAIL
    assert "float32, bfloat16" in check.detail


@pytest.mark.parametrize(
    ("why", "missing", "status", "fix"),
    [
        (None, None, Status.OK, ""),
        ("they were not compiled", None, Status.WARN, "install a C++ compiler"),
        ("this CPU has no FMA", "this CPU has no FMA", Status.WARN, "nothing to do"),
    ],
)
def test_cpu_kernels(
    why: str | None, missing: str | None, status: Status, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "why_unavailable", lambda: why)
    monkeypatch.setattr(doctor, "missing_extension", lambda: missing)
    (check,) = doctor.check_cpu_kernels()
    assert check.status is status and fix in check.fix


def test_json_is_what_the_command_line_reads(capsys: pytest.CaptureFixture[str]) -> None:
    code = doctor.main(["--json"])
    text = capsys.readouterr().out
    assert json.loads(text)["ok"] is (code == 0)
    assert "torch" in {check.name for check in from_json(text)}
