"""LoRA adapters of the real model through every tier, against PEFT's own merged models, in fp32."""

import json
from collections.abc import Callable, Iterator
from copy import copy
from functools import cache
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from click.testing import CliRunner

from tests.e2e.conftest import Stack, running_stack
from tests.e2e.reference import Reference
from tests.fakes.peft_adapters import merged_model, write_adapter
from tokenwire.cli.main import cli
from tokenwire.client import Client, Output
from tokenwire.errors import NotFound

pytestmark = pytest.mark.model

NAMES = ["", "one", "two", "three"]
CONFIGS = {
    "one": {"r": 8, "lora_alpha": 16, "seed": 1},
    "two": {"r": 16, "target_modules": ["q_proj", "v_proj"], "seed": 2},
    "three": {"r": 4, "use_rslora": True, "target_modules": ["gate_proj", "up_proj", "down_proj"], "seed": 3},
}
PROMPTS = ["The quick brown fox jumps over the lazy dog. " * 2 + "The quick brown fox", "Once upon a time"]
MAX_TOKENS = 12


@pytest.fixture(scope="module")
def adapters(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights small enough that the text stays text, and large enough that it changes."""
    root = tmp_path_factory.mktemp("adapters")
    for name, config in CONFIGS.items():
        write_adapter(model_folder, root / name, size=0.06, **config)
    return root


@pytest.fixture(scope="module")
def wanted(reference: Reference, model_folder: Path, adapters: Path) -> Callable[..., list[int]]:
    """The tokens that a prompt is continued with, by adapter."""

    @cache
    def of(name: str) -> Reference:
        found = copy(reference)
        if name:
            found.model = merged_model(model_folder, adapters / name)
        return found

    return cache(lambda name, prompt: of(name).generate(reference.tokenizer(prompt)["input_ids"], MAX_TOKENS))


@pytest.fixture(scope="module")
def adapted(adapters: Path) -> Iterator[Stack]:
    """A stack with one adapter from the start and the others loaded while it runs."""
    variables = {
        "TOKENWIRE_MODEL_ADAPTERS": f"one={adapters / 'one'}", "TOKENWIRE_MODEL_ADAPTER_FOLDER": str(adapters),
        "TOKENWIRE_MODEL_ADAPTER_SLOTS": "3",
    }  # fmt: skip
    with running_stack("--dtype", "float32", **variables) as found:
        for name in ("two", "three"):
            assert run("load", name, name, "--model-target", found.model_target) == (0, f"loaded {name}\n")
        yield found


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["adapters", *arguments])
    return result.exit_code, result.output


def test_a_batch_of_three_adapters_and_none_has_pefts_tokens(adapted: Stack, wanted: Callable[..., list[int]]) -> None:
    with Client(adapted.grpc_target) as client:
        options = {"temperature": 0, "max_tokens": MAX_TOKENS, "return_token_ids": True}
        for _ in range(2):  # the second time from the prefix cache
            streams = {name: client.generate(*PROMPTS, adapter=name, **options) for name in NAMES}
            found = {name: list(stream.outputs()) for name, stream in streams.items()}
            for name, outputs in found.items():
                check(name, outputs, wanted)
        usages = [output.terminal.usage for output in found["one"]]
        assert usages[0].cached_tokens > 0
    texts = {tuple(output.text for output in sorted(found[name], key=lambda o: o.index)) for name in NAMES}
    assert len(texts) == len(NAMES), "an adapter that changes nothing shows nothing"


def check(name: str, outputs: list[Output], wanted: Callable[..., list[int]]) -> None:
    for output in outputs:
        assert list(output.token_ids) == wanted(name, PROMPTS[output.index]), (name, output.index)


def test_openais_form_lists_adapters_and_takes_them_as_models(adapted: Stack, wanted: Callable[..., list[int]]) -> None:
    with urlopen(f"{adapted.http_url}/v1/models") as response:
        listed = {card["id"]: card.get("parent") for card in json.load(response)["data"]}
    base = next(name for name, parent in listed.items() if parent is None)
    assert listed == {base: None, "one": base, "two": base, "three": base}
    body = {"model": "two", "prompt": PROMPTS[0], "temperature": 0, "max_tokens": MAX_TOKENS}
    request = Request(
        f"{adapted.http_url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urlopen(request) as response:
        answer = json.load(response)
    assert answer["model"] == "two"
    with Client(adapted.grpc_target) as client:
        text = client.detokenize(wanted("two", PROMPTS[0]))[0]
    assert answer["choices"][0]["text"] == text


def test_unloaded_it_is_not_found_without_a_restart(adapted: Stack) -> None:
    assert run("unload", "three", "--model-target", adapted.model_target) == (0, "unloaded three\n")
    with Client(adapted.grpc_target) as client, pytest.raises(NotFound, match="three"):
        client.generate("x", adapter="three").text()
    with urlopen(f"{adapted.http_url}/v1/models") as response:
        assert "three" not in [card["id"] for card in json.load(response)["data"]]
    assert run("load", "three", "three", "--model-target", adapted.model_target) == (0, "loaded three\n")
