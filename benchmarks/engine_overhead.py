"""What a decode step costs the engine by phase, in CPU time of its thread, so that a busy machine says the same.

    python -m benchmarks.engine_overhead [--runner mock|model] [--batch 32] [--prompt 128] [--steps 128] [--json]

Steps the engine as its process does, the message of each step pickled into a socket that another process reads; no
clients and no other tier. `mock` has no model (its forward is nothing, its sample makes the tokens up), `model` runs
the default one, with one thread. Prompts differ; all are prefilled before the clock starts. Gives the median of rounds
of 16 steps, in which every sequence fills a block once.
"""

import argparse
import json
import random
import socket
import statistics
import subprocess
import sys
import time
from collections import abc
from collections.abc import Callable
from dataclasses import replace

from benchmarks.program import as_program
from benchmarks.step_table import lines, per_step
from model_svc.engine.batch import ModelRunner
from model_svc.engine.engine import Engine
from model_svc.engine.events import Inbox
from model_svc.engine.limits import Limits
from model_svc.engine.link import EngineLink
from model_svc.engine.mock_runner import MockRunner
from model_svc.engine.phase_clock import PhaseClock
from model_svc.engine.sequence import Sequence
from model_svc.settings import EngineSettings
from tokenwire.sampling import NEUTRAL, SamplingParams, StopParams

ROUND_STEPS = 16
GREEDY = replace(NEUTRAL, temperature=0.0, seed=0)
SAMPLED = replace(NEUTRAL, temperature=0.8, top_p=0.95, seed=0)


def mock_runner(batch: int) -> ModelRunner:
    return MockRunner(EngineSettings(engine="mock", mock_step_ms=0.0, max_batch_size=batch))


def model_runner(batch: int) -> ModelRunner:
    from model_svc.runner import build_runner  # noqa: PLC0415 - torch is not loaded for the mock
    from tokenwire import models  # noqa: PLC0415

    folder = str(models.resolve("smollm2-135m-instruct"))
    return build_runner(EngineSettings(model=folder, threads=1, device="cpu", max_batch_size=max(batch, 2)))


RUNNERS: dict[str, Callable[[int], ModelRunner]] = {"mock": mock_runner, "model": model_runner}


def sequences(count: int, num_prompt: int, num_outputs: int, vocab_size: int, sampling: SamplingParams) -> Inbox:
    rng = random.Random(0)
    stop = StopParams(max_tokens=num_outputs, stop_token_ids=(vocab_size,))  # never drawn: nobody ends early
    made: list[Sequence] = []
    for number in range(1, count + 1):
        prompt = [rng.randrange(3, vocab_size) for _ in range(num_prompt)]
        made.append(
            Sequence(number, prompt, num_prompt, replace(sampling, seed=number), stop, arrival_s=float(number))
        )  # fmt: skip
    return Inbox(made)


def measure(runner: ModelRunner, args: argparse.Namespace) -> list[dict[str, float]]:
    """Seconds per step by phase, one entry per round."""
    phases = PhaseClock(now_s=time.thread_time)
    runner.phases = phases
    engine = Engine(runner, Limits(args.batch, 512), overlap=args.overlap)
    ours, theirs = socket.socketpair()
    sampling = SAMPLED if args.sampled else GREEDY
    rounds: list[dict[str, float]] = []
    with subprocess.Popen(["cat"], stdin=theirs, stdout=subprocess.DEVNULL) as reader, ours:
        theirs.close()
        link = EngineLink(ours)
        engine.take(sequences(args.batch, args.prompt, args.steps + 32, runner.info.vocab_size, sampling))
        while any(s.num_uncomputed_tokens > 1 for s in engine.scheduler.sequences.values()) or (
            len(engine.scheduler.roster.running) < args.batch
        ):
            link.send(engine.step())
        for _ in range(args.steps // ROUND_STEPS):
            before = dict(phases.seconds)
            phases.restart()
            for _ in range(ROUND_STEPS):
                for inbox in link.receive(timeout_s=engine.idle_s()):
                    engine.take(inbox)
                result = engine.step()
                assert result.num_batch_sequences == result.num_batch_tokens == args.batch
                link.send(result)
                phases.lap("publish")
            rounds.append(per_step(before, phases.seconds, ROUND_STEPS))
        ours.close()
        reader.wait()
    return rounds


@as_program
def main(argv: abc.Sequence[str] | None = None) -> int:
    """Returns 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine_overhead", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--runner", choices=RUNNERS, default="mock")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--steps", type=int, default=128, help="steps measured, a multiple of 16")
    parser.add_argument("--sampled", action="store_true", help="temperature 0.8 and top-p 0.95 instead of greedy")
    parser.add_argument("--overlap", action="store_true", help="launch a step before the one before it is read")
    parser.add_argument("--json", action="store_true", help="the medians, in microseconds, as one line of JSON")
    args = parser.parse_args(argv)
    rounds = measure(RUNNERS[args.runner](args.batch), args)
    medians = {phase: statistics.median(each[phase] for each in rounds) for phase in rounds[0]}
    if args.json:
        print(json.dumps({phase: round(1e6 * seconds, 1) for phase, seconds in medians.items()}))
    else:
        print("\n".join(lines(medians, ROUND_STEPS * len(rounds))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
