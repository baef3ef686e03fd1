"""The Triton backend: lays out the launches of `triton_kernels` for a step. Imports Triton.

A step takes at most two launches, decode rows and chunks, each followed by one that combines where the context is
split. They are laid out by what the host knows of the step, so nothing waits for the device, and captured in a CUDA
graph they serve any lengths up to the contexts they were captured with.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from model_svc.model import triton_kernels
from model_svc.model.attention import AttentionOptions
from model_svc.model.paged import LayerKV, PagedStep

ATTEND: Any = triton_kernels.attend_kernel
COMBINE: Any = triton_kernels.combine_kernel

LOG2_E = 1.4426950408889634
MOST_SPLITS = 32
LEAST_SPLIT_TOKENS = 512
"""Contexts below this are not split: reading them takes no longer than the launch that combines."""
PROGRAMS_PER_CORE = 4
"""A decode program waits for memory most of the time; registers and shared memory hold so many of them."""
NUM_STAGES = 3
"""Block numbers are read for the tile after next, keys and values for the next, while one is multiplied. More stages
compile to the same code."""
SMALLEST_DOT = 16
"""Triton multiplies matrices of at least this many rows, columns and terms."""


@dataclass(frozen=True, slots=True)
class Processor:
    """What tiles and splits are chosen by."""

    num_cores: int
    """Streaming multiprocessors."""
    shared_memory_bytes: int
    """What one program may use."""

    @staticmethod
    def of(device: torch.device) -> "Processor":
        """The GPU's figures; for the interpreter, small ones, so that small inputs take several tiles."""
        if device.type == "cpu":
            return Processor(8, 4 * 2**10)
        properties: Any = torch.cuda.get_device_properties(device)
        return Processor(properties.multi_processor_count, properties.shared_memory_per_block_optin)


class Heads(NamedTuple):
    """The shape of a layer's attention."""

    num_kv_heads: int
    group: int
    """Query heads that share a key head."""
    key_size: int
    value_size: int
    itemsize: int
    """Bytes of one number."""


class Tiles(NamedTuple):
    """How much one program computes at a time, and with what."""

    block_m: int
    """Rows of queries: tokens times `group`."""
    block_n: int
    """Positions of the context."""
    num_warps: int


