"""What `explain` and `check` say about predictions, against sums over units worked out here and autograd."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import sympy as sp
import torch
from networks import close, in_numpy
from test_predictions import compiled

from physnet.checking import check_gradients
from physnet.errors import RelaxationError
from physnet.explaining import explain
from physnet.explanation import Explanation, Sum
from physnet.expressions import symbol
from physnet.graph import EnergyGraph
from physnet.learning import EquilibriumPropagation, gradients
from physnet.model import EnergyModel, compile_energy
from physnet.relaxation import relax

NUDGE = 0.2
Values = dict[str, np.ndarray]


def at_equilibrium(model: EnergyModel, **batch: torch.Tensor) -> Values:
    """States, drives and parameters of one sample at its nudged equilibrium, by the names that `explain` uses."""
    found = relax(model, target=batch["target"], beta=NUDGE, image=batch["image"])
    states = {**found.states, "image": batch["image"]}
    values = {name: value[0].detach().numpy() for name, value in states.items()}
    values |= {name: value.detach().numpy() for name, value in model.tensors.items()}
    for edge in model.graph.edges():
        drive = values.get(f"{edge.post}.a", values[f"{edge.post}.b"])
        message = in_numpy(sp.sympify(edge.message), {"pre": values[edge.pre]})
        values[f"{edge.post}.a"] = drive + values[f"{edge.name}.w"] @ message
    return values


def evaluated(item: Sum, values: Values, at: dict[str, int], own: dict[str, Any]) -> float:
    """A sum as it is written, index by index."""
    names = {str(name): name for name in item.body.free_symbols}

    def value(name: str, places: dict[str, int]) -> Any:
        if name in own:
            return own[name]
        base, _, index = name.rstrip("]").partition("[")
        return values[base][tuple(places[letter] for letter in index.split(","))] if index else values[base]

    count = 1
    for name in names:
        base, _, index = name.rstrip("]").partition("[")
        if item.index and item.index in index.split(","):
            count = values[base].shape[index.split(",").index(item.index)]
    return sum(
        float(in_numpy(item.body, {name: value(name, {**at, item.index: k}) for name in names})) for k in range(count)
    )


@pytest.mark.parametrize("name", ["mlp", "precise"])
def test_the_force_that_is_shown_is_the_force(name: str) -> None:
    model, image, target = compiled(name)
    explanation = explain(model, "single", NUDGE)
    values = at_equilibrium(model, image=image[:1], target=target[:1])
    state = {node: torch.as_tensor(values[node])[None] + 0.1 for node in model.free}
    problem = model.problem(image=image[:1]).nudged({"target": target[:1]}, [NUDGE])
    force = problem.force(state)
    onehot = np.eye(3)[int(target[0])]
    moved = {**values, **{node: value[0].numpy() for node, value in state.items()}}
    for edge in model.graph.edges():  # the drives of the states that were moved
        moved[f"{edge.post}.a"] = values[f"{edge.post}.b"]
    for edge in model.graph.edges():
        message = in_numpy(sp.sympify(edge.message), {"pre": moved[edge.pre]})
        moved[f"{edge.post}.a"] = moved[f"{edge.post}.a"] + values[f"{edge.name}.w"] @ message
    for entry in explanation.nodes:
        for i in range(entry.shape[0]):
            own: dict[str, Any] = {"x": moved[entry.name][i], "beta": NUDGE, "y": onehot[i % 3]}
            own |= {key: values[f"{entry.name}.{key}"][i] for key in model.graph.node(entry.name).parameters}
            for field, sums in entry.fields.items():
                own[str(field)] = sum(evaluated(item, moved, {"i": i}, own) for item in sums)
            symbols = {str(item): own[str(item)] for item in entry.force.free_symbols}
            assert float(in_numpy(entry.force, symbols)) == pytest.approx(force[entry.name][0, i].item(), abs=1e-9)


@pytest.mark.parametrize("name", ["mlp", "precise"])
def test_the_learning_rule_that_is_shown_is_the_gradient_and_local(name: str) -> None:
    """dF/dw = pre dE/da: every rule names the states of its two ends alone."""
    model, image, target = compiled(name)
    values = at_equilibrium(model, image=image[:1], target=target[:1])
    ep = EquilibriumPropagation(model, NUDGE, "single")
    exact = gradients(ep, image=image[:1], target=target[:1])
    for entry in explain(model, "single", NUDGE).parameters:
        owner = entry.name.split(".")[0]
        ends = {owner}
        if owner not in model.plan.nodes:
            edge = model.graph.edge(owner)
            ends = {edge.pre, edge.post}
        named = {re.split(r"[.\[]", str(item))[0] for item in entry.local.body.free_symbols}
        assert named <= {*ends, owner, "beta"}
        shown = torch.empty(entry.shape, dtype=torch.float64)
        for index in np.ndindex(*entry.shape):
            places = dict(zip("ij", index, strict=False))
            shown[index] = evaluated(entry.local, values, places, {"beta": NUDGE}) / NUDGE
        assert close(shown, exact[entry.name], 1e-6), entry.name


def explained(name: str) -> tuple[EnergyModel, Explanation]:
    model = compiled(name)[0]
    return model, explain(model, "single", 0.05)


def test_a_round_that_is_shown_leads_to_where_the_force_vanishes() -> None:
    x = symbol("x")
    for entry in explained("precise")[1].nodes:
        (case,) = entry.updates["nudged"].cases
        force = entry.force.subs({symbol("y"): symbol("y")})
        here = sp.simplify(force.subs(x, case.state))
        if entry.name != "label":  # whose cost depends on the state that it moves
            assert here == 0
        assert sp.simplify(entry.force.subs({x: entry.updates["free"].cases[0].state}).subs(
            {symbol("back"): 0, symbol("beta"): 0}
        )) == 0  # fmt: skip


def test_images_show_the_maps_that_a_prediction_passes() -> None:
    _, explanation = explained("conv")
    text = explanation.text
    assert "a = b + max_pool2d(conv2d(image, image_c1.w))" in text
    assert "correlate(image, max_pool2d_transposed(" in text
    assert "errors, since every state is predicted" in text
    assert "L = " not in text  # the bound of a cost serves exact updates alone
    assert r"\operatorname{relu}" in explanation.latex


def cycle() -> EnergyGraph:
    graph = EnergyGraph("predictive").input("image", 5).state("h1", 4).output("label", 3, cost="(x - y)**2/2")
    return graph.couple("image", "h1").couple("h1", "label").couple("label", "h1")


def test_predictions_in_a_cycle_are_relaxed_without_errors() -> None:
    model = compile_energy(cycle(), 0).double()
    image = torch.rand(2, 5, dtype=torch.float64)
    with pytest.raises(RelaxationError, match=r"integrator 'errors' can't relax this energy: .*cycle.*h1 -> label"):
        relax(model, "errors", image=image)
    found = relax(model, image=image)
    assert found.integrator in ("flow", "descent") and bool(found.converged.all())
    assert max(float(value.abs().max()) for value in found.problem.force(found.states).values()) < 1e-3
    assert "not errors" in explain(model).text


def test_check_compares_the_protocols_that_apply() -> None:
    model, image, target = compiled("cross-entropy")
    rows = check_gradients(model, {"image": image, "target": target}, beta=0.02)
    assert {row.protocol for row in rows} == {"positive", "negative", "random_sign", "centered", "single"}
    falls = {protocol: [row.fall for row in rows if row.protocol == protocol] for protocol in ("single", "centered")}
    assert all(1.5 < fall < 2.7 for fall in falls["single"])
    assert all(3 < fall < 5.5 for fall in falls["centered"])
