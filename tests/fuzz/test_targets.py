"""The corpus holds no input that breaks anything, and what the fuzzer runs is able to tell."""

import asyncio
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.__main__ import broken, fuzz, num_runs
from tests.fuzz.seeds import seeds
from tests.fuzz.served import Served
from tests.fuzz.targets import CORPUS, SEPARATOR, TARGETS
from tokenwire.v1 import common_pb2, tokenizer_pb2


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_in_the_corpus_breaks_anything(target: str) -> None:
    paths = sorted((CORPUS / target).iterdir())
    assert paths
    with TARGETS[target]() as take:
        take(b"")
        for path in paths:
            data = path.read_bytes()
            take(data)
            take(data[: len(data) // 2])


def test_the_seeds_are_those_that_are_made() -> None:
    for target, inputs in seeds().items():
        for number, parts in enumerate(inputs):
            assert (CORPUS / target / f"seed-{number}").read_bytes() == SEPARATOR.join(parts), (
                "run python -m tests.fuzz.seeds"
            )


FRAME = tokenizer_pb2.SessionResponse
END = common_pb2.Finish(handle=1)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([FRAME(finishes=[END]), FRAME(finishes=[END])], "a second end"),
        ([FRAME(finishes=[END]), FRAME(handles=[1], texts=["a"], num_tokens=[1])], "rows after the end"),
    ],
)
def test_a_session_that_breaks_its_promise_is_told(frames: list[Any], message: str) -> None:
    async def servicer(up: AsyncIterator[Any], context: Any) -> None:
        for frame in frames:
            await context.write(frame)

    with pytest.raises(AssertionError, match=message):
        asyncio.run(Served([]).by(servicer))


@pytest.mark.extended
@pytest.mark.parametrize("target", TARGETS)
def test_a_few_seconds_find_nothing(target: str, tmp_path: Path) -> None:
    if find_spec("atheris") is None:
        pytest.skip("atheris is not installed: make fuzz installs it")
    new = fuzz(target, 4, tmp_path, seed=1)
    log = tmp_path / target / "log"
    assert not new, log.read_text(errors="replace")[-4000:]
    assert num_runs(log) >= len(list((CORPUS / target).iterdir())) and not broken(tmp_path / target)
