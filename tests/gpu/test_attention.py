"""The attention backends on a real GPU, compared with the reference backend there."""

from dataclasses import replace

import pytest
import torch

from model_svc.model.attention import AttentionBackend, SdpaBackend
from model_svc.model.attention_choice import choose_backend, working_backend
from tests.fakes.attention_cases import Case, Prepared, mixed_cases, prepare

GPU = torch.device("cuda", 0)
TOLERANCE = {torch.bfloat16: 3e-2, torch.float16: 4e-3}
LLAMA_8B = Case((), num_kv_heads=8, group=4, key_size=128, value_size=128, block_size=16)
LONG = [
    replace(LLAMA_8B, rows=((8191, 1),)),
    replace(LLAMA_8B, rows=((3000, 1), (4095, 1), (0, 1)), sinks=True),
    replace(
        LLAMA_8B, rows=((5000, 20), (0, 700), (130, 300)), num_kv_heads=4, key_size=256, value_size=256, softcap=30.0
    ),
    replace(LLAMA_8B, rows=((4096, 64), (2000, 1)), num_kv_heads=16, group=1, key_size=192, window=1000),
    replace(LLAMA_8B, rows=((900, 128),) * 3 + ((700, 1),) * 40, num_kv_heads=3, group=3, key_size=64, value_size=64),
]
CASES = mixed_cases(40, longest=200) + LONG
PLAIN = Case(((2000, 1), (300, 1), (0, 1), (100, 50), (0, 333)), group=4, key_size=64, value_size=64, block_size=16)


pytestmark = pytest.mark.usefixtures("gpu")


@pytest.fixture(scope="module")
def triton() -> AttentionBackend:
    return choose_backend("triton", GPU, 16)


def check(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=TOLERANCE[found.dtype], atol=TOLERANCE[found.dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_triton(case: Case, dtype: torch.dtype, triton: AttentionBackend) -> None:
    """Unused slots hold NaN for the backend under test, which must not see them; the reference is spared."""
    prepared = prepare(case, GPU, dtype)
    check(prepared.spoiled().attend(triton), prepared.attend(SdpaBackend()))


def test_triton_is_what_auto_takes() -> None:
    assert choose_backend("auto", GPU, 16).name == "triton"


def test_a_launch_does_not_wait_for_the_device(triton: AttentionBackend) -> None:
    prepared = prepare(PLAIN, GPU, torch.bfloat16)
    prepared.attend(triton)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        prepared.attend(triton)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_captured_launch_follows_the_lengths(triton: AttentionBackend) -> None:
    """Captured for contexts of 2000; replayed with what the tensors say then, rows of length 0 among them."""
    planned = prepare(replace(PLAIN, rows=((1999, 1),) * 4), GPU, torch.bfloat16)
    planned.attend(triton)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = planned.attend(triton)
    for lengths in ((2000, 1, 700, 16), (17, 0, 2000, 0), (0, 0, 0, 0)):
        planned.step.lengths.copy_(torch.tensor(lengths))
        graph.replay()
        for row, length in enumerate(lengths):
            if length:
                check(output[[row]], only(planned, row, length).attend(SdpaBackend()))
            else:
                assert output[row].eq(0).all()


def only(planned: Prepared, row: int, length: int) -> Prepared:
    step = replace(
        planned.step, table=planned.step.table[[row]], lengths=planned.step.lengths[[row]], num_decodes=1,
        contexts=(length,), num_new=(1,), query_starts=planned.step.query_starts[:2],
    )  # fmt: skip
    return replace(planned, query=planned.query[:, :, [row]], step=step)


@pytest.mark.parametrize("window", [None, 7, 1])
def test_flash_where_it_works(window: int | None) -> None:
    backend = working_backend("flash", GPU, 16)
    if isinstance(backend, str):
        pytest.skip(f"flash is refused here: {backend}")
    prepared = prepare(replace(PLAIN, window=window), GPU, torch.bfloat16)
    check(prepared.spoiled().attend(backend), prepared.attend(SdpaBackend()))
