"""What Tokenwire's engine does on a GPU, next to what the GPU could do and to what `transformers` does with it.

    python -m benchmarks.gpu                       # nine minutes on one GPU
    python -m benchmarks.gpu --device cpu --quick  # the logic alone, on a tiny model
    python -m benchmarks.gpu --serve               # the whole stack under 1 to 256 streams, beside the engine alone

Needs torch, transformers and triton, and neither grpc nor an installation of Tokenwire: run it in the repository. Only
--serve needs what `pip install 'tokenwire[all]'` brings; the share of the engine's tokens that reaches a client is its
figure. It writes benchmarks/results/gpu-serve-<name>.json.
Each section is a process of its own with a limit of time, so one that fails or hangs costs no other its numbers.
Prints progress and a summary, and writes benchmarks/results/gpu-<name>.json.
"""

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
CHILD = ("-m", "benchmarks.gpu_suite.section")
TOTAL_S = 525.0
"""For all sections; with interpreters' starts and the summary it stays below nine minutes."""
LEAST_S = 5.0
WHAT = "Tokenwire's engine and transformers, in one process each, on one device"
WHAT_SERVE = "Tokenwire's whole stack under the load generator, and its engine alone, on one device"
GRACE_S = 10.0
"""Between the time a section is told it has and the time it is stopped."""
STOP_S = 30.0
"""Until a section that was stopped is killed."""
REFUSED = 3
"""Exit status of a section whose device is not there, as no other section's will be."""


@dataclass(frozen=True)
class Section:
    """One process: its name, and the seconds it may take."""

    name: str
    seconds: float


SECTIONS = (
    Section("ceilings", 40), Section("llama-3.1-8b", 150), Section("smollm2-135m", 90), Section("qwen3-0.6b", 90),
    Section("peers qwen3-0.6b", 160),
)  # fmt: skip
SERVE_SECTIONS = (
    Section("serve smollm2-135m", 150),
    Section("serve qwen3-0.6b", 150),
    Section("serve llama-3.1-8b", 220),
)
QUICK_SERVE_SECTIONS = (Section("serve tiny", 120),)
SERVE_NEEDS = ("fastapi", "grpc", "grpc_health", "psutil", "tokenizers", "uvloop")
QUICK_SECTIONS = (Section("ceilings", 90), Section("tiny", 90), Section("peers tiny", 90))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sections. Returns 1 when one of them gave nothing, 2 when nothing can be measured here."""
    options = arguments(argv)
    if options.serve and (missing := [name for name in SERVE_NEEDS if find_spec(name) is None]):
        print(f"--serve needs what is not installed here ({', '.join(missing)}): pip install 'tokenwire[all]'")
        return 2
    sections = [s for s in sections_of(options) if options.only in ("", s.name)]
    if not sections:
        print(f"--only {options.only}: there are {', '.join(repr(s.name) for s in sections_of(options))}")
        return 2
    if (why := why_unwritable(Path(options.out) if options.out else RESULTS / "gpu.json")) is not None:
        print(f"the results could not be written: {why}")
        return 2
    began = time.perf_counter()
    results: dict[str, Any] = {}
    for section in sections:
        left_s = options.seconds - (time.perf_counter() - began)
        results[section.name] = run_section(section, options, results.get("ceilings", {}), left_s)
        if results[section.name]["status"] == "refused":
            print(results[section.name]["reason"])
            return 2
    machine = results.get("ceilings", {}).pop("machine", None) or host()
    name = options.name or slug(machine.get("gpu") or machine["cpu"])
    record = {
        "what": WHAT_SERVE if options.serve else WHAT,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "machine": machine, "quick": options.quick, "seconds": round(time.perf_counter() - began, 1),
        "sections": results,
    }  # fmt: skip
    path = Path(options.out) if options.out else RESULTS / f"gpu-{'serve-' if options.serve else ''}{name}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print("\n".join(["", *summary(results), f"{record['seconds']} s, written to {path}"]))
    return int(any(result["status"] != "done" for result in results.values()))


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="", help="in the name of the results' file (default: the GPU's)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--quick", action="store_true", help="a tiny model and few steps: proves the logic, says nothing"
    )
    parser.add_argument("--serve", action="store_true", help="the whole stack in place of the engine's sections")
    parser.add_argument("--only", default="", help="one section")
    parser.add_argument("--seconds", type=float, default=TOTAL_S, help="for all sections together")
    parser.add_argument("--out", default="", help="where to write the results")
    parser.add_argument("--smollm2", default=str(stored_smollm2()), help="folder with the real weights, if there")
    return parser.parse_args(argv)


def why_unwritable(path: Path) -> str | None:
    """What keeps a file from being written there; None where nothing does. Makes its folder, leaves the file alone."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        was_there = path.exists()
        path.open("a").close()
        if not was_there:
            path.unlink()
    except OSError as error:
        return str(error)
    return None


