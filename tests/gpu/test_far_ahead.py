"""A host that is far ahead of its GPU gives the tokens of `transformers`: overlapped, replayed, in many chunks."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from model_svc.runner.model_runner import TorchModelRunner
from tests.fakes.engine_loop import EngineLoop
from tests.fakes.reference import Reference, check_greedy
from tests.fakes.step_loop import outputs
from tests.fakes.tiny_models import CONTEXT, VOCAB_SIZE
from tokenwire.sampling import NEUTRAL

Folders = Callable[[str], str]
References = Callable[[str], Reference]
Start = Callable[..., TorchModelRunner]

NUM_OUTPUTS = 12
RNG = random.Random(4)


def random_tokens(length: int) -> list[int]:
    return [RNG.randrange(VOCAB_SIZE) for _ in range(length)]


BATCH = [random_tokens(length) for length in (40, 1, 3, 17, 8, 29, 2, 12, 33, 5, 9, 24, 1, 14, 7, 20)]
LONG = [random_tokens(CONTEXT - NUM_OUTPUTS) for _ in range(3)]

each_overlap = pytest.mark.parametrize("overlap", [False, True], ids=["step by step", "overlapped"])
pytestmark = pytest.mark.usefixtures("behind")


@each_overlap
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_batches_that_grow_and_shrink(
    start: Start, folders: Folders, references: References, family: str, overlap: bool
) -> None:
    """Decodes are replayed and drawn by graphs, with chunks of prompts beside them."""
    runner = start(folders(family))
    sequences = EngineLoop(runner, step_tokens=28, overlap=overlap).run(BATCH, NUM_OUTPUTS, staggered=True)
    check_greedy(sequences, references(family), NUM_OUTPUTS)
    graphs = runner._graphs
    assert graphs is not None and graphs.num_replays > NUM_OUTPUTS and graphs.sampler.num_replays > NUM_OUTPUTS


def test_sampled_tokens_are_the_same_with_overlap_and_without(start: Start, folders: Folders) -> None:
    runner = start(folders("qwen3"))
    sampling = replace(NEUTRAL, temperature=1.0, top_k=20, top_p=0.95, min_p=0.01, seed=3)
    made = []
    for overlap in (False, True):
        loop = EngineLoop(runner, step_tokens=28, overlap=overlap)
        sequences = loop.run(BATCH, NUM_OUTPUTS, staggered=True, sampling=sampling)
        made.append([outputs(sequence) for sequence in sequences])
    assert made[0] == made[1]


@each_overlap
@pytest.mark.parametrize("graphs", ["auto", "off"])
def test_a_long_prompt_in_many_steps_of_chunks_alone(
    start: Start, folders: Folders, references: References, graphs: str, overlap: bool
) -> None:
    """Such a step brings nothing to the host, and what it reads must be there until it has run all the same."""
    runner = start(folders("llama"), cuda_graphs=graphs)
    for prompt in LONG:
        loop = EngineLoop(runner, step_tokens=7, overlap=overlap)
        (sequence,) = loop.run([prompt], NUM_OUTPUTS, logprobs=0)
        check_greedy([sequence], references("llama"), NUM_OUTPUTS)
        wanted = references("llama").logprobs(sequence.token_ids)[len(prompt) - 1 :]
        target = torch.tensor(outputs(sequence), device=wanted.device)[:, None]
        found = torch.tensor([entry.logprob for entry in loop.runner.logprobs[sequence.sequence_id]])
        torch.testing.assert_close(found, wanted.gather(-1, target)[:, 0].cpu(), rtol=0, atol=1e-3)
