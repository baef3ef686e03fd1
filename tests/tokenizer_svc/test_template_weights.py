"""What a template's operations cost, told before they are done: here the clock stands still, and only counts decide."""

import re
from types import SimpleNamespace
from typing import Any

import pytest

from tokenizer_svc import template_budget
from tokenizer_svc.chat_template import ChatMessage, ChatTemplate, Conversation
from tokenizer_svc.json_size import text_size
from tokenizer_svc.template_weights import BLANKS, LINE_ENDS
from tokenwire.errors import FailedPrecondition, InvalidRequest

USER = Conversation((ChatMessage("user", "hello"),))
LIMIT_CHARS = 100_000
LONG = "{% set a = 'x' * 9999 + 'a' %}{% set b = 'x' * 9999 + 'b' %}"
SAME = (
    "{% set ns = namespace(a=[1], b=[1]) %}"
    "{% for i in range(18) %}{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}"
)
TUPLES = "{% set ns = namespace(t=(1,)) %}{% for i in range(18) %}{% set ns.t = (ns.t, ns.t) %}{% endfor %}"
MANY = "{% set many = range(3000)|list %}"
SLOW = {
    "rfind": "{{ ('a' * 20000).rfind('ab' + 'a' * 10000) }}",
    "rpartition": "{{ ('a' * 20000).rpartition('ab' + 'a' * 10000)|length }}",
    "rsplit": "{{ ('a' * 20000).rsplit('ab' + 'a' * 10000)|length }}",
    "strip": "{{ ('a' * 20000).strip('b' * 10000 + 'a') }}",
    "trim": "{{ ('a' * 20000)|trim('b' * 10000 + 'a') }}",
    "max": LONG + "{{ ([a, b] * 500)|max|length }}",
    "min, by case": LONG + "{{ ([a, b] * 500)|min(true)|length }}",
    "sort": LONG + "{{ ([a, b] * 100)|sort|length }}",
    "sort by an attribute": LONG + "{{ ([{'k': a}, {'k': b}] * 100)|sort(attribute='k')|length }}",
    "sort by a namespace's": LONG + "{{ ([namespace(k=a)] * 200)|sort(false, false, 'k')|length }}",
    "join by a namespace's": LONG + "{{ ([namespace(k=a)] * 200)|join(attribute='k')|length }}",
    "unique": LONG + "{{ ([a, b] * 500)|unique|list|length }}",
    "dictsort by value": "{{ {'a': [1], 'b': [2]}|dictsort(false, 'value')|length }}",
    "equality of lists": LONG + "{{ [a] * 1000 == [a[1:] + 'a'] * 1000 }}",
    "equality of lists in lists": SAME + "{{ ns.a == ns.b }}",
    "equality in a chain": SAME + "{{ ns.a == ns.b == 1 }}",
    "equality as a test": SAME + "{{ ns.a is eq ns.b }}",
    "in a list": LONG + "{{ b in [a] * 1000 }}",
    "in a list, as a test": LONG + "{{ b is in ([a] * 1000) }}",
    "in a list, as often as there are values": MANY + "{{ many|reject('in', many[::-1])|first|default('z') }}",
    "selected by an attribute": (
        LONG + "{{ ([{'k': a}] * 5000)|selectattr('k', 'equalto', b)|first|default('z') }}"
    ),
    "in what is turned round": LONG + "{{ b in ([a] * 1000)|reverse }}",
    "in what is turned round, as a test": LONG + "{{ b is in(([a] * 1000)|reverse) }}",
    "in items": LONG + "{% set d = {'k': [a] * 1000} %}{{ b not in d|items }}",
    "in what is mapped": LONG + "{{ b in ([a] * 1000)|map('string') }}",
    "index": LONG + "{{ ([a] * 1000 + [b]).index(b) }}",
    "count": LONG + "{{ ([a] * 1000 + [b]).count(b) }}",
    "order of lists": "{{ [1] < [2] }}",
    "order of tuples of lists": "{{ [(1, [1]), (1, [2])]|sort }}",
    "order of long tuples": LONG + "{{ ([(1, a), (1, b)] * 100)|sort|length }}",
    "order of lists by sort": "{{ [[1], [2]]|sort }}",
    "a key that is nested": TUPLES + "{{ {}[ns.t] }}",
    "a key of a dictionary": TUPLES + "{% set d = {ns.t: 1} %}",
    "a key of dict()": TUPLES + "{% set d = dict([(ns.t, 1)]) %}",
    "get": TUPLES + "{{ {}.get(ns.t) }}",
    "in a dictionary": TUPLES + "{{ ns.t in {} }}",
    "in its keys": TUPLES + "{{ ns.t in {}.keys() }}",
    "keys that meet": "{% set d = {2 ** 61 - 1: 1} %}",
    "a text of a view": SAME + "{{ {'k': ns.a}.items() }}",
    "an error's text": SAME + "{{ raise_exception(ns.a) }}",
    "words": "{{ ('a ' * 60000)|title|length }}",
    "blanks": "{{ ('\u2003x' * 90000).split()|length }}",
    "lines": "{{ ('\x85' * 3000)|indent(900)|length }}",
    "brackets in depth": (
        "{% set ns = namespace(l=[0] * 100) %}{% for i in range(99) %}{% set ns.l = [ns.l] %}{% endfor %}"
        "{{ ns.l|tojson(indent=900)|length }}"
    ),
    "separators": "{{ ([0] * 9999)|tojson(separators=(',' * 999, ':'))|length }}",
    "escapes in JSON": "{{ ('\x01' * 90000 * 3)|tojson|length }}",
    "escapes in ASCII": "{{ ('\U0001f600' * 130000)|tojson(ensure_ascii=true)|length }}",
    "quotes in a list": "{{ (['\U000e0001' * 90000] * 2) ~ '' }}",
    "quotes in a format": "{{ ('%r' % ('\U000e0001' * 180000))|length }}",
    "a part of a value": LONG + "{{ '{0.k}{0.k}'.format(namespace(k=a)) }}",
    "safe text that takes in": (
        "{% set a = '<' * 99999 %}{% for i in range(3) %}{% set b = ('%s'|safe) % a %}{% endfor %}"
    ),
    "safe text that is added to": (
        "{% set a = '<' * 99999 %}{% for i in range(3) %}{% set b = '>'|safe + a %}{% endfor %}"
    ),
    "safe text that joins lists": "{{ (''|safe).join([['\U000e0001' * 180000]])|length }}",
    "replacing, by name": "{{ ('x' * 9999)|replace(new='y' * 9999, old='x')|length }}",
    "replacing, half by name": "{{ ('x' * 9999)|replace('x', count=-1, new='y' * 9999)|length }}",
    "escapes": "{% set a = '<' * 99999 %}{% for i in range(3) %}{% set b = a|e %}{% endfor %}",
    "long numbers as JSON": "{% set n = 15 ** 1000 %}{{ ([n] * 1000)|tojson|length }}",
    "long numbers as text": "{% set n = 15 ** 1000 %}{{ ([n] * 1000)|string|length }}",
    "lists that are written out": "{% for i in range(999) %}{% set l = [" + "{}," * 99 + "] %}{% endfor %}",
    "lists in the test of a loop": "{% for i in range(999) if [" + "[]," * 99 + "] is none %}{% endfor %}",
    "tuples that a macro writes out": (
        "{% macro m() %}{% set l = (" + "{'k': []}," * 99 + ") %}{% endmacro %}"
        "{% for i in range(999) %}{% set t = m() %}{% endfor %}"
    ),
    "lists that a macro is given by itself": (
        "{% macro m(l=[" + "[]," * 99 + "]) %}{% endmacro %}{% for i in range(999) %}{% set t = m() %}{% endfor %}"
    ),
    "lists that a caller writes out": (
        "{% macro m() %}{% for i in range(999) %}{% set t = caller() %}{% endfor %}{% endmacro %}"
        "{% call m() %}{% set l = [" + "[]," * 99 + "] %}{% endcall %}"
    ),
    "lists that a block writes out": (
        "{% block b %}{% set l = [" + "[]," * 99 + "] %}{% endblock %}"
        "{% for i in range(999) %}{% set t = self.b() %}{% endfor %}"
    ),
    "passes that are left out": (
        MANY + "{% for i in [many] * 600 if (i is sequence) recursive %}{% set t = loop(i) %}{% endfor %}"
    ),
    "a loop over its own": (
        "{% for i in [1] recursive %}" + "x" * 1000 + "{% set t = loop(range(9000)) if loop.depth0 == 0 %}{% endfor %}"
    ),
}  # fmt: skip
LONG_NUMBERS = {
    "int": "{{ ('f' * 2000)|int(0, 16) is number }}",
    "times": "{% set a = ('f' * 1000)|int(0, 16) %}{{ (a * a) is number }}",
    "power": "{{ (2 ** 5000) is number }}",
    "plus": "{% set ns = namespace(n=2 ** 4094) %}{% for i in range(9) %}{% set ns.n = ns.n + ns.n %}{% endfor %}",
    "minus": "{% set ns = namespace(n=2 ** 4094) %}{% for i in range(9) %}{% set ns.n = ns.n - -ns.n %}{% endfor %}",
    "sum": "{{ ([2 ** 4094] * 10)|sum is number }}",
}
NOT_THERE = {
    "to_bytes": "{{ (2).to_bytes(40, 'big') }}",
    "from_bytes": "{{ (2).from_bytes('a') }}",
    "bit_count": "{{ (2).bit_count() }}",
    "hex": "{{ 1.5.hex() }}",
    "encode": "{{ 'x'.encode() }}",
    "translate": "{{ 'x'.translate({120: 'y'}) }}",
    "center": "{{ 'x'.center(9) }}",
    "fromkeys": "{{ {}.fromkeys([1]) }}",
    "striptags": "{{ ('x'|safe).striptags() }}",
    "copy": "{{ [].copy() }}",
    "arguments": "{% macro m() %}{% endmacro %}{{ m.arguments.x }}",
    "changed": "{% for i in [1] %}{{ loop.changed(i) }}{% endfor %}",
}


