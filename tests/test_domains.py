"""Domains: projections against brute force, distances on the circle, and the way they are written."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from physnet.domains import CIRCLE, NONNEGATIVE, NONPOSITIVE, REAL, Interval, Partition, parse_domain
from physnet.errors import DeclarationError

DECLARED: list[Any] = [
    "real",
    "nonnegative",
    "nonpositive",
    "circle",
    [0, 1],
    [-2.5, 6],
    ["nonnegative", "nonpositive"],
    [{"nonnegative": 3}, {"nonpositive": 1}],
    [{"[0.0, 1.0]": 2}, "real"],
]
STATES = st.lists(st.floats(-20, 20), min_size=4, max_size=4).map(lambda x: torch.tensor([x], dtype=torch.float64))


@pytest.mark.parametrize("declared", DECLARED)
def test_declaration_is_read_back(declared: Any) -> None:
    domain = parse_domain(declared)
    assert parse_domain(domain.declaration()) == domain


@pytest.mark.parametrize(
    "declared",
    [
        "reel",
        [1, 0],
        [1, 1],
        [],
        3,
        None,
        [{"nonnegative": 0}],
        [{"nonnegative": 1.5}],
        ["circle", "real"],
        [{"real": 1, "nonnegative": 1}],
        [{"[a, b]": 1}],
        {"lo": 0},
        [0, math.nan],
    ],
)
def test_nonsense_is_refused(declared: Any) -> None:
    with pytest.raises(DeclarationError):
        parse_domain(declared)


@pytest.mark.parametrize(
    "domain", [REAL, NONNEGATIVE, NONPOSITIVE, Interval(-1.0, 2.0), parse_domain([{"[0, 1]": 1}, "nonpositive"])]
)
@given(x=STATES)
def test_projection_is_the_nearest_allowed_state(domain: Any, x: torch.Tensor) -> None:
    lo, hi = (torch.as_tensor(bound, dtype=x.dtype).expand_as(x) for bound in domain.bounds(x))
    found = domain.project(x)
    grid = torch.linspace(-25, 25, 20_001, dtype=x.dtype)
    for unit in range(4):
        allowed = grid[(grid >= lo[0, unit]) & (grid <= hi[0, unit])]
        assert lo[0, unit] <= found[0, unit] <= hi[0, unit]
        assert (found - x)[0, unit].abs() <= (allowed - x[0, unit]).abs().min() + 1e-12
    assert torch.equal(domain.project(found), found)


@given(x=STATES, turns=st.integers(-3, 3))
def test_angles_that_differ_by_turns_are_the_same(x: torch.Tensor, turns: int) -> None:
    moved = x + 2 * math.pi * turns
    assert torch.allclose(
        torch.polar(torch.ones_like(x), CIRCLE.wrap(moved)), torch.polar(torch.ones_like(x), x), atol=1e-12
    )
    assert CIRCLE.difference(moved, x).abs().max() < 1e-12
    assert CIRCLE.wrap(x).abs().max() <= math.pi


@given(x=STATES, y=STATES)
def test_difference_of_angles_is_the_shortest_way(x: torch.Tensor, y: torch.Tensor) -> None:
    ways = torch.stack([(x - y + 2 * math.pi * k).abs() for k in range(-9, 10)])
    assert torch.allclose(CIRCLE.difference(x, y).abs(), ways.min(0).values, atol=1e-12)


@pytest.mark.parametrize("declared", DECLARED)
def test_random_states_are_allowed_and_reproducible(declared: Any) -> None:
    domain = parse_domain(declared)
    like = torch.empty(0, dtype=torch.float32)
    first, second = (domain.random((50, 4), torch.Generator().manual_seed(3), like) for _ in range(2))
    assert first.dtype == torch.float32
    assert torch.equal(first, second)
    assert torch.equal(domain.project(first), first)
    assert first.std() > 0.1


@pytest.mark.parametrize(
    ("declared", "units", "counts"),
    [
        (["nonnegative", "nonpositive"], 6, [3, 3]),
        (["nonnegative", "nonpositive"], 5, [3, 2]),
        ([{"nonnegative": 2}, "nonpositive"], 7, [2, 5]),
        ([{"real": 3}, {"nonpositive": 1}], 4, [3, 1]),
    ],
)
def test_units_are_divided(declared: Any, units: int, counts: list[int]) -> None:
    domain = parse_domain(declared)
    assert isinstance(domain, Partition)
    assert domain.counts(units) == counts


def test_parts_that_do_not_add_up_are_refused() -> None:
    domain = parse_domain([{"nonnegative": 2}, {"nonpositive": 3}])
    for shape in ((4,), (6, 2)):
        with pytest.raises(DeclarationError, match="add up"):
            domain.check(shape)


def test_partition_divides_the_first_axis() -> None:
    x = torch.tensor([[[-1.0, 1.0], [-1.0, 1.0]]])
    assert parse_domain(["nonnegative", "nonpositive"]).project(x).tolist() == [[[0.0, 1.0], [-1.0, 0.0]]]
