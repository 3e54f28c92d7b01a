"""Connections against explicit sums over pairs, and the adjoint identity that defines their three maps."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from physnet.chains import parse_connection
from physnet.connections import CONNECTIONS, Connection, Dense, Identity, Linked, Shape
from physnet.errors import DeclarationError, ShapeError

SHAPES = st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linked(kind: type[Connection], pre: Shape, post: Shape, scalar: bool) -> tuple[Linked, Tensor, Tensor, Tensor]:
    """A bound connection with a weight and a state at both ends."""
    connection = kind()
    w = draw(1, *(() if scalar else connection.weight_shape(pre, post)))
    return connection.bind(pre, post), w, draw(2, 4, *pre), draw(3, 4, *post)


@given(SHAPES, SHAPES, st.booleans())
@settings(max_examples=30)
def test_dense_is_the_sum_over_all_pairs(pre: Shape, post: Shape, scalar: bool) -> None:
    link, w, u, v = linked(Dense, pre, post, scalar)
    weights = w.expand(math.prod(post), math.prod(pre))
    found = link.apply(u, w)
    assert found.shape == v.shape
    for row in range(4):
        for i, value in enumerate(found[row].flatten()):
            assert value == pytest.approx(sum(weights[i, j] * x for j, x in enumerate(u[row].flatten())).item())


@given(SHAPES, SHAPES, st.booleans(), st.sampled_from([Dense, Identity]))
@settings(max_examples=60)
def test_adjoint_and_correlation(pre: Shape, post: Shape, scalar: bool, kind: type[Connection]) -> None:
    """<v, apply(u, w)> = <adjoint(v, w), u> = <correlate(u, v, w), w>"""
    link, w, u, v = linked(kind, pre, pre if kind is Identity else post, scalar)
    value = (v * link.apply(u, w)).sum().item()
    assert (u * link.adjoint(v, w)).sum().item() == pytest.approx(value)
    assert link.correlate(u, v, w).shape == w.shape
    assert (w * link.correlate(u, v, w)).sum().item() == pytest.approx(value)


@given(SHAPES, SHAPES, st.booleans(), st.sampled_from([Dense, Identity]))
@settings(max_examples=30)
def test_default_maps_by_autograd_agree(pre: Shape, post: Shape, scalar: bool, kind: type[Connection]) -> None:
    link, w, u, v = linked(kind, pre, pre if kind is Identity else post, scalar)
    assert torch.allclose(Linked.adjoint(link, v, w), link.adjoint(v, w))
    assert torch.allclose(Linked.correlate(link, u, v, w), link.correlate(u, v, w))


@given(SHAPES, SHAPES, st.sampled_from([Dense, Identity]))
@settings(max_examples=30)
def test_pairs_list_what_apply_sums(pre: Shape, post: Shape, kind: type[Connection]) -> None:
    link, w, u, v = linked(kind, pre, pre if kind is Identity else post, False)
    first, second = link.pairs(u, v)
    assert torch.allclose(link.to_post(w * first * torch.ones_like(second)), link.apply(u, w))
    assert torch.allclose(link.to_pre(w * second * torch.ones_like(first)), link.adjoint(v, w))


def test_identity_needs_equal_shapes() -> None:
    with pytest.raises(ShapeError, match="identity joins nodes of one shape"):
        Identity().check((2, 3), (3, 2))
    Identity().check((2, 3), (2, 3))


def test_fans_are_the_numbers_of_neighbours() -> None:
    assert Dense().fans((2, 3), (4,)) == (6, 4)
    assert Identity().fans((4,), (4,)) == (1, 1)


@pytest.mark.parametrize("name", sorted(CONNECTIONS))
def test_declaration_is_read_back(name: str) -> None:
    connection = parse_connection(name) if name in ("dense", "identity") else None
    if connection is not None:
        assert parse_connection(connection.declaration()) == connection
        assert parse_connection(f" {name}() ") == connection


@pytest.mark.parametrize(
    "text",
    [
        "densee",
        "dense(3)",
        "dense(x=1)",
        "__import__('os')",
        "dense()()",
        "",
        "dense >",
        "(" * 400,
        3,
        None,
        "dense(open('x'))",
    ],
)
def test_nonsense_is_refused(text: object) -> None:
    with pytest.raises(DeclarationError):
        parse_connection(text)


def test_close_names_are_suggested() -> None:
    with pytest.raises(DeclarationError, match="did you mean identity\\?"):
        parse_connection("identty")
