"""Where states start, and gradients and predictions over several random starts of each sample."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from physnet.declaration import graph_from_yaml, graph_to_yaml, parse_experiment
from physnet.errors import DeclarationError
from physnet.graph import EnergyGraph
from physnet.model import compile_energy
from physnet.problem import Share
from physnet.randomness import stream
from physnet.relaxation import Relaxation, initial_state, relax

FILE = """
energy: oscillator-ising
nodes:
  image: {shape: 3, role: input}
  hidden:
    shape: [2, 2]
    initial: INITIAL
  label: {shape: 2, role: output}
edges: [image -> hidden, hidden -> label]
cost: (cos(x) - y)**2/2
"""


def begin(graph: EnergyGraph, initial: str = "zero", rows: int = 4000, share: Share | None = None, **more: Any) -> Any:
    """The state that a batch starts from."""
    model = compile_energy(graph).double()
    problem = model.problem(**{name: torch.zeros(rows, *node.data_shape) for name, node in model.inputs.items()})
    return initial_state(problem, initial, stream(3, "initial"), share=share, **more)


# --------------------------------------------------------------------------- initial states


@pytest.mark.parametrize("initial", ["zero", "random", "previous"])
@pytest.mark.parametrize(("declared", "value"), [("pi/2", math.pi / 2), ("0.25", 0.25), ("2*ones()", 2.0)])
def test_a_declared_number_is_where_every_sample_starts(initial: str, declared: str, value: float) -> None:
    state = begin(graph_from_yaml(FILE.replace("INITIAL", declared)), initial, 5)
    assert torch.equal(state["hidden"], torch.full((5, 2, 2), value, dtype=torch.float64))
    assert bool((state["label"] == 0).all()) == (initial != "random")  # it declares nothing


def test_declared_draws_have_their_distribution_and_differ_between_samples() -> None:
    uniform = begin(graph_from_yaml(FILE.replace("INITIAL", "uniform(-pi, 0)")))["hidden"]
    assert float(uniform.min()) >= -math.pi and float(uniform.max()) <= 0
    assert float(uniform.mean()) == pytest.approx(-math.pi / 2, abs=0.05)
    assert float(uniform.std()) == pytest.approx(math.pi / math.sqrt(12), abs=0.05)
    assert len(uniform[:, 0, 0].unique()) == 4000
    normal = begin(graph_from_yaml(FILE.replace("INITIAL", "normal(1, 0.1)")))["hidden"]
    assert float(normal.mean()) == pytest.approx(1, abs=0.01) and float(normal.std()) == pytest.approx(0.1, abs=0.01)
    evenly = begin(graph_from_yaml(FILE.replace("INITIAL", "evenly(0, 8)")), rows=3)["hidden"]
    assert torch.equal(evenly, torch.tensor([[1.0, 3], [5, 7]], dtype=torch.float64).expand(3, 2, 2))


def test_declared_states_are_inside_the_domain() -> None:
    graph = (
        EnergyGraph("hopfield").input("image", 3).state("hidden", 4, initial="normal(0, 3)").couple("image", "hidden")
    )
    state = begin(graph)["hidden"]
    assert float(state.min()) == 0 and float(state.max()) == 1


def test_draws_of_processes_are_those_of_the_whole_batch() -> None:
    graph = graph_from_yaml(FILE.replace("INITIAL", "uniform(-pi, pi)"))
    whole = begin(graph, "random", 7)
    for rank in range(3):
        share = Share(7, rank, 3)
        part = begin(graph, "random", share.count, share)
        for node, value in part.items():
            assert torch.equal(value, whole[node][rank::3])


def test_the_start_decides_the_well() -> None:
    """Under injection alone phases fall to the nearer of 0 and pi."""
    for begins, ends in ((1.5, 0.0), (1.7, math.pi), (-1.7, -math.pi)):
        s = {"s": {"init": "ones"}}
        model = compile_energy(EnergyGraph("oscillator-ising").state("a", 1, initial=begins, parameters=s)).double()
        for integrator in ("blocks", "flow", "descent"):
            found = relax(model, Relaxation(integrator), rows=1)["a"].item()
            assert found == pytest.approx(ends, abs=1e-8)


def test_initial_states_are_written_and_read_back() -> None:
    graph = graph_from_yaml(FILE.replace("INITIAL", "uniform(-pi, pi)/2"))
    assert "initial: uniform(-pi, pi)/2" in graph_to_yaml(graph)
    assert graph_from_yaml(graph_to_yaml(graph)) == graph
    assert graph_from_yaml(FILE.replace("    initial: INITIAL\n", "")).digest != graph.digest


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ("unifrom(0, 1)", "unknown function 'unifrom'.*did you mean uniform"),
        ("uniform(0)", "uniform has 1 arguments"),
        ("scale*uniform(0, 1)", "unknown name 'scale'"),
        ("uniform(0, 1)/fan_in", "a state has no fan_in"),
        ("[1, 2]", "an initial state is an expression"),
    ],
)
def test_what_is_wrong_with_an_initial_state_is_told_at_its_place(declared: str, message: str) -> None:
    with pytest.raises(DeclarationError, match=rf"(?s)^<text>:7:.*{message}"):
        parse_experiment(FILE.replace("INITIAL", declared))


def test_inputs_have_no_initial_state() -> None:
    with pytest.raises(DeclarationError, match="an input is clamped and has no initial"):
        parse_experiment(FILE.replace("role: input", "role: input, initial: 0").replace("INITIAL", "0"))
