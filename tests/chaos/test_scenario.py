"""When a stack is said to serve again."""

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.chaos import scenario
from tests.chaos.scenario import BEGIN, END, Fault, Record, Row, serves_again


class Probes:
    """Gives these answers, each after a second on a clock of its own; it has settled while one of them is asked for."""

    def __init__(self, answers: tuple[bool, ...], settles_within: int) -> None:
        self.now_s = 0.0
        self.settled = asyncio.Event()
        self.num_asked = 0
        self._answers, self._settles_within = answers, settles_within

    async def ask(self) -> bool:
        self.num_asked += 1
        self.now_s += 1
        if self.num_asked == self._settles_within:
            self.settled.set()
        return self._answers[self.num_asked - 1]


def run(probes: Probes, monkeypatch: pytest.MonkeyPatch, within_s: float) -> float:
    monkeypatch.setattr(scenario, "BETWEEN_PROBES_S", 0.0)
    monkeypatch.setattr(scenario, "time", SimpleNamespace(monotonic=lambda: probes.now_s))
    return asyncio.run(serves_again(probes.ask, probes.settled, within_s))


@pytest.mark.parametrize(
    ("answers", "settles_within", "took_s"),
    [
        ((True, True), 1, 1),
        ((True, True, True, True), 3, 1),
        ((True, False, True, True), 3, 3),
        ((False, False, False, True), 1, 4),
        ((True, True, False, True), 1, 1),
    ],
)
def test_what_counts_is_the_first_answer_after_which_none_is_missing(
    answers: tuple[bool, ...], settles_within: int, took_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes = Probes(answers, settles_within)
    assert run(probes, monkeypatch, within_s=60) == took_s
    assert probes.num_asked > settles_within, "one was asked after it had settled"


def test_a_stack_that_does_not_serve_in_time_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = Probes((False,) * 20, settles_within=10)
    with pytest.raises(AssertionError, match="within 5 s"):
        run(probes, monkeypatch, within_s=5)
    assert probes.num_asked == 15, "the limit counts from when it had settled"


def test_a_row_says_what_was_expected_and_replaces_its_own_in_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}{END}after\n")
    lost = Fault("a tier is lost", lambda stack: None, serves_meanwhile=False, allowed=frozenset({"LOST", "CUT"}))
    Record([Row("a disk is full", "it is said", "it was", None), Row(lost.name, lost.expected, "1 ok", 2.04)]).into(
        page
    )
    Record([Row(lost.name, lost.expected, "2 ok", 1.0)]).into(page)
    assert page.read_text().startswith("before\n") and page.read_text().endswith("after\n")
    assert [line for line in page.read_text().splitlines() if line.startswith("| a ")] == [
        "| a disk is full | it is said | it was | — |",
        "| a tier is lost | in full, or CUT, LOST; new ones afterwards, within 30 s | 2 ok | 1.0 s |",
    ]
