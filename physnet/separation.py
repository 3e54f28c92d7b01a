"""What an energy looks like from one unit: separated couplings and conditional energies.

`separate` writes a coupling as  sum_k c_k(parameters) u_k(pre) v_k(post),  so that it costs matrix products and never a
broadcast over all pairs. `classify` recognises how the energy of one unit, given its fields, is minimised exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import sympy as sp

from physnet.errors import DeclarationError
from physnet.expressions import MAX_SUMMANDS, derivative, summands, symbol

PRE, POST, X = symbol("pre"), symbol("post"), symbol("x")


@dataclass(frozen=True)
class Separated:
    """One summand  number * kernel * pre_factor(pre) * post_factor(post)  of a coupling.

    Arguments:
        number: a plain number.
        kernel: an expression in edge parameters (1 if there is none): the weight of one matrix product.
        pre_factor, post_factor: expressions in `pre` and `post` alone (1 if constant).
    """

    number: sp.Expr
    kernel: sp.Expr
    pre_factor: sp.Expr
    post_factor: sp.Expr


def separate(coupling: sp.Expr) -> tuple[Separated, ...] | None:
    """coupling = sum_k c_k u_k(pre) v_k(post), or `None` if it doesn't separate.

    Sums inside sine, cosine and exponentials are expanded by the addition theorems. Summands that depend on no state
    are left out, since they exert no force.
    """
    expanded = _expand(_addition_theorems(coupling))
    collected: dict[tuple[sp.Expr, sp.Expr], sp.Expr] = {}
    for summand in sp.Add.make_args(expanded):
        factors = _split(cast(sp.Expr, summand))
        if factors is None:
            return None
        coefficient, pre_factor, post_factor = factors
        if pre_factor == 1 and post_factor == 1:
            continue
        key = (pre_factor, post_factor)
        collected[key] = collected.get(key, sp.Integer(0)) + coefficient
    terms: list[Separated] = []
    for (pre_factor, post_factor), coefficient in collected.items():
        number, kernel = cast(tuple[sp.Expr, sp.Expr], sp.factor_terms(coefficient).as_coeff_Mul())
        if number != 0:
            terms.append(Separated(number, kernel, pre_factor, post_factor))
    return tuple(sorted(terms, key=lambda term: (str(term.kernel), str(term.pre_factor), str(term.post_factor))))


def _split(summand: sp.Expr) -> tuple[sp.Expr, sp.Expr, sp.Expr] | None:
    """The parameter, pre and post factors of a product; `None` if one factor mixes them."""
    parameter_part: sp.Expr = sp.Integer(1)
    pre_part: sp.Expr = sp.Integer(1)
    post_part: sp.Expr = sp.Integer(1)
    for factor in sp.Mul.make_args(summand):
        factor = cast(sp.Expr, factor)
        found = factor.free_symbols
        if found == {PRE}:
            pre_part *= factor
        elif found == {POST}:
            post_part *= factor
        elif PRE not in found and POST not in found:
            parameter_part *= factor
        else:
            return None
    return parameter_part, pre_part, post_part


def _addition_theorems(expression: sp.Expr) -> sp.Expr:
    """sin, cos and exp of a sum whose summands mix pre, post and parameters, written as products."""

    def parts(argument: sp.Expr) -> list[sp.Expr]:
        groups: dict[frozenset[sp.Basic], sp.Expr] = {}
        for summand in sp.Add.make_args(sp.expand(argument)):
            key = frozenset(summand.free_symbols & {PRE, POST})
            groups[key] = groups.get(key, sp.Integer(0)) + cast(sp.Expr, summand)
        return list(groups.values())

    def cosine(pieces: list[sp.Expr]) -> sp.Expr:
        if len(pieces) == 1:
            return cast(sp.Expr, sp.cos(pieces[0]))
        head, *tail = pieces
        return cast(sp.Expr, sp.cos(head) * cosine(tail) - sp.sin(head) * sine(tail))

    def sine(pieces: list[sp.Expr]) -> sp.Expr:
        if len(pieces) == 1:
            return cast(sp.Expr, sp.sin(pieces[0]))
        head, *tail = pieces
        return cast(sp.Expr, sp.sin(head) * cosine(tail) + sp.cos(head) * sine(tail))

    result = expression.replace(sp.cos, lambda argument: cosine(parts(argument)))
    result = result.replace(sp.sin, lambda argument: sine(parts(argument)))
    result = result.replace(sp.exp, lambda argument: sp.Mul(*(sp.exp(piece) for piece in parts(argument))))
    return cast(sp.Expr, result)


def _expand(expression: sp.Expr) -> sp.Expr:
    if summands(expression) > MAX_SUMMANDS:
        raise DeclarationError(
            f"this coupling expands to more than {MAX_SUMMANDS} products of pre and post", "use lower powers"
        )
    return cast(sp.Expr, sp.expand(expression))


# --------------------------------------------------------------------------- exact minimisers of one unit


@dataclass(frozen=True)
class Quadratic:
    """E(x) = curvature/2 x^2 - drive x: the minimiser is drive/curvature, clipped to the domain."""

    curvature: sp.Expr
    drive: sp.Expr
    name = "quadratic"


@dataclass(frozen=True)
class Linear:
    """E(x) = -drive x on a bounded domain: the minimiser is the bound that the drive points to."""

    drive: sp.Expr
    name = "linear"


@dataclass(frozen=True)
class Sinusoid:
    """E(x) = -cosine cos x - sine sin x: the minimiser is atan2(sine, cosine)."""

    cosine: sp.Expr
    sine: sp.Expr
    name = "atan2"


@dataclass(frozen=True)
class Scalar:
    """Any other E(x) of one unit: safeguarded Newton on its derivatives."""

    energy: sp.Expr
    slope: sp.Expr
    curvature: sp.Expr
    name = "newton"


@dataclass(frozen=True)
class GradientOnly:
    """No exact update: the reason says why."""

    reason: str
    name = "gradient"


Solver = Quadratic | Linear | Sinusoid | Scalar | GradientOnly


def classify(conditional: sp.Expr, bounded: bool, edges: bool = False) -> Solver:
    """How to minimise a unit's energy given its fields.

    Arguments:
        conditional: an expression in `x`; fields and parameters are symbols.
        bounded: whether the domain of x is a bounded interval (then energies linear in x have minima).
        edges: whether the domain has a boundary at all (then the best angle may lie beyond it).
    """
    polynomial = conditional.as_poly(X)
    if polynomial is not None and polynomial.degree() <= 2:
        curvature = sp.simplify(2 * polynomial.coeff_monomial(X**2))
        drive = cast(sp.Expr, sp.expand(-polynomial.coeff_monomial(X)))
        if curvature == 0 and bounded:
            return Linear(drive)
        if curvature == 0:
            return GradientOnly("the energy is linear in x on an unbounded domain, so that it has no minimum")
        if not curvature.is_negative:
            return Quadratic(curvature, drive)
        if not bounded:
            return GradientOnly("the energy falls without bound: its curvature in x is negative")
    sinusoid = None if bounded or edges else _sinusoid(conditional)
    if sinusoid is not None:
        return sinusoid
    slope = derivative(conditional, X)
    return Scalar(conditional, slope, derivative(slope, X))


def _sinusoid(conditional: sp.Expr) -> Sinusoid | None:
    """Recognise A cos x + B sin x + constant, with shifts inside the arguments such as cos(x - psi)."""

    def shifted(function: type[sp.Function]):
        odd = function is sp.sin

        def apply(argument: sp.Expr) -> sp.Expr:
            sign = sp.expand(argument).coeff(X, 1)
            shift = sp.expand(argument - sign * X)
            if sign not in (1, -1) or X in shift.free_symbols:
                return cast(sp.Expr, function(argument))
            shift = sign * shift  # cos(s x + c) = cos(x + s c), sin(s x + c) = s sin(x + s c)
            if odd:
                return cast(sp.Expr, sign * (sp.sin(X) * sp.cos(shift) + sp.cos(X) * sp.sin(shift)))
            return cast(sp.Expr, sp.cos(X) * sp.cos(shift) - sp.sin(X) * sp.sin(shift))

        return apply

    written = conditional.replace(sp.cos, shifted(sp.cos)).replace(sp.sin, shifted(sp.sin))
    cosine, sine = sp.Dummy("cosine"), sp.Dummy("sine")
    linear = sp.expand(written).subs({sp.cos(X): cosine, sp.sin(X): sine})
    if X in linear.free_symbols:
        return None
    polynomial = linear.as_poly(cosine, sine)
    if polynomial is None or polynomial.total_degree() != 1:
        return None
    return Sinusoid(
        cast(sp.Expr, sp.expand(-polynomial.coeff_monomial(cosine))),
        cast(sp.Expr, sp.expand(-polynomial.coeff_monomial(sine))),
    )
