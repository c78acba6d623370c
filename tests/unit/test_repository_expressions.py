"""Symbolic sizes are read without evaluating them, and refused unless they are nothing but arithmetic."""

from __future__ import annotations

import pytest
from offramp_common.formats.pt2_expressions import Range, parse_expression
from offramp_server.errors import LoadError

S0 = "Symbol('s0', positive=True, integer=True)"
S1 = "Symbol('s1', integer=True)"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (S0, "s0"),
        (f"Mul(Integer(2), {S0})", "2*s0"),
        (f"Add({S0}, Integer(-1))", "Add(s0, -1)"),
        (f"FloorDiv({S0}, Integer(2))", "FloorDiv(s0, 2)"),
        (f"TruncToInt(Mul(Float('1.5', precision=53), ToFloat({S0})))", "TruncToInt(1.5*ToFloat(s0))"),
        (f"LessThan({S1}, Integer(128))", "LessThan(s1, 128)"),
        (f"Max(Integer(1), Pow({S0}, Rational(1, 2)))", "Max(1, Pow(s0, Rational(1, 2)))"),
        ("And(true, Not(false))", "And(true, Not(false))"),
    ],
)
def test_what_torch_export_writes_is_understood(text: str, shown: str) -> None:
    assert str(parse_expression(text)) == shown


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "Symbol('s0').__class__",
        'Symbol("s0")',
        "Symbol('s0' + 's1')",
        "Symbol('__import__')" + "('os')",
        "Symbol('a b')",
        "Symbol('s0', __import__('os'))",
        "Symbol('s0', integer=eval('1'))",
        "Symbol(*[1])",
        "Symbol('s0', **{})",
        "Integer('1')",
        "Integer(Symbol('s0'))",
        "Float('1e', precision=53)",
        "Float('1.0', precision='x')",
        "FloorDiv('__import__', 2)",
        "Add('1', 2)",
        "Mul(Integer(2), x)",
        "eval('1')",
        "lambdify(Symbol('s0'), 1)",
        "preview(Symbol('s0'))",
        "Add(1, 2)\n",
        "Add(1, 2) # comment",
        "[Symbol('s0')]",
        "lambda: 1",
        "Add(1, 2",
        "",
        "(" * 5000 + ")" * 5000,
        "Add(" * 2000 + "1" + ")" * 2000,
        "Symbol('s0')" * 2000,
        7,
        None,
    ],
)
def test_anything_else_is_refused(text: object) -> None:
    with pytest.raises(LoadError, match="is not a symbolic size"):
        parse_expression(text)


@pytest.mark.parametrize(
    ("text", "bounds"),
    [
        (S0, (1, 8)),
        ("Symbol('unknown')", None),
        (f"Mul(Integer(2), {S0})", (2, 16)),
        (f"Add({S0}, {S0}, Integer(-1))", (1, 15)),
        (f"Mul({S0}, {S1})", (0, None)),
        (f"Mul(Integer(-2), {S0})", None),
        (f"FloorDiv({S0}, Integer(2))", None),
        (f"Add({S0}, FloorDiv({S0}, Integer(2)))", None),
    ],
)
def test_bounds_follow_from_the_bounds_of_the_symbols(text: str, bounds: Range | None) -> None:
    assert parse_expression(text).bounds({"s0": (1, 8), "s1": (0, None)}) == bounds
