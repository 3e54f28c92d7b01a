"""Text to SymPy, safely.

Expressions come from files that anybody may have written, so nothing here evaluates Python: the text is parsed with
`ast` and a walker builds SymPy objects for a short list of operators and functions. All symbols are real.
"""

from __future__ import annotations

import ast
import math
import re
import unicodedata
import warnings
from collections.abc import Callable, Collection
from typing import Any, cast

import sympy as sp
from sympy.printing.str import StrPrinter

from physnet.errors import DeclarationError, Fault, did_you_mean

MAX_LENGTH = 4000
MAX_DEPTH = 60
MAX_EXPONENT = 32
MAX_DIGITS = 40
MAX_SUMMANDS = 2000


class relu(sp.Function):
    """max(x, 0)"""

    nargs = 1

    @classmethod
    def eval(cls, x: sp.Expr) -> sp.Expr | None:
        return cast(sp.Expr, sp.Max(x, 0)) if x.is_number else None

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        return cast(sp.Expr, step(self.args[0]))


class step(sp.Function):
    """1 where x > 0, else 0. Not part of the language: the derivative of relu and clip."""

    nargs = 1

    @classmethod
    def eval(cls, x: sp.Expr) -> sp.Expr | None:
        return sp.Integer(1 if x > 0 else 0) if x.is_number else None

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        return sp.Integer(0)


class clip(sp.Function):
    """min(max(x, lo), hi)"""

    nargs = 3

    @classmethod
    def eval(cls, x: sp.Expr, lo: sp.Expr, hi: sp.Expr) -> sp.Expr | None:
        numbers = x.is_number and lo.is_number and hi.is_number
        return cast(sp.Expr, sp.Min(sp.Max(x, lo), hi)) if numbers else None

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        x, lo, hi = cast(tuple[sp.Expr, sp.Expr, sp.Expr], self.args)
        if argindex == 1:
            return cast(Any, step(x - lo)) * step(hi - x)
        return cast(sp.Expr, step(lo - x) if argindex == 2 else step(x - hi))


class softplus(sp.Function):
    """log(1 + exp(x))"""

    nargs = 1

    @classmethod
    def eval(cls, x: sp.Expr) -> sp.Expr | None:
        return cast(sp.Expr, sp.log(1 + sp.exp(x))) if x.is_number else None

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        return cast(sp.Expr, sigmoid(self.args[0]))


class sigmoid(sp.Function):
    """1 / (1 + exp(-x))"""

    nargs = 1

    @classmethod
    def eval(cls, x: sp.Expr) -> sp.Expr | None:
        return cast(sp.Expr, 1 / (1 + sp.exp(-x))) if x.is_number else None

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        return cast(sp.Expr, self * (1 - self))


class log_cosh(sp.Function):
    """log(cosh(x))"""

    nargs = 1

    @classmethod
    def eval(cls, x: sp.Expr) -> sp.Expr | None:
        return cast(sp.Expr, sp.log((sp.exp(x) + sp.exp(-x)) / 2)) if x.is_number else None

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        return cast(sp.Expr, sp.tanh(self.args[0]))


FUNCTIONS: dict[str, tuple[int | None, Callable[..., Any]]] = {
    "sin": (1, sp.sin),
    "cos": (1, sp.cos),
    "tan": (1, sp.tan),
    "tanh": (1, sp.tanh),
    "asinh": (1, sp.asinh),
    "atanh": (1, sp.atanh),
    "erf": (1, sp.erf),
    "exp": (1, sp.exp),
    "log": (1, sp.log),
    "sqrt": (1, sp.sqrt),
    "abs": (1, sp.Abs),
    "sign": (1, sp.sign),
    "relu": (1, relu),
    "clip": (3, clip),
    "softplus": (1, softplus),
    "log_cosh": (1, log_cosh),
    "sigmoid": (1, sigmoid),
    "min": (None, sp.Min),
    "max": (None, sp.Max),
}
"""The functions of the language: name -> (number of arguments or None for two and more, SymPy constructor)."""

