"""What a template may do with time and memory. Every attack here ran away, or could have, before it was counted."""

import tracemalloc
from typing import Any

import pytest

from tokenizer_svc.chat_template import ChatMessage, ChatTemplate, Conversation
from tokenizer_svc.json_size import text_size
from tokenwire.errors import InvalidRequest

USER = Conversation((ChatMessage("user", "hello"),))
LIMIT_CHARS = 100_000
LIMIT_S = 0.2


def template_of(source: str, **options: Any) -> ChatTemplate:
    limits: dict[str, Any] = {"max_output_chars": LIMIT_CHARS, "max_render_s": LIMIT_S, **options}
    return ChatTemplate(source, special_tokens={}, **limits)


NESTED = "{% set ns = namespace(a=[1]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}"
ENDLESS = {
    "loops in loops that write nothing": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = b %}{% endfor %}{% endfor %}"
    ),
    "a macro that calls itself twice": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}"
    ),
    "a loop that filters": "{% for a in range(99999) if range(99999)|sum == a %}{% endfor %}",
    "a loop over a loop's own steps": (
        "{% for a in range(9999) recursive %}{{ loop(range(9999)) if loop.depth < 9 }}{% endfor %}"
    ),
    "a filter that walks": "{% for a in range(99999) %}{% set b = range(99999)|map('string')|list %}{% endfor %}",
}  # fmt: skip
HUGE = {
    "a text times a number": "{{ 'x' * 10**10 }}",
    "a list times a number": "{{ [0] * 10**10 }}",
    "a number times a text": "{{ (10**10) * 'x' }}",
    "doubling by plus": "{% set ns = namespace(s='x') %}"
    "{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "doubling by tilde": "{% set ns = namespace(s='x') %}"
    "{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "doubling by join": (
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s]|join %}{% endfor %}"
    ),
    "doubling by a method": (
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s.join(['', ns.s, '']) %}{% endfor %}"
    ),
    "doubling by format": (
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = '%s%s' % (ns.s, ns.s) %}{% endfor %}"
    ),
    "doubling by str.format": (
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = '{0}{0}'.format(ns.s) %}{% endfor %}"
    ),
    "doubling by set": (
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}"
        "{% set b %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = b %}{% endfor %}"
    ),
    "doubling by a macro": (
        "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}"
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = f(ns.s) %}{% endfor %}"
    ),
    "lists in lists": (
        "{% set ns = namespace(a=[1]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a }}"
    ),
    "lists in lists as JSON": (
        "{% set ns = namespace(a=[1]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}"
        "{{ ns.a|tojson }}"
    ),
    "lists in lists joined": (
        "{% set ns = namespace(a=[1]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}"
        "{{ ns.a ~ '' }}"
    ),
    "pieces": (
        "{% set s = "
        "'x ' * 40000 %}{% set ns = namespace(l=[]) %}"
        "{% for i in range(99999) %}{% set ns.l = ns.l + [s.split()] %}{% endfor %}"
    ),
    "lists in lists by indent": (
        NESTED + "{{ ns.a|indent(2) }}"
    ),
    "lists in lists by replace": (
        NESTED + "{{ ns.a|replace('x', 'y') }}"
    ),
    "lists in lists by replacing it": (
        NESTED + "{{ 'x'|replace(ns.a, 'y') }}"
    ),
    "lists in lists by safe": (
        NESTED + "{{ ns.a|safe }}"
    ),
    "lists in lists by format": (
        NESTED + "{{ '%s'|format(ns.a) }}"
    ),
    "lists in lists by str.format": (
        NESTED + "{{ '{}'.format(ns.a) }}"
    ),
    "lists in lists by upper": (
        NESTED + "{{ ns.a|upper }}"
    ),
    "replacing nothing": "{{ ('x' * 9999).replace('', 'x' * 9999) }}",
    "the same as a filter": "{{ ('x' * 9999)|replace('', 'x' * 9999) }}",
    "center": "{{ 'x'.center(10**10) }}",
    "ljust": "{{ 'x'.ljust(10**10) }}",
    "zfill": "{{ 'x'.zfill(10**10) }}",
    "tabs": "{{ ('\t' * 9999).expandtabs(10**6) }}",
    "indent": "{{ 'x\nx'|indent(10**10) }}",
    "an indent that is a text": "{{ ('x\n' * 999)|indent('x' * 99999) }}",
    "indented JSON": "{{ [[1]]|tojson(indent=10**9) }}",
    "a width in a format": "{{ '%10000000000d' % 1 }}",
    "a width beside a format": "{{ '%*d' % (10**10, 1) }}",
    "a width behind a name": "{{ '%(w)10000000000d' % {'w': 1} }}",
    "a width in a format filter": "{{ '%10000000000d'|format(1) }}",
    "a width in braces": "{{ '{:10000000000}'.format(1) }}",
    "a width in braces in braces": "{{ '{:{w}}'.format(1, w=10**10) }}",
    "a width in a time": "{{ strftime_now('%9999999999Y') }}",
    "a power": "{{ 10 ** (10 ** 8) }}",
    "a power of a power": "{% set ns = namespace(n=3) %}"
    "{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "decimals": "{{ 1.5|round(10**9, 'ceil') }}",
    "copies": (
        "{% set s = 'x' * 90000 %}{% set ns = namespace(l=[]) %}"
        "{% for i in range(99999) %}{% set ns.l = ns.l + [s[1:]] %}{% endfor %}"
    ),
    "a macro's own text": "{% macro f() %}"
    + "x" * 1000 + "{% endmacro %}{% for i in range(99999) %}{{ f() }}{% endfor %}",
    "a text in a loop in a set": "{% set b %}"
    "{% for i in range(99999) %}" + "x" * 1000 + "{% endfor %}{% endset %}{{ b }}",
    "sums of lists": "{{ ([[0] * 1000] * 1000)|sum(start=[]) }}",
}  # fmt: skip


