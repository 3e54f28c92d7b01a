"""Compiled energies against plain sums in numpy, forces against autograd, exact updates against a search."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import ANGULAR, ENTRIES, brute_force_energy, catalogue_model, close, pair, squared_error
from test_separation import SEPARABLE
from torch import Tensor

from physnet.energy import Energy
from physnet.errors import DeclarationError, RelaxationError, ShapeError
from physnet.graph import EnergyGraph
from physnet.model import EnergyModel, compile_energy
from physnet.problem import Problem, State
from physnet.separation import GradientOnly

pytestmark = pytest.mark.usefixtures("float64")
SHAPES: tuple[tuple[int, ...], ...] = ((2,), (3,), (2, 2), (3, 1, 2))


def randomise(model: EnergyModel, seed: int) -> EnergyModel:
    """Every parameter drawn anew, positive where it has to be."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.tensors.values():
            value.copy_(torch.randn(value.shape, generator=generator) / 2)
    model.project_parameters()
    return model


# randomised parameters would reverse the diodes' constants, and energies would fall without bound
SUBSTRATES = [name for name in ENTRIES if name != "resistive-diodes"]


@st.composite
def graphs(draw: Any) -> tuple[EnergyGraph, int]:
    """A chain with skip edges, of mixed substrates, shapes, connections and parameter shapes."""
    graph = EnergyGraph(draw(st.sampled_from(SUBSTRATES)))
    names = ["n0", "n1", "n2", "n3"][: draw(st.integers(2, 4))]
    for index, name in enumerate(names):
        shape = draw(st.sampled_from(SHAPES))
        if index == 0:
            graph.input(name, shape, encode=draw(st.sampled_from([[], ["x", "-x"], ["tanh(2*x)"]])))
            continue
        entry = draw(st.sampled_from(SUBSTRATES))
        key = {"resistive": "i", "xy": "h", "oscillator-ising": "h", "kuramoto": "omega"}.get(entry, "b")
        options: dict[str, Any] = {
            "energy": entry,
            "parameters": {key: {"shape": draw(st.sampled_from(["unit", "channel", "scalar"]))}},
        }
        if name == names[-1]:
            graph.output(name, shape, cost=squared_error(entry), **options)
        else:
            graph.state(name, shape, **options)
    for post in range(1, len(names)):
        for pre in range(post):
            if pre != post - 1 and not draw(st.booleans()):
                continue
            angles = any(graph.node(names[end]).domain.period and end for end in (pre, post))
            entry = draw(st.sampled_from(ANGULAR if angles else SUBSTRATES))
            ends = [names[pre], names[post]] if draw(st.booleans()) else [names[post], names[pre]]
            same = graph.node(ends[0]).shape == graph.node(ends[1]).shape
            connection = draw(st.sampled_from(["dense", "identity"])) if same else "dense"
            weight = {"g" if entry == "resistive" else "w": {"shape": draw(st.sampled_from(["connection", "scalar"]))}}
            graph.couple(*ends, connection, energy=entry, parameters=weight)
    return graph, draw(st.integers(0, 99))


def compiled(drawn: tuple[EnergyGraph, int]) -> EnergyModel:
    """A drawn graph with random parameters."""
    return randomise(compile_energy(drawn[0]), drawn[1])


def some_problem(model: EnergyModel, rows: int = 2, nudged: bool = False) -> tuple[Problem, State]:
    """A problem of random inputs and a random state inside the domains."""
    generator = torch.Generator().manual_seed(5)
    inputs = {name: torch.randn(rows, *node.data_shape, generator=generator) for name, node in model.inputs.items()}
    problem = model.problem(**inputs)
    if nudged:
        wanted = {name: torch.randn(rows, *node.shape, generator=generator) for name, node in model.targets.items()}
        problem = problem.nudged(wanted, [0.3, -0.2])
    return problem, problem.random(generator)


