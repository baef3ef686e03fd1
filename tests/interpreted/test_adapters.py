"""Adapters by the interpreted Triton kernels: the tokens of PEFT's merged models, eagerly and in recorded steps."""

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from model_svc.engine.__main__ import load_adapters
from model_svc.model.adapter_places import Part, Place, Places
from model_svc.model.step_adapters import step_adapters
from model_svc.model.torch_adapters import TorchProducts
from model_svc.model.triton_adapters import TritonProducts
from model_svc.native.adapters import AdapterPart
from model_svc.runner import adapted_model, decode_graphs
from model_svc.runner.model_runner import TorchModelRunner
from tests.fakes.engine_loop import EngineLoop
from tests.fakes.peft_adapters import write_adapter, write_merged
from tests.fakes.recorder import Recorder, recorded
from tests.fakes.reference import Reference
from tests.fakes.step_loop import outputs
from tests.fakes.tiny_models import VOCAB_SIZE, write_model
from tests.fakes.tiny_runner import tiny_runner_of

CPU = torch.device("cpu")
ADAPTERS = {"everything": {"seed": 1}, "some": {"r": 5, "target_modules": ["k_proj", "up_proj"], "seed": 2}}
NAMES = ["", *ADAPTERS]
NUM_OUTPUTS = 4
RANDOM = random.Random(3)
PROMPTS = [[RANDOM.randrange(VOCAB_SIZE) for _ in range(length)] for length in (21, 1, 3, 9, 2)]


class Twins:
    """The same adapters on two copies of one layer: by torch, and by the kernels."""

    def __init__(self, sizes: list[int], num_inputs: int, dtype: torch.dtype, num_slots: int = 3) -> None:
        torch.manual_seed(0)
        starts = [sum(sizes[:index]) for index in range(len(sizes))]
        self.parts = [
            Part(str(index), start, size) for index, (start, size) in enumerate(zip(starts, sizes, strict=True))
        ]
        self.layers = [torch.nn.Linear(num_inputs, sum(sizes), bias=False, dtype=dtype) for _ in range(2)]
        self.layers[1].load_state_dict(self.layers[0].state_dict())
        places = [Places([Place(layer, num_inputs, sum(sizes), tuple(self.parts))]) for layer in self.layers]
        self.products = (TorchProducts(places[0], num_slots), TritonProducts(places[1], num_slots, CPU, max_ranks=24))
        self.num_inputs, self.num_slots, self.dtype = num_inputs, num_slots, dtype

    def put(self, slot: int, ranks: dict[int, int]) -> None:
        """An adapter with these ranks, by part."""
        found = [
            AdapterPart(
                self.parts[index].first_output, torch.randn(rank, self.num_inputs).to(self.dtype) / 4,
                torch.randn(self.parts[index].num_outputs, rank).to(self.dtype) / 4, 0.5 + index,
            )
            for index, rank in ranks.items()
        ]  # fmt: skip
        for product in self.products:
            product.put(slot, product.pack({0: found}))

    @torch.inference_mode()
    def check(self, slots: list[int], tolerance: float) -> torch.Tensor:
        """Both give the same for tokens with these slots; what the kernels gave."""
        x = torch.randn(len(slots), self.num_inputs).to(self.dtype)
        now = step_adapters(torch.tensor(slots).numpy(), self.num_slots, CPU)
        found = []
        for product, layer in zip(self.products, self.layers, strict=True):
            product.now = now
            found.append(layer(x[None])[0])
            product.now = None
        torch.testing.assert_close(found[1], found[0], rtol=tolerance, atol=tolerance)
        plain = self.layers[1](x)
        without = torch.tensor(slots) < 0
        assert torch.equal(found[1][without], plain[without]), "rows without an adapter are left alone"
        return found[1] - plain


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 8e-2)])
@pytest.mark.parametrize("sizes", [[40], [130, 24, 24]], ids=["one", "merged"])
def test_products_of_mixed_batches(sizes: list[int], dtype: torch.dtype, tolerance: float) -> None:
    twins = Twins(sizes, 72, dtype)
    twins.put(0, dict.fromkeys(range(len(sizes)), 8))
    twins.put(2, {len(sizes) - 1: 21})
    for slots in ([0], [-1, 2], [2, 0, -1, 0, 2, -1], [0] * 300 + [2] * 21 + [-1] * 5):
        assert twins.check(slots, tolerance).abs().max() > 0.1
    twins.put(0, {0: 3})  # another takes its place
    twins.check([0, 2, 0], tolerance)
    for product in twins.products:
        product.put(0, None)
    assert not twins.check([0, 0], tolerance).any()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adapted")
    write_model(root / "model", "llama")
    for name, config in ADAPTERS.items():
        write_merged(root / "model", write_adapter(root / "model", root / name, **config), root / f"{name}-merged")
    return root


@pytest.fixture(scope="module")
def references(folder: Path) -> Callable[[str], Reference]:
    return cache(lambda name: Reference(str(folder / (f"{name}-merged" if name else "model"))))


@pytest.fixture
def runner(folder: Path, monkeypatch: pytest.MonkeyPatch) -> TorchModelRunner:
    """As on a GPU: layers merged, adapters by the kernels."""
    monkeypatch.setattr(
        adapted_model, "products_of",
        lambda settings, model, places: TritonProducts(places, settings.adapter_slots, CPU, settings.max_adapter_rank),
    )  # fmt: skip
    made = tiny_runner_of(
        str(folder / "model"), adapter_folder=str(folder), adapter_slots=2, cpu_kernels="off", merge_linears="on",
        attention="sdpa",
    )  # fmt: skip
    assert isinstance(made, TorchModelRunner)
    return made


def check(runner: TorchModelRunner, folder: Path, references: Callable[[str], Reference]) -> None:
    loop = EngineLoop(runner, step_tokens=13)
    load_adapters(loop.engine, tuple((name, str(folder / name)) for name in ADAPTERS))
    sequences = [
        loop.sequence(prompt, NUM_OUTPUTS, adapter=name, cache_root=name) for prompt in PROMPTS for name in NAMES
    ]
    loop.serve(sequences, staggered=True)
    for sequence in sequences:
        prompt = sequence.token_ids[: sequence.num_prompt_tokens]
        assert outputs(sequence) == references(sequence.adapter).greedy(prompt, NUM_OUTPUTS).token_ids


def test_a_batch_of_two_adapters_and_none(
    runner: TorchModelRunner, folder: Path, references: Callable[[str], Reference]
) -> None:
    check(runner, folder, references)


def test_recorded_steps(
    runner: TorchModelRunner, folder: Path, references: Callable[[str], Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is recorded before any adapter is there serves those that come and go."""
    monkeypatch.setattr(decode_graphs, "EAGER_STEPS", 0)  # recording all sizes takes long here
    recorded(runner, Recorder(), lazily=True, num_adapter_slots=2)
    check(runner, folder, references)
    assert runner._graphs is not None and runner._graphs.num_replays > NUM_OUTPUTS