class TritonBackend:
    """See `AttentionBackend`. `processor` is `device`'s own unless a test says otherwise."""

    name = "triton"
    gathers = False

    def __init__(self, device: torch.device, processor: Processor | None = None) -> None:
        self.processor = processor or Processor.of(device)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, layer: LayerKV, step: PagedStep, options: AttentionOptions
    ) -> Tensor:
        """See `AttentionBackend.attend`."""
        if query.stride(3) != 1:
            query = query.contiguous()
        output = query.new_empty(query.shape[2], query.shape[1], layer.value.shape[3])
        if step.num_decodes:
            self._launch(query, layer, step, options, output, decode=True)
        if step.num_decodes < len(step.num_new):
            self._launch(query, layer, step, options, output, decode=False)
        return output.unsqueeze(0)

    def _launch(
        self, query: Tensor, layer: LayerKV, step: PagedStep, options: AttentionOptions, output: Tensor, *, decode: bool
    ) -> None:
        """Compute the decode rows, or the chunks, into their tokens of `output` [T, num_heads, value_size]."""
        num_all_tokens, num_heads, value_size = output.shape
        num_kv_heads, key_size = layer.key.shape[2:]
        heads = Heads(num_kv_heads, num_heads // num_kv_heads, key_size, value_size, layer.key.element_size())
        num_chunks = len(step.num_new) - step.num_decodes
        if decode:
            tiles = decode_tiles(heads, self.processor)
            first_token, num_tokens, contexts = 0, step.num_decodes, step.contexts[: step.num_decodes]
            num_units = num_tokens
        else:
            tiles = chunk_tiles(heads, self.processor)
            first_token, contexts = step.num_decodes, step.contexts[step.num_decodes :]
            num_tokens = num_all_tokens - first_token
            num_units = num_tokens // (tiles.block_m // heads.group) + num_chunks  # see `find_chunk`
        num_programs = num_units * num_kv_heads
        seen = max(contexts) if options.window is None else min(max(contexts), options.window)
        num_splits = split_count(num_programs, seen, tiles.block_n, self.processor.num_cores)
        partial = partial_lse = output
        if num_splits > 1:
            shape = (num_tokens, num_heads, num_splits)
            partial = output.new_empty(*shape, value_size, dtype=torch.float32)
            partial_lse = output.new_empty(shape, dtype=torch.float32)
        sinks = output if options.sinks is None else options.sinks
        scale = key_size**-0.5 if options.scale is None else options.scale
        ATTEND[(num_programs, num_splits)](
            query, layer.key, layer.value, output, partial, partial_lse, sinks, step.table, step.lengths,
            step.query_starts, step.num_decodes, num_chunks, query.stride(2), query.stride(1), step.table.stride(0),
            scale * LOG2_E if options.softcap is None else scale / options.softcap,
            0.0 if options.softcap is None else options.softcap * LOG2_E,
            0 if options.window is None else options.window,
            NUM_KV_HEADS=num_kv_heads, GROUP=heads.group, KEY_SIZE=key_size, VALUE_SIZE=value_size,
            BLOCK_SIZE=step.kv.block_size, KEY_PAD=padded(key_size), VALUE_PAD=padded(value_size),
            BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n, DECODE=decode, SPLIT=num_splits > 1,
            HAS_WINDOW=options.window is not None, HAS_SOFTCAP=options.softcap is not None,
            HAS_SINKS=options.sinks is not None, INTERPRETED=query.device.type == "cpu",
            num_warps=tiles.num_warps, num_stages=NUM_STAGES, enable_fp_fusion=True,
        )  # fmt: skip
        if num_splits > 1:
            COMBINE[(num_tokens, num_heads)](
                partial, partial_lse, output, sinks, first_token, num_splits,
                NUM_HEADS=num_heads, VALUE_SIZE=value_size, VALUE_PAD=padded(value_size), MOST_SPLITS=MOST_SPLITS,
                HAS_SINKS=options.sinks is not None, num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip


def split_count(num_programs: int, longest: int, block_n: int, num_cores: int) -> int:
    """Into how many parts to split a context of `longest` tokens: enough to fill the cores, with a tile each or more.

    A power of two, so that few numbers occur.
    """
    if longest < LEAST_SPLIT_TOKENS:
        return 1
    most = min(PROGRAMS_PER_CORE * num_cores // num_programs, longest // block_n, MOST_SPLITS)
    return 1 << (most.bit_length() - 1) if most > 1 else 1


@cache
def decode_tiles(heads: Heads, processor: Processor) -> Tiles:
    """For a token at a time: bound by reading, so shared memory is left for the other programs of the core."""
    block_m = max(SMALLEST_DOT, triton.next_power_of_2(heads.group))
    return Tiles(block_m, context_tile(heads, processor.shared_memory_bytes // PROGRAMS_PER_CORE, 128), 4)


@cache
def chunk_tiles(heads: Heads, processor: Processor) -> Tiles:
    """For many tokens: bound by multiplying, so as many rows as registers hold share each tile of the context.

    Products of fp32 are not made by tensor cores, and take so many registers that their tiles must be small.
    """
    widest = max(padded(heads.key_size), padded(heads.value_size))
    block_m = 16 if widest > 256 else 32 if heads.itemsize == 4 else 64 if widest > 128 else 128
    block_m = max(block_m, triton.next_power_of_2(heads.group))
    query_bytes = block_m * padded(heads.key_size) * heads.itemsize
    # Two tiles of the context are in shared memory at a time.
    largest = 16 if heads.itemsize == 4 else 64
    block_n = context_tile(heads, (processor.shared_memory_bytes - query_bytes) // 2, largest)
    return Tiles(block_m, block_n, 8 if block_m >= 128 or widest > 128 else 4)


def context_tile(heads: Heads, free_bytes: int, largest: int) -> int:
    """The most positions whose keys and values fit `free_bytes` of shared memory: a power of two up to `largest`."""
    position_bytes = (padded(heads.key_size) + padded(heads.value_size)) * heads.itemsize
    while largest > SMALLEST_DOT and largest * position_bytes > free_bytes:
        largest //= 2
    return largest


def padded(size: int) -> int:
    """A head's size as a dimension of a tile."""
    return int(triton.next_power_of_2(max(size, SMALLEST_DOT)))