def autograd_force(problem: Problem, state: State) -> State:
    """-dF/ds of all nodes, clamped ones too, from the energy alone."""
    clamped = {name: value.clone().requires_grad_() for name, value in problem.clamped.items()}
    free = {name: value.clone().requires_grad_() for name, value in state.items()}
    again = Problem(problem.model, clamped, problem.rows, targets=problem.targets, beta=problem.beta)
    leaves = {**clamped, **free}
    found = torch.autograd.grad(
        again.energy(free).sum(), list(leaves.values()), materialize_grads=True, allow_unused=True
    )
    return {name: -slope for name, slope in zip(leaves, found, strict=True)}


@given(SEPARABLE)
@settings(max_examples=15)
def test_energy_of_a_separable_coupling_is_the_double_sum(coupling: str) -> None:
    with torch.no_grad():
        model = compile_energy(pair(coupling))
        for value in model.tensors.values():
            value.abs_().add_(0.1)  # couplings hold sqrt(c)
        problem, state = some_problem(model, rows=3)
        other = problem.random(torch.Generator().manual_seed(9))
        found = problem.energy(state) - problem.energy(other)  # differences: what depends on no state may be left out
        expected = brute_force_energy(model, {**problem.clamped, **state}) - brute_force_energy(
            model, {**problem.clamped, **other}
        )
        assert np.allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9)


@given(graphs())
@settings(max_examples=25)
def test_energy_of_a_graph_is_the_sum_over_units_and_pairs(drawn: tuple[EnergyGraph, int]) -> None:
    model = compiled(drawn)
    problem, state = some_problem(model)
    expected = brute_force_energy(model, {**problem.clamped, **state})
    assert np.allclose(problem.energy(state).detach().numpy(), expected, rtol=1e-10, atol=1e-10)


@given(graphs(), st.booleans())
@settings(max_examples=40)
def test_force_is_autograd_of_the_energy(drawn: tuple[EnergyGraph, int], nudged: bool) -> None:
    model = compiled(drawn)
    problem, state = some_problem(model, nudged=nudged)
    expected = autograd_force(problem, state)
    found = problem.force(state, list(expected))
    for name, force in expected.items():
        assert found[name].shape == force.shape
        assert torch.allclose(found[name], force, rtol=1e-9, atol=1e-10), name
    assert set(problem.force(state)) == set(model.free)


@given(graphs(), st.booleans())
@settings(max_examples=25)
def test_an_exact_block_step_never_raises_the_energy(drawn: tuple[EnergyGraph, int], nudged: bool) -> None:
    model = compiled(drawn)
    problem, state = some_problem(model, rows=3, nudged=nudged)
    for block in (*problem.blocks, *problem.blocks):
        if any(isinstance(problem.solver(part.node), GradientOnly) for part in block):
            continue
        before = problem.energy(state)
        try:
            moved = problem.minimise(block, state)
        except RelaxationError:  # an energy without a minimum
            continue
        state = {**state, **moved}
        after = problem.energy(state)
        if not after.isfinite().all():  # an energy without a minimum
            break
        assert (after <= before + 1e-9 * (1 + before.abs())).all()
        for name in moved:
            assert torch.equal(problem.domain(name).project(state[name]), state[name])


@given(SEPARABLE, st.sampled_from(["x**2/2 - b*x", "x**4 - b*tanh(x)", "-cos(x - b)", "x**2 + log_cosh(x) - relu(x)"]))
@settings(max_examples=15)
def test_exact_updates_of_random_couplings_never_raise_the_energy(coupling: str, node: str) -> None:
    model = compile_energy(pair(coupling, node=node, domain=[-1.5, 2]))
    problem, state = some_problem(model, rows=3)
    if isinstance(problem.solver("right"), GradientOnly):
        return
    before = problem.energy(state)
    try:
        state = problem.minimise(("right",), state)
    except RelaxationError as error:
        assert "curvature" in str(error)
        return
    assert (problem.energy(state) <= before + 1e-9 * (1 + before.abs())).all()
    assert ((state["right"] >= -1.5) & (state["right"] <= 2)).all()