ON_TENSORS = {"Abs": "magnitude", "Min": "minimum", "Max": "maximum"}
"""SymPy's functions that `physnet.functions` calls otherwise."""

CONSTANTS = {"pi": sp.pi}
RESERVED = frozenset({"x", "y", "a", "pre", "post", "t", "pi"})
"""Names with a meaning of their own; every other symbol of an expression is a parameter."""

_KNOWN_CLASSES = (
    sp.Add, sp.Mul, sp.Pow, sp.Symbol, sp.Number, sp.NumberSymbol, sp.sin, sp.cos, sp.tan, sp.tanh, sp.asinh,
    sp.atanh, sp.erf, sp.exp, sp.log, sp.Abs, sp.sign, sp.Min, sp.Max, relu, clip, softplus, sigmoid, log_cosh,
)  # fmt: skip
_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
}


def symbol(name: str) -> sp.Symbol:
    """The real symbol of that name; all expressions of physnet use these."""
    return sp.Symbol(name, real=True)


def parse(source: str | float | sp.Expr, functions: Collection[str] | None = None) -> sp.Expr:
    """Text, a number or a SymPy expression as a SymPy expression in real symbols.

    Arguments:
        source: such as `"x**2/2 - b*x"`. Names other than functions become symbols, `beta`, `gamma`, `S`, `E`, `I` too.
        functions: further function names to accept as uninterpreted functions (used by initialisers).

    Raises:
        DeclarationError: with a caret, for anything that isn't arithmetic over known functions.
    """
    if isinstance(source, sp.Basic):
        return _adopt(source)
    text = str(source) if isinstance(source, int | float) and not isinstance(source, bool) else source
    if not isinstance(text, str):
        raise DeclarationError(f"expected an expression, found {source!r}", "write it as text, such as x**2/2 - b*x")
    return _Parser(text, frozenset(functions or ())).parse()


class _Writer(StrPrinter):
    """Prints SymPy in the language that `parse` reads."""

    def _print_Abs(self, expr: Any) -> str:
        return f"abs({self._print(expr.args[0])})"

    def _print_Min(self, expr: Any) -> str:
        return f"min({', '.join(sorted(map(self._print, expr.args)))})"

    def _print_Max(self, expr: Any) -> str:
        return f"max({', '.join(sorted(map(self._print, expr.args)))})"

    def _print_Exp1(self, expr: Any) -> str:
        return "exp(1)"


def write(expression: sp.Expr) -> str:
    """The expression as text, such that `parse(write(e)) == e`."""
    return _Writer().doprint(expression)


def derivative(expression: sp.Expr, variable: sp.Symbol) -> sp.Expr:
    """d expression / d variable, almost everywhere: the derivative of a step is zero."""
    result = sp.diff(expression, variable)
    result = result.replace(sp.DiracDelta, lambda *_: sp.Integer(0))
    return cast(sp.Expr, result.replace(sp.Heaviside, lambda z, *_: step(z)))


def names(expression: sp.Expr) -> set[str]:
    """The names of the symbols in an expression."""
    return {str(item) for item in expression.free_symbols}


def _adopt(expression: sp.Basic) -> sp.Expr:
    for part in sp.preorder_traversal(expression):
        if not isinstance(part, _KNOWN_CLASSES):
            raise DeclarationError(
                f"'{part}' ({type(part).__name__}) in {expression} is not part of the expression language",
                f"use + - * / ** and {', '.join(FUNCTIONS)}",
            )
    renamed = {item: symbol(str(item)) for item in expression.free_symbols}
    result = cast(sp.Expr, expression.xreplace(renamed))
    _refuse_undefined(result, str(expression))
    _refuse_explosion(result, str(expression))
    return result


def summands(expression: sp.Basic) -> int:
    """An upper bound for the number of summands after expansion, without expanding."""
    if isinstance(expression, sp.Add):
        return sum(map(summands, expression.args))
    if isinstance(expression, sp.Mul):
        return math.prod(map(summands, expression.args))
    if isinstance(expression, sp.Pow) and expression.exp.is_Integer and expression.exp > 0:
        power = int(expression.exp)
        return math.comb(power + summands(expression.base) - 1, power)
    return 1


