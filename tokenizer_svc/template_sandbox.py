"""The sandbox that chat templates run in: no way into Python, and a bound on time and on all that is made on the way.

Jinja's own sandbox keeps a template from reaching Python's internals. It does not keep it from running for ever or from
making a text of a terabyte, neither of which can be stopped from outside once it has begun in C. So everything that can
repeat or grow is counted *before* it happens, in one `Budget` per rendering: every pass of a loop and every call
(time), and every text and list that operators, filters, methods and output make (size). Filters that no chat template
needs and that cannot be bounded so are left out.

Not bounded: comparing two structures that a template itself has nested into one another many times over. What a client
sends has no such structure. Knows nothing of conversations.
"""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from tokenizer_svc.template_budget import (
    MAX_WIDTH,
    WIDE_PERCENT,
    Budget,
    Counted,
    TooMuch,
    refuse_wide_braces,
    weigh_filter,
    weigh_method,
    weigh_operation,
    weighed,
)

BUDGET = "budget "
"""The variable that holds it. No template can name it, for the blank."""
MISSING_FILTERS = ("filesizeformat", "pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr")
FORBIDDEN_METHODS = ("translate", "maketrans", "encode")


class _Bounds(NodeTransformer):
    """Rewrites a template so that loops, macros, `~` and slices are counted."""

    def visit_For(self, node: Any) -> Any:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "counted ", nodes.Const(_literal_size(node.body)))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        self.generic_visit(node)
        charge = _filtered(nodes.Const(""), "charged ", nodes.Const(_literal_size(node.body)))
        node.body.insert(0, nodes.Output([charge], lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "joined ")

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        return _filtered(node, "made ") if isinstance(node.arg, nodes.Slice) else node


def _filtered(node: nodes.Expr, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


def _literal_size(body: list[nodes.Node]) -> int:
    """Characters that stand in the template itself between the tags."""
    found = (data for node in body for data in node.find_all(nodes.TemplateData))
    own = (node for node in body if isinstance(node, nodes.TemplateData))
    return sum(len(data.data) for data in (*found, *own))


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Where templates are compiled, with the filters and functions that templates on the hub expect."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols], finalize=_finalized
        )
        for name in MISSING_FILTERS:
            del self.filters[name]
        self.filters["tojson"] = _tojson
        for name, function in list(self.filters.items()):
            self.filters[name] = _bounded_filter(name, function)
        own = {"counted ": _counted, "charged ": _charged, "joined ": _joined, "made ": _made}
        self.filters.update(own)  # no template can name them, for the blank
        del self.globals["lipsum"]
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.globals["namespace"] = _PlainNamespace
        self.globals["dict"] = _Dict()

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Bounds().visit(super()._parse(source, name, filename))
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """No internals, nothing that changes what it is called on, no method whose result cannot be foreseen."""
        if attr in FORBIDDEN_METHODS and isinstance(obj, str | bytes):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`+`, `*`, `**` and `%`, whose results are weighed first."""
        budget = _budget(context)
        if operator == "+" and type(left) is str and type(right) is str:
            budget.take(len(left) + len(right))
            return left + right
        weigh_operation(budget, operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: B902, N805
        """Any function, method or macro."""
        budget = _budget(__context)
        budget.tick()
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        if isinstance(owner, str | bytes):
            args = weigh_method(budget, owner, __obj.__name__, args, kwargs)
        result = super().call(__context, __obj, *args, **kwargs)
        return weighed(budget, result)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` with bounded widths."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            refuse_wide_braces(value.__self__)
        return wrapped


def _budget(context: Context) -> Budget:
    budget: Budget = context.parent[BUDGET]
    return budget


def _bounded_filter(name: str, function: Any) -> Any:
    """A filter of Jinja's, weighed before and behind."""
    passed = getattr(getattr(function, "jinja_pass_arg", None), "name", "")

    @pass_context
    def bounded(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        budget = _budget(context)
        budget.tick()
        value = weigh_filter(budget, name, value, args, kwargs)
        first: tuple[Any, ...] = ()
        if passed:
            first = (
                {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}[passed],
            )
        return weighed(budget, function(*first, value, *args, **kwargs))

    return bounded


@pass_context
def _counted(context: Context, values: Any, weight: int) -> Counted:
    budget = _budget(context)
    budget.tick()
    return Counted(values, budget, 1 + weight)


@pass_context
def _charged(context: Context, value: str, weight: int) -> str:
    _budget(context).take(weight)
    return value


@pass_context
def _joined(context: Context, values: list[Any]) -> str:
    """`a ~ b ~ c`."""
    budget = _budget(context)
    budget.take_text_of(values)
    return "".join(map(str, values))


@pass_context
def _made(context: Context, value: Any) -> Any:
    return weighed(_budget(context), value)


@pass_context
def _finalized(context: Context, value: Any) -> Any:
    """What a template writes."""
    if type(value) is str:
        _budget(context).take(len(value))
        return value
    _budget(context).take_text_of(value)
    return value


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks what training counts; for a prompt it is its content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _PlainNamespace(Namespace):
    """`namespace()` that refuses names beginning with an underscore: those reach into Python."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # noqa: N805  (`self` may be a template's own name)
        self, *values = args
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
            raise jinja2.exceptions.SecurityError(f"a namespace attribute may not begin with an underscore: {name!r}")


class _Dict:
    """`dict(...)` for templates, without the type's own attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    if len(format) > MAX_WIDTH or WIDE_PERCENT.search(format):
        raise TooMuch(f"the chat template's time format is longer than {MAX_WIDTH} characters or has widths")
    return datetime.now().strftime(format)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as the model saw it in training: Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