@given(graphs())
@settings(max_examples=25)
def test_blocks_are_independent_and_cover_the_free_nodes(drawn: tuple[EnergyGraph, int]) -> None:
    model = compiled(drawn)
    for blocks in (model.plan.blocks, model.plan.nudged_blocks):
        assert sorted(part.node for block in blocks for part in block) == sorted(model.free)
        for block in blocks:
            nodes = {part.node for part in block}
            assert not any(edge.pre in nodes and edge.post in nodes for edge in model.graph.edges())


SOLVERS: list[tuple[str, str, Any, str]] = [
    ("x**2/2 - b*x", "-w*pre*post", "real", "quadratic"),
    ("x**2/2 - b*x", "-w*pre*post", [0, 1], "quadratic"),
    ("b**2*x**2", "(1 + w**2)*(pre - post)**2", ["nonnegative", "nonpositive"], "quadratic"),
    ("x**2", "w**2*pre**2*post**2 - w*post", [-2, 2], "quadratic"),
    ("-cos(x - b)", "-w*cos(pre - post)", "circle", "atan2"),
    ("-sin(b - x)*2", "w*sin(pre + post)", "circle", "atan2"),
    ("-b*x", "-w*pre*post", [-1, 2], "linear"),
    ("x**2/2 - b*tanh(x)", "-w*tanh(pre)*tanh(post)/2", "real", "newton"),
    ("x**4/4 + x**2", "-w*pre*post", [-3, 0.2], "newton"),
    ("x**2/2 + abs(x)/5 + b*x", "-w*sin(pre)*post", "real", "newton"),
    ("-cos(x - b)", "-w*cos(pre - post)", [2, 2.5], "newton"),
]


@pytest.mark.parametrize(("node", "coupling", "domain", "kind"), SOLVERS)
def test_exact_updates_find_the_lowest_energy_of_a_unit(node: str, coupling: str, domain: Any, kind: str) -> None:
    """Every unit on its own, against a dense grid; the examples have one minimum each."""
    model = randomise(compile_energy(pair(coupling, node=node, domain=domain, shapes=(3, 4))), 3)
    problem, state = some_problem(model)
    assert problem.solver("right").name == kind
    found = problem.minimise(("right",), state)["right"]
    lo, hi = (torch.as_tensor(bound).expand(2, 4).clamp(-4, 4) for bound in problem.domain("right").bounds(found))
    for unit in range(4):
        for row in range(2):
            grid = torch.linspace(float(lo[row, unit]), float(hi[row, unit]), 40_001)
            energies = unit_energies(problem, {"right": found}, row, unit, grid)
            best = grid[energies.argmin()]
            assert problem.domain("right").difference(found[row, unit], best).abs() < 1.1 * (grid[1] - grid[0])
            assert unit_energies(problem, {"right": found}, row, unit, found[row, unit, None]) <= energies.min() + 1e-12


def unit_energies(problem: Problem, state: State, row: int, unit: int, grid: Tensor) -> Tensor:
    """E as one unit of one row takes the values of a grid, everything else fixed."""
    trial = {name: value[row : row + 1].repeat(len(grid), 1) for name, value in state.items()}
    trial["right"][:, unit] = grid
    clamped = {name: value[row : row + 1].repeat(len(grid), 1) for name, value in problem.clamped.items()}
    return Problem(problem.model, clamped, len(grid)).energy(trial).detach()


