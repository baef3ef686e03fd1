"""Golden tests: an embedding is what transformers' own last hidden states pool to, whatever the batch, the chunks, the
prefix cache and preemptions; and the sequences that generate beside it keep exactly their tokens.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest

from model_svc.engine.batch import ModelRunner, RunnerInfo
from model_svc.engine.events import Inbox
from model_svc.native.library import why_unavailable
from model_svc.runner.model_runner import TorchModelRunner
from tests.fakes.embeddings import OPTIONS, Hidden, check_vectors, embedded, hidden_states_of, of_all_kinds
from tests.fakes.engine_loop import EngineLoop
from tests.fakes.recorder import Recorder, recorded
from tests.fakes.step_loop import outputs
from tests.fakes.tiny_models import VOCAB_SIZE, write_model
from tests.fakes.tiny_runner import tiny_runner_of
from tokenwire.embeddings import EmbeddingOptions, Pooling

FAMILIES = ["llama", "gemma2", "gemma3", "cohere", "granite", "gpt_neox", "qwen3", "qwen3_moe", "deepseek_v3"]
each_family = pytest.mark.parametrize("family", FAMILIES)
RNG = random.Random(2)
NUM_OUTPUTS = 10
CHUNK = 7
FEW_BLOCKS = 36


def random_tokens(length: int) -> list[int]:
    return [RNG.randrange(VOCAB_SIZE) for _ in range(length)]


PROMPTS = [random_tokens(length) for length in (40, 1, 3, 17, 8, 29, 2, 12, 33, 7, 9, 24)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    return cache(lambda family: str(write_model(tmp_path_factory.mktemp("embedding") / family, family)))


@pytest.fixture(scope="module", params=["on", "off"])
def runners(folders: Callable[[str], str], request: pytest.FixtureRequest) -> Callable[[str], ModelRunner]:
    if request.param == "on" and (why := why_unavailable()):
        pytest.skip(why)
    return cache(lambda family: tiny_runner_of(folders(family), cpu_kernels=request.param))


@pytest.fixture(scope="module")
def references(folders: Callable[[str], str]) -> Callable[[str], Hidden]:
    return cache(lambda family: hidden_states_of(folders(family)))


@each_family
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: f"{options.pooling.value}-{options.dimensions}")
def test_alone(
    runners: Callable[[str], ModelRunner], references: Callable[[str], Hidden], family: str, options: EmbeddingOptions
) -> None:
    loop = EngineLoop(runners(family))
    for prompt in PROMPTS[:3]:
        sequence = embedded(prompt, options)
        loop.serve([sequence])
        check_vectors([sequence], references(family), loop)


@each_family
@pytest.mark.parametrize("chunk", [512, CHUNK])
@pytest.mark.parametrize("overlap", [False, True])
def test_beside_sequences_that_generate(
    runners: Callable[[str], ModelRunner],
    references: Callable[[str], Hidden],
    family: str,
    chunk: int,
    overlap: bool,
) -> None:
    """Chunks of every size down to 1 occur, and the tokens generated are those without any embedding beside them."""
    runner = runners(family)
    prompts = [random_tokens(length) for length in (5, 21, 1, 13)]
    alone = EngineLoop(runner, step_tokens=chunk)
    plain = [outputs(sequence) for sequence in alone.run(prompts, NUM_OUTPUTS)]
    loop = EngineLoop(runner, step_tokens=chunk, overlap=overlap)
    generating = [loop.sequence(prompt, NUM_OUTPUTS) for prompt in prompts]
    embedding = of_all_kinds(PROMPTS)
    mixed = [each for pair in zip(embedding, generating, strict=False) for each in pair] + embedding[4:]
    loop.serve(mixed)
    check_vectors(embedding, references(family), loop)
    assert [outputs(sequence) for sequence in generating] == plain


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_across_preemptions(
    runners: Callable[[str], ModelRunner], references: Callable[[str], Hidden], family: str
) -> None:
    runner = runners(family)
    loop = EngineLoop(runner, step_tokens=24, info=replace(runner.info, num_blocks=FEW_BLOCKS))
    embedding = of_all_kinds(PROMPTS)
    for sequence in embedding[::2]:
        sequence.priority = -1
    generating = [loop.sequence(prompt, 30) for prompt in PROMPTS[:6]]
    loop.engine.take(Inbox(sequences=embedding))
    loop._step()
    loop.serve(generating)
    assert loop.num_preemptions > 0
    check_vectors(embedding, references(family), loop)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_after_hits_in_the_prefix_cache(
    runners: Callable[[str], ModelRunner], references: Callable[[str], Hidden], family: str
) -> None:
    """The last position needs no others computed anew; the mean and the first do. All leave their blocks to others."""
    loop = EngineLoop(runners(family))
    shared = random_tokens(26)
    cached = []
    for pooling in (Pooling.LAST, Pooling.LAST, Pooling.MEAN, Pooling.CLS):
        sequence = embedded(shared + random_tokens(3), EmbeddingOptions(pooling))
        loop.serve([sequence])
        check_vectors([sequence], references(family), loop)
        cached.append(sequence.num_cached_tokens)
    assert cached == [0, 24, 0, 0]
    (generating,) = loop.run([shared + [5]], 2)
    assert generating.num_cached_tokens == 24


def test_what_is_told_of_the_model(runners: Callable[[str], ModelRunner]) -> None:
    info: RunnerInfo = runners("llama").info
    assert (info.generates, info.embedding_size, info.pooling, info.whole_sequences) == (True, 32, Pooling.LAST, False)


def test_hidden_states_that_are_no_numbers_end_their_sequence_alone(folders: Callable[[str], str]) -> None:
    runner = tiny_runner_of(folders("llama"), cpu_kernels="off")
    poison = 17
    runner._model.module.get_input_embeddings().weight.data[poison] = float("nan")
    loop = EngineLoop(runner)
    good, bad = (embedded(prompt, EmbeddingOptions(Pooling.MEAN)) for prompt in ([1, 2, 3], [4, poison, 5]))
    loop.serve([good, bad])
    assert loop.terminals[good.sequence_id].vector is not None
    error = loop.terminals[bad.sequence_id].error
    assert error is not None and error.reason == "SEQUENCE_FAILED"


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("chunk", [512, CHUNK])
def test_beside_decodes_that_are_replayed(
    folders: Callable[[str], str], references: Callable[[str], Hidden], overlap: bool, chunk: int
) -> None:
    """Recorded steps give logits alone: what is embedded is computed beside them, a single token of it with them."""
    runner = tiny_runner_of(folders("llama"))
    assert isinstance(runner, TorchModelRunner)
    prompts = [random_tokens(length) for length in (5, 21, 1, 13)]
    plain = [outputs(s) for s in EngineLoop(runner, step_tokens=chunk).run(prompts, NUM_OUTPUTS)]
    recorded(runner, Recorder())
    loop = EngineLoop(runner, step_tokens=chunk, overlap=overlap)
    generating, embedding = [loop.sequence(prompt, NUM_OUTPUTS) for prompt in prompts], of_all_kinds(PROMPTS)
    loop.serve(generating[:2] + embedding + generating[2:])
    assert runner._graphs is not None and runner._graphs.num_replays > 0
    check_vectors(embedding, references("llama"), loop)
    assert [outputs(sequence) for sequence in generating] == plain
