"""Memory at start and running out of it, on a CPU with the GPU's part made up."""

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model_svc.engine.batch import ModelRunner, OutOfMemory, ScheduledBatch, StepOutput
from model_svc.model.loader import LoadedModel, load_model
from model_svc.model.paged import LayerKVSpec
from model_svc.runner import kv_cache, startup
from model_svc.runner.kv_cache import kv_size
from model_svc.runner.memory import (
    is_out_of_memory,
    raising_out_of_memory,
    run_largest_steps,
)
from model_svc.runner.model_runner import TorchModelRunner
from model_svc.settings import EngineSettings
from tests.fakes.constrained import write_text_model
from tests.fakes.engine_loop import EngineLoop
from tests.fakes.failing_forward import failing_forward, raising
from tests.fakes.reference import Reference
from tests.fakes.step_loop import GREEDY, StepLoop, outputs
from tests.fakes.tiny_models import CONTEXT, write_model
from tests.fakes.tiny_runner import tiny_runner_of
from tokenwire.errors import FailedPrecondition
from tokenwire.settings import SettingError, settings_from

Folders = Callable[[str], str]
PROMPTS = [[5, 6, 7, 8, 9, 10], [1, 2], [3] * 11, [50, 60, 70]]


def allocators_error() -> RuntimeError:
    """What torch raises on a CPU: asked for far more than any machine has."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    return caught.value


def test_torchs_errors_are_told_apart() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(allocators_error())
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_what_the_failed_step_held_is_let_go() -> None:
    held: list[Any] = []

    class Large:
        def __del__(self) -> None:
            held.append("freed")

    def step() -> None:
        large = Large()
        raise torch.OutOfMemoryError(f"CUDA out of memory beside {type(large).__name__}\nand more")

    with (
        pytest.raises(OutOfMemory, match="^CUDA out of memory beside Large$"),
        raising_out_of_memory(torch.device("cpu")),
    ):
        try:
            step()
        finally:
            assert not held
    assert held == ["freed"]


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(RuntimeError, match="illegal"), raising_out_of_memory(torch.device("cpu")):
        raise RuntimeError("illegal memory access")


@pytest.mark.parametrize("after", [False, True])
def test_the_engine_goes_on_and_gives_the_same_tokens(
    tiny_folder: Folders, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """Steps of more than 7 tokens raise torch's error; penalties show that nothing is counted twice."""
    runner, reference = tiny_runner_of(tiny_folder("llama")), Reference(tiny_folder("llama"))
    plain = EngineLoop(runner, batch=4).run(PROMPTS, 8)
    error = torch.OutOfMemoryError("CUDA out of memory.")
    failing_forward(monkeypatch, lambda num_tokens: num_tokens > 7, raising(error), after=after)
    loop = EngineLoop(runner, batch=4)
    sequences = loop.run(PROMPTS, 8)
    assert loop.engine.scheduler.load().num_out_of_memory > 0
    assert [outputs(s) for s in sequences] == [outputs(s) for s in plain]
    assert outputs(sequences[0]) == reference.greedy(PROMPTS[0], 8).token_ids


