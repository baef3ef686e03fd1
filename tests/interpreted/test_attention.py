"""The Triton kernels, interpreted, give what the reference backend gives."""

import logging
from dataclasses import replace

import pytest
import torch

from model_svc.model import triton_attention
from model_svc.model.attention import SdpaBackend
from model_svc.model.attention_choice import choose_backend
from model_svc.model.triton_attention import Processor, TritonBackend, split_count
from tests.fakes.attention_cases import Case, mixed_cases, prepare

CPU = torch.device("cpu")
SMALL = Processor.of(CPU)
MANY_CORES = Processor(64, SMALL.shared_memory_bytes)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
LONGEST = 200
CASES = mixed_cases(16, longest=LONGEST)


@pytest.fixture
def splitting(monkeypatch: pytest.MonkeyPatch) -> TritonBackend:
    """A backend that splits all contexts of two tiles or more."""
    monkeypatch.setattr(triton_attention, "LEAST_SPLIT_TOKENS", 1)
    assert split_count(8, LONGEST, 16, MANY_CORES.num_cores) == 8
    return TritonBackend(CPU, MANY_CORES)


def check(case: Case, dtype: torch.dtype, backend: TritonBackend) -> None:
    """Unused slots hold NaN for the backend under test, which must not see them; the reference is spared."""
    prepared = prepare(case, CPU, dtype)
    found, wanted = prepared.spoiled().attend(backend), prepared.attend(SdpaBackend())
    assert found.dtype == dtype
    torch.testing.assert_close(found, wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_mixed_steps(case: Case) -> None:
    check(case, torch.float32, TritonBackend(CPU))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_mixed_steps_with_the_context_split(case: Case, splitting: TritonBackend) -> None:
    check(case, torch.float32, splitting)


@pytest.mark.parametrize("case", CASES[::3], ids=str)
def test_bf16(case: Case, splitting: TritonBackend) -> None:
    check(case, torch.bfloat16, splitting if case.seed % 2 else TritonBackend(CPU))


def test_fp16() -> None:
    check(CASES[1], torch.float16, TritonBackend(CPU))


@pytest.mark.parametrize("context", [1, 2, 15, 16, 17, 31, 33])
def test_contexts_around_the_end_of_a_tile(context: int, splitting: TritonBackend) -> None:
    rows = ((context - 1, 1), (0, context)) if context > 1 else ((0, 1),)
    for backend in (TritonBackend(CPU), splitting):
        check(Case(rows, window=16 if context % 2 else None, sinks=True), torch.float32, backend)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("sinks", [False, True])
def test_a_planned_step_serves_shorter_contexts_and_rows_that_only_pad(
    sinks: bool, split: bool, splitting: TritonBackend
) -> None:
    """As a captured graph does: laid out for the longest contexts, run with what the device's tensors say."""
    backend = splitting if split else TritonBackend(CPU)
    planned = prepare(Case(((99, 1),) * 5, sinks=sinks), CPU, torch.float32)
    lengths = torch.tensor([37, 0, 100, 1, 0])
    found = replace(planned, step=replace(planned.step, lengths=lengths)).spoiled().attend(backend)
    assert found[[1, 4]].eq(0).all()
    exact = replace(planned.step, lengths=lengths, contexts=(37, 1, 100, 1, 1))
    for row in (0, 2, 3):
        alone = replace(
            exact, table=exact.table[[row]], lengths=lengths[[row]], num_decodes=1, contexts=(int(lengths[row]),),
            num_new=(1,), query_starts=torch.tensor([0, 1]),
        )  # fmt: skip
        wanted = replace(planned, query=planned.query[:, :, [row]], step=alone).attend(SdpaBackend())
        torch.testing.assert_close(found[[row]], wanted, rtol=1e-5, atol=1e-5)


def test_queries_may_lie_in_any_order_in_memory() -> None:
    prepared = prepare(CASES[7], CPU, torch.float32)
    wanted = prepared.attend(SdpaBackend())
    for query in (prepared.query.contiguous(), prepared.query.transpose(2, 3).contiguous().transpose(2, 3)):
        found = replace(prepared, query=query).attend(TritonBackend(CPU))
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_it_is_chosen_on_a_cpu_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert choose_backend("triton", CPU, 16).name == "triton"
    assert [(record.levelno, "for checking" in record.message) for record in caplog.records] == [
        (logging.WARNING, True)
    ]
    assert choose_backend("auto", CPU, 16, without_kernels="not built").name == "sdpa"
