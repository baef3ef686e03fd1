"""The Triton kernels without a GPU: interpreted in a process of their own, and compiled for GPUs that are not here."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed; its interpreter checks the kernels (extra: dev)")
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from model_svc.model.triton_attention import (
    ATTEND,
    COMBINE,
    MOST_SPLITS,
    NUM_STAGES,
    Heads,
    Processor,
    chunk_tiles,
    decode_tiles,
    padded,
    split_count,
)

ROOT = Path(__file__).parents[3]
H100 = Processor(num_cores=132, shared_memory_bytes=232448)
A100 = Processor(num_cores=108, shared_memory_bytes=166912)
L4 = Processor(num_cores=58, shared_memory_bytes=101376)
CAPABILITY = {H100: 90, A100: 80, L4: 89}
LLAMA_8B = Heads(num_kv_heads=8, group=4, key_size=128, value_size=128, itemsize=2)
GEMMA_9B = Heads(num_kv_heads=8, group=2, key_size=256, value_size=256, itemsize=2)
DEEPSEEK = Heads(num_kv_heads=16, group=1, key_size=192, value_size=128, itemsize=2)


@pytest.mark.parametrize("module", ["test_attention", pytest.param("test_golden", marks=pytest.mark.extended)])
def test_under_the_interpreter(module: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", f"tests/interpreted/{module}.py"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    print(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("features", [False, True], ids=["plain", "split, window, soft cap, sinks"])
@pytest.mark.parametrize("decode", [False, True], ids=["chunks", "decodes"])
@pytest.mark.parametrize(("heads", "processor"), [(LLAMA_8B, H100), (GEMMA_9B, H100), (DEEPSEEK, L4)], ids=str)
def test_it_compiles_and_fits(heads: Heads, processor: Processor, decode: bool, features: bool) -> None:
    tiles = (decode_tiles if decode else chunk_tiles)(heads, processor)
    constants = {
        "NUM_KV_HEADS": heads.num_kv_heads, "GROUP": heads.group, "KEY_SIZE": heads.key_size,
        "VALUE_SIZE": heads.value_size, "BLOCK_SIZE": 16, "KEY_PAD": padded(heads.key_size),
        "VALUE_PAD": padded(heads.value_size), "BLOCK_M": tiles.block_m, "BLOCK_N": tiles.block_n, "DECODE": decode,
        "SPLIT": features, "HAS_WINDOW": features, "HAS_SOFTCAP": features, "HAS_SINKS": features, "INTERPRETED": False,
    }  # fmt: skip
    compiled = compile_for(processor, ATTEND, constants, num_warps=tiles.num_warps, num_stages=NUM_STAGES)
    most = processor.shared_memory_bytes // (2 if decode else 1)
    assert compiled.metadata.shared <= most, "decode programs share a core"
    if processor is H100 and not decode:
        assert "wgmma" in compiled.asm["ptx"]
    assert "cp.async" in compiled.asm["ptx"], "the context is read ahead"


def test_what_combines_splits_compiles() -> None:
    constants = {"NUM_HEADS": 32, "VALUE_SIZE": 128, "VALUE_PAD": 128, "MOST_SPLITS": MOST_SPLITS, "HAS_SINKS": True}
    assert compile_for(H100, COMBINE, constants, num_warps=4).metadata.shared <= 2**15


def compile_for(processor: Processor, kernel: Any, constants: dict[str, Any], **options: int) -> Any:
    """For bf16, with the types and alignments that a launch finds."""
    names: list[str] = kernel.arg_names
    types = {name: "i32" for name in names} | dict.fromkeys(("scale", "softcap"), "fp32")
    types |= dict.fromkeys(("query", "key", "value", "output", "sinks"), "*bf16")
    types |= dict.fromkeys(("partial", "partial_lse"), "*fp32")
    types |= dict.fromkeys(("table", "lengths", "query_starts"), "*i64")
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    aligned = ("query", "key", "value", "output", "partial", "partial_lse")
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned if name in names},
    )
    return compile(
        source, target=GPUTarget("cuda", CAPABILITY[processor], 32), options={"enable_fp_fusion": True} | options
    )


def test_few_long_sequences_are_split_and_many_are_not() -> None:
    counts = [split_count(rows * 8, 8192, 64, H100.num_cores) for rows in (1, 2, 8, 32, 64, 256)]
    assert counts == [32, 32, 8, 2, 1, 1]
    assert split_count(8, 511, 64, H100.num_cores) == 1, "not worth it"
    assert split_count(8, 1024, 64, H100.num_cores) == 16, "a tile each"


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("processor", [H100, A100, L4], ids=str)
@pytest.mark.parametrize("group", [1, 3, 8, 64, 71])
@pytest.mark.parametrize("size", [8, 64, 80, 128, 256])
def test_tiles_hold_whole_groups(size: int, group: int, processor: Processor, itemsize: int) -> None:
    heads = Heads(2, group, size, size, itemsize)
    for tiles in (decode_tiles(heads, processor), chunk_tiles(heads, processor)):
        assert tiles.block_m >= max(16, group)
        assert tiles.block_n >= 16
        for number in tiles:
            assert number & (number - 1) == 0


def test_the_interpreter_is_not_on_in_this_process() -> None:
    assert type(ATTEND).__name__ == "JITFunction", "or nothing here has been compiled"
    assert not torch.cuda.is_available() or Processor.of(torch.device("cuda")).num_cores > 0