def refusal(source: str) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        template_of(source).render(USER)
    assert caught.value.violations[0].field == "conversation.messages"
    return caught.value


@pytest.mark.parametrize("name", ENDLESS)
def test_no_template_runs_for_ever(name: str) -> None:
    says = str(refusal(ENDLESS[name]))
    assert f"longer than {LIMIT_S:g} s" in says or "makes more than" in says


@pytest.mark.parametrize("name", HUGE)
def test_no_template_makes_more_than_it_may(name: str) -> None:
    tracemalloc.start()
    try:
        refusal(HUGE[name])
        assert tracemalloc.get_traced_memory()[1] < 100 * LIMIT_CHARS
    finally:
        tracemalloc.stop()


def test_no_text_is_made_up() -> None:
    assert "'lipsum' is undefined" in str(refusal("{{ lipsum(n=1) }}"))


def test_many_messages_are_bounded_by_time_too() -> None:
    """What a client can do to a template that compares every message with every other."""
    source = (
        "{% for a in messages %}{% for b in messages %}{% set same = a.content == b.content %}{% endfor %}{% endfor %}"
    )
    many = Conversation(tuple(ChatMessage("user", "x") for _ in range(20_000)))
    with pytest.raises(InvalidRequest, match="longer than"):
        template_of(source).render(many)


def test_ordinary_work_is_not_in_the_way() -> None:
    """A long conversation with the usual operations stays far below the bounds."""
    source = (
        "{% set ns = namespace(seen='', roles=[]) %}{% for m in messages %}{% set ns.roles = ns.roles + [m.role] %}"
        "{{ '<' + m.role + '>' ~ m.content|trim ~ ('%s' % m.content[:3]) ~ '{}'.format(loop.index) }}"
        "{{ m.content.strip().replace('a', 'b').split('b')|first|upper|indent(2) }}{{ m|tojson(indent=2) }}"
        "{{ loop.length }}{{ loop.last }}{% endfor %}{{ ns.roles|unique|list|length }}{{ messages[-1]['content'] }}"
        "{{ 'Today: **2024** (1) %s' % 'x' }}{{ '{{2024}} {}'.format(1) }}"
        "{{ messages|map(attribute='role')|list|length }}{{ messages|length }}"
    )
    many = Conversation(tuple(ChatMessage("user", " an answer ") for _ in range(300)))
    assert template_of(source, max_render_s=30).render(many).endswith("Today: **2024** (1) x{2024} 1300300")


def test_sizes_are_those_of_texts_and_end_at_the_limit() -> None:
    assert text_size("abc", 100) == 3
    assert text_size({"a": ["bc", 1]}, 1000) == 1 + 2 + 1 + 2 + 2 + 2 + 24
    nested: Any = [1]
    for _ in range(60):
        nested = [nested, nested]
    assert 1000 <= text_size(nested, 1000) < 2000
