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

from tokenizer_svc.template_budget import Counted
from tokenizer_svc.template_filters import budget_of
from tokenizer_svc.template_weights import MAX_INTEGER_BITS, refuse_as_new_key, weigh_comparison

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


def rewritten(tree: nodes.Template) -> nodes.Template:
    """The same tree, changed. Raises TemplateSyntaxError for a number without measure and for `autoescape`."""
    changed: nodes.Template = _Rewriter().visit(tree)
    return changed


class _Rewriter(NodeTransformer):
    def visit_For(self, node: Any) -> Any:
        self.generic_visit(node)
        weight = _literal_size(node.body)
        node.iter = _filtered(node.iter, "counted ", nodes.Const(weight))
        if node.recursive:  # what `loop(...)` walks through is not `iter`
            node.body.insert(0, _charge(weight, node.lineno))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        self.generic_visit(node)
        node.body.insert(0, _charge(_literal_size(node.body), node.lineno))
        return node

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


def _charge(weight: int, lineno: int) -> nodes.Output:
    return nodes.Output([_filtered(nodes.Const(""), "charged ", nodes.Const(weight))], lineno=lineno)


def _literal_size(body: list[nodes.Node]) -> int:
    """Characters that stand in the template itself between the tags."""
    found = (data for node in body for data in node.find_all(nodes.TemplateData))
    own = (node for node in body if isinstance(node, nodes.TemplateData))
    return sum(len(data.data) for data in (*found, *own))


@pass_context
def _counted(context: Context, values: Any, weight: int) -> Counted:
    budget = budget_of(context)
    budget.tick()
    return Counted(values, budget, 1 + weight)


@pass_context
def _charged(context: Context, value: str, weight: int) -> str:
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
        weigh_comparison(budget, name, left, right)
        if not OPERATORS[name](left, right):
            return False
        left = right
    return True


def _key(key: Any) -> Any:
    """A key of a dictionary that the template writes."""
    refuse_as_new_key(key)
    return key


COUNTING_FILTERS: dict[str, Callable[..., Any]] = {
    "charged ": _charged,
    "compared ": _compared,
    "counted ": _counted,
    "joined ": _joined,
    "key ": _key,
    "sliced ": _sliced,
}