def _refuse_explosion(expression: sp.Expr, text: str) -> None:
    """The compiler expands terms, and what stands inside functions."""
    parts = [expression, *(part for call in expression.atoms(sp.Function, sp.Pow) for part in call.args)]
    if any(summands(part) > MAX_SUMMANDS for part in parts):
        raise DeclarationError(
            Fault(f"this expression expands to more than {MAX_SUMMANDS} summands", "use lower powers", value=text)
        )


def _undefined(expression: sp.Basic) -> bool:
    """Whether a number in the expression is not real, not finite or beyond the range of floats."""
    if expression.has(sp.zoo, sp.nan, sp.oo, -sp.oo, sp.I):
        return True
    if any(map(_undefined, expression.args)):  # inner ones first, because towers of exponentials take forever
        return True
    if not isinstance(expression, sp.Expr) or not expression.is_number or expression.has(sp.core.function.AppliedUndef):
        return False
    try:
        return not math.isfinite(float(expression))
    except (TypeError, ArithmeticError):
        return True


def _refuse_undefined(expression: sp.Expr, text: str) -> None:
    if _undefined(expression):
        raise DeclarationError(
            Fault(
                "this expression is not a finite real number",
                "look for a division by zero, or the root or logarithm of a negative number",
                value=text,
            )
        )


