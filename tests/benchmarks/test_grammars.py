"""The grammar benchmark: what it measures of a library, and its tables."""

from pathlib import Path

from benchmarks import grammars
from benchmarks.grammars import SUITE, case_table, library_table, measure_step, steps_table
from benchmarks.grammars_program import measure
from tests.fakes.constrained import NUM_UNUSED, tokenizer_of, write_text_model


def test_a_librarys_figures_and_the_tables_of_them(tmp_path: Path) -> None:
    folder = write_text_model(tmp_path / "model")
    vocab_size = tokenizer_of(folder).get_vocab_size() + NUM_UNUSED
    found = measure("llguidance", folder, vocab_size, SUITE)
    assert found["suite"]["invalid_accepted"] == 0 and found["suite"]["compiled"] > 100
    assert found["cases"]["any object"]["compile_ms"] > 0
    step = measure_step(folder, vocab_size, 3)
    assert step["fill_ms"] > 0 and step["apply_ms"] > 0
    record = {"libraries": {"llguidance": found}, "steps": {"3": step}, "vocab_size": vocab_size}
    assert "| llguidance |" in library_table(record) and "| JSON as EBNF" in case_table(record)
    assert "| 3 rows |" in steps_table(record)
    assert grammars.installed("llguidance") and not grammars.installed("no_such_library")
