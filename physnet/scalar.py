"""Exact updates of single units, elementwise on tensors."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Num
from torch import Tensor

from physnet.domains import Domain
from physnet.errors import RelaxationError

States = Num[Tensor, " rows *node"]
Slopes = Callable[[Tensor], tuple[Tensor | float, Tensor | float]]
MAX_ITERATIONS = 100
ROUNDING = 1e-4
"""What part of a turn may be lost to rounding, of angles that have turned often."""
STRIDE = 0.5
"""Length of a step where Newton's won't do, on a circle in radians; short, so that none leads over a barrier."""
TRUSTED = 8
"""Newton steps after which they have to halve each time: along an exponential all of them are equally long."""


def reciprocal(curvature: Tensor | float, node: str) -> Tensor | float:
    """1/curvature. Where the energy is flat the result is huge: a unit that no drive moves is put to 0, and one that a
    drive does move goes to its bound, or is found to be not finite where it has none.

    Raises:
        RelaxationError: if a curvature is negative, so that the energy has no minimum.
    """
    if isinstance(curvature, complex) or (isinstance(curvature, Tensor) and curvature.is_complex()):
        return 1 / curvature  # on a circle around the free state, where a minimum is a stationary point
    if not isinstance(curvature, Tensor):
        curvature = torch.tensor(float(curvature), dtype=torch.float64)
        if float(curvature) > 0:
            return 1 / float(curvature)
    lowest = float(curvature.detach().min())
    if lowest < 0:
        raise RelaxationError(
            f"node '{node}': the curvature of the energy is {lowest:.3g} < 0, so that it falls without bound; "
            "use a smaller |beta|, or keep the couplings nonnegative"
        )
    return curvature.clamp_min(torch.finfo(curvature.dtype).tiny).reciprocal()


def to_bound(drive: States, x: States, domain: Domain) -> States:
    """argmin of -drive x: the bound that the drive points to; a unit without drive stays."""
    lo, hi = domain.bounds(x)
    return torch.where(drive > 0, hi, torch.where(drive < 0, lo, x))


def angle(push: States, curvature: Tensor | float) -> States:
    """argmin of -curvature cos d - push sin d."""
    if push.is_complex():
        return torch.atan(push / curvature)
    return torch.atan2(push, torch.as_tensor(curvature, dtype=push.dtype, device=push.device))


def minimise(
    energy: Callable[[Tensor], Tensor] | None,
    slopes: Slopes,
    start: States,
    domain: Domain,
) -> States:
    """The local minimum of E(x) that a descent from `start` leads to, for every element on its own.

    Plain Newton steps where they will do (`_newton`), else Newton's method inside a bracket (`_bracketed`). A unit
    whose energy would have risen stays; one that finds no minimum, or leaves the region in which its energy is defined,
    becomes infinite or NaN. On a circle steps stay short, so that a unit finds the well in which it is; one that meets
    no minimum within a turn, since its drive is stronger than what holds it, goes on turning (`_onward`).

    Arguments:
        energy: E(x), elementwise; `None` for a small displacement, which stays in its well.
        slopes: (E'(x), E''(x)), elementwise; numbers where they don't depend on x.
        start: where each unit is, [rows, *node].
        domain: confines x.
    """
    if start.is_complex():
        return _stationary(slopes, start)
    # a displacement has no scale of its own: only its relative change tells that it has arrived
    tolerance, unit = (4 * torch.finfo(start.dtype).eps, 1) if energy else (16 * torch.finfo(start.dtype).eps, 0)
    near = _newton(slopes, start, domain, tolerance, unit)
    if near is not None:
        return near if energy is None else _unless_risen(energy, start, near)
    x, steepest = _bracketed(slopes, start, domain, tolerance, unit)
    if energy is None:
        return x
    if domain.period:
        within = (x - start).abs() < (1 - ROUNDING) * domain.period
        return torch.where(within, x, _onward(slopes, start, steepest))
    return _unless_risen(energy, start, x)


def _bracketed(slopes: Slopes, start: States, domain: Domain, tolerance: float, unit: float) -> tuple[States, Tensor]:
    """Newton's method inside a bracket [a, b] with E'(a) <= 0 <= E'(b).

    Where the curvature is negative or a Newton step is large, the step is one that grows; where a step leaves the
    bracket, it is a bisection, or lands on the bound of the domain. Newton steps that don't shrink, as on the far slope
    of an exponential, give way to such steps too.

    Returns:
        x, and on a circle the largest curvature met.
    """
    a, b = _ends(start, domain)
    x, reach = start, torch.full_like(start, 0.5)
    end = change = steepest = torch.zeros_like(start)
    a_seen, b_seen = (torch.zeros_like(start, dtype=torch.bool) for _ in range(2))
    for iteration in range(MAX_ITERATIONS):
        slope, curvature = (torch.as_tensor(value, dtype=x.dtype, device=x.device) for value in slopes(x))
        if domain.period:
            steepest = torch.maximum(steepest, curvature.abs())
            slope = torch.where((slope == 0) & (curvature < 0), -torch.finfo(x.dtype).tiny, slope)  # on top of a hill
        uphill = slope > 0
        a, b = torch.where(uphill, a, x), torch.where(uphill, x, b)
        a_seen, b_seen = a_seen | ~uphill, b_seen | uphill
        # steps are bounded, so that a flat spot can't throw a unit over a barrier into another well
        newton = x - slope / torch.where(curvature > 0, curvature, 1.0)
        usable = (curvature > 0) & ((newton - x).abs() <= 2 * reach)
        if iteration > TRUSTED:
            usable &= (newton - x).abs() <= torch.maximum(change / 2, tolerance * (unit + x.abs()))
        step = torch.where(usable, newton, torch.where(uphill, x - reach, x + reach))
        reach = reach if domain.period else torch.where(usable, reach, 2 * reach)
        # a step that passes an end of the bracket lands on it the first time, when it is a bound of the domain
        end, seen = torch.where(uphill, a, b), torch.where(uphill, a_seen, b_seen)
        beyond = torch.where(uphill, step <= end, step >= end)
        step = torch.where(beyond, torch.where(seen, (x + end) / 2, end), step)
        step = torch.where(slope == 0, x, step)
        change, x = (step - x).abs(), step
        if bool((change <= tolerance * (unit + x.abs())).all()):
            break
    else:
        # still running towards an end that isn't there
        x = torch.where(torch.isinf(end) & (change > tolerance * (unit + x.abs())), end, x)
    return x, steepest


def _ends(start: States, domain: Domain) -> tuple[Tensor, Tensor]:
    """Where a unit can be: within its domain, and on a circle within a turn."""
    lo, hi = (start - domain.period, start + domain.period) if domain.period else domain.bounds(start)
    a, b = (torch.as_tensor(bound, dtype=start.dtype, device=start.device).expand_as(start) for bound in (lo, hi))
    return a, b


def _unless_risen(energy: Callable[[Tensor], Tensor], start: States, x: States) -> States:
    """x, or `start` where the energy would have risen; NaN where it isn't defined, since a unit that stayed where it
    is would pass for an equilibrium."""
    noise = 8 * torch.finfo(start.dtype).eps
    before, after = energy(start), energy(x)
    result = torch.where((after <= before + noise * (1 + before.abs())) | before.isnan(), x, start)
    return torch.where(after.isnan(), after, result)


def _newton(
    slopes: Slopes,
    start: States,
    domain: Domain,
    tolerance: float,
    unit: float,
) -> States | None:
    """The minimum near `start`, if plain Newton steps lead there for every unit; else `None`.

    Close to equilibrium they nearly always do, and cost a quarter of steps inside a bracket. Each step has to meet a
    positive curvature and to be at most half as long as the last one, so that none leads past a point seen before, or
    too short to leave its well. A unit has arrived when a step that is shorter than the last one by the same factor
    again would be lost in rounding. On a circle, whose wells have a known size, a step may be as long as two strides,
    whatever the last one was, and a unit whose Newton step won't do strides downhill instead.
    """
    x, longest, short = start, torch.ones_like(start), tolerance**0.5
    strides = bool(domain.period) and unit > 0
    for iteration in range(2 * TRUSTED if strides else TRUSTED):
        slope, curvature = (torch.as_tensor(value, dtype=x.dtype, device=x.device) for value in slopes(x))
        step = slope / curvature
        size, scale = step.abs(), unit + x.abs()
        trusted = (curvature > 0) & (size <= (2 * STRIDE if strides else torch.maximum(longest, short * scale)))
        if not bool(trusted.all()):
            if not strides:
                return None
            # from the top of a hill to the right
            downhill = torch.copysign(torch.tensor(STRIDE, dtype=x.dtype), slope - torch.finfo(x.dtype).tiny)
            step, size = torch.where(trusted, step, downhill), torch.where(trusted, size, STRIDE)
        x = x - step
        arrived = size <= tolerance * scale
        if iteration:  # short steps that don't shrink are rounding
            rounding = (size > longest / 2) & (size <= short * scale)
            arrived |= rounding | (size * size <= 2 * longest * tolerance * scale)
        if bool(arrived.all()):
            return x if _inside(x, start, domain) else None
        longest = size / 2
    return None


def _inside(x: States, start: States, domain: Domain) -> bool:
    if domain.period:  # a unit that has turned may have met no minimum
        return bool(((x - start).abs() < domain.period / 2).all())
    lo, hi = domain.bounds(x)
    return bool(((x >= lo) & (x <= hi)).all())


def _onward(slopes: Slopes, start: States, steepest: Tensor) -> States:
    """A step of a unit that nothing holds: as a force that grows by the largest curvature would make it, and at most a
    quarter turn. All the way the energy falls, and the step is as short as the unit is nearly held."""
    slope, _ = slopes(start)
    return start - (slope / steepest.clamp_min(torch.finfo(start.dtype).tiny)).clamp(-math.pi / 2, math.pi / 2)


def _stationary(slopes: Slopes, start: States) -> States:
    """The complex x near `start` with E'(x) = 0: Newton's method, since a complex energy has no minimum."""
    x = start
    tolerance = 16 * torch.finfo(start.dtype).eps
    for _ in range(MAX_ITERATIONS):
        slope, curvature = slopes(x)
        step = slope / curvature
        x = x - step
        if bool((torch.as_tensor(step).abs() <= tolerance * x.abs()).all()):
            break
    return x


__all__ = ["angle", "minimise", "reciprocal", "to_bound"]
