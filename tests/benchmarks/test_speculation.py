"""The speculation benchmark: what it says of pairs, and that its program serves both engines the same."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.speculation import case_table, interval
from benchmarks.speculation_program import GREEDY, Case, pairs_of
from benchmarks.speculation_texts import CODE, EDITS, paragraphs
from model_svc.settings import EngineSettings
from tests.fakes.tiny_models import write_model
from tests.fakes.tiny_runner import tiny_runner_of

WANTED = {
    "speculation": "ngram", "length": 4, "adaptive": False, "cpu_time": True, "pairs": 2, "requests": 3, "tokens": 30,
}  # fmt: skip


def test_the_interval_holds_the_mean_and_shrinks_with_the_spread() -> None:
    mean, low, high = interval([2.0, 0.5, 1.0, 4.0, 0.25])
    assert mean == pytest.approx(1.0) and low < 0.6 and high > 1.6
    assert interval([1.5] * 10) == pytest.approx((1.5, 1.5, 1.5))


def test_the_table_gives_ratios_pair_by_pair() -> None:
    case = {
        "case": "copying", "batch": 1, "tokens_per_s": {"off": [10.0, 20.0], "on": [20.0, 40.0]}, "requests": 4,
        "differing": 0, "drafted": 9, "accepted": 6,
    }  # fmt: skip
    row = case_table([case]).splitlines()[-1]
    assert "2.00" in row and "2.00–2.00" in row and "6/9" in row and "0/4" in row


def test_both_engines_make_the_same_tokens(tmp_path: Path) -> None:
    folder = str(write_model(tmp_path / "llama", "llama"))
    case = Case("repeating", 2, lambda number: [number % 90, 5, 6, 7, 5, 6], replace(GREEDY, temperature=0.0))
    found = pairs_of(tiny_runner_of(folder), EngineSettings(model=folder), case, WANTED)
    assert found["differing"] == 0 and found["requests"] == 6 and found["drafted"] > 0
    assert len(found["tokens_per_s"]["on"]) == 2 and min(found["tokens_per_s"]["on"]) > 0


def test_there_is_enough_to_copy_and_to_edit() -> None:
    assert len(paragraphs()) >= 30 and len(set(paragraphs())) == len(paragraphs())
    assert len(CODE) * len(EDITS) >= 12
