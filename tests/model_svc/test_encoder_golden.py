"""Golden tests: the engine over an encoder's runner gives what transformers' own hidden states pool to, whatever shares
the step, with and without the CPU kernels; and what an encoder is not asked for is refused.
"""

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from model_svc.engine.batch import ModelRunner, OutOfMemory, ScheduledBatch, ScheduledRow
from model_svc.engine.sequence import Sequence
from model_svc.native.library import why_unavailable
from model_svc.runner.encoder_runner import EncoderRunner
from tests.fakes.embeddings import check_vectors, hidden_states_of, of_all_kinds
from tests.fakes.engine_loop import EngineLoop
from tests.fakes.tiny_encoders import POSITIONS, SERVED, VOCAB_SIZE, write_encoder, write_modules
from tests.fakes.tiny_runner import tiny_runner_of
from tokenwire.embeddings import Pooling
from tokenwire.errors import FailedPrecondition, Internal, Overloaded

RNG = random.Random(5)
LENGTHS = (20, 1, POSITIONS, 3, 7, 7, 20, 2, POSITIONS, 9, 7, 30, 1)


def inputs(*lengths: int) -> list[Sequence]:
    return of_all_kinds([RNG.randrange(2, VOCAB_SIZE) for _ in range(length)] for length in lengths)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda name: write_encoder(tmp_path_factory.mktemp("encoder") / name, name, pooling="cls_token"))


@pytest.fixture(scope="module", params=["on", "off"])
def runners(folders: Callable[[str], Path], request: pytest.FixtureRequest) -> Callable[[str], ModelRunner]:
    if request.param == "on" and (why := why_unavailable()):
        pytest.skip(why)
    return cache(lambda name: encoder_runner(folders(name), cpu_kernels=request.param))


def encoder_runner(folder: Path, **settings: Any) -> ModelRunner:
    return tiny_runner_of(str(folder), **({"kv_memory": 0} | settings))


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("step_tokens", [512, POSITIONS])
@pytest.mark.parametrize("overlap", [False, True])
def test_in_batches_of_all_kinds(
    runners: Callable[[str], ModelRunner], folders: Callable[[str], Path], name: str, step_tokens: int, overlap: bool
) -> None:
    """With a budget of one longest sequence, steps hold one of those or several shorter ones."""
    loop, sequences = EngineLoop(runners(name), step_tokens=step_tokens, overlap=overlap), inputs(*LENGTHS)
    loop.serve(sequences, staggered=True)
    check_vectors(sequences, hidden_states_of(folders(name)), loop)


def test_what_is_told_of_an_encoder(runners: Callable[[str], ModelRunner]) -> None:
    info = runners("bert").info
    assert not info.generates and info.whole_sequences
    assert (info.embedding_size, info.pooling, info.max_context_tokens) == (32, Pooling.CLS, POSITIONS)
    assert info.dtype == "float32" and info.attention == "sdpa"


def test_the_folder_says_how_long_inputs_are(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "m", "roberta", max_tokens=17)
    assert encoder_runner(folder).info.max_context_tokens == 17
    assert encoder_runner(folder).info.pooling is Pooling.MEAN
    assert encoder_runner(folder, max_context_tokens=POSITIONS).info.max_context_tokens == POSITIONS
    with pytest.raises(FailedPrecondition, match=f"max_context_tokens: {POSITIONS + 1} is more than the model's"):
        encoder_runner(folder, max_context_tokens=POSITIONS + 1)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 9000}')
    assert encoder_runner(folder).info.max_context_tokens == POSITIONS


def test_a_cpu_computes_in_float32_unless_told_otherwise(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "m", "bert")
    assert encoder_runner(folder, dtype="auto").info.dtype == "float32"
    assert encoder_runner(folder, dtype="bfloat16").info.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("tensor_parallel", 2), ("compile", "on"), ("quantization", "int8"), ("kv_memory", 1 << 20),
        ("attention", "native"), ("merge_linears", "on"), ("speculation", "ngram"), ("draft_model", "small"),
        ("adapters", (("a", "/a"),)), ("adapter_folder", "/adapters"), ("draft_quantization", "int8"),
        ("speculation_adaptive", False), ("speculation_length", 4),
    ],
)  # fmt: skip
def test_settings_that_an_encoder_has_no_use_for(folders: Callable[[str], Path], setting: str, value: object) -> None:
    with pytest.raises(FailedPrecondition, match=f"{setting}: .* is not for an encoder") as caught:
        encoder_runner(folders("bert"), **{setting: value})
    assert caught.value.reason == "NOT_FOR_ENCODERS"


def test_layers_behind_the_encoder_are_refused(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "m", "bert")
    write_modules(folder, "Transformer", "Pooling", "Dense", pooling_mode_mean_tokens=True)
    with pytest.raises(FailedPrecondition, match="'Dense', which is not computed here"):
        encoder_runner(folder)


def test_hidden_states_that_are_no_numbers_end_their_sequence_alone(folders: Callable[[str], Path]) -> None:
    runner = encoder_runner(folders("bert"), cpu_kernels="off")
    assert isinstance(runner, EncoderRunner)
    runner._model.module.get_input_embeddings().weight.data[17] = float("nan")
    loop, (good, bad) = EngineLoop(runner), inputs(4, 4)
    good.token_ids, bad.token_ids = [5, 6, 7, 8], [5, 17, 7, 8]
    loop.serve([good, bad])
    assert loop.terminals[good.sequence_id].vector is not None
    assert isinstance(loop.terminals[bad.sequence_id].error, Internal)


class Small:
    """A device that has no memory for steps of more than `most` tokens."""

    def __init__(self, runner: ModelRunner, most: int) -> None:
        self.runner, self.most = runner, most
        self.info, self.phases = runner.info, runner.phases
        self.adapters = self.grammars = self.draft_model = None

    def launch(self, batch: ScheduledBatch) -> Any:
        if batch.num_tokens > self.most:
            raise OutOfMemory("none left")
        return self.runner.launch(batch)

    def collect(self, launched: Any) -> Any:
        return self.runner.collect(launched)

    def close(self) -> None:
        self.runner.close()


def test_out_of_memory_makes_steps_smaller_and_ends_what_does_not_fit_alone(
    runners: Callable[[str], ModelRunner], folders: Callable[[str], Path]
) -> None:
    loop, sequences = EngineLoop(Small(runners("bert"), 30)), inputs(20, 5, POSITIONS, 9, 29, 30, 2)
    loop.serve(sequences)
    too_long = sequences.pop(2)
    error = loop.terminals[too_long.sequence_id].error
    assert isinstance(error, Overloaded) and error.reason == "OUT_OF_MEMORY"
    check_vectors(sequences, hidden_states_of(folders("bert")), loop)
    load = loop.engine.scheduler.load()
    assert load.num_out_of_memory > 0 and load.kv_blocks_total == load.kv_blocks_used == 0


def test_rows_that_are_not_whole_are_refused(runners: Callable[[str], ModelRunner]) -> None:
    (sequence,) = inputs(5)
    with pytest.raises(Internal, match="whole sequences"):
        runners("bert").launch(ScheduledBatch((ScheduledRow(sequence, 3),)))