def sections_of(options: argparse.Namespace) -> tuple[Section, ...]:
    """All that the options ask for."""
    if options.serve:
        return QUICK_SERVE_SECTIONS if options.quick else SERVE_SECTIONS
    return QUICK_SECTIONS if options.quick else SECTIONS


def run_section(
    section: Section, options: argparse.Namespace, ceilings: dict[str, Any], left_s: float
) -> dict[str, Any]:
    """A section's measurements, and in `status` how it ended: done, failed, refused or left out, with the `reason`."""
    seconds = min(section.seconds, left_s - GRACE_S)
    if seconds < LEAST_S:
        return {"status": "left out", "reason": "no time was left"}
    print(f"{section.name} (at most {seconds:.0f} s)", flush=True)
    told = {
        "section": section.name, "device": options.device, "quick": options.quick, "until_s": time.time() + seconds,
        "smollm2": options.smollm2, "ceilings": ceilings,
    }  # fmt: skip
    results: dict[str, Any] = {}
    stopped: list[bool] = []
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, *CHILD, json.dumps(told)], stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT
        )

        def stop() -> None:
            stopped.append(True)
            process.terminate()  # a section that has started servers stops them
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()

        timer = threading.Timer(seconds + GRACE_S, stop)
        timer.start()
        with process:
            assert process.stdout is not None
            for line in process.stdout:
                results |= taken(line)
        timer.cancel()
        errors.seek(0)
        written = errors.read().splitlines()
    if stopped:
        return results | {"status": "failed", "reason": f"stopped after {seconds + GRACE_S:.0f} s"}
    if process.returncode == REFUSED:
        return {"status": "refused", "reason": written[-1]}
    if process.returncode:
        print("\n".join(written[-15:]), file=sys.stderr)
        reason = next((line for line in reversed(written) if line.strip()), "no message")
        return results | {"status": "failed", "reason": f"exit status {process.returncode}: {reason}"[:300]}
    return results | {"status": "done"}


def taken(line: str) -> dict[str, Any]:
    """The measurement on a section's line; other lines are progress, which is printed."""
    prefix, _, text = line.partition(" ")
    if prefix == "RESULT":
        try:
            measured: dict[str, Any] = json.loads(text)
        except ValueError:
            return {}
        for name, values in measured.items():
            if "failed" in values:
                print(f"           {name} failed: {values['failed']}", flush=True)
        return measured
    print(line.rstrip(), flush=True)
    return {}


def summary(results: dict[str, Any]) -> list[str]:
    """The figures one looks for first."""
    lines: list[str] = []
    for section, result in results.items():
        lines.append(f"{section}: {result['status']}" + (f" ({result['reason']})" if "reason" in result else ""))
        for name, values in result.items():
            if isinstance(values, dict) and name != "machine":
                shown = {key: value for key, value in values.items() if isinstance(value, str | int | float)}
                lines.append(f"  {name:<32} " + ", ".join(f"{key} {value}" for key, value in shown.items()))
    return lines


def host() -> dict[str, Any]:
    """The machine without its GPU, as far as it can be told without torch."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)$", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE)
    packages = {}
    for package in ("torch", "transformers", "triton"):
        try:
            packages[package] = version(package) if find_spec(package) else None
        except PackageNotFoundError:
            packages[package] = None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cpu = found[1] if found else platform.processor() or platform.machine()
    return {"cpu": cpu, "cores": cores, "python": platform.python_version(), **packages}


def stored_smollm2() -> Path:
    """Where `tokenwire models pull` puts the default model."""
    home = Path(os.environ.get("TOKENWIRE_HOME") or Path.home() / ".cache" / "tokenwire")
    return home / "models" / "smollm2-135m-instruct"


def slug(name: str) -> str:
    """A name as part of a file's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"


if __name__ == "__main__":
    sys.exit(main())