def test_penalties_are_counted_anew_after_a_step_that_failed_in_the_sampler(
    tiny_folder: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = tiny_runner_of(tiny_folder("llama"))
    sampling = replace(GREEDY, repetition_penalty=1.7, frequency_penalty=0.4, logit_bias=((3, 1.5),))
    plain = StepLoop(runner)
    wanted = plain.add(PROMPTS[0], 10, sampling)
    plain.run()
    fails = iter([False, False, True, False, True, True])
    penalise = type(runner._changer)._penalise  # type: ignore[attr-defined]

    def _penalise(self: Any, *arguments: Any) -> None:
        penalise(self, *arguments)
        if next(fails, False):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(type(runner._changer), "_penalise", _penalise)  # type: ignore[attr-defined]
    loop = StepLoop(runner)
    found = loop.add(PROMPTS[0], 10, sampling)
    num_failed = 0
    while loop.running:
        try:
            loop.step()
        except OutOfMemory:
            num_failed += 1
    assert num_failed == 3
    assert outputs(found) == outputs(wanted)


SPECS = (LayerKVSpec(2, 8, 8),) * 2
BLOCK_BYTES = 2 * 16 * 2 * 16 * 2  # layers, positions, heads, key and value, bf16


def size_on_gpu(free: int, monkeypatch: pytest.MonkeyPatch, **given: Any) -> kv_cache.KVSize:
    monkeypatch.setattr(kv_cache, "free_memory_bytes", lambda _: free)
    arguments: dict[str, Any] = {
        "block_size": 16, "dtype": torch.bfloat16, "device": torch.device("cuda", 0), "kv_memory_bytes": 0,
        "max_context_tokens": 160, "context_is_wish": False, "max_batch_size": 10**6,
    }  # fmt: skip
    return kv_size(SPECS, **(arguments | given))


def test_a_gpus_cache_is_its_share_less_what_a_step_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    free = 100 * BLOCK_BYTES
    assert size_on_gpu(free, monkeypatch).num_blocks == 90
    assert size_on_gpu(free, monkeypatch, gpu_memory_share=0.5, step_bytes=20 * BLOCK_BYTES).num_blocks == 30
    with pytest.raises(FailedPrecondition, match="hold 0 positions"):
        size_on_gpu(free, monkeypatch, step_bytes=95 * BLOCK_BYTES)
    with pytest.raises(FailedPrecondition, match="and the 0 MiB of the largest steps are more than"):
        size_on_gpu(free, monkeypatch, kv_memory_bytes=60 * BLOCK_BYTES, step_bytes=50 * BLOCK_BYTES)


@pytest.mark.parametrize("share", ["0.49", "0.99", "much"])
def test_the_share_has_bounds(share: str) -> None:
    with pytest.raises(SettingError, match="gpu.memory.share|GPU_MEMORY_SHARE"):
        settings_from(EngineSettings, "model", {}, {"TOKENWIRE_MODEL_GPU_MEMORY_SHARE": share})


class Watched:
    """Keeps what is asked of a runner, and what it answers."""

    adapters = draft_model = None

    def __init__(self, runner: ModelRunner) -> None:
        self.runner, self.info, self.phases, self.grammars = runner, runner.info, runner.phases, runner.grammars
        self.steps: list[ScheduledBatch] = []
        self.outputs: list[StepOutput] = []

    def launch(self, batch: ScheduledBatch) -> Any:
        self.steps.append(batch)
        return self.runner.launch(batch)

    def collect(self, launched: Any) -> StepOutput:
        self.outputs.append(self.runner.collect(launched))
        return self.outputs[-1]

    def close(self) -> None:
        pass


def test_the_largest_steps_are_the_largest(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = str(write_model(tmp_path_factory.mktemp("models") / "qwen3", "qwen3"))
    runner = tiny_runner_of(folder, max_batch_size=6, max_step_tokens=300, block_size=4)
    watched = Watched(runner)
    run_largest_steps(watched)
    prefill, decode, drafted = watched.steps
    assert prefill.num_tokens == 300 and [row.num_new_tokens for row in prefill.rows] == [127, 127, 46]
    assert len(decode.rows) == decode.num_tokens == 6
    assert {row.sequence.num_tokens for row in decode.rows} == {CONTEXT - 1}
    assert all(row.samples for row in (*prefill.rows, *decode.rows, *drafted.rows))
    assert drafted.num_drafts > 40 and drafted.rows[0].end <= CONTEXT
    assert runner.grammars is None and not any(output.masks.num_rows for output in watched.outputs)


def test_where_outputs_can_be_constrained_the_largest_steps_have_masks(tmp_path: Path) -> None:
    runner = tiny_runner_of(str(write_text_model(tmp_path / "text")), max_batch_size=6, max_step_tokens=64)
    watched = Watched(runner)
    run_largest_steps(watched)
    prefill, decode, drafted = watched.steps
    sampling = [sum(row.samples for row in step.rows) for step in (prefill, decode, drafted)]
    assert decode.num_tokens == 6 and drafted.num_drafts > 20
    assert [output.masks.num_rows for output in watched.outputs] == sampling
    assert not any(output.errors for output in watched.outputs)


def test_a_step_that_never_fits_is_refused_at_start(tiny_folder: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = tiny_runner_of(tiny_folder("llama"))
    failing_forward(
        monkeypatch, lambda num_tokens: num_tokens > 100, raising(torch.OutOfMemoryError("no room")), after=False
    )
    with pytest.raises(FailedPrecondition, match="no memory for the largest step .*: no room; lower --max-step-tokens"):
        run_largest_steps(runner)


def test_a_largest_step_that_fails_otherwise_is_a_refusal_too(
    tiny_folder: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = tiny_runner_of(tiny_folder("llama"))
    failing_forward(monkeypatch, lambda num_tokens: True, raising(RuntimeError("no such kernel")), after=False)
    with pytest.raises(FailedPrecondition, match="its largest step failed: RuntimeError: no such kernel") as caught:
        run_largest_steps(runner)
    assert caught.value.reason == "MODEL_UNSUPPORTED"


def test_a_gpus_start_measures_before_it_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of things on a GPU, with the CPU standing in: checks, largest steps with masks, then the cache.

    What torch holds of the trial's memory counts as taken until it is given back, which needs the trial to be gone.
    """
    done: list[str] = []
    trial: weakref.ref[TorchModelRunner] | None = None

    def given_back() -> None:
        assert trial is not None
        done.append("given back" if trial() is None else "emptied too early")

    class Standin:
        """Says cuda where start-up asks, and is the CPU for torch."""

        type = "cuda"

        def __str__(self) -> str:
            return "cuda:0"

    def measured(device: Any, work: Callable[[], None]) -> int:
        work()
        done.append("measured")
        return 1000

    def sized(*arguments: Any, **given: Any) -> kv_cache.KVSize:
        assert given["step_bytes"] == 1000 and given["gpu_memory_share"] == 0.75
        done.append("sized")
        return kv_size(*arguments, **(given | {"device": torch.device("cpu")}))

    def load(folder: Path, _: Any, dtype: str, ranks: Any) -> LoadedModel:
        return load_model(folder, torch.device("cpu"), dtype)

    monkeypatch.setattr(startup, "resolve_device", lambda _: Standin())
    monkeypatch.setattr(startup, "prepare_gpu", lambda device: done.append(f"prepared {device}"))

    def ran(runner: TorchModelRunner) -> None:
        nonlocal trial
        trial = weakref.ref(runner)
        assert runner.grammars is not None
        run_largest_steps(runner)
        done.append("run")

    monkeypatch.setattr(startup, "peak_bytes", measured)
    monkeypatch.setattr(startup, "run_largest_steps", ran)
    monkeypatch.setattr(startup, "kv_size", sized)
    monkeypatch.setattr(torch.cuda, "empty_cache", given_back)
    settings = EngineSettings(
        model=str(write_text_model(tmp_path / "text")), dtype="float32", threads=1, max_batch_size=3,
        max_step_tokens=64, kv_memory=2**20, gpu_memory_share=0.75, cuda_graphs="off", attention="sdpa",
    )  # fmt: skip
    info = startup.start_runner(settings, {}, load=load).info
    assert done == ["prepared cuda:0", "run", "measured", "given back", "sized"]
    assert list(info.phases_s) == ["device", "attention", "load", "vocabulary", "probe", "memory", "kv", "warmup"]
