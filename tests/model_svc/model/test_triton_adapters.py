"""The Triton kernels of adapters without a GPU: interpreted in a process of their own, and compiled for GPUs."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed; its interpreter checks the kernels (extra: dev)")
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from model_svc.model.adapter_places import Part, Place, Places
from model_svc.model.triton_adapters import BLOCK_K, BLOCK_N, BLOCK_R, DOWN, UP, Packing, TritonProducts
from model_svc.native.adapters import AdapterPart

ROOT = Path(__file__).parents[3]
POINTERS = {"x": "*bf16", "out": "*bf16", "hidden": "*fp32", "tokens": "*i64", "starts": "*i64", "table": "*i64",
            "parts": "*i64"}  # fmt: skip


def test_under_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "tests/interpreted/test_adapters.py"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    print(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("capability", [80, 89, 90])
@pytest.mark.parametrize("block_m", [16, 64])
@pytest.mark.parametrize("kernel", [DOWN, UP], ids=["down", "up"])
def test_it_compiles_and_fits(kernel: Any, block_m: int, capability: int) -> None:
    sizes = {"BLOCK_K": BLOCK_K} if kernel is DOWN else {"BLOCK_N": BLOCK_N}
    constants = {"BLOCK_M": block_m, "BLOCK_R": BLOCK_R, "INTERPRETED": False, **sizes}
    names: list[str] = kernel.arg_names
    signature = {name: "constexpr" if name in constants else POINTERS.get(name, "i32") for name in names}
    source = ASTSource(
        fn=kernel, signature=signature, constexprs={(names.index(name),): value for name, value in constants.items()}
    )
    compiled = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
    assert compiled.metadata.shared <= 48 * 2**10, "several programs share a core"


def test_the_interpreter_is_not_on_in_this_process() -> None:
    assert type(DOWN).__name__ == "JITFunction", "or nothing here has been compiled"


def test_packed_matrices_are_aligned_and_whole() -> None:
    packing, matrices = Packing(torch.bfloat16), [torch.randn(3, 5).bfloat16(), torch.randn(16).bfloat16()]
    begins = [packing.add(matrix) for matrix in matrices]
    flat = packing.flat(pinned=False)
    assert begins == [0, 16] and len(flat) == 32
    for begin, matrix in zip(begins, matrices, strict=True):
        assert torch.equal(flat[begin : begin + matrix.numel()], matrix.flatten())


def test_memory_is_pinned_by_the_gpu_of_the_model_in_whatever_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = torch.nn.Linear(8, 4)
    places = Places([Place(layer, 8, 4, (Part("layer", 0, 4),))])
    products: Any = TritonProducts(places, 1, torch.device("cpu"), max_ranks=2)
    products._device = torch.device("cuda", 1)
    current, pinned_by = [torch.device("cuda", 0)], list[torch.device]()

    @contextmanager
    def device(chosen: torch.device) -> Iterator[None]:
        current.append(chosen)
        yield
        current.pop()

    def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
        pinned_by.append(current[-1])
        return tensor

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    products.pack({0: [AdapterPart(0, torch.randn(2, 8), torch.randn(4, 2), 1.0)]})
    assert pinned_by == [products._device] * 2
