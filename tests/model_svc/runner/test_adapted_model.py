"""What excludes adapters, how their products are chosen, and what the store says of adapters that it cannot hold."""

import re
import time
from pathlib import Path
from typing import Any

import pytest

from model_svc.engine.adapters import AdapterOutcome, LoadAdapter
from model_svc.model.native_adapters import NativeProducts
from model_svc.model.torch_adapters import TorchProducts
from model_svc.native.library import why_unavailable
from model_svc.runner.adapted_model import adapter_bytes, check_adapters
from model_svc.runner.model_runner import TorchModelRunner
from model_svc.settings import EngineSettings
from tests.fakes.peft_adapters import write_adapter
from tests.fakes.tiny_models import write_model
from tests.fakes.tiny_runner import tiny_runner_of
from tokenwire.errors import FailedPrecondition


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    write_model(root / "model", "llama")
    write_adapter(root / "model", root / "adapter")
    return root


def runner_of(folder: Path, **settings: Any) -> TorchModelRunner:
    made = tiny_runner_of(str(folder / "model"), **settings)
    assert isinstance(made, TorchModelRunner)
    return made


def load(runner: TorchModelRunner, name: str, folder: Path) -> AdapterOutcome:
    """Load one, and wait for its outcome."""
    store = runner.adapters
    assert store is not None
    store.begin(LoadAdapter(name, str(folder)))
    assert store.num_loading == 1
    until_s = time.monotonic() + 30
    while not store.has_outcomes and time.monotonic() < until_s:
        time.sleep(0.005)
    (outcome,) = store.take_outcomes()
    assert not store.num_loading and outcome.name == name
    return outcome


@pytest.mark.parametrize(("name", "value"), [("tensor_parallel", 2), ("compile", "on")])
@pytest.mark.parametrize("adapters", [{"adapters": (("a", "/x"),)}, {"adapter_folder": "/x"}], ids=["named", "later"])
def test_what_excludes_adapters_is_named(name: str, value: Any, adapters: Any) -> None:
    check_adapters(EngineSettings(**{name: value}))
    with pytest.raises(FailedPrecondition, match=name) as caught:
        check_adapters(EngineSettings(**{name: value}, **adapters))
    assert caught.value.reason == "ADAPTERS_EXCLUDED"


def test_nothing_is_adapted_where_nobody_asks(folder: Path) -> None:
    runner = runner_of(folder)
    assert runner.adapters is None and runner.info.num_adapter_slots == 0
    assert adapter_bytes(EngineSettings()) == 0


@pytest.mark.parametrize(("kernels", "wanted"), [("on", NativeProducts), ("off", TorchProducts)])
def test_products_are_made_by_what_the_layers_are(folder: Path, kernels: str, wanted: type) -> None:
    if kernels == "on" and (why := why_unavailable()):
        pytest.skip(why)
    runner = runner_of(folder, cpu_kernels=kernels, adapter_folder=str(folder))
    assert runner._bank is not None and type(runner._bank._products) is wanted
    outcome = load(runner, "a", folder / "adapter")
    assert outcome.error is None and outcome.num_bytes > 0
    runner.close()


def test_one_that_is_too_large_is_refused_with_both_sizes(folder: Path) -> None:
    runner = runner_of(folder, adapter_folder=str(folder), adapter_memory=10_000)
    outcome = load(runner, "a", folder / "adapter")
    assert outcome.error is not None and outcome.error.reason == "ADAPTER_TOO_LARGE"
    assert re.search(r"takes \d+ bytes, .*, 10000", outcome.error.message)


def test_an_error_that_nobody_foresaw_is_internal_and_the_store_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = runner_of(folder, adapter_folder=str(folder))

    def fail(*arguments: Any) -> Any:
        raise RuntimeError("the disk said no")

    with monkeypatch.context() as patched:
        patched.setattr(runner._bank, "read", fail)
        outcome = load(runner, "a", folder / "adapter")
    assert outcome.error is not None and (outcome.error.code, outcome.error.reason) == ("INTERNAL", "ADAPTER_NOT_READ")
    assert load(runner, "a", folder / "adapter").error is None


def test_an_adapter_does_not_change_with_its_file(folder: Path) -> None:
    runner = runner_of(folder, cpu_kernels="off", adapter_folder=str(folder))
    assert load(runner, "a", folder / "adapter").error is None
    assert "adapter_model.safetensors" not in Path("/proc/self/maps").read_text()
    runner.close()
