"""Ways out of Jinja's sandbox that are known, tried from a model's template and from what a client sends.

Each would show an internal of Python, run a program or change what it is given, where it got through.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tokenizer_svc.chat_template import ChatMessage, ChatTemplate, Conversation, load_chat_template
from tokenwire.errors import FailedPrecondition, InvalidRequest

SHOWN = ("<class", "<function", "<module", "<bound", "<built-in", "<frame", "<code", " object at 0x", "uid=", "root:")
"""What it would look like: objects of Python, the output of `id`, the content of /etc/passwd."""
NAMES = (
    "__class__",
    "__init__",
    "__globals__",
    "__mro__",
    "__subclasses__",
    "__dict__",
    "__self__",
    "__func__",
    "__code__",
)

ATTRIBUTES = {
    "a class": "{{ ''.__class__ }}",
    "a class by its subscript": "{{ ''['__class__'] }}",
    "a class by attr": "{{ ''|attr('__class__') }}",
    "a class by attr, escaped": r"{{ ''|attr('\x5f\x5fclass\x5f\x5f') }}",
    "a class by attr, joined": "{{ ''|attr(['__cl', 'ass__']|join) }}",
    "a class by attr, reversed": "{{ ''|attr('__ssalc__'|reverse) }}",
    "a class by attr, formatted": "{{ ''|attr('%c%cclass%c%c'|format(95, 95, 95, 95)) }}",
    "all classes": "{% for c in [].__class__.__base__.__subclasses__() %}{{ c }}{% endfor %}",
    "a program by a class": (
        "{% for c in ''.__class__.__mro__[1].__subclasses__() %}{% if c.__name__ == 'Popen' %}"
        "{{ c('id', shell=True, stdout=-1).communicate() }}{% endif %}{% endfor %}"
    ),
    "globals of Jinja's cycler": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "globals of Jinja's joiner": "{{ joiner.__init__.__globals__.os.popen('id').read() }}",
    "globals of the namespace": "{{ namespace.__init__.__globals__.__builtins__.open('/etc/passwd').read() }}",
    "classes of the namespace": "{{ namespace.mro() }}{{ namespace.__mro__ }}{{ namespace.__subclasses__() }}",
    "the namespace's own check": "{{ namespace._check.__globals__ }}",
    "the namespace's class changed": "{% set ns = namespace() %}{% set ns.__class__ = range %}{{ ns.__class__ }}",
    "the namespace's class given": "{{ namespace(**{'__class__': ''}) }}",
    "the namespace's values": "{% set ns = namespace(a=1) %}{{ ns._Namespace__attrs }}{{ ns['_Namespace__attrs'] }}",
    "the template itself": "{{ self.__init__.__globals__ }}{{ self._TemplateReference__context }}",
    "a block's context": "{% block b %}x{% endblock %}{{ self.b._context.environment }}{{ self.b.__call__ }}",
    "a block above": "{% block b %}{{ super.__init__ }}{% endblock %}",
    "a macro": "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}{{ m.__init__ }}{{ m._environment }}",
    "a caller": "{% macro m() %}{{ caller._func.__globals__ }}{% endmacro %}{% call m() %}{% endcall %}",
    "a loop": "{% for i in [1] %}{{ loop.__init__.__globals__ }}{{ loop._iterator }}{{ loop._undefined }}{% endfor %}",
    "a generator's frame": "{% set g = [1]|map('string') %}{{ g.gi_frame.f_globals }}{{ g.gi_code }}",
    "a generator's frame by attr": "{{ ([1]|map('string'))|attr('gi_frame')|attr('f_builtins') }}",
    "what a template may call": "{{ raise_exception.__globals__ }}{{ strftime_now.__code__ }}{{ dict.__call__ }}",
    "a method's own object": "{{ messages.append.__self__ }}{{ ''.join.__class__ }}{{ ''.format.__wrapped__ }}",
    "what is not there": "{{ nothing.__class__ }}{{ nothing._fail_with_undefined_error.__globals__ }}",
    "a number": "{{ (1).__class__ }}{{ 1.5.real.__class__ }}{{ true.__class__.__base__ }}",
    "by map": "{{ [1]|map('attr', '__class__')|list }}",
    "by map of an attribute": "{{ ['']|map(attribute='__class__')|list }}",
    "by a path in map": "{{ [{'a': ''}]|map(attribute='a.__class__.__base__')|list }}",
    "by sort": "{{ ['a', 'b']|sort(attribute='__class__')|list and ['a']|groupby('__class__') }}",
    "by min, unique and join": "{{ ['a']|min(attribute='__class__') and ['a']|join(attribute='__class__') }}",
    "by selectattr": "{{ ['a']|selectattr('__class__', 'sameas', ''.__class__)|map('attr', '__class__')|list }}",
}  # fmt: skip
FORMATS = {
    "str.format (CVE-2016-10745)": "{{ '{0.__class__}'.format('') }}",
    "its subscripts": "{{ '{0[__class__]}{a.__init__.__globals__}'.format('', a=cycler) }}",
    "format_map (CVE-2019-10906)": "{{ '{a.__class__}'.format_map({'a': ''}) }}",
    "format, taken first (CVE-2024-56326)": "{% set f = '{0.__class__}'.format %}{{ f('') }}",
    "format, taken by a filter (CVE-2025-27516)": "{{ ('{0.__class__}'|attr('format'))('') }}",
    "format_map, taken by a filter": "{{ ('{a.__class__}'|attr('format_map'))({'a': ''}) }}",
    "format, mapped": "{{ (['{0.__class__}']|map('attr', 'format')|first)('') }}",
    "format of an attribute, mapped": "{{ (['{0.__class__}']|map(attribute='format')|first)('') }}",
    "format in a namespace": "{% set ns = namespace(f='{0.__class__}'.format) %}{{ ns.f('') }}",
    "format in a dictionary": "{{ dict(f='{0.__class__}'.format).f('') }}",
    "format by a macro": "{% macro m(f) %}{{ f('') }}{% endmacro %}{{ m('{0.__class__}'.format) }}",
    "format of safe text": "{{ ('{0.__class__}'|safe).format('') }}{{ ('{0.__class__}'|e).format('') }}",
    "a conversion": "{{ '{0.__class__!r:>3}'.format('') }}{{ '%s' % ''.__class__ }}",
}  # fmt: skip
FILES = {
    "include": "{% include '/etc/passwd' %}",
    "include of several": "{% include ['/etc/passwd', '../../etc/passwd'] %}",
    "import": "{% import '/etc/passwd' as p %}{{ p }}",
    "import of a name": "{% from 'os' import popen %}{{ popen('id').read() }}",
    "extends": "{% extends '/etc/passwd' %}",
    "a name in a name (CVE-2024-56201)": "{% include '{{ cycler }}' ~ messages[0].content %}",
    "debug": "{% debug %}",
    "do": "{% do cycler.__init__.__globals__.os.system('id') %}",
    "Python's functions": "{{ open('/etc/passwd').read() }}{{ __import__('os') }}{{ eval('1') }}{{ getattr }}",
    "other frameworks' names": "{{ config }}{{ request.application.__globals__ }}{{ url_for.__globals__ }}",
    "HTML attributes (CVE-2024-34064)": "{{ {'a=1 b': 'c'}|xmlattr }}",
}  # fmt: skip
CHANGES = {
    "a list": "{{ messages.append(messages[0]) }}{{ messages.clear() }}{{ messages.pop() }}",
    "a dictionary": "{{ messages[0].update(role='system') }}{{ messages[0].setdefault('a', 1) }}",
    "by attr": "{{ (messages|attr('clear'))() }}",
    "by map": "{{ (([messages]|map(attribute='clear'))|first)() }}",
    "what a client sends again": "{{ tools.append(1) }}{{ documents.clear() }}",
}
ESCAPES = ATTRIBUTES | FORMATS | FILES | CHANGES
USER = ChatMessage("user", "hello")


def rendered(source: str, conversation: Conversation) -> str:
    """The prompt; empty where it is refused."""
    try:
        return ChatTemplate(source, special_tokens={}).render(conversation)
    except (InvalidRequest, FailedPrecondition):
        return ""


@pytest.mark.parametrize("name", ESCAPES)
def test_a_template_gets_out_by_none_of_them(name: str) -> None:
    document = {"a": 1}
    conversation = Conversation((USER,), tools=(document,), documents=(document,))
    text = rendered(ESCAPES[name], conversation)
    assert not [word for word in SHOWN if word in text], text
    assert conversation == Conversation((USER,), tools=({"a": 1},), documents=({"a": 1},))


@pytest.mark.parametrize("name", ["cycler", "joiner", "namespace", "raise_exception", "strftime_now", "dict", "range"])
def test_nothing_that_a_template_can_call_has_anything_to_get_hold_of(name: str) -> None:
    for attribute in NAMES:
        assert (
            rendered(f"{{{{ {name}.{attribute} }}}}{{{{ {name}|attr('{attribute}') }}}}", Conversation((USER,))) == ""
        )


@pytest.mark.parametrize("name", ESCAPES)
def test_what_a_client_sends_is_text_and_no_template(name: str) -> None:
    payload = ESCAPES[name]
    source = (
        "{{ messages[0].content }}\0{{ messages[0].name }}\0{{ messages[0].reasoning_content }}\0{{ extra.a }}\0"
        "{{ tools[0].function.description }}\0{{ documents[0].text }}\0{{ messages[0].tool_calls[0].function.name }}"
    )
    call = {"id": "1", "type": "function", "function": {"name": payload, "arguments": {payload: payload}}}
    conversation = Conversation(
        (ChatMessage("user", payload, name=payload, reasoning=payload, tool_calls=(call,)),),
        tools=({"type": "function", "function": {"description": payload}},),
        documents=({"text": payload},),
        template_arguments={"extra": {"a": payload}},
    )
    assert rendered(source, conversation).split("\0") == [payload] * 7


@pytest.mark.parametrize(
    "variable", ["range", "namespace", "dict", "raise_exception", "budget ", "self", "loop", "cycler"]
)
def test_a_clients_arguments_give_a_template_no_more_than_it_has(variable: str) -> None:
    """Arguments of a template's own names hide what it would call, or nothing: they are values, and never called."""
    value: Any = {"__class__": {"__init__": "x"}, "popen": "id"}
    conversation = Conversation((USER,), template_arguments={variable: value})
    text = rendered("{{ range(3)|list }}{{ namespace(a=1).a }}{{ dict(a=1).a }}{{ '\0' * 10**10 }}", conversation)
    assert text == ""


def test_escapes_in_a_models_files_are_read_as_those_above(tmp_path: Path) -> None:
    escape = ATTRIBUTES["a program by a class"]
    for name, content in (
        ("chat_template.jinja", escape),
        ("tokenizer_config.json", json.dumps({"chat_template": escape})),
        ("tokenizer_config.json", json.dumps({"chat_template": [{"name": "default", "template": escape}]})),
    ):
        (folder := tmp_path / str(len(list(tmp_path.iterdir())))).mkdir()
        (folder / name).write_text(content)
        template = load_chat_template(folder, {})
        assert template is not None and rendered(template.source, Conversation((USER,))) == ""
