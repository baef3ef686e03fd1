"""No copy is written over or read before it is done, shown with a device that is as late as it may be."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from model_svc.engine import step_budget
from model_svc.engine.batch import OutOfMemory
from model_svc.engine.drafting import DraftLimits
from model_svc.runner import transfer
from model_svc.runner.input_batch import NUM_IN_FLIGHT
from model_svc.runner.model_runner import TorchModelRunner
from model_svc.runner.transfer import HostCopies, StagingBlock
from tests.fakes.engine_loop import EngineLoop
from tests.fakes.late_device import NOT_THERE, LateDevice
from tests.fakes.reference import Reference
from tests.fakes.step_loop import outputs
from tests.fakes.tiny_models import VOCAB_SIZE
from tests.fakes.tiny_runner import tiny_runner_of
from tokenwire.embeddings import EmbeddingOptions, Pooling

Folders = Callable[[str], str]
DEVICE = torch.device("cpu")
STEP_TOKENS = 7
DRAFTS = DraftLimits(max_drafts=2, by_default=True, by_lookup=False, adaptive=False)
LONG_PROMPT = [(5 * j + 1) % VOCAB_SIZE for j in range(40)]
PROMPTS = [LONG_PROMPT, *([(7 * i + j * j) % VOCAB_SIZE for j in range(1 + 5 * i % 23)] for i in range(6))]
overlaps = pytest.mark.parametrize("overlap", [False, True], ids=["step by step", "overlapped"])


def test_on_a_gpu_a_mark_is_an_event_on_its_own_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the device it is asked for, whichever is the current one."""
    done: list[str] = []

    class Event:
        def record(self, stream: str) -> None:
            done.append(f"recorded on {stream}")

        def synchronize(self) -> None:
            done.append("waited")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
    wait = transfer.mark(torch.device("cuda", 1))
    assert done == ["recorded on the stream of cuda:1"]
    wait()
    assert done[1:] == ["waited"]


def test_a_block_is_written_only_after_its_last_upload_was_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[list[int]] = []
    block = StagingBlock(4, DEVICE)

    def mark(device: torch.device) -> Callable[[], None]:
        assert device is DEVICE
        return lambda: held.append(block._array.tolist())

    monkeypatch.setattr(transfer, "mark", mark)
    for number in (1, 2, 3):
        block.upload([np.full(3, number)])
    assert held == [[1, 1, 1, 0], [2, 2, 2, 0]]


def test_what_comes_down_is_there_once_it_was_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    LateDevice(monkeypatch)
    copies = HostCopies([torch.tensor([1, 2]), torch.tensor([0.5])], DEVICE)
    assert copies._copies[0].tolist() == [NOT_THERE] * 2
    assert [copy.tolist() for copy in copies.wait()] == [[1, 2], [0.5]]


@overlaps
def test_the_host_is_held_to_the_steps_in_flight_by_prompts_that_sample_nothing(
    tiny_folder: Folders, monkeypatch: pytest.MonkeyPatch, overlap: bool
) -> None:
    """Most steps are chunks of a long prompt alone, of which nothing comes down."""
    runner, reference = tiny_runner_of(tiny_folder("llama")), Reference(tiny_folder("llama"))
    device = LateDevice(monkeypatch)
    sequences = EngineLoop(runner, step_tokens=STEP_TOKENS, overlap=overlap).run(PROMPTS, 4, staggered=True)
    assert device.overwritten == []
    assert device.num_waits_in_launch == 0
    assert device.most_steps_ahead == (NUM_IN_FLIGHT if overlap else 1)
    assert [outputs(s) for s in sequences] == [reference.greedy(p, 4).token_ids for p in PROMPTS]


@overlaps
def test_steps_that_fail_behind_their_upload(
    tiny_folder: Folders, monkeypatch: pytest.MonkeyPatch, overlap: bool
) -> None:
    """Nobody collects them, so nobody but the block's next upload waits for theirs."""
    runner, reference = tiny_runner_of(tiny_folder("llama")), Reference(tiny_folder("llama"))
    forward, num_steps = TorchModelRunner._forward, 0

    def fails(self: TorchModelRunner, inputs: Any, **given: Any) -> Any:
        nonlocal num_steps
        num_steps += 1
        if num_steps % 3 == 0 and len(inputs.token_ids) > 6:
            raise OutOfMemory("none left")
        return forward(self, inputs, **given)

    monkeypatch.setattr(step_budget, "GOOD_STEPS", 4)
    monkeypatch.setattr(TorchModelRunner, "_forward", fails)
    device = LateDevice(monkeypatch)
    loop = EngineLoop(runner, step_tokens=20, overlap=overlap)
    prompts = [*PROMPTS, *(prompt[::-1] for prompt in PROMPTS)]
    sequences = loop.run(prompts, 8, staggered=True)
    assert loop.engine.scheduler.load().num_out_of_memory > 1
    assert device.overwritten == []
    assert [outputs(s) for s in sequences] == [reference.greedy(p, 8).token_ids for p in prompts]


@overlaps
def test_embeddings_and_log_probabilities_come_down_whole(
    tiny_folder: Folders, monkeypatch: pytest.MonkeyPatch, overlap: bool
) -> None:
    runner = tiny_runner_of(tiny_folder("llama"))
    made: list[Any] = []
    for late in (False, True):
        device = LateDevice(monkeypatch) if late else None
        loop = EngineLoop(runner, step_tokens=STEP_TOKENS, overlap=overlap)
        embedded = [loop.sequence(p, 0, embedding=EmbeddingOptions(Pooling.MEAN)) for p in PROMPTS]
        generating = [loop.sequence(p, 4, logprobs=2, prompt_logprobs=1) for p in PROMPTS]
        loop.serve([s for pair in zip(embedded, generating, strict=True) for s in pair], staggered=True)
        scores = [(loop.runner.logprobs[s.sequence_id], loop.runner.prompt_logprobs[s.sequence_id]) for s in generating]
        made.append(([s.vector for s in embedded], list(map(outputs, generating)), scores))
        assert device is None or not device.overwritten and device.num_waits_in_launch == 0
    assert all(made[0][0]) and made[0] == made[1]


def test_a_draft_models_copies_too(tiny_folder: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """It catches up with a prompt in steps that sample nothing, and has blocks of its own."""
    runner = tiny_runner_of(tiny_folder("llama"), draft_model=tiny_folder("llama"), max_step_tokens=STEP_TOKENS)
    wanted = EngineLoop(runner, step_tokens=STEP_TOKENS).run(PROMPTS, 12)
    device = LateDevice(monkeypatch)
    loop = EngineLoop(runner, step_tokens=STEP_TOKENS, drafts=DRAFTS)
    sequences = loop.run(PROMPTS, 12)
    assert loop.engine.scheduler.drafting.counts().num_accepted > 0
    assert device.overwritten == []
    assert device.num_waits_in_launch == 0
    assert list(map(outputs, sequences)) == list(map(outputs, wanted))