def refusal(source: str, monkeypatch: pytest.MonkeyPatch, *, step_s: float = 0.0, **options: Any) -> str:
    """What a rendering is refused with, by a clock that goes `step_s` further each time it is looked at."""
    now = iter(range(10**9))
    monkeypatch.setattr(template_budget, "time", SimpleNamespace(monotonic=lambda: next(now) * step_s))
    template = ChatTemplate(source, special_tokens={}, **{"max_output_chars": LIMIT_CHARS, **options})
    with pytest.raises(InvalidRequest) as caught:
        template.render(USER)
    return str(caught.value)


@pytest.mark.parametrize("name", SLOW)
def test_what_takes_long_is_refused_before_it_is_done(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "the chat template" in (says := refusal(SLOW[name], monkeypatch)) and "cannot render" not in says, says


@pytest.mark.parametrize("name", LONG_NUMBERS)
def test_no_number_grows_long(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "integer of more than 4096 bits" in refusal(LONG_NUMBERS[name], monkeypatch)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ([1], 1) in {'a': 1}.items() }}",
        "{{ ([1], 1) is in {'a': 1}.items() }}",
        "{{ {'a': [1]}.items() == {'a': 1}.keys() }}",
        "{{ [{'a': [1]}.items()] == [{'a': 1}.keys()] }}",
        "{{ {'a': 1}.keys() in [{'a': [1]}.items()] }}",
    ],
)
def test_items_are_compared_and_never_hashed(source: str) -> None:
    """The hash of tuples that are deep in one another ends the process; that of a list would be an error here."""
    assert ChatTemplate(source, special_tokens={}).render(USER) == "False"


