"""Diagnostics of this machine for the model tier: `python -m model_svc doctor [--json]`.

Each check is a small function that returns findings; where torch is not installed those that need it are left out and
one finding says what to install. Looks at the machine alone: ports, models and settings files are `tokenwire doctor`'s.
"""

import argparse
import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from model_svc.settings import ModelTierSettings
from tokenwire.checks import Check, blocked, fail, ok, to_json, to_lines, warn
from tokenwire.settings import SettingError, settings_from

REQUIRED = ("safetensors", "torch", "transformers")
MISSING = [name for name in REQUIRED if find_spec(name) is None]
BROKEN = ""
if not MISSING:
    try:
        import torch
        import transformers

        from model_svc.doctor_gpu import check_gpus
        from model_svc.host import available_memory_bytes, usable_cores
        from model_svc.model.device import cpu_multiplies_bf16
        from model_svc.native.library import missing_extension, why_unavailable
        from model_svc.runner.gpu_check import product_is_right
    except (ImportError, OSError) as error:  # a half-installed package, a shared library that is not there
        BROKEN = f"{type(error).__name__}: {error}"

INSTALL = "pip install 'tokenwire[model]'"
OLDEST_TORCH = (2, 9)
OLDEST_TRANSFORMERS = (5, 17)
LEAST_MEMORY_BYTES = 2**30
COMFORTABLE_MEMORY_BYTES = 2 * 2**30
FEATURES = {
    "AVX2": "avx2",
    "AVX-512": "avx512f",
    "AVX-512 VNNI": "avx512_vnni",
    "AVX-512 BF16": "avx512_bf16",
    "AMX BF16": "amx_bf16",
    "AMX INT8": "amx_int8",
    "NEON": "asimd",
    "SVE": "sve",
    "BF16": "bf16",
    "I8MM": "i8mm",
}
"""What matters to matrix multiplication: its name for people, its flag in /proc/cpuinfo (x86 and Arm)."""


def main(argv: Sequence[str]) -> int:
    """Print the findings as lines, or as JSON with --json. Returns 1 when one of them blocks serving."""
    parser = argparse.ArgumentParser(prog="python -m model_svc doctor", description="Can this machine serve a model?")
    parser.add_argument("--json", action="store_true", help="findings as JSON, for programs")
    args = parser.parse_args(argv)
    checks = findings()
    print(to_json(checks) if args.json else "\n".join(to_lines(checks)))
    return 1 if blocked(checks) else 0


def findings() -> list[Check]:
    """Run every check that this installation allows."""
    run: list[Callable[[], list[Check]]] = [check_settings, check_cpu, check_packages]
    if not MISSING and not BROKEN:
        run += [check_cores, check_memory, check_cpu_arithmetic, check_cpu_kernels, check_gpus]
    return [check for function in run for check in function()]


def check_settings(environ: Mapping[str, str] = os.environ) -> list[Check]:
    """The model tier's own environment: unknown names and bad values."""
    try:
        settings_from(ModelTierSettings, "model", {}, environ)
    except SettingError as error:
        return [fail("model_svc settings", str(error), "correct or unset that variable")]
    return [ok("model_svc settings", "environment accepted")]


def check_cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[Check]:
    """The CPU's name, and which of its instructions serve matrix multiplication."""
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    checks = [ok("cpu", model[1] if model else platform.processor() or platform.machine())]
    if flags is None:
        return [*checks, warn("cpu features", "not known on this system", "nothing to do; Linux tells them")]
    words = set(flags[1].split())
    present = [name for name, flag in FEATURES.items() if flag in words]
    if not {"avx2", "asimd"} & words:
        fix = "expect slow decoding on this CPU, or use another machine or a GPU"
        return [*checks, warn("cpu features", f"no AVX2 ({', '.join(present) or 'none of the known'})", fix)]
    return [*checks, ok("cpu features", ", ".join(present))]


def check_packages() -> list[Check]:
    """The packages that serving needs, and whether they load and are new enough."""
    if MISSING:
        return [fail("model packages", f"not installed: {', '.join(MISSING)}", INSTALL)]
    if BROKEN:
        return [fail("model packages", f"installed but not loading: {BROKEN}", f"reinstall: {INSTALL}")]
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    return [
        version_check("torch", torch.__version__, OLDEST_TORCH, f", {build}"),
        version_check("transformers", transformers.__version__, OLDEST_TRANSFORMERS, ""),
    ]


def version_check(name: str, version: str, oldest: tuple[int, int], more: str) -> Check:
    """A package against the oldest version that works."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < oldest:
        return fail(name, f"{version} is too old, {oldest[0]}.{oldest[1]} or newer is needed", f"{INSTALL} --upgrade")
    return ok(name, version + more)


def check_cores() -> list[Check]:
    """Cores this process may use, after affinity and cgroup, and torch's threads."""
    cores = usable_cores()
    detail = f"{cores} usable of {os.cpu_count()}, torch computes with {torch.get_num_threads()} threads"
    if cores < 2:
        return [warn("cores", detail, "give it two or more: the gRPC process and the engine process share this one")]
    return [ok("cores", detail)]


def check_memory() -> list[Check]:
    """Memory that can still be had, after the cgroup's limit."""
    available = available_memory_bytes()
    detail = f"{available / 2**30:.1f} GiB available"
    if available < LEAST_MEMORY_BYTES:
        return [fail("memory", detail, "free memory or raise the container's limit: 1 GiB is the least for a model")]
    if available < COMFORTABLE_MEMORY_BYTES:
        return [warn("memory", detail, "2 GiB or more are advised for the default model in fp32 and its KV cache")]
    return [ok("memory", detail)]


def check_cpu_arithmetic() -> list[Check]:
    """A small product on the CPU in fp32 and bf16, compared with float64."""
    native = "native" if cpu_multiplies_bf16() else "emulated, so --dtype auto runs in fp32"
    wrong = [name for name in ("float32", "bfloat16") if not product_is_right("cpu", getattr(torch, name))]
    if wrong:
        fix = f"reinstall torch: {INSTALL} --force-reinstall"
        return [fail("cpu arithmetic", f"a matrix product in {', '.join(wrong)} came out wrong", fix)]
    return [ok("cpu arithmetic", f"matrix products right in fp32 and bf16 (bf16 {native})")]


def check_cpu_kernels() -> list[Check]:
    """Whether the project's CPU kernels can be used."""
    why = why_unavailable()
    if why is None:
        return [ok("cpu kernels", "compiled, and this CPU runs them")]
    fix = "nothing to do: torch computes instead, more slowly"
    if missing_extension() is None:
        fix = "install a C++ compiler (Debian, Ubuntu: apt install g++) and tokenwire again; until then torch computes"
    return [warn("cpu kernels", why, fix)]
