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
import re
import time
from collections.abc import Callable, Iterable, Iterator
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

from tokenizer_svc.json_size import text_size

WORK_PER_OUTPUT = 16
"""Characters that may be made on the way for each that may come out."""
PART_CHARS = 16
"""What a place in a list counts: it may hold a text of its own, such as those of `split`."""
MAX_WIDTH = 1_000
"""Of padding, indents, batches and decimals."""
MAX_INTEGER_BITS = 4_096
BUDGET = "budget "
"""The variable that holds it. No template can name it, for the blank."""
MISSING_FILTERS = ("filesizeformat", "pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr")
WIDTH_FILTERS = ("batch", "center", "format", "indent", "round", "slice", "tojson")
WIDTH_METHODS = ("center", "expandtabs", "ljust", "rjust", "zfill")
FORBIDDEN_METHODS = ("translate", "maketrans", "encode")
WIDE = re.compile(r"%[^a-zA-Z%]*\d{4}|\{[^{}]*\d{4}|\{[^{}]*\{")
"""A width or a number of places above 999 in a format, or one that is not written out."""


class TooMuch(Exception):
    """A template goes beyond its bounds; the message says which."""


class Budget:
    """What one rendering may still use."""

    __slots__ = ("_end_s", "_limit", "_seconds", "_used")

    def __init__(self, *, seconds: float, num_chars: int) -> None:
        """`num_chars`: of everything that is made, whether it comes out or not."""
        self._seconds = seconds
        self._end_s = time.monotonic() + seconds
        self._limit = num_chars
        self._used = 0

    @property
    def left(self) -> int:
        """Characters that may still be made."""
        return self._limit - self._used

    def tick(self) -> None:
        """Something may have taken time. Raises TooMuch."""
        if time.monotonic() > self._end_s:
            raise TooMuch(f"the chat template took longer than {self._seconds:g} s")

    def take(self, num_chars: int) -> None:
        """That much is about to be made. Raises TooMuch."""
        self._used += num_chars
        if self._used > self._limit:
            raise TooMuch(f"the chat template makes more than {self._limit} characters")

    def take_text_of(self, value: Any) -> None:
        """A value is about to become text."""
        self.take(text_size(value, self.left + 1))