def test_safe_text_replaces_by_texts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "TypeError" in refusal("{{ (('x' * 9999)|safe).replace('x', ['y' * 9999])|length }}", monkeypatch)


def test_a_method_is_weighed_by_its_own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jinja gives each call a loop's variables too."""
    monkeypatch.setattr(template_budget, "time", SimpleNamespace(monotonic=lambda: 0.0))
    source = "{% for i in range(40) %}{% set text = 'x' * 50000 %}{% set s = text[:9].strip('y') %}{% endfor %}"
    assert ChatTemplate(source, special_tokens={}, max_output_chars=150_000).render(USER) == ""


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ 0x" + "f" * 2000 + " }}", "integer of more than 4096 bits"),
        ("{% macro m() %}{% endmacro %}{{ m(*'ab') }}", "no `*` and no `**`"),
        ("{{ range(*messages) }}", "no `*`"),
        ("{% set d = {'a': 1} %}{{ dict(**d) }}", "no `*`"),
        ("{{ dict(**messages[0]) }}", "no `*`"),
        ("{% macro m() %}{% endmacro %}{% call m(*'ab') %}{% endcall %}", "no `*`"),
        ("{{ [1]|sort(*messages) }}", "no `*`"),
        ("{{ [1]|sort(**messages[0]) }}", "no `*`"),
        ("{% filter indent(*messages) %}{% endfilter %}", "no `*`"),
        ("{{ 1 is divisibleby(*messages) }}", "no `*`"),
        ("{% for i in [*[1]] %}{% endfor %}", "unexpected"),
        ("{% autoescape true %}{{ '<' }}{% endautoescape %}", "no autoescape"),
    ],
)
def test_what_cannot_be_weighed_later_does_not_compile(source: str, says: str) -> None:
    with pytest.raises(FailedPrecondition, match=re.escape(says)):
        ChatTemplate(source, special_tokens={})


