"""Compiled decoder layers: the same tokens, and clear words where it cannot be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model_svc.model import compiled
from model_svc.model.compiled import decoder_layers, uncompiled
from model_svc.model.loader import load_model
from model_svc.runner.fast_layers import check_combination
from model_svc.settings import EngineSettings
from tests.fakes.engine_loop import EngineLoop
from tests.fakes.reference import Reference
from tests.fakes.step_loop import outputs
from tests.fakes.tiny_models import VOCAB_SIZE, write_model
from tests.fakes.tiny_runner import tiny_runner_of
from tokenwire.errors import FailedPrecondition

NUM_OUTPUTS = 8
PROMPTS = [[(7 * i + j * j) % VOCAB_SIZE for j in range(1 + 5 * i % 23)] for i in range(13)]


@pytest.mark.extended
@pytest.mark.filterwarnings("ignore")
def test_tokens_are_transformers_with_and_without(tmp_path: Path) -> None:
    """In fp32, batches that grow and shrink. Compiling takes a minute on two shared cores, so it is one family."""
    reference = Reference(str(write_model(tmp_path, "llama")))
    wanted = [reference.greedy(prompt, NUM_OUTPUTS).token_ids for prompt in PROMPTS]
    for setting in ("off", "on"):
        runner: Any = tiny_runner_of(str(tmp_path), compile=setting)
        layers = decoder_layers(runner._model)
        assert [layer._compiled_call_impl is not None for layer in layers] == [setting == "on"] * 2
        assert ("compile" in runner.info.phases_s) == (setting == "on")
        loop = EngineLoop(runner, step_tokens=20)
        assert [outputs(s) for s in loop.run(PROMPTS, NUM_OUTPUTS, staggered=True)] == wanted


def test_several_ranks_are_refused() -> None:
    with pytest.raises(FailedPrecondition, match="leave --compile off or --tensor-parallel 1") as caught:
        check_combination(EngineSettings(compile="on", tensor_parallel=2))
    assert caught.value.reason == "RANKS_NOT_COMPILED"


def test_a_machine_that_cannot_compile_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(module: torch.nn.Module, **_: Any) -> None:
        def call(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nand more")

        module._compiled_call_impl = call

    monkeypatch.setattr(torch.nn.Module, "compile", no_compiler)
    monkeypatch.setattr(torch.compiler, "disable", lambda function: function)
    write_model(tmp_path, "llama")
    with pytest.raises(FailedPrecondition, match=r"RuntimeError: InvalidCxxCompiler: .* found\); leave --compile off"):
        tiny_runner_of(str(tmp_path), compile="on")


def test_a_model_without_a_list_of_layers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "decoder_layers", lambda model: [])
    write_model(tmp_path, "llama")
    with pytest.raises(FailedPrecondition, match="no list of 2 layers"):
        tiny_runner_of(str(tmp_path), compile="on")


def test_within_the_block_nothing_is_compiled_code(tmp_path: Path) -> None:
    write_model(tmp_path, "llama")
    model = load_model(tmp_path, torch.device("cpu"), "float32")
    calls: list[int] = []

    def counting(layer: torch.nn.Module) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return layer._call_impl(*args, **kwargs)

        return call

    layers = decoder_layers(model)
    assert len(layers) == 2
    for layer in layers:
        layer._compiled_call_impl = counting(layer)
    model.module.set_attn_implementation("eager")
    ids = torch.tensor([[1, 2]])
    with uncompiled(model.module):
        model.module(input_ids=ids)
    assert not calls
    model.module(input_ids=ids)
    assert len(calls) == 2
