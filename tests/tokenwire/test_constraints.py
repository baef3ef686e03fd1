"""How large the parts of a constraint may be."""

from dataclasses import replace

import pytest

from tokenwire.constraints import MAX_CALL_TEXT_BYTES, CallForm, Calls, Constraint, ConstraintForm

FORM = CallForm("<call>", '{"type": "object"}', "</call>", "tools[0]")


@pytest.mark.parametrize("name", ["before", "after", "field"])
def test_the_texts_of_a_call_are_bounded(name: str) -> None:
    longest = Calls((FORM, replace(FORM, **{name: "é" * (MAX_CALL_TEXT_BYTES // 2)})))
    assert Constraint(ConstraintForm.CALLS, calls=longest).violations() == []
    longer = Calls((FORM, replace(FORM, **{name: "é" * (MAX_CALL_TEXT_BYTES // 2) + "x"})))
    (violation,) = Constraint(ConstraintForm.CALLS, calls=longer).violations()
    assert violation.field.startswith("constraint.calls.forms[1]") and str(MAX_CALL_TEXT_BYTES) in violation.description


def test_the_separator_of_calls_is_bounded() -> None:
    assert Calls((FORM,), separator="x" * MAX_CALL_TEXT_BYTES).violations("calls") == []
    assert Calls((FORM,), separator="x" * (MAX_CALL_TEXT_BYTES + 1)).violations("calls")
