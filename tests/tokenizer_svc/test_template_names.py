"""What a template names by a text that it makes: filters, tests, attributes and keys."""

import pytest

from tests.tokenizer_svc.test_template_weights import refusal
from tokenizer_svc.template_budget import Budget
from tokenizer_svc.template_rewriting import COUNTING_FILTERS

LIMIT = 100_000
ARGUMENTS = {
    "charged ": ", -1000000000000",
    "compared ": ", 'eq', ''",
    "counted ": ", 1",
    "joined ": "",
    "key ": "",
    "sliced ": ", 1",
}


@pytest.mark.parametrize("name", COUNTING_FILTERS)
def test_the_filters_that_count_are_reached_by_no_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    says = refusal(f"{{{{ ['']|map('{name}'{ARGUMENTS[name]})|list }}}}", monkeypatch)
    assert "no filter or test of that name" in says


@pytest.mark.parametrize(
    "source",
    [
        "{{ [1]|map('nothing')|list }}",
        "{{ [1]|map(('upper',))|list }}",
        "{{ [1]|select('nothing')|list }}",
        "{{ [1]|reject(('none',))|list }}",
        "{{ [{'a': 1}]|selectattr('a', 'nothing')|list }}",
        "{{ [1]|map('\U000e0001' * 90000)|list }}",
    ],
)
def test_a_filter_or_test_that_is_not_there_is_refused(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no filter or test of that name" in refusal(source, monkeypatch)


def test_nothing_gives_a_budget_back() -> None:
    budget = Budget(seconds=1, num_chars=100)
    with pytest.raises(ValueError, match="-1"):
        budget.take(-1)
