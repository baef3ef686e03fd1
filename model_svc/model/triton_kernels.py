"""Triton kernels: attention of a step's rows over the paged cache, in one pass or split over the context.

`attend_kernel` is FlashAttention's online softmax (Dao, 2022), with keys and values read through the block table. A
program computes the query heads that share one key head, for one decode row or for a few tokens of a chunk; with
several splits (FlashDecoding), each program sees its share of the context, and `combine_kernel` weighs the parts by
their log-sum-exp. Nothing masked is ever read, so what unused slots hold does not matter.

All that changes from step to step is a run-time argument: a model compiles each kernel once per kind of layer. Scores
are in base 2: factors come multiplied by log2(e). Knows pointers; laying out a launch is `triton_attention`'s part.
"""

import triton
import triton.language as tl


@triton.jit
def load_heads(
    base, slot, kv_head, inside, NUM_KV_HEADS: tl.constexpr, SIZE: tl.constexpr, PAD: tl.constexpr, MASKED: tl.constexpr
):
    """[BLOCK_N, PAD]: one head's keys or values at these slots; 0 outside, and in the columns after SIZE."""
    column = tl.arange(0, PAD)
    pointers = base + slot[:, None] * (NUM_KV_HEADS * SIZE) + kv_head * SIZE + column[None, :]
    if MASKED and PAD != SIZE:
        return tl.load(pointers, mask=inside[:, None] & (column < SIZE)[None, :], other=0.0)
    elif MASKED:
        return tl.load(pointers, mask=inside[:, None], other=0.0)
    elif PAD != SIZE:
        return tl.load(pointers, mask=(column < SIZE)[None, :], other=0.0)
    else:
        return tl.load(pointers)


