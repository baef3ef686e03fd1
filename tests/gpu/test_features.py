"""Adapters, constraints and embeddings on a GPU, with decode steps that are replayed beside them."""

import random
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from model_svc.engine.__main__ import load_adapters
from model_svc.runner.model_runner import TorchModelRunner
from tests.fakes.embeddings import check_vectors, hidden_states_of, of_all_kinds
from tests.fakes.engine_loop import EngineLoop
from tests.fakes.reference import Reference, check_greedy
from tests.fakes.tiny_encoders import write_encoder
from tests.fakes.tiny_models import VOCAB_SIZE, write_model
from tests.fakes.tiny_runner import tiny_runner_of
from tokenwire.constraints import regex
from tokenwire.requests import FinishReason
from tokenwire.sampling import NEUTRAL, StopParams

Folders = Callable[[str], str]
References = Callable[[str], Reference]
Start = Callable[..., TorchModelRunner]

NUM_OUTPUTS = 12
RNG = random.Random(6)
PROMPTS = [[RNG.randrange(2, VOCAB_SIZE) for _ in range(length)] for length in (21, 1, 3, 9, 2, 30)]
CODE = regex(r"[a-f]{3}-[0-9]{2}(x|yy)")
ADAPTERS: dict[str, dict[str, Any]] = {"all": {"seed": 1}, "some": {"r": 5, "target_modules": ["k_proj", "up_proj"]}}

each_overlap = pytest.mark.parametrize("overlap", [False, True], ids=["step by step", "overlapped"])


@each_overlap
def test_two_adapters_and_none_in_one_batch(start: Start, device: str, tmp_path: Path, overlap: bool) -> None:
    peft_adapters = pytest.importorskip("tests.fakes.peft_adapters", reason="PEFT writes the adapters")
    model = write_model(tmp_path / "model", "llama")
    for name, config in ADAPTERS.items():
        adapter = peft_adapters.write_adapter(model, tmp_path / name, **config)
        peft_adapters.write_merged(model, adapter, tmp_path / f"{name}-merged")
    reference = cache(lambda name: Reference(str(tmp_path / f"{name}-merged" if name else model), device))
    runner = start(model, adapter_folder=str(tmp_path), adapter_slots=2)
    loop = EngineLoop(runner, step_tokens=13, overlap=overlap)
    load_adapters(loop.engine, tuple((name, str(tmp_path / name)) for name in ADAPTERS))
    sequences = [
        loop.sequence(prompt, NUM_OUTPUTS, adapter=name, cache_root=name)
        for prompt in PROMPTS for name in ("", *ADAPTERS)
    ]  # fmt: skip
    loop.serve(sequences, staggered=True)
    for sequence in sequences:
        check_greedy([sequence], reference(sequence.adapter), NUM_OUTPUTS)
    assert runner._graphs is not None and runner._graphs.num_replays > NUM_OUTPUTS


@each_overlap
def test_outputs_keep_to_their_constraint(start: Start, tmp_path: Path, overlap: bool) -> None:
    """Greedy, sampled and penalised, beside others that nothing constrains."""
    pytest.importorskip("llguidance", reason="it holds outputs to grammars")
    constrained = pytest.importorskip("tests.fakes.constrained")
    folder = constrained.write_text_model(tmp_path / "text")
    tokenizer = constrained.tokenizer_of(folder)
    prompt, end = [70, 80, 90], tokenizer.token_to_id("<|im_end|>")
    loop = EngineLoop(start(folder), overlap=overlap)
    kinds = [
        replace(NEUTRAL, seed=0), replace(NEUTRAL, temperature=1.0, seed=1),
        replace(NEUTRAL, temperature=1.0, top_k=20, top_p=0.9, repetition_penalty=1.2, seed=2),
    ]  # fmt: skip
    stop = StopParams(60, stop_token_ids=(end,))
    asked = [loop.sequence(prompt, 0, sampling=kind, stop=stop) for kind in kinds * 3]
    for sequence in asked:
        sequence.constraint = constrained.matching_of(CODE)
    loop.serve([*asked, *(loop.sequence(prompt, 30, sampling=kind) for kind in kinds)], staggered=True)
    for sequence in asked:
        assert loop.terminals[sequence.sequence_id].reason is FinishReason.STOP_TOKEN
        output = sequence.token_ids[len(prompt) : -1]
        assert re.fullmatch(CODE.text, constrained.text_of(tokenizer, prompt, output))


@pytest.mark.usefixtures("behind")
@each_overlap
@pytest.mark.parametrize("step_tokens", [512, 7])
def test_embeddings_beside_decodes(
    start: Start, folders: Folders, references: References, step_tokens: int, overlap: bool
) -> None:
    runner = start(folders("llama"))
    loop = EngineLoop(runner, step_tokens=step_tokens, overlap=overlap)
    generating, embedding = [loop.sequence(prompt, NUM_OUTPUTS) for prompt in PROMPTS], of_all_kinds(PROMPTS)
    loop.serve(generating[:2] + embedding + generating[2:])
    check_vectors(embedding, hidden_states_of(folders("llama")), loop, tolerance=1e-4)
    check_greedy(generating, references("llama"), NUM_OUTPUTS)
    assert runner._graphs is not None and runner._graphs.num_replays > 0


@each_overlap
@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_embeddings_of_an_encoder(device: str, tmp_path: Path, name: str, overlap: bool) -> None:
    folder, sequences = write_encoder(tmp_path / name, name), of_all_kinds(PROMPTS)
    loop = EngineLoop(tiny_runner_of(str(folder), device=device, kv_memory=0), step_tokens=48, overlap=overlap)
    loop.serve(sequences, staggered=True)
    check_vectors(sequences, hidden_states_of(folder), loop, tolerance=1e-4)
