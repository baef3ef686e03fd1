"""The filters and tests that a chat template may use, each weighed before it does its work.

What is not in these tables is not there for a template. Those of Jinja's do the work itself.
"""

import json
from collections.abc import Callable
from typing import Any

from jinja2 import filters, pass_context
from jinja2 import tests as jinja_tests
from jinja2.environment import Environment
from jinja2.runtime import Context

from tokenizer_svc import template_weights as weights
from tokenizer_svc.json_size import CONTAINERS
from tokenizer_svc.template_budget import PART_CHARS, Budget, Counted, TooMuch

JSON_CHARS, JSON_ASCII_CHARS = 6, 12
"""What a character may become in JSON: an escape, or two."""
BUDGET = "budget "
"""The variable that holds it. No template can name it, for the blank."""


def budget_of(context: Context) -> Budget:
    """What this rendering may still use."""
    budget: Budget = context.parent[BUDGET]
    return budget


def _escaped(text: str, given: list[Any]) -> int:
    return weights.ESCAPED_CHARS * len(text)


def _titled(text: str, given: list[Any]) -> int:
    return PART_CHARS * len(text)  # a word may be a single character


def _indented(text: str, given: list[Any]) -> int:
    width = max([4, *(len(value) if isinstance(value, str) else value for value in given)])
    _refuse_width("indent", width)
    return 2 * len(text) + weights.num_lines(text) * (PART_CHARS + width)


TEXT_FILTERS: dict[str, Callable[[str, list[Any]], int]] = {
    **dict.fromkeys(("capitalize", "lower", "upper"), weights.cased),
    **dict.fromkeys(("e", "escape"), _escaped),
    **dict.fromkeys(("safe", "string"), weights.copied),
    "format": lambda text, given: weights.formatted_by_percent(text, given) * weights.growth(text),
    "indent": _indented,
    "replace": weights.replaced,
    "title": _titled,
    "trim": weights.compared,
}
WALKING_FILTERS = ("map", "reject", "rejectattr", "select", "selectattr", "sum")
COMPARING_FILTERS = ("max", "min", "sort", "unique")
ATTRIBUTE_PLACES = {
    "attr": 0, "join": 1, "max": 1, "min": 1, "rejectattr": 0, "selectattr": 0, "sort": 2, "sum": 0, "unique": 1,
}  # fmt: skip
"""Where the argument is that names an attribute."""
MAX_ATTRIBUTE_CHARS = 100
"""Of its name: each part is looked up in every value."""
PLAIN_FILTERS = ("abs", "attr", "count", "d", "default", "first", "items", "last", "length")
"""Those that do a single thing."""
OTHER_FILTERS = ("dictsort", "float", "int", "join", "list", "reverse", "round")
PLAIN_TESTS = (
    "boolean", "callable", "defined", "false", "float", "integer", "iterable", "mapping", "none", "number", "sameas",
    "sequence", "string", "true", "undefined",
)  # fmt: skip
NUMBER_TESTS = ("divisibleby", "even", "odd")
CASE_TESTS = ("lower", "upper")
COMPARING_TESTS = {
    **dict.fromkeys(("==", "eq", "equalto"), "eq"),
    **dict.fromkeys(("!=", "ne"), "ne"),
    **dict.fromkeys(("<", "lt", "lessthan"), "lt"),
    **dict.fromkeys(("<=", "le"), "lteq"),
    **dict.fromkeys((">", "gt", "greaterthan"), "gt"),
    **dict.fromkeys((">=", "ge"), "gteq"),
    "in": "in",
}


def allowed_filters() -> dict[str, Callable[..., Any]]:
    """By name."""
    names = [*TEXT_FILTERS, *WALKING_FILTERS, *COMPARING_FILTERS, *PLAIN_FILTERS, *OTHER_FILTERS]
    found: dict[str, Callable[..., Any]] = {"tojson": _tojson}
    for name in names:
        found[name] = _bounded_filter(name, filters.FILTERS[name])
    return found


def allowed_tests() -> dict[str, Callable[..., Any]]:
    """By name."""
    found: dict[str, Any] = {name: jinja_tests.TESTS[name] for name in PLAIN_TESTS}
    for name in (*NUMBER_TESTS, *CASE_TESTS, *COMPARING_TESTS):
        found[name] = _bounded_test(name, jinja_tests.TESTS[name])
    return found


def _bounded_filter(name: str, function: Any) -> Callable[..., Any]:
    """A filter of Jinja's, weighed first."""
    passed = getattr(getattr(function, "jinja_pass_arg", None), "name", "")

    @pass_context
    def bounded(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        budget = budget_of(context)
        budget.tick()
        attribute = _attribute(name, args, kwargs)
        if name in TEXT_FILTERS:
            value = budget.text_of(value)
            given = [*args, *kwargs.values()]
            budget.walk(given)
            if name == "replace":
                given = [
                    budget.text_of(each) for each in (*args, *(kwargs[key] for key in ("old", "new") if key in kwargs))
                ]
            budget.take(TEXT_FILTERS[name](value, given))
        elif name in WALKING_FILTERS:
            if name == "sum" and any(isinstance(given, CONTAINERS) for given in (*args, *kwargs.values())):
                raise TooMuch("the chat template sums what are no numbers")
            value = Counted(value, budget, 1)
        elif name in COMPARING_FILTERS:
            value = _weigh_order(context.environment, budget, value, attribute)
        elif name in OTHER_FILTERS:
            value, args = _weigh_other(context.environment, budget, name, value, args, kwargs)
        first = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}
        result = function(*([first[passed]] if passed else []), value, *args, **kwargs)
        if isinstance(result, int):
            weights.refuse_bits(result.bit_length())
        return result

    return bounded


