"""Where the tiers spend their time under load: a flame graph of each process, and the engine's table by phase.

    python -m benchmarks.profile [--output profile] [--seconds 15] [--concurrency 8] [-- arguments of tokenwire up]

Starts the tiers on free ports as a user would and keeps `--concurrency` requests running through the gateway. First the
table is made, over `--seconds`: host time, from the model tier's metrics. Then py-spy watches every tier and the engine
process as long: where C and C++ can be unwound with those frames (`--native`), and, unless `--gil` is given, with the
threads that do not hold the interpreter. It stops a process to look, some 10 ms where there are C frames of torch, so
what runs then runs slower; that is why the table comes before. Writes NAME.svg for each process and steps.txt.
"""

import argparse
import asyncio
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.program import as_program
from benchmarks.step_table import lines, per_step
from tokenwire.cli.tiers import free_ports
from tokenwire.client import AsyncClient

WARM_UP_S = 2.0
NO_SAMPLES = "No stack counts found"
HINT = "the process was idle, or it was watched too briefly: give more --seconds"
SAMPLES_PER_S = 20
WORDS = "river stone cloud paper engine garden window music copper winter".split()
NO_PY_SPY = "py-spy is not installed here: pip install 'tokenwire[profile]', or use `make profile`"
NOT_ALLOWED = """py-spy may not look into the processes of `tokenwire up` ({said}).
  on this machine:  sudo sysctl kernel.yama.ptrace_scope=0   (until the next start), or run as root
  in a container:   docker run --cap-add SYS_PTRACE …"""


def py_spy() -> str:
    """The program, from PATH or from this environment. Raises SystemExit."""
    found = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if found is None:
        raise SystemExit(NO_PY_SPY)
    return found


