"""Relations between measured figures: the text a report prints is the text that is evaluated.

A relation is a comparison (or ``and``/``or`` of comparisons) over figures written ``figure["cell"]``::

    share["headwise"] < 0.5 * share["softmax"]
    share["headwise"] < 0.1 < 0.5 < share["softmax"]

Only numbers, figures, ``+ - * / **``, ``min``, ``max``, ``abs``, ``log`` and comparisons are understood; nothing else
can be reached from a relation.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from softgate.errors import ArgumentValueError

#: figures[cell][figure] -> number
Table = Mapping[str, Mapping[str, Any]]

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {"min": min, "max": max, "abs": abs, "log": math.log}


class MissingFigure(LookupError):
    """A relation names a figure that was not measured."""


def evaluate(relation: str, table: Table) -> bool:
    """Whether ``relation`` holds for the numbers in ``table``; comparisons with NaN are false.

    Raises:
        MissingFigure: a figure or cell is absent.
        ValueError: the text is not a relation.
    """
    return bool(_Evaluator(relation, table).visit(parse(relation)))


def figures_in(relation: str) -> list[tuple[str, str]]:
    """The ``(figure, cell)`` pairs a relation mentions, in order of appearance, without repetition."""
    found = [_figure(node) for node in ast.walk(parse(relation)) if isinstance(node, ast.Subscript)]
    return list(dict.fromkeys(found))


def parse(relation: str) -> ast.expr:
    """Parse and check ``relation``; raises ``ValueError`` for anything but a boolean combination of comparisons."""
    try:
        tree = ast.parse(relation.strip(), mode="eval").body
    except SyntaxError as error:
        raise ArgumentValueError(f"relation is not an expression: {relation!r} ({error.msg})") from None
    _Checker(relation).boolean(tree)
    return tree


def _figure(node: ast.Subscript) -> tuple[str, str]:
    assert isinstance(node.value, ast.Name) and isinstance(node.slice, ast.Constant)  # held by _Checker
    return node.value.id, str(node.slice.value)


class _Checker:
    """Refuses every construct that is not part of the small language."""

    def __init__(self, relation: str) -> None:
        self.relation = relation

    def refuse(self, node: ast.AST) -> None:
        raise ArgumentValueError(f"relation {self.relation!r} may not contain {ast.unparse(node)!r}")

    def boolean(self, node: ast.expr) -> None:
        if isinstance(node, ast.BoolOp):
            for value in node.values:
                self.boolean(value)
        elif isinstance(node, ast.Compare) and all(type(op) in _COMPARE for op in node.ops):
            for value in (node.left, *node.comparators):
                self.number(value)
        else:
            self.refuse(node)

    def number(self, node: ast.expr) -> None:
        match node:
            case ast.Constant(value=bool()):
                self.refuse(node)
            case ast.Constant(value=int() | float()):
                pass
            case ast.Subscript(value=ast.Name(), slice=ast.Constant(value=str())):
                pass
            case ast.BinOp() if type(node.op) in _BINARY:
                self.number(node.left)
                self.number(node.right)
            case ast.UnaryOp(op=ast.USub()):
                self.number(node.operand)
            case ast.Call(func=ast.Name(id=name), keywords=[]) if name in _FUNCTIONS:
                for argument in node.args:
                    self.number(argument)
            case _:
                self.refuse(node)


class _Evaluator(ast.NodeVisitor):
    def __init__(self, relation: str, table: Table) -> None:
        self.relation, self.table = relation, table

    def visit_BoolOp(self, node: ast.BoolOp) -> bool:
        results = [self.visit(value) for value in node.values]  # no short circuit: a missing figure always shows
        return all(results) if isinstance(node.op, ast.And) else any(results)

    def visit_Compare(self, node: ast.Compare) -> bool:
        numbers = [self.visit(value) for value in (node.left, *node.comparators)]
        pairs = zip(node.ops, numbers[:-1], numbers[1:], strict=True)
        return all(_COMPARE[type(op)](left, right) for op, left, right in pairs)

    def visit_Constant(self, node: ast.Constant) -> Any:
        return node.value

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:
        return -self.visit(node.operand)

    def visit_BinOp(self, node: ast.BinOp) -> Any:
        try:
            return _BINARY[type(node.op)](self.visit(node.left), self.visit(node.right))
        except (ZeroDivisionError, OverflowError):
            return math.nan

    def visit_Call(self, node: ast.Call) -> Any:
        assert isinstance(node.func, ast.Name)
        arguments = [self.visit(argument) for argument in node.args]
        if any(math.isnan(value) for value in arguments):
            return math.nan  # min and max would depend on the order of their arguments
        try:
            return _FUNCTIONS[node.func.id](*arguments)
        except ValueError:
            return math.nan

    def visit_Subscript(self, node: ast.Subscript) -> float:
        figure, cell = _figure(node)
        if cell not in self.table:
            raise MissingFigure(f"cell {cell!r} was not measured")
        if figure not in self.table[cell]:
            raise MissingFigure(f"figure {figure!r} of cell {cell!r} was not measured")
        value = self.table[cell][figure]
        if value is None:  # JSON has no NaN
            return math.nan
        if not isinstance(value, int | float):
            raise MissingFigure(f"figure {figure!r} of cell {cell!r} is not a number")
        return float(value)