def _bounded_test(name: str, function: Any) -> Callable[..., bool]:
    @pass_context
    def bounded(context: Context, value: Any, *args: Any) -> bool:
        budget = budget_of(context)
        budget.tick()
        if name in COMPARING_TESTS:
            for other in args[:1]:
                weights.weigh_comparison(budget, COMPARING_TESTS[name], value, other)
        elif name in CASE_TESTS:
            value = budget.text_of(value)
            budget.take(weights.looked_through(value, []))
        elif isinstance(value, str):
            raise TypeError(f"a text is neither {name} nor not")  # `%` would format it
        return bool(function(value, *args))

    return bounded


def _attribute(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What names an attribute, if anything does. Raises TooMuch for a long one and for what is nested."""
    place = ATTRIBUTE_PLACES.get(name, len(args))
    found = args[place] if place < len(args) else kwargs.get("name" if name == "attr" else "attribute")
    if isinstance(found, CONTAINERS):
        raise TooMuch("the chat template names an attribute by what is no text and no number")
    if isinstance(found, str) and len(found) > MAX_ATTRIBUTE_CHARS:
        raise TooMuch(f"the chat template names an attribute by {len(found)} characters: at most {MAX_ATTRIBUTE_CHARS}")
    return found


def _weigh_order(environment: Environment, budget: Budget, values: Any, attribute: Any) -> Counted:
    """What sorts or compares values with one another, as many of them as there are. Returns them."""
    values = budget.listed(values)
    of_value = filters.make_multi_attrgetter(environment, attribute)
    _weigh_keys(budget, [key for value in Counted(values, budget, 1) for key in of_value(value)])
    return Counted(values, budget, 1)


def _weigh_keys(budget: Budget, keys: list[Any]) -> None:
    longest = max((_key_size(budget, key) for key in keys), default=0)
    budget.take(len(keys) * len(keys).bit_length() * (PART_CHARS + weights.CASED_CHARS * longest))


def _key_size(budget: Budget, key: Any) -> int:
    """Characters that are compared to put it in order. Raises TooMuch."""
    if isinstance(key, str):
        return len(key)
    if not isinstance(key, CONTAINERS):
        return 0
    # what is nested is compared once more at each level; dictionaries have no order, and are only compared for equality
    if type(key) is tuple and all(isinstance(part, dict) or not isinstance(part, CONTAINERS) for part in key):
        return budget.walk(key)
    raise TooMuch("the chat template puts in order what are no texts, numbers or tuples of these")


def _weigh_other(
    environment: Environment, budget: Budget, name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, tuple[Any, ...]]:
    """Returns the value and the arguments."""
    if name == "dictsort":
        budget.take(len(value) * PART_CHARS)
        _weigh_keys(budget, list(value.values() if "value" in (*args[1:2], kwargs.get("by")) else value))
    elif name == "join":
        attribute = args[1] if len(args) > 1 else kwargs.pop("attribute", None)
        if attribute is not None:
            value = map(filters.make_attrgetter(environment, attribute), value)
        value = budget.listed(value)
        for part in value:
            budget.take_text_of(part)
        separator = budget.text_of(args[0] if args else kwargs.pop("d", ""))
        args = (separator,)
        budget.take(len(value) * len(separator))
    elif name in ("float", "int"):
        budget.take(len(value) if isinstance(value, str) else 0)
    elif name == "list":
        value = Counted(value, budget, PART_CHARS)
    elif name == "reverse":
        budget.take(len(value) if isinstance(value, str) else 0)
        value = value if isinstance(value, str | list | tuple | dict) else budget.listed(value)
    elif name == "round":
        for given in (*args, *kwargs.values()):
            _refuse_width(name, abs(given) if isinstance(given, int) else 0)
    return value, args


def _refuse_width(name: str, width: int) -> None:
    if width > weights.MAX_WIDTH:
        raise TooMuch(f"the chat template gives {name} a width of {width}: at most {weights.MAX_WIDTH}")


@pass_context
def _tojson(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """JSON as the model saw it in training: Jinja's own filter escapes for HTML."""
    budget = budget_of(context)
    budget.tick()
    budget.take((JSON_ASCII_CHARS if ensure_ascii else JSON_CHARS) * budget.walk(value))
    if indent is None and separators is None and not sort_keys:
        return json.dumps(value, ensure_ascii=ensure_ascii)
    for given in (indent, *(separators or ())):
        _refuse_width("tojson", given if isinstance(given, int) else len(given or ""))
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    parts = []
    for part in encoder.iterencode(value):  # one by one: depth times indent has no bound of its own
        budget.tick()
        budget.take(len(part))
        parts.append(part)
    return "".join(parts)
