"""Small networks for the tests, and energies worked out by brute force in numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sympy as sp
import torch
from scipy.special import erf
from torch import Tensor

from physnet.energy import Energy
from physnet.graph import EnergyGraph
from physnet.model import EnergyModel, compile_energy
from physnet.protocols import PROTOCOLS
from physnet.relaxation import Relaxation

ENTRIES = (
    "hopfield", "hopfield-relu6", "hopfield-smooth", "oscillator-ising", "resistive", "resistive-diodes",
    "xy",
)  # fmt: skip
"""The catalogue, but for what test_oscillators.py and test_predictions.py test."""
STIFF = ("hopfield-smooth", "oscillator-ising", "resistive", "resistive-diodes")
QUICKLY = [pytest.param(name, marks=pytest.mark.slow) if name in STIFF else name for name in ENTRIES]
"""The same for tests with many integrators, which are slow for some of them."""
ANGULAR = ("kuramoto", "oscillator-ising", "xy")
FOR_ALL = sorted(name for name, protocol in PROTOCOLS.items() if not protocol.predictive)
"""The protocols that don't take a free phase without gradient for granted."""
TIGHT = Relaxation(tolerance=1e-12, max_sweeps=500)
TIGHT_NUDGED = Relaxation(tolerance=1e-9, max_sweeps=500)

# small weights, so that there is one equilibrium, at which no unit is about to meet or leave a bound
NODES: dict[str, dict[str, Any]] = {
    "hopfield": {"b": {"init": "uniform(0.3, 0.6)"}},
    "hopfield-relu6": {"b": {"init": "uniform(0.3, 0.6)"}},
    "hopfield-smooth": {"b": {"init": "normal(0, 0.5)"}},
    "kuramoto": {"omega": {"spread": 0.05}},
    "oscillator-ising": {"h": {"init": "uniform(1.0, 1.3)"}, "s": {"init": "uniform(0.05, 0.15)"}},
    "resistive": {"i": {"init": "normal(0, 0.1)"}},
    "resistive-diodes": {"i": {"init": "normal(0, 0.1)"}},
    "xy": {"h": {"init": "normal(1, 0.2)"}},
}
EDGES: dict[str, dict[str, Any]] = {
    "hopfield": {"w": {"gain": 0.5}},
    "hopfield-relu6": {"w": {"gain": 0.5}},
    "hopfield-smooth": {"w": {"gain": 0.7}},
    "kuramoto": {"w": {"init": "uniform(0.5, 1.5)/fan_in"}},
    "oscillator-ising": {"w": {"init": "uniform(-1, 1)/sqrt(fan_in)"}},
    "resistive": {"g": {"init": "gain*uniform(0.5, 1.5)"}},
    "resistive-diodes": {"g": {"init": "gain*uniform(0.5, 1.5)"}},
    "xy": {"w": {"gain": 0.4}},
}


def squared_error(name: str) -> str:
    return "(cos(x) - y)**2/2" if name in ANGULAR else "(x - y)**2/2"


def catalogue_model(name: str, seed: int = 1, shapes: tuple[Any, ...] = (5, 4, 3, 3), **options: Any) -> EnergyModel:
    """image -> hidden -> deep -> label, dense, with a squared error on the label."""
    graph = EnergyGraph(name)
    graph.input("image", shapes[0], **options)
    graph.state("hidden", shapes[1], parameters=NODES[name]).state("deep", shapes[2], parameters=NODES[name])
    graph.output("label", shapes[3], cost=squared_error(name), parameters=NODES[name])
    for pre, post in (("image", "hidden"), ("hidden", "deep"), ("deep", "label")):
        graph.couple(pre, post, parameters=EDGES[name])
    return compile_energy(graph, seed)


def batch(rows: int = 3, units: int = 5, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(rows, units, generator=generator, dtype=torch.float64)
    return image.to(torch.get_default_dtype()), torch.arange(rows) % classes


def pair(coupling: str, node: str = "x**2/2", domain: Any = "real", shapes: Any = (3, 2), **edge: Any) -> EnergyGraph:
    """An input and an output joined by one dense edge, with edge parameters w (dense) and c (scalar)."""
    parameters = {
        "w": {"on": "edge", "init": "uniform(-1, 1)/2"},
        "c": {"on": "edge", "shape": "scalar", "init": "uniform(0.2, 1)"},
        "b": {"on": "node", "init": "uniform(-1, 1)"},
    }
    graph = EnergyGraph(Energy(node=node, coupling=coupling, domain=domain, parameters=parameters))
    graph.input("left", shapes[0])
    graph.output("right", shapes[1], cost="(cos(x) - y)**2/2" if domain == "circle" else "(x - y)**2/2")
    return graph.couple("left", "right", **edge)


NUMPY = {
    "relu": lambda x: np.maximum(x, 0),
    "clip": np.clip,
    "softplus": lambda x: np.logaddexp(x, 0),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "log_cosh": lambda x: np.logaddexp(x, -x) - np.log(2),
    "erf": erf,
    "step": lambda x: np.heaviside(x, 0),
}


def in_numpy(expression: sp.Expr, values: dict[str, Any]) -> Any:
    """An expression evaluated by numpy, which knows nothing of physnet's code generator."""
    symbols = sorted(expression.free_symbols, key=str)
    return sp.lambdify(symbols, expression, modules=[NUMPY, "numpy"])(*(values[str(item)] for item in symbols))


def brute_force_energy(model: EnergyModel, states: dict[str, Tensor]) -> np.ndarray:
    """E of every row as plain sums over units and over pairs of units; `states` holds clamped nodes too."""
    values = {name: value.detach().double().numpy() for name, value in states.items()}
    tensors = {name: value.detach().double().numpy() for name, value in model.tensors.items()}
    total = np.zeros(len(next(iter(values.values()))))
    for node in model.graph.nodes():
        if not node.free:
            continue
        for index in np.ndindex(node.shape):
            at = {key: _entry(tensors[f"{node.name}.{key}"], index) for key in node.parameters}
            total += in_numpy(node.term, {"x": values[node.name][:, *index], **at})
    for edge in model.graph.edges():
        pre, post = (values[name].reshape(len(total), -1) for name in (edge.pre, edge.post))
        dense = edge.connection.declaration() == "dense"
        for i in range(post.shape[1]):
            for j in range(pre.shape[1]) if dense else (i,):
                at = {}
                for key in edge.parameters:
                    w = tensors[f"{edge.name}.{key}"]
                    at[key] = w if w.ndim == 0 else w[i, j] if dense else w.ravel()[i]
                total += in_numpy(edge.term, {"pre": pre[:, j], "post": post[:, i], **at})
    return total


def _entry(values: np.ndarray, index: tuple[int, ...]) -> Any:
    """The entry of a unit, channel or scalar parameter that a unit uses."""
    return values[index[: values.ndim]]


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Whether two tensors agree to a relative tolerance, in norm."""
    return float((a - b).norm()) <= tolerance * max(float(a.norm()), float(b.norm()), 1e-12)


def write_tiny(folder: Path, text: str) -> Path:
    """An experiment `tiny.yaml` beside its data `tiny.npz`: 24 samples of six numbers, three classes."""
    random = np.random.default_rng(0)
    split = {f"x_{part}": random.random((24, 6), dtype=np.float32) for part in ("train", "test")}
    np.savez(folder / "tiny.npz", **split, y_train=np.arange(24) % 3, y_test=np.arange(24) % 3)
    (folder / "tiny.yaml").write_text(text)
    return folder / "tiny.yaml"