class _Parser:
    """A walker over the syntax tree of one expression."""

    def __init__(self, text: str, extra_functions: frozenset[str]) -> None:
        # leading blanks are an indentation error to Python, and the caret must still point into the original text
        self.text = text
        self.shift = len(text) - len(text.lstrip())
        self.extra_functions = extra_functions

    def parse(self) -> sp.Expr:
        if not self.text.strip():
            raise self.error("the expression is empty", "write a scalar expression such as x**2/2")
        if len(self.text) > MAX_LENGTH:
            raise DeclarationError(
                f"an expression of {len(self.text)} characters is longer than {MAX_LENGTH}", "split it into terms"
            )
        if "#" in self.text:  # to Python it is a comment, and would hide the lines that follow
            raise self.error("expressions have no comments", "write it in a YAML line of its own", self.text.find("#"))
        if unicodedata.normalize("NFKC", self.text) != self.text:  # to Python they are the letters that they look like
            raise self.error("letters in another guise, such as full-width ones", "use plain letters")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)
                tree = ast.parse(self.text.strip().replace("\n", " "), mode="eval")
        except SyntaxError as problem:
            offset = (problem.offset or 1) - 1 + self.shift
            raise self.error(f"syntax error: {problem.msg}", "check brackets and operators", offset) from None
        except (ValueError, MemoryError, RecursionError) as problem:
            raise self.error(f"this can't be read as an expression: {problem}", "simplify it") from None
        try:
            result = self.walk(tree.body, 0)
        except (TypeError, ValueError, ArithmeticError, RecursionError) as problem:
            if isinstance(problem, DeclarationError):
                raise
            raise self.error(
                f"this has no value: {problem}", "look for a division by zero, or the root of -1"
            ) from None
        _refuse_undefined(result, self.text)
        _refuse_explosion(result, self.text)
        return result

    def error(self, message: str, fix: str, offset: int | None = None) -> DeclarationError:
        value = self.text if len(self.text) <= 200 else self.text[:200] + "…"
        offset = None if offset is None or offset > len(value) else offset
        return DeclarationError(Fault(message, fix, offset=offset, value=value))

    def at(self, node: ast.expr, message: str, fix: str) -> DeclarationError:
        # ast counts bytes, carets count characters
        prefix = self.text.strip().encode()[: node.col_offset].decode(errors="ignore")
        return self.error(message, fix, len(prefix) + self.shift)

    def walk(self, node: ast.expr, depth: int) -> sp.Expr:
        if depth > MAX_DEPTH:
            raise self.at(node, f"the expression is nested more than {MAX_DEPTH} deep", "simplify it")
        match node:
            case ast.BinOp(left=left, op=ast.Pow(), right=right):
                return self.power(node, self.walk(left, depth + 1), self.walk(right, depth + 1))
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _OPERATORS:
                return _OPERATORS[type(operator)](self.walk(left, depth + 1), self.walk(right, depth + 1))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return cast(sp.Expr, -self.walk(operand, depth + 1))
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self.walk(operand, depth + 1)
            case ast.Constant(value=value):
                return self.number(node, value)
            case ast.Name(id=name):
                return self.name(node, name)
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
                return self.call(node, name, [self.walk(argument, depth + 1) for argument in arguments])
        raise self.at(
            node,
            f"{type(node).__name__} is not part of the expression language",
            f"use numbers, names, + - * / **, brackets and {', '.join(FUNCTIONS)}",
        )

    def number(self, node: ast.expr, value: object) -> sp.Expr:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.at(node, f"{value!r} is not a number", "use real numbers such as 2 or 0.5")
        if isinstance(value, int):
            if abs(value) >= 10**MAX_DIGITS:
                raise self.at(node, f"a number of more than {MAX_DIGITS} digits", "rescale")
            return sp.Integer(value)
        written = str(ast.get_source_segment(self.text.strip(), node) or value)
        vanished = not value and re.search("[1-9]", written.lower().split("e")[0])
        if not math.isfinite(value) or vanished or (value and not 1e-38 < abs(value) < 1e38):
            raise self.at(node, f"the number {written} is outside the range of float32", "rescale")
        return sp.Rational(str(value))  # exact, so that 0.5*2 is 1 and energies separate cleanly

    def name(self, node: ast.expr, name: str) -> sp.Expr:
        if name in CONSTANTS:
            return CONSTANTS[name]
        if name in FUNCTIONS or name in self.extra_functions:
            raise self.at(node, f"the function '{name}' needs arguments", f"write {name}(...)")
        if name in ("nan", "inf"):
            raise self.at(node, f"{name} is not a finite number", "use real numbers such as 2 or 0.5")
        if name.startswith("_"):
            raise self.at(node, f"'{name}': names don't start with an underscore", "rename it")
        return symbol(name)

    def call(self, node: ast.expr, name: str, arguments: list[sp.Expr]) -> sp.Expr:
        if name in self.extra_functions:
            return cast(sp.Expr, sp.Function(name)(*arguments))
        if name not in FUNCTIONS:
            hint = did_you_mean(name, [*FUNCTIONS, *self.extra_functions])
            raise self.at(node, f"unknown function '{name}'", hint)
        count, function = FUNCTIONS[name]
        if (count is None and len(arguments) < 2) or (count is not None and len(arguments) != count):
            wanted = "at least 2" if count is None else str(count)
            usage = "x, y" if count is None else "x" if count == 1 else "x, lo, hi"
            raise self.at(node, f"{name} takes {wanted} argument(s), found {len(arguments)}", f"write {name}({usage})")
        result = cast(sp.Expr, function(*arguments))
        if result.is_number and _undefined(result):
            raise self.at(
                node, "this is not a finite real number", "look for the root or logarithm of a negative number"
            )
        return result

    def power(self, node: ast.expr, base: sp.Expr, exponent: sp.Expr) -> sp.Expr:
        if exponent.is_number and not abs(float(exponent)) <= MAX_EXPONENT:
            raise self.at(node, f"the exponent {exponent} is larger than {MAX_EXPONENT}", "use a smaller exponent")
        numbers = exponent.is_number and base.is_number and not base.is_zero
        if numbers and abs(float(exponent) * math.log10(abs(float(base)))) > MAX_DIGITS:
            raise self.at(node, f"a number of more than {MAX_DIGITS} digits", "rescale")
        result = cast(sp.Expr, base**exponent)
        if isinstance(result, sp.Pow) and result.exp.is_number and not abs(float(result.exp)) <= MAX_EXPONENT:
            raise self.at(node, f"the exponent {result.exp} is larger than {MAX_EXPONENT}", "use a smaller exponent")
        return result
