"""The backends for CPUs on a paged cache against attention written out densely, one sequence at a time."""

import numpy as np
import pytest
import torch
from torch import Tensor

from model_svc.model import paged
from model_svc.model.attention import AttentionBackend, AttentionCall, AttentionOptions, SdpaBackend, paged_attention
from model_svc.model.handover import Handover
from model_svc.model.native_attention import NativeBackend
from model_svc.model.paged import LayerKVSpec, allocate, plan_step, positions_and_slots, query_starts_of, row_order
from model_svc.native.library import why_unavailable

NUM_HEADS, NUM_KV_HEADS, KEY_SIZE, VALUE_SIZE, BLOCK_SIZE = 6, 2, 8, 12, 4
OPTIONS = [
    AttentionOptions(None, None, None, None),
    AttentionOptions(0.5, None, None, None),
    AttentionOptions(None, 5, None, None),
    AttentionOptions(0.4, None, 1.5, None),
    AttentionOptions(None, 3, 2.0, torch.linspace(-2, 2, NUM_HEADS)),
    AttentionOptions(None, None, None, torch.linspace(-1, 3, NUM_HEADS)),
    AttentionOptions(None, 1000, None, None),
]


def dense(query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
    """[n, H, Dv] for one whole sequence: query [n, H, D], key and value [n, Hkv, D]."""
    key, value = (x.repeat_interleave(NUM_HEADS // NUM_KV_HEADS, dim=1) for x in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) * (options.scale or KEY_SIZE**-0.5)
    if options.softcap:
        scores = torch.tanh(scores / options.softcap) * options.softcap
    ago = torch.arange(len(query))[:, None] - torch.arange(len(query))[None, :]
    hidden = (ago < 0) | (ago >= (options.window or 10**6))
    weights = scores.masked_fill(hidden, -torch.inf).exp()
    total = weights.sum(-1, keepdim=True)
    if options.sinks is not None:
        total = total + options.sinks.exp()[:, None, None]
    return torch.einsum("hqk,khd->qhd", weights / total, value)


class Layer(torch.nn.Module):
    layer_idx = 0


@pytest.mark.parametrize("split", [4, 256])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("backend", [SdpaBackend(), NativeBackend()], ids=lambda backend: backend.name)
def test_steps_of_mixed_rows_equal_dense_attention(
    backend: AttentionBackend, options: AttentionOptions, split: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend.name == "native" and (why := why_unavailable()):
        pytest.skip(why)
    monkeypatch.setattr(paged, "SMALLEST_SPLIT_TOKENS", split)
    generator = torch.Generator().manual_seed(0)
    spec = LayerKVSpec(NUM_KV_HEADS, KEY_SIZE, VALUE_SIZE)
    kv = allocate([spec], 40, BLOCK_SIZE, torch.float32, torch.device("cpu"))
    lengths = np.array([23, 9, 4, 1])
    table = np.array(np.random.default_rng(0).permutation(40)[: 4 * 6].reshape(4, 6), dtype=np.int64)
    sizes = ((NUM_HEADS, KEY_SIZE), (NUM_KV_HEADS, KEY_SIZE), (NUM_KV_HEADS, VALUE_SIZE))
    data = [[torch.randn(n, *size, generator=generator) for size in sizes] for n in lengths]
    found = [torch.empty(n, NUM_HEADS, VALUE_SIZE) for n in lengths]
    computed = np.zeros(4, dtype=np.int64)
    for wanted in ([7, 8, 2, 1], [1, 1, 1, 0], [8, 0, 1, 0], [6, 0, 0, 0], [1, 0, 0, 0]):
        rows = np.flatnonzero(wanted)
        rows = rows[row_order(computed[rows], np.array(wanted)[rows])]
        new = np.array(wanted)[rows]
        _, slots = positions_and_slots(computed[rows], new, table[rows], BLOCK_SIZE)
        as_tensor = torch.from_numpy
        step = plan_step(
            kv, computed[rows], new, as_tensor(slots), as_tensor(table[rows]), as_tensor(computed[rows] + new),
            as_tensor(query_starts_of(new)),
        )  # fmt: skip
        parts = [[x[computed[r] : computed[r] + n] for x in data[r]] for r, n in zip(rows, new, strict=True)]
        query, key, value = (torch.cat(x).transpose(0, 1)[None] for x in zip(*parts, strict=True))
        layer = Layer()
        with Handover(layer).carrying(AttentionCall(step, backend)):
            output, _ = paged_attention(
                layer, query, key, value, None, scaling=options.scale, sliding_window=options.window,
                softcap=options.softcap, s_aux=options.sinks,
            )  # fmt: skip
        assert output.shape == (1, new.sum(), NUM_HEADS, VALUE_SIZE)
        for r, part in zip(rows, output[0].split(new.tolist()), strict=True):
            found[r][computed[r] : computed[r] + len(part)] = part
            computed[r] += len(part)
    assert computed.tolist() == lengths.tolist()
    for sequence, (query, key, value) in zip(found, data, strict=True):
        torch.testing.assert_close(sequence, dense(query, key, value, options), rtol=1e-4, atol=1e-5)


def test_groups_bound_the_padding() -> None:
    assert paged._groups([]) == []
    assert paged._groups([200, 3, 1]) == [(0, 3)], "short ones are not worth a second call"
    assert paged._groups([4000, 2000, 1999, 300, 20]) == [(0, 2), (2, 3), (3, 4), (4, 5)]
