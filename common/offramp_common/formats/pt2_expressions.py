"""Symbolic sizes of exported programs, as `torch.export` writes them: `Mul(Integer(2), Symbol('s44', integer=True))`.

`torch.export.load` gives this text to sympy's `sympify`, which evaluates it as Python. It is therefore parsed here
first, and refused unless it is made of known functions of symbols and numbers.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import TypeAlias

from offramp_common.errors import LoadError

# Inclusive; None: no upper bound.
Range: TypeAlias = tuple[int, int | None]

_MAX_LENGTH = 10_000
_CHARACTERS = re.compile(r"[A-Za-z0-9_'(),=.+\- ]*")
_SYMBOL_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_DECIMAL = re.compile(r"-?\d{1,60}(\.\d{0,60})?(e[+-]?\d{1,4})?|-?\.\d{1,60}")
_CONSTANTS = frozenset({"true", "false", "oo", "nan"})
# sympy's and torch.utils._sympy.functions' own; all of them compute and do nothing else.
_FUNCTIONS = frozenset(
    re.findall(
        r"\w+",
        """
    Add Mul Pow Mod Abs Max Min floor ceiling Rational sqrt log exp sign
    Eq Ne Gt Ge Lt Le Equality Unequality StrictGreaterThan StrictLessThan GreaterThan LessThan
    And Or Not Piecewise ExprCondPair Tuple
    FloorDiv ModularIndexing Where PythonMod CleanDiv CeilToInt FloorToInt CeilDiv LShift RShift PowByNatural FloatPow
    FloatTrueDiv IntTrueDiv IsNonOverlappingAndDenseIndicator TruncToFloat TruncToInt RoundToInt RoundDecimal ToFloat
    Identity
    """,
    )
)


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed size that is not a plain number."""

    tree: ast.expr

    def __str__(self) -> str:
        """Short text, the same for the same expression: `s44`, `2*s44`, `FloorDiv(s27, 2)`."""
        return _text(self.tree)

    def bounds(self, ranges: Mapping[str, Range]) -> Range | None:
        """The values that it can take if its symbols stay within `ranges`; None where that is not known."""
        return _bounds(self.tree, ranges)


def parse_expression(text: object) -> Expression:
    """Read one expression. Raises LoadError if evaluating it could do anything but arithmetic."""
    refusal = LoadError(f"{str(text)[:120]!r} is not a symbolic size that torch.export writes")
    if not isinstance(text, str) or len(text) > _MAX_LENGTH or not _CHARACTERS.fullmatch(text):
        raise refusal
    try:
        tree = ast.parse(text, mode="eval").body
        harmless = _harmless(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise refusal from None
    if not harmless:
        raise refusal
    return Expression(tree)


def _harmless(node: ast.expr) -> bool:
    if isinstance(node, ast.Name):
        return node.id in _CONSTANTS
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant) and _harmless(node.operand)
    if isinstance(node, ast.Constant):
        return isinstance(node.value, bool | int | float)
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return False
    if node.func.id == "Symbol":
        return _one_text(node, _SYMBOL_NAME) and all(_is_flag(word.value) for word in node.keywords)
    if node.func.id == "Float":
        return _one_text(node, _DECIMAL) and all(_is_precision(word) for word in node.keywords)
    if node.func.id == "Integer":
        return _one_number(node)
    return node.func.id in _FUNCTIONS and not node.keywords and all(_harmless(argument) for argument in node.args)


def _one_text(call: ast.Call, pattern: re.Pattern[str]) -> bool:
    """Text may stand nowhere else: sympy would evaluate it once more."""
    if len(call.args) != 1 or not isinstance(call.args[0], ast.Constant):
        return False
    value = call.args[0].value
    return all(word.arg for word in call.keywords) and isinstance(value, str) and pattern.fullmatch(value) is not None


def _one_number(call: ast.Call) -> bool:
    plain = len(call.args) == 1 and isinstance(call.args[0], ast.Constant | ast.UnaryOp)
    return plain and not call.keywords and _harmless(call.args[0])


def _is_precision(word: ast.keyword) -> bool:
    return word.arg == "precision" and isinstance(word.value, ast.Constant) and isinstance(word.value.value, int)


def _is_flag(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, bool))


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        parts = [_text(argument) for argument in node.args]
        if node.func.id in ("Symbol", "Integer", "Float"):
            return parts[0]
        if node.func.id == "Mul":
            return "*".join(parts)
        return f"{node.func.id}({', '.join(parts)})"
    return str(node.value) if isinstance(node, ast.Constant) else ast.unparse(node)


def _bounds(node: ast.expr, ranges: Mapping[str, Range]) -> Range | None:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return None
    kind = node.func.id
    if kind == "Symbol":
        return ranges.get(_text(node))
    if kind == "Integer":
        number = int(_text(node.args[0]))
        return number, number
    parts = [_bounds(argument, ranges) for argument in node.args]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or not known:
        return None
    if kind == "Add":
        return reduce(lambda left, right: _combine(operator.add, left, right), known)
    # Products of bounds are bounds of the product only where nothing is negative.
    if kind == "Mul" and all(low >= 0 for low, _ in known):
        return reduce(lambda left, right: _combine(operator.mul, left, right), known)
    return None


def _combine(operation: Callable[[int, int], int], left: Range, right: Range) -> Range:
    high = None if left[1] is None or right[1] is None else operation(left[1], right[1])
    return operation(left[0], right[0]), high
