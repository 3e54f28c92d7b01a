"""Separated couplings against the coupling itself, evaluated pair by pair in numpy; classification by example."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import in_numpy

from physnet.errors import DeclarationError
from physnet.expressions import parse
from physnet.separation import GradientOnly, Linear, Quadratic, Scalar, Sinusoid, classify, separate

FACTORS = ("{s}", "{s}**2", "tanh({s})", "sin(2*{s})", "exp({s}/2)", "relu({s})", "abs({s})", "(1 + {s})**2", "1")
KERNELS = ("w", "-w", "c", "w*c", "w**2", "exp(c)", "(w + c)", "2", "w/(c + 3)", "sqrt(c)")
WHOLE = (
    "w*(pre - post)**2/2",
    "(pre - c*post)**2",
    "w*cos(pre - post)",
    "c*sin(2*pre + post - c)",
    "w*exp(pre - post)",
    "cos(pre + post)*sin(pre)",
    "w*cos(pre - post)**2",
    "exp(c*(pre + 1))*0 + w*(pre + post + c)**3",
    "-w*pre*(post - pre)",
)


def product(kernel: str, pre: str, post: str) -> str:
    return f"{kernel}*{pre.format(s='pre')}*{post.format(s='post')}"


TERM = st.one_of(
    st.builds(product, st.sampled_from(KERNELS), st.sampled_from(FACTORS), st.sampled_from(FACTORS)),
    st.sampled_from(WHOLE),
)
SEPARABLE = st.lists(TERM, min_size=1, max_size=3).map(" + ".join)
PRE, POST = np.linspace(-1.9, 1.7, 7), np.linspace(-1.3, 1.6, 5)[:, None]
PARAMETERS = {"w": np.cos(np.arange(35.0)).reshape(5, 7), "c": 0.7}


@given(SEPARABLE)
@settings(max_examples=120)
def test_sum_of_products_is_the_coupling(text: str) -> None:
    coupling = parse(text)
    terms = separate(coupling)
    assert terms is not None
    found: float | np.ndarray = 0.0
    for term in terms:
        kernel, pre = in_numpy(term.kernel, PARAMETERS), in_numpy(term.pre_factor, {"pre": PRE})
        found = found + float(term.number) * kernel * pre * in_numpy(term.post_factor, {"post": POST})
        assert {str(item) for item in term.kernel.free_symbols} <= {"w", "c"}
    expected = in_numpy(coupling, {"pre": PRE, "post": POST, **PARAMETERS})
    # what depends on no state is left out of the separated form
    silent = [
        item for item in sp.Add.make_args(sp.expand(coupling)) if not {"pre", "post"} & set(map(str, item.free_symbols))
    ]
    assert np.allclose(found, expected - in_numpy(sp.Add(*silent), PARAMETERS), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("-w*pre*post", 1),
        ("w*(pre - post)**2/2", 3),
        ("-w*cos(pre - post)", 2),
        ("w*exp(pre + post)", 1),
        ("pre*post - post*pre", 0),
    ],
)
def test_number_of_products(text: str, count: int) -> None:
    terms = separate(parse(text))
    assert terms is not None
    assert len(terms) == count


@pytest.mark.parametrize(
    "text", ["tanh(pre*post)", "w*relu(pre - post)", "tanh(w*pre)*post", "1/(pre + post)", "cos(pre*post)"]
)
def test_inseparable(text: str) -> None:
    assert separate(parse(text)) is None


def test_enormous_expansions_are_refused() -> None:
    with pytest.raises(DeclarationError, match="expands to more than"):
        separate(parse("(pre + post + w)**30*(pre - post)**30*(pre + 2)**30"))


@pytest.mark.parametrize(
    ("text", "bounded", "kind"),
    [
        ("x**2/2 - b*x", False, Quadratic),
        ("(x - b)**2 + g*(x - 1)**2", True, Quadratic),
        ("-cos(x - psi)", False, Sinusoid),
        ("-h*cos(x) + b*sin(psi - x) + b", False, Sinusoid),
        ("x**2/2 - b*tanh(x)", False, Scalar),
        ("-cos(x) - cos(2*x)", False, Scalar),
        ("-b*x", True, Linear),
        ("-x**2", True, Scalar),
        ("-b*x", False, GradientOnly),
        ("-x**2 + b*x", False, GradientOnly),
    ],
)
def test_classification(text: str, bounded: bool, kind: type) -> None:
    assert isinstance(classify(parse(text), bounded), kind)


def test_a_sinusoid_between_bounds_has_no_closed_form() -> None:
    assert isinstance(classify(parse("-cos(x - b)"), bounded=True, edges=True), Scalar)


@given(st.tuples(*[st.floats(-3, 3)] * 3))
def test_coefficients_of_a_quadratic(values: tuple[float, float, float]) -> None:
    at = dict(zip(("b", "g", "h"), values, strict=True))
    solver = classify(parse("(x - b)**2/2 + g**2*(x - h)**2 - x*h"), False)
    assert isinstance(solver, Quadratic)
    b, g, h = values
    assert in_numpy(solver.curvature, at) == pytest.approx(1 + 2 * g**2)
    assert in_numpy(solver.drive, at) == pytest.approx(b + 2 * g**2 * h + h)


@given(st.tuples(*[st.floats(-3, 3)] * 3))
def test_coefficients_of_a_sinusoid(values: tuple[float, float, float]) -> None:
    at = dict(zip(("b", "h", "psi"), values, strict=True))
    energy = parse("-h*cos(x - psi) + b*sin(psi - x) + 1")
    solver = classify(energy, False)
    assert isinstance(solver, Sinusoid)
    x = np.linspace(-3, 3, 9)
    rebuilt = -in_numpy(solver.cosine, at) * np.cos(x) - in_numpy(solver.sine, at) * np.sin(x)
    assert np.allclose(rebuilt + 1, in_numpy(energy, {"x": x, **at}))
