"""What a template names by a text that it makes: filters, tests, attributes and keys."""

import pytest

from tests.tokenizer_svc.test_template_weights import refusal
from tokenizer_svc.chat_template import ChatMessage, ChatTemplate, Conversation
from tokenizer_svc.template_budget import Budget
from tokenizer_svc.template_rewriting import COUNTING_FILTERS

ARGUMENTS = {
    "charged ": ", -1000000000000",
    "compared ": ", 'eq', ''",
    "counted ": ", 1",
    "joined ": "",
    "key ": "",
    "name ": "",
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


PATH = "'a.' * 60"
PATHS = {
    "map": f"map(attribute={PATH}, default=0)",
    "sort": f"sort(attribute={PATH})",
    "sort by place": f"sort(false, false, {PATH})",
    "unique": f"unique(attribute={PATH})",
    "unique by place": f"unique(false, {PATH})",
    "min": f"min(attribute={PATH})",
    "max": f"max(false, {PATH})",
    "sum": f"sum({PATH})",
    "sum by name": f"sum(attribute={PATH})",
    "join": f"join('', {PATH})",
    "join by name": f"join(attribute={PATH})",
    "selectattr": f"selectattr({PATH})",
    "rejectattr": f"rejectattr({PATH})",
    "attr": f"attr({PATH})",
    "attr by name": f"attr(name={PATH})",
}


@pytest.mark.parametrize("name", PATHS)
def test_an_attribute_has_a_short_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    says = refusal(f"{{{{ [{{}}]|{PATHS[name]}|list }}}}", monkeypatch)
    assert "names an attribute by 120 characters: at most 100" in says


@pytest.mark.parametrize("source", ["{{ []|attr((1, 2)) }}", "{{ [1]|map(attribute=(1, 2))|list }}"])
def test_an_attribute_is_named_by_a_text_or_number(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "names an attribute by what is no text and no number" in refusal(source, monkeypatch)


@pytest.mark.parametrize(
    "source",
    [
        "{{ {}['\U000e0001' * 90000].x }}",
        "{{ [{}]|map(attribute='x')|map('attr', 'y' * 99)|first }}",
        "{{ raise_exception('x' * 90000) }}",
        "{{ raise_exception(['\U000e0001' * 9000]) }}",
        "{% macro m() %}{% endmacro %}{{ m(**{'\U000e0001' * 90000: 1}) }}",
        "{{ dict(**{'\U000e0001' * 90000: 1}) }}",
        "{% set ns = namespace({'_' + 'x' * 90000: 1}) %}",
        "{{ ('%(' + 'x' * 9000 + ')d') % {} }}",
    ],
)
def test_an_error_says_no_more_than_can_be_read(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(refusal(source, monkeypatch)) < 5000


def test_a_long_key_is_found_where_it_is() -> None:
    source = "{% set k = 'x' * 9000 %}{% set d = {k: 1} %}{{ d[k] }}{{ d[k + 'x'] is defined }}{{ d.get(k) }}"
    conversation = Conversation((ChatMessage("user", "hello"),))
    assert ChatTemplate(source, special_tokens={}).render(conversation) == "1False1"


def test_nothing_gives_a_budget_back() -> None:
    budget = Budget(seconds=1, num_chars=100)
    with pytest.raises(ValueError, match="-1"):
        budget.take(-1)
