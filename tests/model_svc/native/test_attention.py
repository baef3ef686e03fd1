from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from model_svc.native.kernels import attention
from tests.model_svc.native.cases import DTYPE_IDS, DTYPES, assert_close, generator, needs_kernels

pytestmark = needs_kernels


class Heads(NamedTuple):
    num_heads: int
    num_kv_heads: int
    key_size: int
    value_size: int


class Step(NamedTuple):
    """Rows in a scrambled cache whose other slots hold NaN, and their keys and values in order."""

    query: Tensor
    key_cache: Tensor
    value_cache: Tensor
    table: Tensor
    lengths: Tensor
    query_starts: Tensor
    keys: list[Tensor]
    values: list[Tensor]


def step_of(rows: list[tuple[int, int]], heads: Heads, block_size: int, dtype: torch.dtype, seed: int = 0) -> Step:
    """`rows`: each one's positions and how many of them, the last, are this step's."""
    random = generator(seed)
    lengths, new = ([row[at] for row in rows] for at in (0, 1))
    width = max(-(-length // block_size) for length in lengths)
    num_blocks = len(rows) * width + 3
    blocks = torch.randperm(num_blocks, generator=random)
    table = blocks[: len(rows) * width].view(len(rows), width).contiguous()
    caches, parts = [], []
    for size in (heads.key_size, heads.value_size):
        cache = torch.full((num_blocks * block_size, heads.num_kv_heads, size), torch.nan, dtype=dtype)
        own = [torch.randn(length, heads.num_kv_heads, size, generator=random).to(dtype) for length in lengths]
        for row, part in enumerate(own):
            position = torch.arange(len(part))
            cache[table[row, position // block_size] * block_size + position % block_size] = part
        caches.append(cache.view(num_blocks, block_size, heads.num_kv_heads, size))
        parts.append(own)
    query = torch.randn(sum(new), heads.num_heads, heads.key_size, generator=random).to(dtype)
    starts = torch.tensor([0, *new]).cumsum(0)
    return Step(query, caches[0], caches[1], table, torch.tensor(lengths), starts, parts[0], parts[1])


def expected(step: Step, scale: float, window: int) -> Tensor:
    outputs = []
    for row, (keys, values) in enumerate(zip(step.keys, step.values, strict=True)):
        queries = step.query[step.query_starts[row] : step.query_starts[row + 1]].double()
        group = queries.shape[1] // keys.shape[1]
        keys, values = (part.double().repeat_interleave(group, 1) for part in (keys, values))
        scores = torch.einsum("thd,phd->htp", queries, keys) * scale
        position = torch.arange(len(keys))
        own = position[len(keys) - len(queries) :, None]
        seen = position <= own
        if window:
            seen &= position > own - window
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        outputs.append(torch.einsum("htp,phd->thd", weights, values).flatten(1))
    return torch.cat(outputs)


def attended(step: Step, scale: float, window: int) -> Tensor:
    width = step.query.shape[1] * step.value_cache.shape[-1]
    out = torch.full((len(step.query), width), torch.nan, dtype=step.query.dtype)
    attention(*step[:6], scale, window, out)
    return out


HEADS = [
    Heads(1, 1, 16, 16),
    Heads(4, 2, 32, 32),
    Heads(9, 3, 64, 64),
    Heads(7, 1, 80, 80),
    Heads(2, 2, 256, 256),
    Heads(6, 3, 48, 20),
    Heads(40, 1, 24, 40),
]
ROWS = {
    "one": [(1, 1)],
    "decodes": [(400, 1), (193, 1), (192, 1), (33, 1), (5, 1), (1, 1)],
    "prompt": [(130, 130)],
    "mixed": [(390, 1), (49, 1), (2, 2), (49, 49), (240, 7), (193, 3)],
}
MANY_DECODES = [(1 + 41 * row, 1) for row in range(9)]


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("window", [0, 21])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_heads(heads: Heads, window: int, dtype: torch.dtype) -> None:
    check(ROWS["mixed"], heads, window, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("window", [0, 1, 20, 200])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_rows_and_windows(rows: list[tuple[int, int]], window: int, dtype: torch.dtype) -> None:
    check(rows, Heads(6, 3, 48, 20), window, dtype)


def check(rows: list[tuple[int, int]], heads: Heads, window: int, dtype: torch.dtype) -> None:
    step = step_of(rows, heads, 16, dtype)
    scale = heads.key_size**-0.5
    assert_close(attended(step, scale, window), expected(step, scale, window), bf16=2**-8, of_row=1.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("block_size", [1, 7, 16, 64])
def test_block_sizes(block_size: int, dtype: torch.dtype) -> None:
    step = step_of(ROWS["mixed"], Heads(6, 2, 32, 32), block_size, dtype)
    assert_close(attended(step, 0.3, 0), expected(step, 0.3, 0), bf16=2**-8, of_row=1.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("window", [0, 50])
def test_a_token_is_the_same_bits_in_any_batch_and_chunk(window: int, dtype: torch.dtype) -> None:
    heads, length = Heads(9, 3, 64, 64), 450
    whole = step_of([(length, length), (300, 1), (40, 40)], heads, 16, dtype)
    together = attended(whole, 0.125, window)
    for stop, num_tokens in [(450, 1), (450, 7), (200, 200), (193, 1), (193, 2), (300, 140), (1, 1), (450, 449)]:
        part = Step(
            whole.query[stop - num_tokens : stop].contiguous(), whole.key_cache, whole.value_cache, whole.table[:1],
            torch.tensor([stop]), torch.tensor([0, num_tokens]), [], [],
        )  # fmt: skip
        assert torch.equal(attended(part, 0.125, window), together[stop - num_tokens : stop])


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("heads", [Heads(9, 3, 64, 64), Heads(7, 1, 80, 72)], ids=str)
def test_a_decode_is_the_same_bits_as_in_its_prompt(heads: Heads, dtype: torch.dtype) -> None:
    step = step_of([(400, 400)], heads, 16, dtype)
    for window in (0, 1, 33, 250):
        prompt = attended(step, 0.1, window)
        stops = torch.tensor([1, 2, 17, 48, 49, 191, 192, 193, 399, 400])
        decodes = Step(
            step.query[stops - 1].contiguous(), step.key_cache, step.value_cache,
            step.table.expand(len(stops), -1).contiguous(), stops, torch.arange(len(stops) + 1), [], [],
        )  # fmt: skip
        assert torch.equal(attended(decodes, 0.1, window), prompt[stops - 1])


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("window", [0, 150])
@pytest.mark.parametrize("rows", [*ROWS.values(), MANY_DECODES, [(1000, 1)]], ids=[*ROWS, "many", "long"])
def test_threads_change_no_bit(rows: list[tuple[int, int]], window: int, dtype: torch.dtype) -> None:
    step, before = step_of(rows, Heads(9, 3, 64, 64), 16, dtype), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(attended(step, 0.125, window))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_a_row_that_pads_a_batch_gets_zeros() -> None:
    step = step_of([(20, 1), (5, 1)], Heads(4, 2, 32, 32), 16, torch.bfloat16)
    padded = step._replace(lengths=torch.tensor([20, 0]))
    output = attended(padded, 0.2, 0)
    assert torch.equal(output[0], attended(step, 0.2, 0)[0])
    assert torch.equal(output[1], torch.zeros_like(output[1]))


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_a_query_that_is_no_number_spoils_its_row_only(dtype: torch.dtype) -> None:
    step = step_of([(20, 1), (5, 1)], Heads(4, 2, 32, 32), 16, dtype)
    clean = attended(step, 0.2, 0)
    step.query[0] = torch.nan
    output = attended(step, 0.2, 0)
    assert output[0].isnan().all() and torch.equal(output[1], clean[1])


def test_large_scores_do_not_overflow() -> None:
    step = step_of([(250, 1), (250, 250)], Heads(4, 2, 32, 32), 16, torch.float32)
    assert_close(attended(step, 100.0, 0), expected(step, 100.0, 0), fp32=1e-3)


def test_what_does_not_fit_is_refused() -> None:
    step = step_of([(20, 1)], Heads(4, 2, 32, 32), 16, torch.float32)
    out = torch.empty(1, 128)
    wrongs = [
        step._replace(query=step.query.bfloat16()),
        step._replace(query=step.query[:, :3].contiguous()),
        step._replace(query=step.query[0]),
        step._replace(value_cache=step.value_cache[0]),
        step._replace(table=step.table.int()),
        step._replace(lengths=step.lengths.int()),
        step._replace(query_starts=step.query_starts[:1]),
        step_of([(20, 1)], Heads(4, 2, 258, 32), 16, torch.float32),
    ]
    for wrong in wrongs:
        with pytest.raises(ValueError):
            attention(*wrong[:6], 1.0, 0, out)
    for scale, window in [(0.0, 0), (1.0, -1)]:
        with pytest.raises(ValueError, match="positive"):
            attention(*step[:6], scale, window, out)
