"""Parameters: initialisers against their formulas and moments, constraints, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from physnet.errors import DeclarationError
from physnet.parameters import ParameterSpec, parse_parameter
from physnet.randomness import stream

MANY = (200, 200)


def draw(init: str, shape: tuple[int, ...] = MANY, fans: tuple[int, int] = (16, 9), **rest: Any) -> torch.Tensor:
    return parse_parameter("w", {"on": "edge", "init": init, **rest}).draw(shape, fans, stream(0, "test"))


@pytest.mark.parametrize(
    ("init", "low", "high"),
    [
        ("uniform(-1, 1)", -1, 1),
        ("uniform(-1, 1)/sqrt(fan_in)", -0.25, 0.25),
        ("2*uniform(0, 1) + 3", 3, 5),
        ("uniform(-pi, pi)", -math.pi, math.pi),
        ("-uniform(1, 2)", -2, -1),
    ],
)
def test_uniform_fills_its_range(init: str, low: float, high: float) -> None:
    w = draw(init)
    width = high - low
    assert low <= w.min() < low + 1e-3 * width
    assert high - 1e-3 * width < w.max() <= high
    assert w.mean() == pytest.approx((low + high) / 2, abs=0.01 * width)
    assert w.std() == pytest.approx(width / math.sqrt(12), rel=0.02)


@pytest.mark.parametrize(
    ("init", "mean", "deviation"),
    [("normal(0, 1)", 0, 1), ("normal(2, 1/sqrt(fan_in + fan_out))", 2, 0.2), ("3*normal(1, 1/fan_out)", 3, 1 / 3)],
)
def test_normal_has_its_moments(init: str, mean: float, deviation: float) -> None:
    w = draw(init)
    assert w.mean() == pytest.approx(mean, abs=4 * deviation / 200)
    assert w.std() == pytest.approx(deviation, rel=0.02)
    assert ((w - mean) ** 4).mean() / deviation**4 == pytest.approx(3, abs=0.2)


@pytest.mark.parametrize(
    ("init", "value"),
    [
        ("zeros", 0),
        ("ones", 1),
        ("zeros()", 0),
        ("2*ones() + 1", 3),
        ("0.25", 0.25),
        ("1/sqrt(fan_in*fan_out)", 1 / 12),
        ("exp(-1)", math.exp(-1)),
        ("gain*ones()/fan_in", 0.5 / 16),
    ],
)
def test_constants_are_evaluated(init: str, value: float) -> None:
    rest = {"gain": 0.5} if "gain" in init else {}
    assert torch.allclose(draw(init, (3, 2), **rest), torch.full((3, 2), value, dtype=torch.float64))


@pytest.mark.parametrize(
    "init",
    [
        "relu(normal(0, 1))",
        "abs(normal(0, 1))",
        "clip(normal(0, 1), -0.5, 0.5)",
        "max(normal(0, 1), 0)",
        "tanh(normal(0, 1))",
        "min(uniform(0, 1), 0.5)",
        "sigmoid(normal(0, 1))",
    ],
)
def test_functions_of_draws(init: str) -> None:
    raw = draw("uniform(0, 1)" if "uniform" in init else "normal(0, 1)", (50,))
    expected = {
        "relu": raw.clamp_min(0),
        "abs": raw.abs(),
        "clip": raw.clamp(-0.5, 0.5),
        "max": raw.clamp_min(0),
        "tanh": raw.tanh(),
        "min": raw.clamp_max(0.5),
        "sigmoid": raw.sigmoid(),
    }[init.partition("(")[0]]
    assert torch.allclose(draw(init, (50,)), expected)


def test_gain_scales_a_draw() -> None:
    assert torch.allclose(draw("gain*uniform(-1, 1)", gain=3.0), 3 * draw("uniform(-1, 1)"))


def test_a_constraint_projects_the_draw() -> None:
    free, held = draw("normal(0, 1)"), draw("normal(0, 1)", constraint="nonnegative")
    assert torch.equal(held, free.clamp_min(0))
    assert torch.equal(draw("normal(0, 1)", constraint=[-0.5, 0.5]), free.clamp(-0.5, 0.5))


def test_draws_are_a_function_of_seed_and_stream() -> None:
    spec = parse_parameter("w", {"on": "edge", "init": "normal(0, 1)"})
    drawn = [spec.draw((9,), (1, 1), stream(seed, key)) for seed, key in ((0, "a"), (0, "a"), (0, "b"), (1, "a"))]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[3])


def test_declaration_is_read_back() -> None:
    declared = {
        "on": "node",
        "shape": "channel",
        "init": "gain*normal(0, 1)",
        "gain": 0.3,
        "constraint": [0.0, 2.0],
        "frozen": True,
    }
    spec = parse_parameter("b", declared)
    assert spec.declaration() == declared
    assert parse_parameter("b", spec.declaration()) == spec


def test_override_keeps_the_rest() -> None:
    spec = parse_parameter("w", {"on": "edge", "init": "gain*normal(0, 1)", "gain": 1.0, "constraint": "nonnegative"})
    changed = spec.override({"gain": 0.5, "frozen": True})
    assert changed == ParameterSpec(
        "w", "edge", "connection", "gain*normal(0, 1)", {"gain": 0.5}, spec.constraint, True
    )


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"init": "zeros"}, "where it lives"),
        ({"on": "graph"}, "on: node or on: edge"),
        ({"on": "edge", "shape": "channel"}, "can't have shape"),
        ({"on": "edge", "init": "uniform(1)"}, "arguments"),
        ({"on": "edge", "init": "zeros(3)"}, "arguments"),
        ({"on": "edge", "init": "unifrom(0, 1)"}, "did you mean uniform"),
        ({"on": "edge", "init": "gian*ones()", "gain": 1}, "unknown name 'gian'"),
        ({"on": "edge", "init": "gain*ones()", "gain": "big"}, "finite number"),
        ({"on": "edge", "init": "ones", "frozn": 1}, "did you mean frozen"),
        ({"on": "edge", "init": "ones", "frozen": "yes"}, "true or false"),
        ({"on": "edge", "init": "ones", "constraint": "circle"}, "can't be constrained"),
        ({"on": "edge", "init": "ones", "constraint": "positive"}, "unknown domain"),
    ],
)
def test_faults_name_the_cause(declared: dict[str, Any], message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        parse_parameter("w", declared)
