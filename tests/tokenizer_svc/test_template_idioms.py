"""What chat templates do with their values renders as in `transformers`, though each operation is weighed."""

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from tokenizer_svc.chat_template import ChatMessage, ChatTemplate, Conversation

IDIOMS = {
    "messages picked": (
        "{{ messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|map('upper')|list }}"
        "{{ messages|rejectattr('role', 'in', ['user'])|list|length }}{{ nothing|map('upper')|list }}"
        "{{ none|map('upper')|list }}{{ messages|map(attribute='role')|unique|sort|join(', ') }}"
        "{{ messages|selectattr('name', 'defined')|list }}{{ (messages|selectattr('content')|first).role }}"
    ),
    "lists": (
        "{{ [3, 1, 2]|max }}{{ [3, 1, 2]|sort(reverse=true) }}{{ [{'a': 2}, {'a': 1}]|sort(attribute='a') }}"
        "{{ [{'a': 2}, {'a': 1}]|join('-', attribute='a') }}{{ [1, 2]|reverse|list }}{{ [1, 2]|last }}{{ [1, 2]|sum }}"
        "{{ [1] + [2] }}{{ (1, 2) + (3,) }}{{ [('a', 1)] + [('b', 2)] }}{{ 'ab'|list }}{{ [1, 2].index(2) }}"
        "{{ messages[1:]|length }}{{ messages[::-1]|first }}{{ range(3)|list }}{{ ([1] * 3)|join }}"
    ),
    "dictionaries": (
        "{{ {'b': 1, 'a': 2}|dictsort }}{{ {0: 1, 512: 2}|dictsort }}{{ {'b': 1}|items|list }}"
        "{{ {true: 'y', false: 'n', none: 'x', 3: 'i'}[true] }}{{ {'a': 'b'}.get('c', 'd') }}"
        "{% set d = dict(a=1, b=2) %}{{ d }}{{ dict(d, c=3) }}{{ dict([('x', 1)]) }}{{ d.items() }}{{ d.keys()|list }}"
        "{{ ('a', 1) in d.items() }}{{ d.items() == dict(d).items() }}{{ d.items()|length }}{{ d.items()|list|tojson }}"
        "{{ d.values()|sum }}{% for k, v in d.items() %}{{ loop.index }}{{ loop.cycle('o', 'e') }}{{ k }}{{ v }}"
        "{{ loop.nextitem }}{% endfor %}"
    ),
    "dictionaries in order": (
        "{{ {'b': 1, 'a': 'x'}.items()|sort }}{{ {'b': 1, 'a': 2}.items()|sort(reverse=true)|first }}"
        "{% for name, rest in {'b': {'x': 1}, 'a': {'y': [2]}}.items()|sort %}{{ name }}{{ rest }}{% endfor %}"
    ),
    "dictionaries that grow": (
        "{% set ns = namespace(ids={}) %}{% for m in messages %}"
        "{% set ns.ids = dict(ns.ids, **{m.role: loop.index0}) %}{% endfor %}{{ ns.ids }}{{ range(*[1, 3])|list }}"
        "{% macro m(a, b) %}{{ a }}{{ b }}{% endmacro %}{{ m(*(1,), **{'b': 2}) }}"
        "{{ [1, 2]|sort(**{'reverse': true}) }}"
    ),
    "a type that is a list": (
        "{% set names = {'string': 'str', 'integer': 'int'} %}{% set type = ['integer', 'string'] %}"
        "{% if names[type] is defined %}{{ names[type] }}{% elif type is sequence %}{{ type|join(' or ') }}{% endif %}"
        "{{ names[type] }}{{ names[names] is defined }}{{ type[[0]] is defined }}"
    ),
    "comparisons": (
        "{{ 1 < 2 < 3 }}{{ 'a' in 'abc' }}{{ messages[0] == messages[0] }}{{ 'role' in messages[0] }}"
        "{{ 'x' not in messages[0].keys() }}{{ (1, 2) == (1, 2) }}{{ messages[0].role in ('user', 'x') }}"
        "{{ messages|length > 1 and 2 != 3 }}{{ 3 not in [1, 2] }}{{ 5 is divisibleby 5 }}{{ 4 is even }}"
        "{{ 'a' is lower }}{{ 1 is in [1] }}{{ 2 is ge 1 }}{{ 2 in range(3) }}{{ 'a' < 'b' }}{{ [1, [2]] != [1, [3]] }}"
    ),
    "texts": (
        "{{ ' a,b '.strip().split(',') }}{{ 'a</think>b'.split('</think>')[-1].lstrip('\\n') }}"
        "{{ 'abc'.rsplit('b', 1) }}"
        "{{ 'a b  c'.split() }}{{ 'a\\nb'.splitlines() }}{{ 'abc'[::-1] }}{{ 'abc'[1:] }}{{ ', '.join(['a', 'b']) }}"
        "{{ 'ab'.replace('a', 'c') }}{{ 'ab cd'|title }}{{ 'ab'.title() }}{{ 'a\\nb'|indent }}"
        "{{ 'a\\nb'|indent(2, true) }}{{ 'a\\nb'|indent(first=true) }}{{ 'aXb'|replace('X', 1) }}{{ 'abc'|reverse }}"
        "{{ 'abc'|first }}{{ 'a' ~ 1 ~ none }}{{ 'ab' * 2 }}{{ 'Ab'.startswith(('A', 'b')) }}{{ 'ab'.partition('b') }}"
        "{{ '<a>'|e }}{{ '<a>'|safe }}{{ ('a'|safe) + '<' }}{{ 'abc'.find('c') }}{{ none|string|trim }}"
    ),
    "formats": (
        "{{ 'x%sy' % 3 }}{{ '%s-%s' % ('a', 'b') }}{{ '{} {a}'.format(1, a=2) }}{{ '%s'|format('x') }}"
        "{{ '{:.2f} {:>5}'.format(1.567, 'a') }}{{ '%05.1f' % 2.25 }}"
    ),
    "numbers": (
        "{{ '7'|int + 1 }}{{ 'zz'|int(3) }}{{ 'ff'|int(0, 16) }}{{ '1.5'|float }}{{ 1.567|round(2) }}{{ -3|abs }}"
        "{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 ** 3 }}{{ 7 / 2 }}{{ 5|string + 'x' }}{{ (messages|length - 1) * 2 }}"
    ),
    "JSON": (
        "{{ messages|tojson }}{{ messages|tojson(indent=2) }}{{ {'b': 1, 'a': [1, {}]}|tojson(sort_keys=true) }}"
        "{{ [1, 2]|tojson(separators=(',', ':')) }}{{ 'ü'|tojson(ensure_ascii=true) }}"
    ),
    "macros and namespaces": (
        "{% set ns = namespace({'q': 1}, z=2) %}{{ ns.q + ns.z }}{% macro f(a, b=2) %}{{ a }}{{ b }}{{ varargs }}"
        "{{ caller() if caller }}{% endmacro %}{{ f(1, 2, 3) }}{% call f(1) %}in{% endcall %}"
        "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.current }}{% set j = joiner('|') %}{{ j() }}{{ j() }}"
        "{% for x in [[1, [2]], [3]] recursive %}{{ x if x is number else loop(x) }}{% endfor %}"
        "{% filter upper %}abc{% endfilter %}{% set x %} abc {% endset %}{{ x|trim }}{{ nothing|default('d') }}"
        "{{ messages[0].content is string and messages[0] is mapping and messages is sequence }}"
    ),
}
MESSAGES = (ChatMessage("system", "Be brief."), ChatMessage("user", " Hi \n"), ChatMessage("assistant", "Hello"))


@pytest.mark.parametrize("name", IDIOMS)
def test_renders_what_transformers_renders(name: str) -> None:
    rendered, _ = render_jinja_template(
        conversations=[[{"role": message.role, "content": message.content} for message in MESSAGES]],
        chat_template=IDIOMS[name],
        add_generation_prompt=True,
    )
    assert ChatTemplate(IDIOMS[name], special_tokens={}).render(Conversation(MESSAGES)) == rendered[0]
