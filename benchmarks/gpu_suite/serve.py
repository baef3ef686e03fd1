"""The whole stack on one device beside the engine alone: what share of the engine's tokens reaches a client.

`python -m benchmarks.gpu --serve` runs it. Unlike the rest of this package it needs grpc and everything that serves:
nothing else here imports it.
"""

import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks.contenders import ours
from benchmarks.contenders.kinds import num_cores
from benchmarks.contenders.running import Running
from benchmarks.contenders.spec import Spec
from benchmarks.gpu_suite.drive import Drive, raise_errors, settings_of
from benchmarks.gpu_suite.report import Report, tolerating
from benchmarks.gpu_suite.shapes import SHAPES, Source, release
from benchmarks.loadgen.measure import Load, Target, run
from benchmarks.loadgen.work import FIRST_ID, Work

APIS = ("session", "http")


@dataclass(frozen=True)
class ServeScale:
    """How much is asked for."""

    streams: tuple[int, ...] = (1, 8, 32, 64, 128, 256)
    prompt_tokens: int = 128
    output_tokens: int = 128
    requests_per_stream: int = 3

    def requests(self, streams: int) -> int:
        """Of one run."""
        return max(4, self.requests_per_stream * streams)


QUICK = ServeScale((1, 4), prompt_tokens=16, output_tokens=8, requests_per_stream=2)


def measure_serving(
    report: Report, shape: str, real: Path | None, device: torch.device, dtype: str, quick: bool
) -> None:
    """Enter `engine N` and `<api> N` for every number of streams; the latter with their share of the former."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the stack is stopped when the time is over
    scale = QUICK if quick else ServeScale()
    with tempfile.TemporaryDirectory(prefix="tokenwire-bench-") as scratch:
        with tolerating(), report.measuring("model"):
            folder = real or random_folder(Path(scratch) / shape, shape, device, dtype)
            vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
            report.add("model", weights="real" if real else "random", vocab_size=vocab_size)
        if "vocab_size" not in report.results["model"]:
            return
        with tolerating(), report.measuring("engine"):
            measure_engine(report, Source(shape, folder), device, dtype, quick, scale)
        release(device)
        with tolerating(), report.measuring("stack"):
            running = start_stack(folder, device, dtype, quick)
            try:
                report.add("stack", startup_s=running.startup_s, settings=dict(running.settings))
                work = Work(scale.prompt_tokens, scale.output_tokens, vocab_size)
                for api in APIS:
                    measure_api(report, running, api, work, scale)
            finally:
                running.stop()


def measure_engine(
    report: Report, source: Source, device: torch.device, dtype: str, quick: bool, scale: ServeScale
) -> None:
    """The engine's own speed in this process, under the same closed loops."""
    drive = Drive.start(source, settings_of(device, dtype, quick, {}))
    try:
        closed_loop(drive, max(scale.streams), 2 * max(scale.streams), scale)  # warms up
        for streams in scale.streams:
            with tolerating(), report.measuring(f"engine {streams}", needs_s=1):
                num_requests = scale.requests(streams)
                seconds = closed_loop(drive, streams, num_requests, scale)
                tokens = num_requests * scale.output_tokens
                report.add(f"engine {streams}", tokens_per_s=tokens / seconds, seconds=seconds)
    finally:
        drive.close()


def closed_loop(drive: Drive, streams: int, num_requests: int, scale: ServeScale) -> float:
    """Seconds for `num_requests` requests, `streams` at a time. Raises RuntimeError when one fails."""
    prompts = iter([drive.prompt(scale.prompt_tokens) for _ in range(num_requests)])
    started_s = time.perf_counter()
    num_ended = 0
    for prompt in islice(prompts, streams):
        drive.add(prompt, scale.output_tokens)
    while drive.engine.has_work:
        result = drive.engine.step()
        raise_errors(result)
        num_ended += len(result.ended)
        for prompt in islice(prompts, len(result.ended)):
            drive.add(prompt, scale.output_tokens)
    if num_ended != num_requests:
        raise RuntimeError(f"{num_ended} of {num_requests} sequences ended")
    return time.perf_counter() - started_s


def start_stack(folder: Path, device: torch.device, dtype: str, quick: bool) -> Running:
    """`tokenwire up` with the engine's settings of this measurement. Raises Absent."""
    engine = settings_of(device, dtype, quick, {})
    options = {
        "model": str(folder), "device": str(device), "dtype": dtype, "api": "session",
        "context": str(engine.max_context_tokens), "threads": str(engine.threads or num_cores()),
        **({"batch": str(engine.max_batch_size), "kv_memory": str(engine.kv_memory)} if quick else {}),
    }  # fmt: skip
    return ours.start(Spec("ours", options), num_cores())


def measure_api(report: Report, running: Running, api: str, work: Work, scale: ServeScale) -> None:
    """One API under all numbers of streams."""
    address = running.addresses[api]
    target = Target(api, address, running.target.model, tiers=running.target.tiers)
    for number, streams in enumerate(scale.streams):
        label = f"{api} {streams}"
        with tolerating(), report.measuring(label, needs_s=2):
            load = Load(concurrency=streams, num_requests=scale.requests(streams))
            (found,) = run(target, work, [load], seed=100 * APIS.index(api) + number)
            if found["failures"]:
                raise RuntimeError(f"{found['failures']} requests failed: {found['failure_reasons']}")
            report.add(label, **figures_of(found, report.results.get(f"engine {streams}", {})))


def figures_of(found: dict[str, Any], engine: dict[str, Any]) -> dict[str, Any]:
    """What is entered of a run; the share only where the engine was measured."""
    speed = found["output_tokens_per_s"]
    share = {"share_of_engine": speed / engine["tokens_per_s"]} if engine.get("tokens_per_s") else {}
    return {
        "tokens_per_s": speed, **share, "ttft_ms_p50": found["ttft_ms"]["p50"],
        "ms_per_token_p50": found["time_per_output_token_ms"]["p50"],
        "client_share_of_a_core": found["client"]["share_of_a_core"], "ttft_ms": found["ttft_ms"],
        "inter_token_ms": found["inter_token_ms"], "e2e_ms": found["e2e_ms"], "tiers": found["tiers"],
        "warnings": found["warnings"],
    }  # fmt: skip


def random_folder(folder: Path, shape: str, device: torch.device, dtype: str) -> Path:
    """A model folder of a shape: random weights, and a tokenizer with a text for every id; returns it."""
    module = Source(shape, None).plain(device, dtype)
    module.save_pretrained(folder)
    del module
    release(device)
    made_tokenizer(SHAPES[shape]().vocab_size).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def made_tokenizer(vocab_size: int) -> Tokenizer:
    """Bytes, then made-up words up to the size: nothing is merged, and every id has its text."""
    if vocab_size < 256 + FIRST_ID:
        raise ValueError(f"a vocabulary of {vocab_size} is too small")
    tokens: Sequence[str] = [
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
        *(f"Ġw{n}" for n in range(vocab_size - 256)),
    ]
    made = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made