@pytest.mark.parametrize("coupling", ["-w*tanh(pre*post)", "c*log_cosh(pre - w*post)"])
def test_inseparable_coupling_is_broadcast_with_a_warning(coupling: str) -> None:
    graph = pair(coupling, shapes=((2, 2), (3, 1)))
    with pytest.warns(UserWarning, match="doesn't separate"):
        model = randomise(compile_energy(graph), 0)
    problem, state = some_problem(model, rows=3)
    assert np.allclose(
        problem.energy(state).detach().numpy(), brute_force_energy(model, {**problem.clamped, **state}), rtol=1e-12
    )
    expected = autograd_force(problem, state)
    for name, force in problem.force(state, ["left", "right"]).items():
        assert torch.allclose(force, expected[name], rtol=1e-10)
    with pytest.raises(RelaxationError, match="doesn't separate"):
        problem.minimise(("right",), state)
    nudged = problem.nudged({"target": torch.rand(3, 3, 1)}, [0.3])
    for asked in (problem, nudged):
        x = state["right"].detach()
        hessian = torch.autograd.functional.hessian(lambda x, asked=asked: asked.energy({"right": x}).sum(), x)
        assert isinstance(hessian, Tensor)
        diagonal = hessian.reshape(x.numel(), x.numel()).diagonal().view_as(x)
        assert torch.allclose(asked.curvature({"right": x}, "right"), diagonal, rtol=1e-9)
        residual, force = asked.step({"right": x})["right"], asked.force({"right": x})["right"]
        assert torch.allclose(residual, torch.where(diagonal > 1e-6, force / diagonal, force))


def test_separable_couplings_compile_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    compile_energy(pair("-w*cos(pre - post)"))
    assert not recwarn.list


@pytest.mark.parametrize("name", ["cos", "total", "energy", "cost", "p", "s", "y", "class", "fixed_right", "relu"])
def test_edges_may_be_called_anything(name: str) -> None:
    graph = pair("-w*cos(pre - post)", node="-cos(x - b)", name=name)
    model, plain = (
        randomise(compile_energy(graph), 1),
        randomise(compile_energy(pair("-w*cos(pre - post)", node="-cos(x - b)")), 1),
    )
    (problem, state), (reference, _) = some_problem(model), some_problem(plain)
    assert torch.equal(problem.energy(state), reference.energy(state))
    assert torch.equal(problem.force(state)["right"], reference.force(state)["right"])
    assert torch.equal(problem.minimise(("right",), state)["right"], reference.minimise(("right",), state)["right"])


def test_names_never_meet_in_the_source() -> None:
    """An input called like a phase of a node: both keep their own force."""
    graph = EnergyGraph("hopfield").input("h_free", 2).state("h", 2).couple("h_free", "h")
    problem, state = some_problem(compile_energy(graph))
    expected = autograd_force(problem, state)
    for name, force in problem.force(state, ["h", "h_free"]).items():
        assert torch.allclose(force, expected[name], rtol=1e-10)


@pytest.mark.parametrize("name", ["a__b", "_a", "1a", "a b", "a.b", "", "ä", "a" * 101])
def test_names_that_are_no_names_are_refused(name: str) -> None:
    with pytest.raises(DeclarationError, match="is not a name"):
        EnergyGraph("hopfield").state(name, 2)


@pytest.mark.parametrize("name", ["target", "beta", "rows", "step"])
def test_inputs_are_not_called_like_arguments(name: str) -> None:
    with pytest.raises(DeclarationError, match="argument of relax"):
        EnergyGraph("hopfield").input(name, 2)


@pytest.mark.parametrize(("domain", "expected"), [([-1, 2], 2.0), ("nonpositive", 0.0)])
def test_a_driven_unit_with_a_flat_energy_goes_to_its_bound(domain: object, expected: float) -> None:
    """Conductances of zero leave only the current source, E = -i x."""
    graph = EnergyGraph("resistive").input("image", 1, encode="x")
    graph.state("unit", 1, domain=domain, parameters={"i": {"init": "ones"}})
    graph.couple("image", "unit", parameters={"g": {"init": "zeros"}})
    problem = compile_energy(graph).problem(image=torch.zeros(1, 1))
    assert problem.minimise(("unit",), problem.zero())["unit"].item() == expected