@triton.jit
def multiply(a, b, sum, INTERPRETED: tl.constexpr):
    """The sum of a @ b and `sum`, in fp32. Triton's interpreter cannot multiply bf16: it would multiply their bits."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, sum, input_precision="ieee")


@triton.jit
def attend_tile(
    queries, output, highest, total, positions, key, value, table_row, kv_head, tile, first, stop, scale, softcap,
    window,
    NUM_KV_HEADS: tl.constexpr, KEY_SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    KEY_PAD: tl.constexpr, VALUE_PAD: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Take one tile of BLOCK_N positions into the running softmax.

    queries [BLOCK_M, KEY_PAD]; output [BLOCK_M, VALUE_PAD], highest, total, positions [BLOCK_M]. MASKED: only positions
    from `first` to before `stop` exist, and each query sees those up to its own (within its window); otherwise all do.
    """
    position = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (position >= first) & (position < stop)
    if MASKED:
        block = tl.load(table_row + position // BLOCK_SIZE, mask=inside, other=0)
    else:
        block = tl.load(table_row + position // BLOCK_SIZE)
    slot = block.to(tl.int64) * BLOCK_SIZE + position % BLOCK_SIZE
    keys = load_heads(key, slot, kv_head, inside, NUM_KV_HEADS, KEY_SIZE, KEY_PAD, MASKED)
    scores = multiply(queries, tl.trans(keys), None, INTERPRETED) * scale  # [BLOCK_M, BLOCK_N]
    if HAS_SOFTCAP:
        # softcap * tanh(scores): 2 log2(e) of them is e to twice the score; from 126 on, tanh is 1.
        scores = softcap * (1.0 - 2.0 / (tl.exp2(tl.minimum(scores * 2.8853900817779268, 126.0)) + 1.0))
    if MASKED:
        visible = inside[None, :] & (position[None, :] <= positions[:, None])
        if HAS_WINDOW:
            visible = visible & (position[None, :] > positions[:, None] - window)
        scores = tl.where(visible, scores, -float("inf"))
    new_highest = tl.maximum(highest, tl.max(scores, 1))
    # A query that has seen nothing yet: -inf - -inf would be NaN.
    reference = tl.where(new_highest == -float("inf"), 0.0, new_highest)
    weights = tl.exp2(scores - reference[:, None])
    shrink = tl.exp2(highest - reference)
    total = total * shrink + tl.sum(weights, 1)
    values = load_heads(value, slot, kv_head, inside, NUM_KV_HEADS, VALUE_SIZE, VALUE_PAD, MASKED)
    output = multiply(weights.to(values.dtype), values, output * shrink[:, None], INTERPRETED)
    return output, new_highest, total


@triton.jit
def find_chunk(query_starts, unit, num_decodes, num_chunks, BLOCK_Q: tl.constexpr):
    """The chunk that program `unit` works on, and the first program of that chunk.

    Chunk c has its first at (its start) // BLOCK_Q + c, starts counted from the first chunk's: room for all its tokens,
    and perhaps for one program more, which finds nothing to do.
    """
    low: tl.int32 = 0
    high = num_chunks
    while high - low > 1:
        middle = (low + high) // 2
        start = tl.load(query_starts + num_decodes + middle).to(tl.int32) - num_decodes
        before = start // BLOCK_Q + middle <= unit
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle)
    start = tl.load(query_starts + num_decodes + low).to(tl.int32) - num_decodes
    return low, start // BLOCK_Q + low


@triton.jit(
    do_not_specialize=[
        "num_decodes",
        "num_chunks",
        "query_token_stride",
        "query_head_stride",
        "table_stride",
        "window",
    ],
    do_not_specialize_on_alignment=["table", "lengths", "query_starts", "sinks"],
)
def attend_kernel(
    query, key, value, output, partial, partial_lse, sinks, table, lengths, query_starts,
    num_decodes, num_chunks, query_token_stride, query_head_stride, table_stride, scale, softcap, window,
    NUM_KV_HEADS: tl.constexpr, GROUP: tl.constexpr, KEY_SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, KEY_PAD: tl.constexpr, VALUE_PAD: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, DECODE: tl.constexpr, SPLIT: tl.constexpr, HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr, HAS_SINKS: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Attention of all decode rows, or of all chunks.

    Grid: (units * NUM_KV_HEADS, splits). With DECODE a unit is a row and its token; without, up to BLOCK_M // GROUP
    tokens of a chunk. query: T tokens of NUM_KV_HEADS * GROUP heads, at the given strides. Writes output
    [T, heads, VALUE_SIZE], or with SPLIT partial [tokens, heads, splits, VALUE_SIZE] and partial_lse
    [tokens, heads, splits], in fp32, of the tokens of this launch. A decode row of length 0 gives zeros.
    """
    BLOCK_Q: tl.constexpr = 1 if DECODE else BLOCK_M // GROUP
    NUM_HEADS: tl.constexpr = NUM_KV_HEADS * GROUP
    kv_head = tl.program_id(0) % NUM_KV_HEADS
    unit = tl.program_id(0) // NUM_KV_HEADS
    if DECODE:
        row = unit
        row_start = unit
        num_queries = 1
        skipped = 0
    else:
        # The last tokens of a chunk see the most: they begin first, so that the launch ends evenly.
        unit = tl.num_programs(0) // NUM_KV_HEADS - 1 - unit
        chunk, first_unit = find_chunk(query_starts, unit, num_decodes, num_chunks, BLOCK_Q)
        row = num_decodes + chunk
        row_start = tl.load(query_starts + row).to(tl.int32)
        num_queries = tl.load(query_starts + row + 1).to(tl.int32) - row_start
        skipped = (unit - first_unit) * BLOCK_Q
        if skipped >= num_queries:
            return

    lane = tl.arange(0, BLOCK_M)
    query_index = skipped + lane // GROUP
    head = kv_head * GROUP + lane % GROUP
    real = (lane < BLOCK_Q * GROUP) & (query_index < num_queries)
    token = (row_start + query_index).to(tl.int64)
    column = tl.arange(0, KEY_PAD)
    pointers = query + token[:, None] * query_token_stride + head[:, None] * query_head_stride + column[None, :]
    queries = tl.load(pointers, mask=real[:, None] & (column < KEY_SIZE)[None, :], other=0.0)

    # Positions that this program's queries see: from `first` to before `stop`.
    length = tl.load(lengths + row).to(tl.int32)
    first_position = length - num_queries + skipped
    positions = first_position + lane // GROUP
    stop = length - num_queries + tl.minimum(skipped + BLOCK_Q, num_queries)
    first = 0
    if HAS_WINDOW:
        first = tl.maximum(first_position - window + 1, 0)
    first_tile = first // BLOCK_N
    stop_tile = (stop + BLOCK_N - 1) // BLOCK_N
    if SPLIT:
        num_tiles = (stop_tile - first_tile + tl.num_programs(1) - 1) // tl.num_programs(1)
        first_tile = first_tile + tl.program_id(1) * num_tiles
        stop_tile = tl.minimum(first_tile + num_tiles, stop_tile)

    result = tl.zeros([BLOCK_M, VALUE_PAD], dtype=tl.float32)
    highest = tl.full([BLOCK_M], -float("inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    table_row = table + row.to(tl.int64) * table_stride
    masked_tile = first_tile
    if not HAS_WINDOW:
        # Every query sees all of these, so they need no mask.
        masked_tile = tl.maximum(first_tile, tl.minimum(stop_tile, (first_position + 1) // BLOCK_N))
        for tile in range(first_tile, masked_tile):
            result, highest, total = attend_tile(
                queries, result, highest, total, positions, key, value, table_row, kv_head, tile, first, stop, scale,
                softcap, window, NUM_KV_HEADS, KEY_SIZE, VALUE_SIZE, BLOCK_SIZE, KEY_PAD, VALUE_PAD, BLOCK_N, False,
                HAS_WINDOW, HAS_SOFTCAP, INTERPRETED,
            )  # fmt: skip
    for tile in range(masked_tile, stop_tile):
        result, highest, total = attend_tile(
            queries, result, highest, total, positions, key, value, table_row, kv_head, tile, first, stop, scale,
            softcap, window, NUM_KV_HEADS, KEY_SIZE, VALUE_SIZE, BLOCK_SIZE, KEY_PAD, VALUE_PAD, BLOCK_N, True,
            HAS_WINDOW, HAS_SOFTCAP, INTERPRETED,
        )  # fmt: skip

    value_column = tl.arange(0, VALUE_PAD)
    written = real[:, None] & (value_column < VALUE_SIZE)[None, :]
    if SPLIT:
        launch_token = token if DECODE else token - num_decodes
        part = (launch_token * NUM_HEADS + head) * tl.num_programs(1) + tl.program_id(1)
        result = result / tl.where(total > 0.0, total, 1.0)[:, None]
        tl.store(partial + part[:, None] * VALUE_SIZE + value_column[None, :], result, mask=written)
        lse = tl.where(total > 0.0, highest + tl.log2(tl.where(total > 0.0, total, 1.0)), -float("inf"))
        tl.store(partial_lse + part, lse, mask=real)
    else:
        if HAS_SINKS:
            sink = tl.load(sinks + head, mask=real, other=0.0).to(tl.float32) * 1.4426950408889634
            raised = tl.maximum(highest, sink)
            shrink = tl.exp2(highest - raised)
            total = total * shrink + tl.exp2(sink - raised)
            result = result * shrink[:, None]
        result = result / tl.where(total > 0.0, total, 1.0)[:, None]
        row_output = output + (token * NUM_HEADS + head)[:, None] * VALUE_SIZE + value_column[None, :]
        tl.store(row_output, result.to(output.dtype.element_ty), mask=written)


@triton.jit(
    do_not_specialize=["first_token", "num_splits"],
    do_not_specialize_on_alignment=["sinks"],
)
def combine_kernel(
    partial, partial_lse, output, sinks, first_token, num_splits,
    NUM_HEADS: tl.constexpr, VALUE_SIZE: tl.constexpr, VALUE_PAD: tl.constexpr, MOST_SPLITS: tl.constexpr,
    HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """Combine what the splits of `attend_kernel` found into output [T, NUM_HEADS, VALUE_SIZE], from `first_token` on.

    Grid: (tokens of the launch, NUM_HEADS).
    """
    head = tl.program_id(1)
    part = (tl.program_id(0).to(tl.int64) * NUM_HEADS + head) * num_splits
    split = tl.arange(0, MOST_SPLITS)
    column = tl.arange(0, VALUE_PAD)
    lse = tl.load(partial_lse + part + split, mask=split < num_splits, other=-float("inf"))
    highest = tl.max(lse, 0)
    if HAS_SINKS:
        sink = tl.load(sinks + head).to(tl.float32) * 1.4426950408889634
        highest = tl.maximum(highest, sink)
    reference = tl.where(highest == -float("inf"), 0.0, highest)
    weights = tl.exp2(lse - reference)
    total = tl.sum(weights, 0)
    if HAS_SINKS:
        total = total + tl.exp2(sink - reference)
    pointers = partial + (part + split)[:, None] * VALUE_SIZE + column[None, :]
    parts = tl.load(pointers, mask=(split < num_splits)[:, None] & (column < VALUE_SIZE)[None, :], other=0.0)
    result = tl.sum(parts * weights[:, None], 0) / tl.where(total > 0.0, total, 1.0)
    token = first_token + tl.program_id(0).to(tl.int64)
    pointers = output + (token * NUM_HEADS + head) * VALUE_SIZE + column
    tl.store(pointers, result.to(output.dtype.element_ty), mask=column < VALUE_SIZE)