class _Counted:
    """Something to loop over; each step is counted."""

    __slots__ = ("_budget", "_values", "_weight")

    def __init__(self, values: Iterable[Any], budget: Budget, weight: int) -> None:
        self._values, self._budget, self._weight = values, budget, weight

    def __iter__(self) -> Iterator[Any]:
        tick, take, weight = self._budget.tick, self._budget.take, self._weight
        for value in self._values:
            tick()
            take(weight)
            yield value

    def __len__(self) -> int:
        return len(self._values)  # type: ignore[arg-type]  # a TypeError where there is none, as Jinja expects


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
        _weigh_operation(_budget(context), operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: B902, N805
        """Any function, method or macro."""
        budget = _budget(__context)
        budget.tick()
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        if isinstance(owner, str | bytes):
            args = _weigh_method(budget, owner, __obj.__name__, args, kwargs)
        result = super().call(__context, __obj, *args, **kwargs)
        return _weighed(budget, result)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` with bounded widths."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _refuse_widths(value.__self__)
        return wrapped


def _budget(context: Context) -> Budget:
    budget: Budget = context.parent[BUDGET]
    return budget


def _weigh_operation(budget: Budget, operator: str, left: Any, right: Any) -> None:
    sized = (str, bytes, list, tuple)
    if operator == "+":
        if isinstance(left, sized):
            budget.take(len(left) + (len(right) if isinstance(right, sized) else 0))
    elif operator == "*":
        if isinstance(left, sized) and isinstance(right, int):
            budget.take(len(left) * max(0, right))
        elif isinstance(right, sized) and isinstance(left, int):
            budget.take(len(right) * max(0, left))
        elif isinstance(left, int) and isinstance(right, int):
            _refuse_bits(left.bit_length() + right.bit_length())
    elif operator == "**":
        if isinstance(left, int) and isinstance(right, int):
            _refuse_bits(left.bit_length() * abs(right))
    elif isinstance(left, str | bytes):
        _weigh_format(budget, left if isinstance(left, str) else left.decode("latin-1"), right)


def _weigh_format(budget: Budget, text: str, values: Any) -> None:
    """`text % values`."""
    _refuse_widths(text)
    if "*" in text:
        raise TooMuch("the chat template formats with a width that is not written out")
    longest = text_size(values, budget.left + 1) + MAX_WIDTH
    budget.take(len(text) + text.count("%") * longest)


def _weigh_method(
    budget: Budget, owner: str | bytes, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, ...]:
    """A method of a text. Returns its arguments, those of `join` as a list."""
    values = (*args, *kwargs.values())
    if name in WIDTH_METHODS:
        width = max((abs(value) for value in values if isinstance(value, int)), default=8)
        if width > MAX_WIDTH:
            raise TooMuch(f"the chat template pads to {width}: at most {MAX_WIDTH}")
        budget.take(len(owner) * (width if name == "expandtabs" else 1))
    elif name == "replace" and len(values) >= 2 and isinstance(values[0], type(owner)):
        count: Any = owner.count
        budget.take(len(owner) + count(values[0]) * len(values[1]))
    elif name == "join" and args:
        parts = list(_Counted(args[0], budget, 1))
        budget.take(sum(len(part) + len(owner) for part in parts if isinstance(part, str | bytes)))
        return (parts,)
    elif name in ("format", "format_map"):
        budget.take((owner.count("{") if isinstance(owner, str) else 0) * text_size(list(values), budget.left + 1))
    return args


def _weighed(budget: Budget, result: Any) -> Any:
    """What a call or a filter has made."""
    if isinstance(result, str | bytes):
        budget.take(len(result))
    elif isinstance(result, list | tuple | dict):
        budget.take(len(result) * PART_CHARS)
    return result


def _refuse_bits(num_bits: int) -> None:
    if num_bits > MAX_INTEGER_BITS:
        raise TooMuch(f"the chat template computes an integer of more than {MAX_INTEGER_BITS} bits")


def _refuse_widths(text: str) -> None:
    if WIDE.search(text):
        raise TooMuch(f"the chat template formats with a width that is not written out or above {MAX_WIDTH}")


def _bounded_filter(name: str, function: Any) -> Any:
    """A filter of Jinja's, weighed before and behind."""
    passed = getattr(getattr(function, "jinja_pass_arg", None), "name", "")

    @pass_context
    def bounded(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        budget = _budget(context)
        budget.tick()
        value = _weigh_filter(budget, name, value, args, kwargs)
        first: tuple[Any, ...] = ()
        if passed:
            first = (
                {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}[passed],
            )
        return _weighed(budget, function(*first, value, *args, **kwargs))

    return bounded


def _weigh_filter(budget: Budget, name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Returns the value, a sequence of unknown length as a list."""
    values = (*args, *kwargs.values())
    if name in WIDTH_FILTERS:
        for given in values:
            size = abs(given) if isinstance(given, int) else len(given) if isinstance(given, str) else 0
            if size > MAX_WIDTH and name != "format":
                raise TooMuch(f"the chat template gives {name} a width of {size}: at most {MAX_WIDTH}")
    if name == "format":
        _weigh_format(budget, str(value), list(values))
    elif name == "replace" and len(values) >= 2:
        text, old, new = str(value), str(values[0]), str(values[1])
        budget.take(len(text) + text.count(old) * len(new))
    elif name == "indent" and values:
        width = values[0] if isinstance(values[0], int) else len(str(values[0]))
        budget.take(str(value).count("\n") * width)
    elif name == "join":
        value = list(_Counted(value, budget, 1))
        budget.take(text_size(value, budget.left + 1) + len(value) * len(str(values[0]) if values else ""))
    elif name == "sum" and any(not isinstance(given, int | float | str | None) for given in values):
        raise TooMuch("the chat template sums what are no numbers")
    elif name == "tojson":
        indent = max((given for given in values if isinstance(given, int)), default=0)
        budget.take(text_size(value, budget.left + 1) * (1 + indent))
    elif name in ("string", "escape", "e", "forceescape", "urlencode", "title", "upper", "lower", "capitalize", "trim"):
        budget.take_text_of(value)
    elif name in ("list", "sort", "unique", "batch", "slice", "groupby", "reverse") and not isinstance(value, str):
        value = _Counted(value, budget, 1) if name not in ("reverse",) else value
    return value


@pass_context
def _counted(context: Context, values: Any, weight: int) -> _Counted:
    budget = _budget(context)
    budget.tick()
    return _Counted(values, budget, 1 + weight)


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
    return _weighed(_budget(context), value)


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
    if len(format) > MAX_WIDTH or WIDE.search(format):
        raise TooMuch(f"the chat template's time format is longer than {MAX_WIDTH} characters or has widths")
    return datetime.now().strftime(format)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as the model saw it in training: Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