@pytest.mark.parametrize("node", ["3", "b**2", "0"])
def test_node_terms_without_a_state(node: str) -> None:
    model = randomise(compile_energy(pair("(pre - post)**2/2 + 0*w", node=node)), 0)
    problem, state = some_problem(model)
    assert np.allclose(problem.energy(state).detach().numpy(), brute_force_energy(model, {**problem.clamped, **state}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ENTRIES)
def test_states_and_energies_have_the_dtype_of_the_model(name: str, dtype: torch.dtype) -> None:
    model = catalogue_model(name).to(dtype)
    problem, state = some_problem(model)
    assert problem.energy(state).dtype == dtype
    assert problem.energy(state).shape == (2,)
    assert {value.dtype for value in [*problem.zero().values(), *state.values(), *problem.force(state).values()]} == {
        dtype
    }
    assert {value.dtype for block in problem.blocks for value in problem.minimise(block, state).values()} == {dtype}


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "state_dict"])
def test_copies_have_the_same_energy(name: str, way: str) -> None:
    model = randomise(catalogue_model(name), 4)
    problem, state = some_problem(model)
    if way == "state_dict":
        twin = catalogue_model(name, seed=7)
        assert not torch.equal(some_problem(twin)[0].energy(state), problem.energy(state))
        twin.load_state_dict(model.state_dict())
        assert set(model.state_dict()) == set(model.graph.tensors())
    else:
        twin = copy.deepcopy(model) if way == "deepcopy" else pickle.loads(pickle.dumps(model))
    assert torch.equal(some_problem(twin)[0].energy(state), problem.energy(state))
    with torch.no_grad():
        next(iter(twin.parameters())).add_(1.0)
    assert torch.equal(some_problem(model)[0].energy(state), problem.energy(state))


def test_parameters_are_a_function_of_the_seed() -> None:
    first, again, other = (catalogue_model("xy", seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_phases_are_stacked_along_the_rows() -> None:
    model = catalogue_model("hopfield")
    problem, _ = some_problem(model, rows=2)
    y = torch.tensor([0, 2])
    both = problem.nudged({"target": y}, [0.5, -0.25])
    state = both.random(torch.Generator().manual_seed(1))
    for phase, beta in enumerate((0.5, -0.25)):
        one = problem.nudged({"target": y}, [beta])
        rows = slice(2 * phase, 2 * phase + 2)
        part = {name: value[rows] for name, value in state.items()}
        assert torch.allclose(both.energy(state)[rows], one.energy(part))
        expected = problem.energy(part) + beta * ((part["label"] - torch.eye(3)[y]) ** 2 / 2).sum(1)
        assert torch.allclose(both.energy(state)[rows], expected)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "missing"),
        ({"image": torch.zeros(2, 4)}, "must be"),
        ({"image": torch.zeros(0, 5)}, "must be"),
        ({"image": torch.zeros(2, 5), "imag": torch.zeros(2, 5)}, "no input node"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(inputs: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        catalogue_model("hopfield").problem(**inputs)


def test_encoding_stacks_its_expressions() -> None:
    model = catalogue_model("hopfield", encode=["2*x", "-x", "x**2"])
    x = torch.randn(3, 5)
    assert close(model.encode({"image": x})["image"], torch.cat([2 * x, -x, x**2], 1), 1e-15)


def test_scores_order_classes_as_a_squared_error_does() -> None:
    model = catalogue_model("hopfield")
    state = {"label": torch.randn(6, 3)}
    costs = torch.stack([((state["label"] - torch.eye(3)[k]) ** 2 / 2).sum(1) for k in range(3)], 1)
    assert torch.equal(model.scores(state).argsort(1), (-costs).argsort(1))


def test_cost_weights_and_targets_add_up() -> None:
    energy = Energy(node="x**2/2", coupling="-w*pre*post", parameters={"w": {"on": "edge", "init": "ones"}})
    graph = (
        EnergyGraph(energy)
        .input("i", 2)
        .state("h", 3)
        .output("o", 2, cost="(x - y)**2/2")
        .couple("i", "h")
        .couple("h", "o")
    )
    graph.cost("h", "log_cosh(x - y)", target="hint", weight=0.3).cost("o", "x**4", weight=2.5)
    problem, state = some_problem(compile_energy(graph), nudged=True)
    expected = ((state["o"] - problem.targets["target"]) ** 2 / 2).sum(1) + 2.5 * (state["o"] ** 4).sum(1)
    expected = expected + 0.3 * torch.cosh(state["h"] - problem.targets["hint"]).log().sum(1)
    assert torch.allclose(problem.cost(state), expected)