@contextmanager
def running_stack(arguments: list[str]) -> Iterator[tuple[int, str, str]]:
    """The process id of `tokenwire up`, the gateway's target and the address of the model tier's metrics."""
    names = ("port", "http-port", "tokenizer-port", "model-port", "model-metrics-port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    flags = [f"--{name}={port}" for name, port in ports.items()]
    flags += ["--gateway-metrics-port=0", "--tokenizer-metrics-port=0", *arguments]
    environ = {**os.environ, "PYTHONUNBUFFERED": "1", "TOKENWIRE_LOG": "warning"}
    command = [sys.executable, "-m", "tokenwire.cli.main", "up", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as up:
        assert up.stdout is not None
        try:
            if not any("Ctrl-C drains" in line for line in up.stdout):
                raise SystemExit(f"tokenwire up ended with status {up.wait()}; what it said is above")
            yield up.pid, f"127.0.0.1:{ports['port']}", f"http://127.0.0.1:{ports['model-metrics-port']}/metrics"
        finally:
            up.send_signal(signal.SIGTERM)
            up.communicate()


def processes_of(up: int) -> dict[str, int]:
    """Process ids by name: the tiers by their modules', and `engine`; several of one name are numbered."""
    found: dict[str, int] = {}
    for child in psutil.Process(up).children(recursive=True):
        command = child.cmdline()
        if "tokenwire.cli.tier" in command:
            name = command[command.index("tokenwire.cli.tier") + 2]
        elif "model_svc.engine" in command:
            name = "engine"
        else:
            continue
        names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        found[next(each for each in names if each not in found)] = child.pid
    return found


def unwinds_native(program: str, pid: int) -> bool:
    """Whether py-spy can show C and C++ frames of this process. Raises SystemExit when it may not look at all."""
    for flags in (["--native"], []):
        tried = subprocess.run([program, "dump", *flags, "--pid", str(pid)], capture_output=True, text=True)
        if tried.returncode == 0:
            return bool(flags)
    raise SystemExit(NOT_ALLOWED.format(said=" ".join(tried.stderr.split()) or f"status {tried.returncode}"))


async def one_after_the_other(client: AsyncClient, number: int, max_tokens: int) -> None:
    """Requests of one user, for ever; all prompts differ."""
    for turn in itertools.count():
        words = " ".join(WORDS[(number * 7 + turn * 3 + at * at) % len(WORDS)] for at in range(60))
        await client.generate(f"User {number}, turn {turn}: {words}", max_tokens=max_tokens, temperature=0).outputs()


def sums_of(address: str) -> tuple[dict[str, float], int]:
    """Seconds by phase and steps, as the model tier counts them."""
    with urllib.request.urlopen(address, timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    samples = [sample for family in families for sample in family.samples]
    phases = {s.labels["phase"]: s.value for s in samples if s.name == "tokenwire_model_phase_seconds_total"}
    (steps,) = (s.value for s in samples if s.name == "tokenwire_model_steps_total")
    return phases, int(steps)


async def watch(command: list[str]) -> str:
    """Run py-spy to its end; what it said, empty where all went well."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    return "" if process.returncode == 0 else reason_of(said.decode(errors="replace"), process.returncode)


def reason_of(said: str, status: int | None) -> str:
    """Why py-spy failed, in one line: its errors without the backtrace below them, and what helps if that is known."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("Error:", "Reason:"))]
    reason = ": ".join(dict.fromkeys(errors)) or (lines[0] if lines else f"status {status}")
    return f"{reason} ({HINT})" if NO_SAMPLES in said else reason


async def profile(args: argparse.Namespace, program: str, up: int, target: str, metrics: str) -> tuple[list[str], bool]:
    """Load, py-spy and the readings before and after; returns the table, and whether every flame graph is there."""
    processes = processes_of(up)
    commands: dict[str, list[str]] = {}
    for name, pid in processes.items():
        native = ["--native"] if unwinds_native(program, pid) else []
        commands[name] = [
            program, "record", "--format", "flamegraph", "--output", str(args.output / f"{name}.svg"),
            "--duration", str(args.seconds), "--rate", str(SAMPLES_PER_S), *native, *(["--gil"] if args.gil else []),
            "--pid", str(pid),
        ]  # fmt: skip
    async with AsyncClient(target) as client:
        users = [
            asyncio.create_task(one_after_the_other(client, number, args.max_tokens))
            for number in range(args.concurrency)
        ]
        try:
            done, _ = await asyncio.wait(users, timeout=WARM_UP_S, return_when=asyncio.FIRST_EXCEPTION)
            if done:
                done.pop().result()
            began_s, (before, num_before) = time.monotonic(), sums_of(metrics)
            await asyncio.sleep(args.seconds)
            took_s, (after, num_after) = time.monotonic() - began_s, sums_of(metrics)
            said = await asyncio.gather(*(watch(command) for command in commands.values()))
        finally:
            for user in users:
                user.cancel()
            ended = await asyncio.gather(*users, return_exceptions=True)
    for failed in (each for each in ended if not isinstance(each, asyncio.CancelledError)):
        raise SystemExit(f"a request failed under load: {failed}")
    tell_graphs(args.output, dict(zip(commands, said, strict=True)))
    num_steps = num_after - num_before
    head = f"{args.concurrency} requests at a time, {args.max_tokens} tokens each, for {took_s:.1f} s"
    return [head, *lines(per_step(before, after, num_steps), num_steps)], not any(said)


def tell_graphs(folder: Path, failures: Mapping[str, str]) -> None:
    """The graphs' paths. Where py-spy failed: why, and what it left is removed, as is an older graph of that name."""
    for name, reason in failures.items():
        graph = folder / f"{name}.svg"
        if reason:
            graph.unlink(missing_ok=True)
        print(f"  {name}: no flame graph: {reason}" if reason else f"  {graph}")


@as_program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 when a process has no flame graph."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.profile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("profile"))
    parser.add_argument("--seconds", type=int, default=15)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--gil", action="store_true", help="only threads that hold Python's interpreter lock")
    parser.add_argument("arguments", nargs="*", help="arguments of tokenwire up, after --")
    args = parser.parse_args(argv)
    program = py_spy()
    args.output.mkdir(parents=True, exist_ok=True)
    with running_stack(args.arguments) as (up, target, metrics):
        rows, complete = asyncio.run(profile(args, program, up, target, metrics))
    table = "\n".join(rows)
    (args.output / "steps.txt").write_text(table + "\n")
    print(f"  {args.output / 'steps.txt'}\n\n{table}")
    return int(not complete)


if __name__ == "__main__":
    sys.exit(main())
