"""SymPy printed as torch code, and as people read it."""

from __future__ import annotations

from typing import Any, cast

import sympy as sp
from sympy.printing.str import StrPrinter

from physnet import functions, stable
from physnet.expressions import ON_TENSORS, symbol, write
from physnet.external import BETA
from physnet.separation import X

EXACT = 2**53
"""Whole numbers below it are exact in float64; decimals of many digits make larger ones over common denominators."""


class TorchPrinter(StrPrinter):
    """Prints an expression as torch code; `where` says how each symbol is written."""

    def __init__(self, where: dict[sp.Basic, str]) -> None:
        super().__init__()
        self.where = where

    def doprint(self, expr: Any) -> str:
        return super().doprint(expr)

    def _print(self, expr: Any, **kwargs: Any) -> str:
        if isinstance(expr, sp.Expr) and expr.is_number and not isinstance(expr, sp.Rational):
            return repr(float(expr))
        return super()._print(expr, **kwargs)

    def _print_Symbol(self, expr: sp.Symbol) -> str:
        return self.where[expr]

    def _print_Dummy(self, expr: sp.Dummy) -> str:
        return self.where[expr]

    def _print_Function(self, expr: Any) -> str:
        name = type(expr).__name__
        return f"{ON_TENSORS.get(name, name)}({', '.join(map(self._print, expr.args))})"

    def _print_Wide(self, expr: Any) -> str:
        function, *pairs = expr.args
        names: dict[sp.Basic, str] = {item: f"a{index}" for index, item in enumerate(function.variables)}
        body = TorchPrinter(names).doprint(function.expr)
        return f"wide_difference(lambda {', '.join(names.values())}: {body}, {', '.join(map(self._print, pairs))})"

    _print_Abs = _print_Min = _print_Max = _print_LatticeOp = _print_ExpBase = _print_Function

    def _print_Pow(self, expr: sp.Pow, rational: bool = False) -> str:
        if expr.exp == sp.Rational(1, 2):
            return f"sqrt({self._print(expr.base)})"
        if expr.exp == -1:
            return f"1/{self.parenthesize(expr.base, 70)}"
        return super()._print_Pow(sp.Pow(expr.base, expr.exp, evaluate=False), rational=False)

    def _print_Rational(self, expr: sp.Rational) -> str:
        return f"{expr.p}/{expr.q}" if abs(expr.p) < 1000 and expr.q < 1000 else repr(float(expr))

    def _print_Integer(self, expr: sp.Integer) -> str:
        return str(expr.p) if abs(expr.p) < EXACT else repr(float(expr))


class Lines:
    """Source code that is being written."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, line: str = "", indent: int = 1) -> None:
        self.lines.append("    " * indent + line if line else "")

    def function(self, head: str, doc: str) -> None:
        self("")
        self("")
        self(f"def {head}:", 0)
        self(f'"""{doc}"""')


def shown(expression: sp.Expr) -> str:
    """An expression as people read it: beta, y and h instead of internal symbols."""
    names: dict[sp.Basic, sp.Symbol] = {BETA: symbol("beta")}
    for item in expression.free_symbols:
        if str(item).startswith("target "):
            names[item] = symbol("y")
        elif " " in str(item):
            names[item] = symbol(str(item).replace(" ", ""))
    return write(cast(sp.Expr, expression.xreplace(names)))


def elementwise(expression: sp.Expr) -> Any:
    """A function of one tensor from an expression in `x`."""
    text = TorchPrinter({X: "x"}).doprint(expression)
    code = compile(
        f"lambda x: {text}" + ("" if X in expression.free_symbols else " + 0*x"), "<physnet encoding>", "eval"
    )
    return eval(code, function_namespace())  # our own text, printed from SymPy


def function_namespace() -> dict[str, Any]:
    return {name: value for module in (functions, stable) for name, value in vars(module).items() if callable(value)}
