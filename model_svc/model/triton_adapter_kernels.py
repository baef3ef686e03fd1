"""Triton kernels: low-rank adapters of one linear layer, each token with its own or with none, in two launches.

`down_kernel` shrinks, hidden = scale · (x Aᵀ); `up_kernel` expands and adds, out += hidden Bᵀ. Both take the tokens
that have an adapter, slot after slot; a program computes a tile of one slot's tokens, so that its weights are read
once for all of them, and one without tokens ends at once. What is in a slot, and where, is read from a table on the
device: a launch that was captured serves whatever adapters are there when it is replayed. (The idea is that of Punica,
Chen et al. 2023, and S-LoRA, Sheng et al. 2023.) Knows pointers; laying out a launch is `triton_adapters`' part.
"""

import triton
import triton.language as tl


@triton.jit
def multiply(a, b, sum, INTERPRETED: tl.constexpr):
    """The sum of a @ b and `sum`, in fp32. Triton's interpreter cannot multiply bf16: it would multiply their bits."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, sum, input_precision="ieee")


@triton.jit
def down_kernel(
    x, hidden, tokens, starts, table, num_inputs, hidden_width, table_width,
    BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Shrink x [T, num_inputs] through A [ranks, num_inputs]: hidden [M, hidden_width] fp32, a row for each token.

    Programs: slots, tiles of tokens, blocks of ranks. A row of the table begins with the address of A, how many ranks
    it has, and the address of their scales, fp32.
    """
    slot, block = tl.program_id(0), tl.program_id(2)
    first, stop = tl.load(starts + slot) + tl.program_id(1) * BLOCK_M, tl.load(starts + slot + 1)
    num_ranks = tl.load(table + slot * table_width + 1)
    if (first < stop) & (block * BLOCK_R < num_ranks):
        down = tl.load(table + slot * table_width).to(tl.pointer_type(x.dtype.element_ty))
        scale = tl.load(table + slot * table_width + 2).to(tl.pointer_type(tl.float32))
        row = first + tl.arange(0, BLOCK_M)
        rank = block * BLOCK_R + tl.arange(0, BLOCK_R)
        token = tl.load(tokens + row, mask=row < stop, other=0)
        total = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
        for begin in range(0, num_inputs, BLOCK_K):
            column = begin + tl.arange(0, BLOCK_K)
            inside = column < num_inputs
            a = tl.load(
                x + token[:, None] * num_inputs + column[None, :],
                mask=(row < stop)[:, None] & inside[None, :], other=0.0,
            )  # fmt: skip
            b = tl.load(
                down + rank[None, :] * num_inputs + column[:, None],
                mask=(rank < num_ranks)[None, :] & inside[:, None], other=0.0,
            )  # fmt: skip
            total = multiply(a, b, total, INTERPRETED)
        total *= tl.load(scale + rank, mask=rank < num_ranks, other=0.0)[None, :]
        tl.store(
            hidden + row[:, None] * hidden_width + rank[None, :], total,
            mask=(row < stop)[:, None] & (rank < num_ranks)[None, :],
        )  # fmt: skip


@triton.jit
def up_kernel(
    hidden, out, tokens, starts, table, parts, num_outputs, hidden_width, table_width, blocks_of_part,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Add to out [T, num_outputs], for each of `tokens`, hidden through B [outputs, ranks] of each part.

    Programs: slots, tiles of tokens, blocks of outputs of one part after the other. `parts`: first output and number
    of outputs of each. For each part the table has, from its fourth entry on, the address of B, its first rank in
    `hidden`, and how many ranks; none where the adapter leaves it alone.
    """
    slot, part, block = tl.program_id(0), tl.program_id(2) // blocks_of_part, tl.program_id(2) % blocks_of_part
    first, stop = tl.load(starts + slot) + tl.program_id(1) * BLOCK_M, tl.load(starts + slot + 1)
    entry = table + slot * table_width + 3 + 3 * part
    num_ranks, part_outputs = tl.load(entry + 2), tl.load(parts + 2 * part + 1)
    if (first < stop) & (num_ranks > 0) & (block * BLOCK_N < part_outputs):
        up = tl.load(entry).to(tl.pointer_type(out.dtype.element_ty))
        first_rank, first_output = tl.load(entry + 1), tl.load(parts + 2 * part)
        row = first + tl.arange(0, BLOCK_M)
        output = block * BLOCK_N + tl.arange(0, BLOCK_N)
        total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for begin in range(0, num_ranks, BLOCK_R):
            rank = begin + tl.arange(0, BLOCK_R)
            a = tl.load(
                hidden + row[:, None] * hidden_width + first_rank + rank[None, :],
                mask=(row < stop)[:, None] & (rank < num_ranks)[None, :], other=0.0,
            )  # fmt: skip
            b = tl.load(
                up + output[None, :] * num_ranks + rank[:, None],
                mask=(output < part_outputs)[None, :] & (rank < num_ranks)[:, None], other=0.0,
            )  # fmt: skip
            total = multiply(a.to(b.dtype), b, total, INTERPRETED)
        token = tl.load(tokens + row, mask=row < stop, other=0)
        to = out + token[:, None] * num_outputs + first_output + output[None, :]
        inside = (row < stop)[:, None] & (output < part_outputs)[None, :]
        tl.store(to, (tl.load(to, mask=inside, other=0.0).to(tl.float32) + total).to(out.dtype.element_ty), mask=inside)