@pytest.mark.parametrize("source", [TUPLES + "{{ {}.keys() - [ns.t] }}", "{{ [1] ** 2 }}", "{{ {}.items() - [1] }}"])
def test_arithmetic_is_for_numbers(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is for numbers" in refusal(source, monkeypatch)


@pytest.mark.parametrize("name", NOT_THERE)
def test_methods_that_are_not_listed_are_not_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "unsafe" in refusal(NOT_THERE[name], monkeypatch)


@pytest.mark.parametrize(
    "name", ["batch(2)", "center", "groupby('a')", "pprint", "random", "slice(2)", "urlize", "wordwrap", "xmlattr"]
)
def test_filters_that_are_not_listed_are_not_there(name: str) -> None:
    with pytest.raises(FailedPrecondition, match="No filter named"):
        ChatTemplate("{{ x|" + name + " }}", special_tokens={})


@pytest.mark.parametrize("source", ["{{ '%9d' is odd }}", "{{ '%9d' is even }}", "{{ '%9d' is divisibleby 3 }}"])
def test_a_test_of_numbers_formats_no_text(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "TypeError" in refusal(source, monkeypatch)


@pytest.mark.parametrize("use", ["{{ ns.a }}", "{{ ns.a == ns.b }}", "{{ ns.a|tojson }}", "{{ 'x' in ns.a }}"])
def test_to_weigh_a_value_is_timed_too(use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    says = refusal(SAME + use, monkeypatch, step_s=0.001, max_output_chars=2**40, max_render_s=2.0)
    assert "longer than 2 s" in says


def test_what_yields_nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    source = MANY + "{{ many|reject('defined')|first|default('z') }}{{ many|select('none')|first|default('z') }}"
    assert "longer than 5 s" in refusal(source, monkeypatch, step_s=0.001, max_render_s=5.0)


def test_the_characters_that_part_words_and_lines_are_those_of_python() -> None:
    every = "".join(map(chr, range(0x110000)))
    assert sorted(BLANKS) == sorted(set(every) - set("".join(every.split())))
    assert sorted(LINE_ENDS) == sorted(set(every) - set("".join(every.splitlines())))


def test_no_character_grows_more_in_another_case_than_is_counted() -> None:
    every = map(chr, range(0x110000))
    assert max(max(len(char.upper()), len(char.lower()), len(char.title())) for char in every) == 3


def test_views_of_a_dictionary_have_the_size_of_what_is_in_them() -> None:
    value = {"ab": "x" * 50}
    assert text_size(value.keys(), 1000) == 2 + 1 + 2
    assert text_size(value.values(), 1000) == 2 + 1 + 50
    assert text_size(value.items(), 1000) == 2 + 1 + 2 + 2 + 2 + 50
