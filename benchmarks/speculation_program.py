"""Run by `benchmarks.speculation`: serves the same requests with speculation and without, in turn, and prints JSON.

    python -m benchmarks.speculation_program '{"pairs": 10, "requests": 6, "tokens": 96, "threads": 2, ...}'

Both engines are over one loaded model. Progress goes to stderr.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import torch

from benchmarks.speculation_texts import Texts
from model_svc.engine.__main__ import engine_of
from model_svc.engine.batch import ModelRunner
from model_svc.engine.engine import Engine
from model_svc.engine.sequence import Sequence
from model_svc.runner import build_runner
from model_svc.settings import EngineSettings
from tokenwire.models import resolve
from tokenwire.sampling import NEUTRAL, SamplingParams, StopParams

SEQUENCE_IDS = count(1)
GREEDY = replace(NEUTRAL, seed=0)
SAMPLED = replace(NEUTRAL, seed=0, temperature=1.0)


@dataclass(frozen=True)
class Case:
    """Requests of one kind, so many at a time."""

    name: str
    batch: int
    prompt: Callable[[int], list[int]]
    sampling: SamplingParams
    stops: tuple[int, ...] = ()


@dataclass(frozen=True)
class Served:
    """What one engine made of a case's requests."""

    tokens_per_s: float
    """Without each one's first token and the time until all had it."""
    outputs: list[list[int]]


def cases_of(texts: Texts, batches: list[int]) -> list[Case]:
    """What is measured."""
    found: list[Case] = []
    for batch in batches:
        found += [
            Case("copying a text", batch, texts.copying, GREEDY, (texts.end,)),
            Case("editing code", batch, texts.editing, GREEDY, (texts.end,)),
            Case("random text", batch, texts.random, SAMPLED),
        ]
    return found


def main() -> None:
    """Measure what the first argument asks for."""
    wanted = json.loads(sys.argv[1])
    folder = resolve(wanted["model"])
    settings = EngineSettings(
        model=str(folder), device="cpu", dtype=wanted["dtype"], quantization=wanted["quantization"],
        threads=wanted["threads"], max_batch_size=max(2, *wanted["batches"]), max_context_tokens=2048,
        kv_memory=2**30, draft_model=str(resolve(wanted["draft_model"])) if wanted["draft_model"] else "",
        draft_quantization=wanted["draft_quantization"], cpu_kernels=wanted["cpu_kernels"],
    )  # fmt: skip
    runner = build_runner(settings)
    cases = [case for case in cases_of(Texts(folder), wanted["batches"]) if wanted["cases"] in case.name]
    print(json.dumps([pairs_of(runner, settings, case, wanted) for case in cases]))


def pairs_of(runner: ModelRunner, settings: EngineSettings, case: Case, wanted: dict[str, Any]) -> dict[str, Any]:
    """Tokens per second with and without, pair by pair, each with other requests."""
    on = replace(
        settings, speculation=wanted["speculation"], speculation_length=wanted["length"],
        speculation_adaptive=wanted["adaptive"],
    )  # fmt: skip
    now_s = time.process_time if wanted["cpu_time"] else time.perf_counter
    engines = {
        "off": engine_of(replace(settings, speculation="off"), runner, now_s), "on": engine_of(on, runner, now_s),
    }  # fmt: skip
    found: dict[str, list[float]] = {name: [] for name in engines}
    num_differing = num_requests = 0
    for pair in range(wanted["pairs"] + 1):
        numbers = range(pair * max(case.batch, wanted["requests"]), (pair + 1) * max(case.batch, wanted["requests"]))
        names = list(engines) if pair % 2 else list(reversed(engines))
        served = {name: serve(engines[name], case, list(numbers), wanted["tokens"], now_s) for name in names}
        if not pair:
            continue  # warms up
        for name in engines:
            found[name].append(served[name].tokens_per_s)
        num_requests += len(numbers)
        num_differing += sum(a != b for a, b in zip(served["off"].outputs, served["on"].outputs, strict=True))
        say(f"{case.name}, {case.batch} at a time, pair {pair}: {found['on'][-1] / found['off'][-1]:.2f}")
    counts = engines["on"].scheduler.drafting.counts()
    return {
        "case": case.name, "batch": case.batch, "tokens_per_s": found, "requests": num_requests,
        "differing": num_differing, "drafted": counts.num_drafted, "accepted": counts.num_accepted,
    }  # fmt: skip


def serve(engine: Engine, case: Case, numbers: list[int], num_tokens: int, now_s: Callable[[], float]) -> Served:
    """Serve requests of these numbers, `case.batch` at a time."""
    outputs: list[list[int]] = []
    made, spent_s = 0, 0.0
    for start in range(0, len(numbers), case.batch):
        group = [sequence_of(case, number, num_tokens) for number in numbers[start : start + case.batch]]
        for each in group:
            engine.add(each)
        while any(each.num_new_outputs == 0 for each in group):
            engine.step()
        before = sum(each.num_new_outputs for each in group)
        began_s = now_s()
        while engine.has_work:
            engine.step()
        spent_s += now_s() - began_s
        made += sum(each.num_new_outputs for each in group) - before
        outputs += [each.token_ids[each.num_prompt_tokens :] for each in group]
    return Served(made / spent_s, outputs)


def sequence_of(case: Case, number: int, num_tokens: int) -> Sequence:
    """A request. Nobody shares its prefix: the two engines' caches are the same memory."""
    prompt, sequence_id = case.prompt(number), next(SEQUENCE_IDS)
    return Sequence(
        sequence_id=sequence_id, token_ids=prompt, num_prompt_tokens=len(prompt),
        sampling=replace(case.sampling, seed=number), stop=StopParams(max_tokens=num_tokens, stop_token_ids=case.stops),
        arrival_s=time.monotonic(), cache_root=str(sequence_id),
    )  # fmt: skip


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
