"""Rewrites a parsed template so that what Jinja would do by itself is counted: loops, macros, comparisons, `~`, slices.

Each becomes a filter whose name ends in a blank, so that no template can write it; `BoundedEnvironment` refuses it as a
text.
"""

import operator
from collections.abc import Callable
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.exceptions import TemplateSyntaxError
from jinja2.runtime import Context
from jinja2.visitor import NodeTransformer

from tokenizer_svc.template_budget import PART_CHARS, Counted, TooMuch
from tokenizer_svc.template_filters import budget_of
from tokenizer_svc.template_weights import MAX_INTEGER_BITS, MAX_KEY_CHARS, refuse_as_new_key, weigh_comparison

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "lteq": operator.le,
    "gt": operator.gt,
    "gteq": operator.ge,
    "in": lambda left, right: left in right,
    "notin": lambda left, right: left not in right,
}

LITERALS = (nodes.TemplateData, nodes.List, nodes.Tuple, nodes.Dict)


def rewritten(tree: nodes.Template) -> nodes.Template:
    """The same tree, changed. Raises TemplateSyntaxError for a number without measure, `autoescape`, and `f(*x)`."""
    changed: nodes.Template = _Rewriter().visit(tree)
    return changed


class _Rewriter(NodeTransformer):
    def visit_For(self, node: Any) -> Any:
        self.generic_visit(node)
        weight = nodes.Const(_literal_size([*node.body, *([node.test] if node.test else [])]))
        node.iter = _filtered(node.iter, "counted ", weight)
        if node.recursive and node.test:  # what `loop(...)` walks through is not `iter`
            node.test = _filtered(node.test, "charged ", weight)
        elif node.recursive:
            node.body.insert(0, _charge(weight, node.lineno))
        return node

    def visit_Macro(self, node: Any) -> Any:
        self.generic_visit(node)
        weight = _literal_size([*node.body, *node.defaults])
        node.body.insert(0, _charge(nodes.Const(weight), node.lineno))
        return node

    visit_CallBlock = visit_Macro

    def visit_Block(self, node: nodes.Block) -> nodes.Block:
        self.generic_visit(node)
        node.body.insert(0, _charge(nodes.Const(_literal_size(node.body)), node.lineno))
        return node

    def visit_Call(self, node: Any) -> Any:
        """What is written out behind `*` and `**` has a bound, as in `dict(d, **{key: value})`."""
        self.generic_visit(node)
        if isinstance(node.dyn_kwargs, nodes.Dict):
            for pair in node.dyn_kwargs.items:
                pair.key = _filtered(pair.key, "name ")
        elif node.dyn_kwargs or not isinstance(node.dyn_args, nodes.List | nodes.Tuple | None):
            raise TemplateSyntaxError(
                "a chat template calls with no `*` and no `**`, but for what is written out", node.lineno
            )
        return node

    visit_Filter = visit_Test = visit_Call

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "joined ")

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        bounds = (node.arg.start, node.arg.stop, node.arg.step)
        return _filtered(node.node, "sliced ", *(bound or nodes.Const(None) for bound in bounds))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Expr:
        self.generic_visit(node)
        if len(node.ops) == 1 and _is_short(node.expr, node.ops[0]):
            return node
        operands = (part for operand in node.ops for part in (nodes.Const(operand.op), operand.expr))
        return _filtered(node.expr, "compared ", *operands)

    def visit_Pair(self, node: nodes.Pair) -> nodes.Pair:
        self.generic_visit(node)
        if not (isinstance(node.key, nodes.Const) and isinstance(node.key.value, str)):
            node.key = _filtered(node.key, "key ")
        return node

    def visit_ScopedEvalContextModifier(self, node: nodes.ScopedEvalContextModifier) -> nodes.Node:
        raise TemplateSyntaxError("a chat template is no HTML: there is no autoescape", node.lineno)

    def visit_Const(self, node: nodes.Const) -> nodes.Const:
        if isinstance(node.value, int) and node.value.bit_length() > MAX_INTEGER_BITS:
            raise TemplateSyntaxError(f"an integer of more than {MAX_INTEGER_BITS} bits", node.lineno)
        return node


def _is_short(left: nodes.Expr, operand: nodes.Operand) -> bool:
    """Whether one side is written out, so that the comparison ends with it."""
    if operand.op in ("in", "notin"):
        return isinstance(operand.expr, nodes.List | nodes.Tuple) and all(
            isinstance(item, nodes.Const) for item in operand.expr.items
        )
    return isinstance(left, nodes.Const) or isinstance(operand.expr, nodes.Const)


def _filtered(node: nodes.Expr, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


def _charge(weight: nodes.Const, lineno: int) -> nodes.Output:
    return nodes.Output([_filtered(nodes.Const(""), "charged ", weight)], lineno=lineno)


def _literal_size(parts: list[nodes.Node]) -> int:
    """What stands in the template itself and is made in each pass: characters between tags, lists and dictionaries."""
    found = (node for part in parts for node in (part, *part.find_all(LITERALS)))
    return sum(_size(node) for node in found if isinstance(node, LITERALS))


def _size(node: Any) -> int:
    return len(node.data) if isinstance(node, nodes.TemplateData) else PART_CHARS * (1 + len(node.items))


@pass_context
def _counted(context: Context, values: Any, weight: int) -> Counted:
    budget = budget_of(context)
    budget.tick()
    return Counted(values, budget, 1 + weight)


@pass_context
def _charged(context: Context, value: Any, weight: int) -> Any:
    budget = budget_of(context)
    budget.tick()
    budget.take(1 + weight)
    return value


@pass_context
def _joined(context: Context, values: list[Any]) -> str:
    """`a ~ b ~ c`."""
    budget = budget_of(context)
    for value in values:
        budget.take_text_of(value)
    return "".join(map(str, values))


@pass_context
def _sliced(context: Context, value: Any, *bounds: Any) -> Any:
    """`value[start:stop:step]`."""
    if not all(bound is None or isinstance(bound, int) for bound in bounds):
        raise TypeError("a slice takes whole numbers")
    which = slice(*bounds)
    budget = budget_of(context)
    budget.tick()
    budget.take(len(range(*which.indices(len(value)))))
    return value[which]


@pass_context
def _compared(context: Context, left: Any, *operands: Any) -> bool:
    """`left < right`, and so on: an operator and a value each."""
    budget = budget_of(context)
    for name, right in zip(operands[::2], operands[1::2], strict=True):
        budget.tick()
        right = weigh_comparison(budget, name, left, right)
        if not OPERATORS[name](left, right):
            return False
        left = right
    return True


def _key(key: Any) -> Any:
    """A key of a dictionary that the template writes."""
    refuse_as_new_key(key)
    return key


def _name(name: Any) -> Any:
    """A name of an argument behind `**`."""
    if not isinstance(name, str) or len(name) > MAX_KEY_CHARS:
        raise TooMuch(f"the chat template names an argument by what is no text of at most {MAX_KEY_CHARS} characters")
    return name


COUNTING_FILTERS: dict[str, Callable[..., Any]] = {
    "charged ": _charged,
    "compared ": _compared,
    "counted ": _counted,
    "joined ": _joined,
    "key ": _key,
    "name ": _name,
    "sliced ": _sliced,
}
