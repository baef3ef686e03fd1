"""The real engine over the torch runner, in process, as the measurements use it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import torch

from benchmarks.gpu_suite.shapes import Source, release
from model_svc.engine.__main__ import engine_of
from model_svc.engine.engine import Engine
from model_svc.engine.events import StepResult
from model_svc.engine.sequence import Sequence
from model_svc.model.loader import LoadedModel
from model_svc.runner.decode_graphs import EAGER_STEPS
from model_svc.runner.model_runner import TorchModelRunner
from model_svc.runner.startup import start_runner
from model_svc.settings import EngineSettings
from tokenwire.requests import CancelReason
from tokenwire.sampling import NEUTRAL, StopParams

SEQUENCE_IDS = count(1)
GREEDY = replace(NEUTRAL, seed=0)


@dataclass
class Drive:
    """One engine with its model."""

    model: LoadedModel
    runner: TorchModelRunner
    engine: Engine
    num_warm_steps: int
    """Of each size, before what is left to be recorded while serving has been."""
    rng: Random = field(default_factory=lambda: Random(0))

    @classmethod
    def start(cls, source: Source, settings: EngineSettings) -> "Drive":
        """Load and warm up."""
        loaded: list[LoadedModel] = []

        def load(folder: Path, device: torch.device, dtype: str, _: Any) -> LoadedModel:
            loaded.append(source.paged(folder, device, dtype))
            return loaded[0]

        runner = start_runner(settings, {}, load=load)
        # Nothing is drafted: a step is to make one token of each sequence.
        engine = engine_of(replace(settings, speculation="off"), runner)
        return cls(loaded[0], runner, engine, EAGER_STEPS + 1 if settings.lazy_graphs else 0)

    def close(self) -> None:
        """Give the memory back."""
        device = self.model.device
        self.runner.close()
        del self.model, self.runner, self.engine
        release(device)

    @property
    def capacity_tokens(self) -> int:
        """Positions that the cache holds."""
        return self.runner.info.num_blocks * self.runner.info.block_size

    def prompt(self, length: int) -> list[int]:
        """Random tokens, so that no two prompts share a block."""
        return [self.rng.randrange(self.runner.info.vocab_size) for _ in range(length)]

    def add(self, prompt: list[int], max_tokens: int, **fields: Any) -> Sequence:
        """A sequence that starts in the next step; greedy, and nothing but its length ends it."""
        made = Sequence(
            sequence_id=next(SEQUENCE_IDS), token_ids=list(prompt), num_prompt_tokens=len(prompt), sampling=GREEDY,
            stop=StopParams(max_tokens=max_tokens), arrival_s=time.monotonic(), **fields,
        )  # fmt: skip
        self.engine.add(made)
        return made

    def run(self, until: Callable[[], bool] | None = None) -> list[StepResult]:
        """Step until all has ended, or `until` says so. Raises RuntimeError when a sequence ends with an error."""
        results: list[StepResult] = []
        while self.engine.has_work and not (until and until()):
            results.append(self.engine.step())
            raise_errors(results[-1])
        return results

    def abort(self, sequences: list[Sequence]) -> None:
        """End them, and tell the engine's caller."""
        for sequence in sequences:
            self.engine.scheduler.abort(sequence.sequence_id, CancelReason.CLIENT)
        while self.engine.has_work:
            self.engine.step()

    def decode(self, batch: int, context: int, num_steps: int, most_s: float) -> list[float]:
        """Seconds of each step of `batch` sequences that have `context` tokens and all decode.

        The first `num_warm_steps` are left out.
        """
        sequences = [self.add(self.prompt(context), num_steps + batch + 1000) for _ in range(batch)]
        try:
            self.run(until=lambda: all(s.num_new_outputs > self.num_warm_steps for s in sequences))
            steps: list[float] = []
            started_s = time.perf_counter()
            while len(steps) < num_steps and time.perf_counter() - started_s < most_s:
                result = self.engine.step()
                raise_errors(result)
                if result.num_batch_sequences != batch or result.num_batch_tokens != batch:
                    raise RuntimeError(f"a step of {result.num_batch_sequences} sequences in place of {batch}")
                steps.append(result.step_s)
            return steps
        finally:
            self.abort(sequences)


def raise_errors(result: StepResult) -> None:
    """A sequence that ended with an error spoils a measurement."""
    for ended in result.ended:
        if ended.terminal.error is not None:
            raise RuntimeError(f"a sequence ended with {ended.terminal.error.reason}: {ended.terminal.error}")


def settings_of(device: torch.device, dtype: str, quick: bool, changed: dict[str, Any]) -> EngineSettings:
    """What the engine is measured with; `changed` are a variant's settings, which must exist."""
    base: dict[str, Any] = {
        "device": str(device), "dtype": dtype, "max_context_tokens": 2048, "model": "random",
        "cpu_kernels": "off",  # where it is tried without a GPU, what a GPU would compute is tried
    }  # fmt: skip
    if quick:
        base |= {
            "max_context_tokens": 512,
            "kv_memory": 32 * 2**20,
            "max_batch_size": 16,
            "max_step_tokens": 256,
            "threads": 1,
        }
    return EngineSettings(**(base | changed))
