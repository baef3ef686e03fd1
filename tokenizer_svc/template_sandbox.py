"""The sandbox that chat templates run in: no way into Python, and a bound on time and on all that is made on the way.

Jinja's own sandbox keeps a template from reaching Python's internals. It does not keep it from running for ever or from
making a text of a terabyte, neither of which can be stopped from outside once it has begun in C. So a template may use
what is listed (`template_weights`, `template_filters`), and each use is charged *before* it happens, in one `Budget`
per rendering: every pass of a loop and every call (time), and all that operators, comparisons, filters, tests, methods
and output make and look at (size). Knows nothing of conversations.
"""

from collections.abc import Collection
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Namespace
from markupsafe import Markup

from tokenizer_svc.json_size import DICT_ITEMS
from tokenizer_svc.template_budget import PART_CHARS, Counted, TooMuch
from tokenizer_svc.template_filters import allowed_filters, allowed_tests, budget_of
from tokenizer_svc.template_rewriting import COUNTING_FILTERS, rewritten
from tokenizer_svc.template_weights import (
    DICT_METHODS,
    LIST_METHODS,
    MAX_KEY_CHARS,
    MAX_WIDTH,
    TEXT_METHODS,
    refuse_as_key,
    refuse_as_new_key,
    refuse_bits,
    refuse_wide_percent,
    weigh_method,
    weigh_operation,
)

LOOP_ATTRIBUTES = (
    "cycle", "depth", "depth0", "first", "index", "index0", "last", "length", "nextitem", "previtem", "revindex",
    "revindex0",
)  # fmt: skip
ATTRIBUTES: dict[type, Collection[str]] = {
    str: TEXT_METHODS,
    Markup: TEXT_METHODS,
    list: LIST_METHODS,
    tuple: LIST_METHODS,
    dict: DICT_METHODS,
    LoopContext: LOOP_ATTRIBUTES,
    Cycler: ("current", "next", "reset"),
}
"""By type what a template may reach of a value."""
JINJAS_OWN = ("_loop_vars", "_block_vars")
"""Arguments that Jinja adds to every call."""


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Where templates are compiled, with the filters and functions that templates on the hub expect."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols], finalize=_finalized
        )
        self.filters.clear()
        self.filters.update(allowed_filters() | COUNTING_FILTERS)
        self.tests.clear()
        self.tests.update(allowed_tests())
        del self.globals["lipsum"]
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.globals["namespace"] = _PlainNamespace
        self.globals["dict"] = _dict

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return rewritten(super()._parse(source, name, filename))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """What is listed, and what a template has put into a namespace."""
        if isinstance(obj, Namespace):
            return not attr.startswith("_")
        return attr in ATTRIBUTES.get(type(obj), ())

    def getitem(self, obj: Any, argument: Any) -> Any:
        """`obj[argument]`, by a text or a number; undefined by a list or dictionary, as in Jinja."""
        if type(argument) is not str:
            if isinstance(argument, list | dict):
                return self.undefined("a list or dictionary is no key")
            refuse_as_key(argument)
        elif len(argument) > MAX_KEY_CHARS:
            if isinstance(obj, dict) and argument in obj:
                return obj[argument]
            return self.undefined(f"a text of more than {MAX_KEY_CHARS} characters is no key here")
        return super().getitem(obj, argument)

    def call_filter(self, name: Any, *args: Any, **kwargs: Any) -> Any:
        """A filter that a template names by a text: `map('upper')`."""
        _refuse_name(name, self.filters)
        return super().call_filter(name, *args, **kwargs)

    def call_test(self, name: Any, *args: Any, **kwargs: Any) -> Any:
        """A test that a template names by a text: `select('defined')`."""
        _refuse_name(name, self.tests)
        return super().call_test(name, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`+` and the like, weighed first."""
        budget = budget_of(context)
        if operator == "+" and type(left) is str and type(right) is str:
            budget.take(len(left) + len(right))
            return left + right
        budget.tick()
        weigh_operation(budget, operator, left, right)
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, int):
            refuse_bits(result.bit_length())
        return result

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: B902, N805
        """Any function, method or macro."""
        budget = budget_of(__context)
        budget.tick()
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        if isinstance(owner, str | list | tuple | dict):
            named = [value for name, value in kwargs.items() if name not in JINJAS_OWN]
            args = weigh_method(budget, owner, __obj.__name__, args, named)
            result = super().call(__context, __obj, *args, **kwargs)
            return _Items(budget.listed(result)) if isinstance(result, DICT_ITEMS) else result
        result = super().call(__context, __obj, *args, **kwargs)
        if isinstance(result, str):  # of a macro: its parts have been charged, and are put together
            budget.take(len(result))
        return result


def _refuse_name(name: Any, named: dict[str, Any]) -> None:
    """Raise TemplateRuntimeError for a name that is not there, and for those of filters that count."""
    if not isinstance(name, str) or name not in named or name in COUNTING_FILTERS:
        raise jinja2.TemplateRuntimeError("there is no filter or test of that name")


@pass_context
def _finalized(context: Context, value: Any) -> Any:
    """What a template writes."""
    if type(value) is str:
        budget_of(context).take(len(value))
    else:
        budget_of(context).take_text_of(value)
    return value


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks what training counts; for a prompt it is its content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Items(list[Any]):
    """What `items()` gives. Python's own hashes what it is compared with, which has no bound for tuples in tuples."""

    def __repr__(self) -> str:
        return f"dict_items({super().__repr__()})"


class _PlainNamespace(Namespace):
    """`namespace()` that refuses names beginning with an underscore: those reach into Python."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # noqa: N805  (`self` may be a template's own name)
        self, *values = args
        if not all(isinstance(value, dict) for value in values):
            raise TypeError("namespace() takes names or a dictionary")
        attributes = dict(*values, **kwargs)
        for name in attributes:
            _PlainNamespace._check(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _PlainNamespace._check(name)
        Namespace.__setitem__(self, name, value)

    def __repr__(self) -> str:
        return "<Namespace>"  # its content has no bound

    @staticmethod
    def _check(name: str) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(
                f"a namespace attribute may not begin with an underscore: {name[:99]!r}"
            )


@pass_context
def _dict(context: Context, values: Any = (), /, **names: Any) -> dict[Any, Any]:
    """`dict(...)` of names, of a dictionary or of pairs."""
    pairs = values.items() if isinstance(values, dict) else values
    made: dict[Any, Any] = {}
    for key, value in Counted(pairs, budget_of(context), PART_CHARS):
        refuse_as_new_key(key)
        made[key] = value
    return {**made, **names}


@pass_context
def _raise_exception(context: Context, message: Any) -> None:
    raise jinja2.TemplateError(budget_of(context).text_of(message)[:MAX_KEY_CHARS])


def _strftime_now(format: str) -> str:
    if len(format) > MAX_WIDTH:
        raise TooMuch(f"the chat template's time format is longer than {MAX_WIDTH} characters")
    refuse_wide_percent(format)
    return datetime.now().strftime(format)
