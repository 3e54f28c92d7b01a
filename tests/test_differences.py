"""Stable differences: their value against float64, and their accuracy where a plain subtraction has none left."""

from __future__ import annotations

import pytest
import sympy as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from physnet.differences import Move, difference, missing
from physnet.expressions import derivative, parse, symbol
from physnet.printing import TorchPrinter, function_namespace

X = symbol("x")
OLD, CHANGE, NEW = sp.symbols("o d s", real=True)
SMOOTH = [
    "x**2/2 - 3*x", "x**5", "1/x", "x**(-3)", "sqrt(x)", "x**1.5", "x**(-1/2)", "sin(x)", "cos(2*x - 1)", "tan(x/3)",
    "tanh(x)", "exp(x)", "exp(-3*x)", "log(x)", "sigmoid(4*x - 2)", "softplus(x)", "log_cosh(x)", "cos(x)*exp(-x**2)*x",
    "tanh(sin(x))**2", "sqrt(1 + x**2)",
]  # fmt: skip
KINKED = ["relu(x - 1)", "abs(x - 1)", "clip(x, 0.5, 1.5)", "max(x, 1, x**2)", "min(x, 2 - x)*x", "sign(x - 1)"]


def compiled(expression: sp.Expr):
    text = TorchPrinter({OLD: "o", CHANGE: "d", NEW: "(o + d)", X: "x"}).doprint(expression)
    return lambda **values: eval(text, function_namespace() | values)


def exact(text_or_expression: sp.Expr, old: Tensor, change: Tensor) -> Tensor:
    """The difference with 60 digits."""
    f = sp.lambdify(X, text_or_expression, "mpmath")
    import mpmath

    with mpmath.workdps(60):
        pairs = zip(old.tolist(), change.tolist(), strict=True)
        return torch.tensor([float(f(mpmath.mpf(a) + mpmath.mpf(d)) - f(mpmath.mpf(a))) for a, d in pairs]).double()


@pytest.mark.parametrize("text", SMOOTH)
@pytest.mark.parametrize("size", [1e-7, 1e-3, 0.3])
def test_float32_differences_keep_their_digits(text: str, size: float) -> None:
    """Also the difference of the slope, which is what forces are made of."""
    generator = torch.Generator().manual_seed(0)
    old = 0.5 + torch.rand(50, generator=generator)
    change = size * (2 * torch.rand(50, generator=generator) - 1)
    parsed = parse(text)
    for expression in (parsed, derivative(parsed, X)):
        if X not in expression.free_symbols:
            continue
        readable = expression.rewrite(sp.exp) if expression.has(*(type(parse(f"{f}(x)")) for f in OWN)) else expression
        found = compiled(difference(expression, {X: Move(OLD, CHANGE, NEW)}))(o=old, d=change)
        expected = exact(plain(readable), old, change)
        scale = expected.abs() + 1e-2 * size  # a slope may vanish
        assert float(((found.double() - expected) / scale).abs().max()) < 2e-5, expression


OWN = ("sigmoid", "softplus", "log_cosh")


def plain(expression: sp.Expr) -> sp.Expr:
    """Without physnet's own functions, which mpmath doesn't know."""
    forms = {
        "sigmoid": lambda z: 1 / (1 + sp.exp(-z)),
        "softplus": lambda z: sp.log(1 + sp.exp(z)),
        "log_cosh": lambda z: sp.log(sp.cosh(z)),
    }
    for name, form in forms.items():
        expression = expression.replace(type(parse(f"{name}(x)")), form)
    return expression


@pytest.mark.parametrize("text", [*SMOOTH, *KINKED])
@given(
    old=st.lists(st.floats(0.1, 2.5), min_size=4, max_size=4), change=st.lists(st.floats(-1, 1), min_size=4, max_size=4)
)
@settings(max_examples=15)
def test_differences_are_differences(text: str, old: list[float], change: list[float]) -> None:
    """Near or far, across kinks, in float64."""
    expression = parse(text)
    o, d = torch.tensor(old).double(), torch.tensor(change).double()
    d = torch.maximum(d, 0.05 - o)  # roots and logarithms want positive numbers
    found = compiled(difference(expression, {X: Move(OLD, CHANGE, NEW)}))(o=o, d=d)
    value = compiled(expression)
    expected = value(x=o + d) - value(x=o)
    kinks = (o + d - 1).abs() < 1e-12  # where rounding decides on which side of a step a unit is
    assert torch.allclose(torch.where(kinks, 0.0, found), torch.where(kinks, 0.0, expected), rtol=1e-9, atol=1e-11)


def test_no_overflow_far_out() -> None:
    old = torch.tensor([-300.0, 300.0, 0.0, 80.0])
    change = torch.tensor([600.0, -600.0, 500.0, -500.0])
    for text, expected in (
        ("tanh(x)", torch.tanh(old + change) - torch.tanh(old)),
        ("softplus(x)", torch.nn.functional.softplus(old + change) - torch.nn.functional.softplus(old)),
        ("log_cosh(x)", (old + change).abs() - old.abs()),
    ):
        found = compiled(difference(parse(text), {X: Move(OLD, CHANGE, NEW)}))(o=old, d=change)
        assert torch.allclose(found, expected, atol=1.0 if text == "log_cosh(x)" else 1e-4), text


def test_what_has_no_formula_is_worked_out_in_float64() -> None:
    expression = parse("x**2.3")
    assert missing(expression) == {"power 23/10"}
    assert not missing(parse("cos(x) + tanh(x)**3 + sqrt(x) + max(x, 1)"))
    old, change = torch.rand(20) + 0.5, 1e-6 * torch.randn(20)
    found = compiled(difference(expression, {X: Move(OLD, CHANGE, NEW)}))(o=old, d=change)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), exact(expression, old, change), rtol=1e-6, atol=0)


def test_what_starts_from_zero_and_what_stays() -> None:
    """The nudge moves from 0, so its product has no old part; symbols that don't move are factors."""
    beta, h = symbol("b"), symbol("h")
    moves = {X: Move(OLD, CHANGE, NEW), beta: Move(sp.Integer(0), beta, beta)}
    assert difference(parse("b*h*x"), moves) - h * beta * NEW == 0
    assert difference(parse("h**3"), moves) == 0


@pytest.mark.parametrize("text", ["x**3", "sin(x)", "cos(x)", "tan(x)", "tanh(x)", "exp(x)", "sigmoid(x)", "1/x"])
def test_complex_displacements(text: str) -> None:
    """Around a real state: the value of the function at a complex argument."""
    old = torch.rand(8).double() + 0.5
    change = 0.1 * torch.randn(8, dtype=torch.complex128)
    value = compiled(parse(text))
    found = compiled(difference(parse(text), {X: Move(OLD, CHANGE, NEW)}))(o=old, d=change)
    assert torch.allclose(found, value(x=old + change) - value(x=old.to(change)), rtol=1e-10)
