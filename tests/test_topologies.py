"""Sparse couplings and couplings among the units of a node, against sums over the edges of networkx graphs."""

from __future__ import annotations

import contextlib
import itertools
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import scipy.io
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import ENTRIES, close, in_numpy, squared_error
from test_compiler import autograd_force, some_problem
from torch import Tensor

from physnet import (
    EnergyGraph,
    EquilibriumPropagation,
    Relaxation,
    check_gradients,
    compile_energy,
    explain,
    gradients,
    graph_from_yaml,
    graph_to_yaml,
    load_experiment,
    relax,
)
from physnet.chains import parse_connection
from physnet.connections import Connection, Dense
from physnet.errors import DeclarationError, RelaxationError, ShapeError
from physnet.model import EnergyModel
from physnet.patterns import LISTED
from physnet.problem import Problem
from physnet.relaxation import initial_state
from physnet.topologies import AllPairs, Sparse, inside

Pairs = list[tuple[int, int]]
float64 = pytest.mark.usefixtures("float64")


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def undirected(graph: nx.Graph) -> Pairs:
    """(pre, post) of every edge in the order of the weights: the larger unit is post, and comes first in the order."""
    number = {label: index for index, label in enumerate(graph)}
    pairs = [sorted((number[a], number[b])) for a, b in graph.edges()]
    return sorted(((a, b) for a, b in pairs), key=lambda pair: (pair[1], pair[0]))


@st.composite
def graphs(draw: Any, least: int = 3, most: int = 7) -> nx.Graph:
    """A graph of some units with at least one edge."""
    units = draw(st.integers(least, most))
    every = list(itertools.combinations(range(units), 2))
    graph = nx.Graph()
    graph.add_nodes_from(range(units))
    graph.add_edges_from(draw(st.lists(st.sampled_from(every), min_size=1, unique=True)))
    return graph


@st.composite
def matrices(draw: Any) -> np.ndarray:
    """Which of some units of post (rows) and pre (columns) are joined; at least one pair."""
    shape = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    matrix = np.array(draw(st.lists(st.booleans(), min_size=math.prod(shape), max_size=math.prod(shape))))
    matrix[draw(st.integers(0, matrix.size - 1))] = True
    return matrix.reshape(shape)


# --------------------------------------------------------------------------- the maps


def check_maps(connection: Connection, pre: int, post: int, pairs: Pairs, scalar: bool, dtype: torch.dtype) -> None:
    link = connection.bind((pre,), (post,))
    assert connection.weight_shape((pre,), (post,)) == (len(pairs),)
    w = draw(1, *(() if scalar else (len(pairs),)), dtype=dtype)
    u, v = draw(2, 3, pre, dtype=dtype), draw(3, 3, post, dtype=dtype)
    dense = torch.zeros(post, pre, dtype=dtype)
    for index, (j, i) in enumerate(pairs):
        dense[i, j] = w if scalar else w[index]
    each = torch.stack([u[:, j] @ v[:, i] for j, i in pairs])
    assert torch.allclose(link.apply(u, w), u @ dense.mT)
    assert torch.allclose(link.adjoint(v, w), v @ dense)
    assert torch.allclose(link.correlate(u, v, w), each.sum() if scalar else each)
    first, second = link.pairs(u, v)
    assert torch.allclose(link.to_post(w * first), link.apply(u, w))
    assert torch.allclose(link.to_pre(w * second), link.adjoint(v, w))


@given(matrices(), st.booleans(), st.sampled_from([torch.float64, torch.complex128]))
@settings(max_examples=40)
def test_between_two_nodes_each_nonzero_is_a_pair(matrix: np.ndarray, scalar: bool, dtype: torch.dtype) -> None:
    post, pre = matrix.shape
    pairs = [(j, i) for i in range(post) for j in range(pre) if matrix[i, j]]
    for given_as in (matrix, scipy.sparse.coo_matrix(matrix * 3.0), scipy.sparse.csr_array(matrix)):
        check_maps(Sparse(given_as), pre, post, pairs, scalar, dtype)


@given(graphs(), st.booleans(), st.sampled_from([torch.float64, torch.complex128]))
@settings(max_examples=40)
def test_inside_a_node_each_edge_is_a_pair(graph: nx.Graph, scalar: bool, dtype: torch.dtype) -> None:
    check_maps(inside(Sparse(graph)), len(graph), len(graph), undirected(graph), scalar, dtype)


@given(st.integers(2, 6), st.booleans())
@settings(max_examples=20)
def test_dense_inside_a_node_is_the_complete_graph(units: int, scalar: bool) -> None:
    pairs = undirected(nx.complete_graph(units))
    check_maps(inside(Dense()), units, units, pairs, scalar, torch.float64)


def test_a_scalar_weight_on_all_pairs_makes_no_list_of_them() -> None:
    """A million units have 5e11 pairs."""
    link = AllPairs().bind((1_000_000,), (1_000_000,))
    u, w = torch.ones(1, 1_000_000, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    others = link.apply(u, w) + link.adjoint(u, w)
    assert torch.equal(others, torch.full_like(u, 0.5 * 999_999))
    assert link.correlate(u, u, w) == 1_000_000 * 999_999 / 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_the_maps_are_differentiable_twice(dtype: torch.dtype) -> None:
    link = inside(parse_connection("sparse('lattice', 2, 3)")).bind((2, 3), (2, 3))
    u, v, w = (draw(s, *shape, dtype=dtype).requires_grad_() for s, shape in enumerate([(2, 2, 3), (2, 2, 3), (7,)]))
    for function in (link.apply, link.adjoint):
        assert torch.autograd.gradcheck(function, (u, w)) and torch.autograd.gradgradcheck(function, (u, w))
    assert torch.autograd.gradcheck(lambda u, v: link.correlate(u, v, w), (u, v))
    assert torch.autograd.gradgradcheck(lambda u, v: link.correlate(u, v, w), (u, v))


def test_real_weights_on_complex_states_have_real_gradients() -> None:
    link = inside(parse_connection("sparse('ring', 5)")).bind((5,), (5,))
    u = draw(1, 2, 5, dtype=torch.complex128).requires_grad_()
    assert torch.autograd.gradcheck(link.apply, (u, draw(2, 5).requires_grad_()))


# --------------------------------------------------------------------------- declarations


@given(graphs(most=20))
@settings(max_examples=30)
def test_a_graph_is_declared_without_loss(graph: nx.Graph) -> None:
    connection = Sparse(graph)
    again = parse_connection(connection.declaration())
    assert isinstance(again, Sparse) and again == connection and hash(again) == hash(connection)
    assert list(zip(again.pattern.pre, again.pattern.post, strict=True)) == undirected(graph)
    assert again.pattern.sizes == (len(graph), len(graph)) and again.pattern.undirected


@given(matrices())
@settings(max_examples=30)
def test_a_matrix_is_declared_without_loss(matrix: np.ndarray) -> None:
    again = parse_connection(Sparse(scipy.sparse.csr_matrix(matrix)).declaration())
    assert isinstance(again, Sparse) and again == Sparse(matrix) and not again.pattern.undirected
    found = np.zeros_like(matrix)
    found[again.pattern.post, again.pattern.pre] = True
    assert (found == matrix).all() and again.pattern.sizes == matrix.shape


@pytest.mark.parametrize("kind", [nx.Graph, nx.DiGraph])
def test_large_patterns_go_through_yaml(kind: Any) -> None:
    pattern = kind(nx.gnm_random_graph(300, 5 * LISTED, seed=1))
    graph = EnergyGraph("hopfield").input("image", 4).state("hidden", 300)
    graph.couple("image", "hidden").couple("hidden", "hidden", Sparse(pattern))
    text = graph_to_yaml(graph)
    again = graph_from_yaml(text)
    assert again == graph and again.digest == graph.digest and graph_to_yaml(again) == text
    found = again.edge("hidden_hidden").connection
    assert isinstance(found, Sparse)
    edges = zip(found.pattern.pre.tolist(), found.pattern.post.tolist(), strict=True)
    assert sorted(edges) == sorted(tuple(sorted(edge)) if kind is nx.Graph else edge for edge in pattern.edges())


def test_labels_of_a_graph_are_numbered_in_its_order() -> None:
    graph = nx.Graph()
    graph.add_nodes_from("cab")
    graph.add_edge("b", "c")
    assert Sparse(graph).declaration() == "sparse('0-2', units=3)"


def test_the_digest_depends_on_the_pairs() -> None:
    def digest(pattern: str) -> str:
        graph = EnergyGraph("xy").input("image", 2).state("hidden", 4)
        return graph.couple("image", "hidden").couple("hidden", "hidden", f"sparse({pattern})").digest

    same = {digest(text) for text in ("'0-1 2-3', units=4", "'3-2,0-1', units=4", "'1-0 2-3', units=4")}
    assert len(same) == 1
    others = {digest(text) for text in ("'0-1 1-3', units=4", "'0>1 2>3', post=4, pre=4", "'ring', 4", "'0-1 2-3'")}
    assert len(others | same) == 5


GENERATED: list[tuple[str, nx.Graph]] = [
    ("'ring', 7", nx.cycle_graph(7)),
    ("'ring', 9, reach=2", nx.circulant_graph(9, [1, 2])),
    ("'lattice', 5", nx.path_graph(5)),
    ("'lattice', 3, 4", nx.grid_2d_graph(3, 4)),
    ("'lattice', 3, 4, periodic=True", nx.grid_2d_graph(3, 4, periodic=True)),
    ("'lattice', 2, 4, periodic=True", nx.Graph(nx.grid_2d_graph(2, 4, periodic=(False, True)))),
    ("'lattice', 2, 3, 4", nx.grid_graph([4, 3, 2])),
    ("'watts_strogatz', 30, 4, 0.2, seed=3", nx.watts_strogatz_graph(30, 4, 0.2, seed=3)),
    ("'erdos_renyi', 30, 0.2, seed=3", nx.fast_gnp_random_graph(30, 0.2, seed=3)),
    ("'random_regular', 20, 3, seed=3", nx.random_regular_graph(3, 20, seed=3)),
]


@pytest.mark.parametrize(("text", "expected"), GENERATED)
def test_generators_make_the_graphs_of_networkx(text: str, expected: nx.Graph) -> None:
    ordered = nx.Graph()
    ordered.add_nodes_from(sorted(expected))
    ordered.add_edges_from(expected.edges())
    found = parse_connection(f"sparse({text})")
    assert isinstance(found, Sparse)
    assert list(zip(found.pattern.pre, found.pattern.post, strict=True)) == undirected(ordered)
    assert found.pattern.sizes == (len(expected),) * 2
    assert parse_connection(found.declaration()) == found


def test_random_pairs_between_two_nodes() -> None:
    found = parse_connection("sparse('random', 40, 30, 0.1, seed=2)")
    assert isinstance(found, Sparse) and len(found.pattern) == 120 and found.pattern.sizes == (40, 30)
    assert len(set(zip(found.pattern.pre.tolist(), found.pattern.post.tolist(), strict=True))) == 120
    assert found != parse_connection("sparse('random', 40, 30, 0.1, seed=3)")
    assert found == parse_connection("sparse('random', 40, 30, 0.1, seed=2)")


def test_other_pairs_than_those_declared_are_noticed() -> None:
    declared = parse_connection("sparse('watts_strogatz', 30, 4, 0.2, seed=3)").declaration()
    assert "check='" in declared
    with pytest.raises(DeclarationError, match="other pairs"):
        parse_connection(declared.replace("seed=3", "seed=4"))


EXPERIMENT = """
energy: hopfield
nodes:
  image: {shape: 3, role: input}
  hidden: {shape: 4}
edges:
  - image -> hidden: sparse(file='pairs.csv')
  - hidden -> hidden: sparse(file='square.mtx')
"""


def test_files_are_found_beside_the_declaration(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("pre,post\n2, 0\n0, 3\n")
    lower = scipy.sparse.coo_matrix(np.diag([1.0, 2.0, 3.0], -1))
    scipy.io.mmwrite(tmp_path / "square.mtx", lower + lower.T, symmetry="symmetric")
    (tmp_path / "network.yaml").write_text(EXPERIMENT)
    graph = load_experiment(tmp_path / "network.yaml").graph
    assert graph.edge("image_hidden").connection.declaration() == "sparse('2>0 0>3')"
    assert graph.edge("hidden_hidden").connection.declaration() == "sparse('0-1 1-2 2-3', units=4)"
    (tmp_path / "square.mtx").unlink()
    assert graph_from_yaml(graph_to_yaml(graph)) == graph  # what was read is part of the declaration
    with pytest.raises(DeclarationError, match=r"(?s)network.yaml:8.*square.mtx"):
        load_experiment(tmp_path / "network.yaml")


def test_a_table_may_be_undirected(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("3 1\n0 1\n")
    found = parse_connection(f"sparse(file={str(path)!r}, undirected=True)")
    assert found.declaration() == "sparse('0-1 1-3')"
    path.write_text("3 1\n1 3\n")
    with pytest.raises(DeclarationError, match="twice"):
        parse_connection(f"sparse(file={str(path)!r}, undirected=True)")
    for broken, message in (("3 1 2\n", "columns"), ("0.5 1\n", "whole numbers"), ("", "pairs")):
        path.write_text(broken)
        with pytest.raises(DeclarationError, match=message):
            parse_connection(f"sparse(file={str(path)!r})")


LOOP = nx.Graph([(0, 0), (0, 1)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sparse(LOOP), "unit 0 is coupled to itself"),
        (lambda: inside(Sparse(np.eye(3))), "unit 0 is coupled to itself"),
        (lambda: Sparse(nx.MultiGraph([(0, 1), (1, 0)])), "0-1 is given twice"),
        (lambda: parse_connection("sparse('0-1 1-0')"), "0-1 is given twice"),
        (lambda: parse_connection("sparse('0>1 0>1')"), "0>1 is given twice"),
        (lambda: parse_connection("sparse('0-5', units=3)"), "names unit 5 of post, but there are 3"),
        (lambda: Sparse(nx.empty_graph(3)), "no pairs"),
        (lambda: Sparse(np.zeros((2, 2, 2))), "matrix"),
        (lambda: Sparse(3), "int is not a pattern"),
        (lambda: Sparse(), "nothing is not a pattern"),
        (lambda: parse_connection("sparse('wats_strogatz', 10, 4, 0.1)"), "did you mean watts_strogatz"),
        (lambda: parse_connection("sparse('watts_strogatz', 10, 4)"), "missing a required argument"),
        (lambda: parse_connection("sparse('watts_strogatz', 3, 4, 0.1)"), "k>n"),
        (lambda: parse_connection("sparse('watts_strogatz', 10, 4, 1.5)"), "out of range"),
        (lambda: parse_connection("sparse('ring', 'a')"), "units of 'ring' is 'a'"),
        (lambda: parse_connection("sparse('ring', 4, 2)"), "meets itself"),
        (lambda: parse_connection("sparse('lattice', 100000, 100000)"), "out of range"),
        (lambda: parse_connection("sparse('0-1 x')"), "not a list of pairs"),
        (lambda: parse_connection("sparse('0-1 1>2')"), "directed"),
        (lambda: parse_connection("sparse('0>1', units=3)"), "post= and pre="),
        (lambda: parse_connection("sparse('0-1', colour=3)"), "no use for colour"),
        (lambda: parse_connection("sparse('0-1', 3)"), "one pattern"),
        (lambda: parse_connection("sparse(gaps='1 x', units=3)"), "whole numbers"),
        (lambda: parse_connection("sparse(gaps='1 2')"), "without sizes"),
        (lambda: parse_connection("sparse(file='nowhere.csv')"), "No such file"),
        (lambda: inside(parse_connection("identity")), "couple each unit to itself"),
    ],
)
def test_what_is_wrong_with_a_pattern(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        make()


def test_shapes_have_to_fit() -> None:
    graph = EnergyGraph("hopfield").input("image", 4).state("hidden", 5)
    graph.couple("image", "hidden", Sparse(np.ones((4, 5)))).couple("hidden", "hidden", "sparse('ring', 4)")
    with pytest.raises(ShapeError, match="made for 4 units of post and 5 of pre") as caught:
        graph.validate()
    assert len(caught.value.faults) == 2
    with pytest.raises(DeclarationError, match="undirected pattern joins the units of one node"):
        Sparse(nx.path_graph(4)).check((4,), (4,))
    graph = EnergyGraph("hopfield").input("image", 4).state("hidden", 5).couple("image", "hidden")
    with pytest.raises(DeclarationError, match="couple each unit to itself"):
        graph.couple("hidden", "hidden", "identity")


def test_a_clamped_node_has_no_inner_couplings() -> None:
    graph = EnergyGraph("hopfield").input("image", 4).state("hidden", 5).couple("image", "hidden")
    with pytest.raises(DeclarationError, match="both ends of this edge are clamped"):
        graph.couple("image", "image", "sparse('ring', 4)").validate()


def test_fans_are_mean_numbers_of_neighbours() -> None:
    assert inside(parse_connection("sparse('lattice', 4, 4, periodic=True)")).fans((4, 4), (4, 4)) == (4, 4)
    assert inside(Dense()).fans((7,), (7,)) == (6, 6)
    assert parse_connection("sparse('random', 10, 20, 0.3)").fans((20,), (10,)) == (6, 3)


def test_reading_patterns_imports_no_torch(tmp_path: Path) -> None:
    (tmp_path / "network.yaml").write_text(
        EXPERIMENT.replace("file='pairs.csv'", "'0>1'").replace("file='square.mtx'", "'ring', 4")
    )
    code = (
        "import sys; from physnet import load_experiment; "
        f"load_experiment({str(tmp_path / 'network.yaml')!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --------------------------------------------------------------------------- energy, force, updates


@st.composite
def networks(draw: Any) -> tuple[EnergyGraph, dict[str, Pairs]]:
    """Inputs, a node with couplings inside, and an output with a cost; and the pairs of every edge."""
    entries = [*(name for name in ENTRIES if name != "resistive-diodes"), "kuramoto"]  # diodes need positive constants
    entry = draw(st.sampled_from(entries))
    key = "g" if entry.startswith("resistive") else "w"
    pattern, reads = draw(graphs(least=4)), draw(matrices())
    units = len(pattern)
    graph = EnergyGraph(entry).input("image", reads.shape[1], encode=[]).state("hidden", units)
    graph.output("label", reads.shape[0], cost=squared_error(entry))
    weight = {key: {"shape": draw(st.sampled_from(["connection", "scalar"]))}}
    every = draw(st.sampled_from([False, False, True]))
    graph.couple("hidden", "hidden", "dense" if every else Sparse(pattern), parameters=weight)
    graph.couple("hidden", "image", parameters={key: {"shape": "scalar"}})
    graph.couple("image", "label", Sparse(reads))
    graph.couple("hidden", "label")
    post, pre = reads.shape
    pairs = {
        "hidden_hidden": undirected(nx.complete_graph(units) if every else pattern),
        "hidden_image": [(j, i) for i in range(pre) for j in range(units)],
        "image_label": [(j, i) for i in range(post) for j in range(pre) if reads[i, j]],
        "hidden_label": [(j, i) for i in range(post) for j in range(units)],
    }
    return graph, pairs


def energy_by_hand(model: EnergyModel, states: dict[str, Tensor], pairs: dict[str, Pairs]) -> np.ndarray:
    """E of every row as plain sums over units and over pairs."""
    values = {name: value.detach().numpy() for name, value in states.items()}
    tensors = {name: value.detach().numpy() for name, value in model.tensors.items()}
    total = np.zeros(len(next(iter(values.values()))))
    for node in model.graph.nodes():
        for unit in range(node.shape[0] if node.free else 0):
            at = {key: np.broadcast_to(tensors[f"{node.name}.{key}"], node.shape)[unit] for key in node.parameters}
            total += in_numpy(node.term, {"x": values[node.name][:, unit], **at})
    for edge in model.graph.edges():
        for index, (j, i) in enumerate(pairs[edge.name]):
            at = {key: tensors[f"{edge.name}.{key}"] for key in edge.parameters}
            at = {key: w.reshape(-1)[index] if w.ndim else w for key, w in at.items()}
            total += in_numpy(edge.term, {"pre": values[edge.pre][:, j], "post": values[edge.post][:, i], **at})
    return total


def randomised(model: EnergyModel, seed: int = 0) -> EnergyModel:
    with torch.no_grad():
        for index, value in enumerate(model.tensors.values()):
            value.copy_(draw(seed + index, *value.shape) / 2)
    model.project_parameters()
    return model


@float64
@given(networks(), st.integers(0, 9))
@settings(max_examples=12)
def test_the_energy_is_the_sum_over_units_and_pairs(drawn: tuple[EnergyGraph, dict[str, Pairs]], seed: int) -> None:
    model = randomised(compile_energy(drawn[0]), seed)
    problem, state = some_problem(model)
    expected = energy_by_hand(model, {**problem.clamped, **state}, drawn[1])
    assert np.allclose(problem.energy(state).detach().numpy(), expected, rtol=1e-10, atol=1e-10)


@float64
@given(networks(), st.integers(0, 9), st.booleans())
@settings(max_examples=15)
def test_the_force_is_autograd_of_the_energy(drawn: tuple[EnergyGraph, Any], seed: int, nudged: bool) -> None:
    model = randomised(compile_energy(drawn[0]), seed)
    problem, state = some_problem(model, nudged=nudged)
    expected = autograd_force(problem, state)
    found = problem.force(state, list(expected))
    for name, force in expected.items():
        assert torch.allclose(found[name], force, rtol=1e-9, atol=1e-10), name


@float64
@given(networks(), st.integers(0, 9), st.booleans())
@settings(max_examples=20)
def test_a_block_moves_its_units_alone_and_never_uphill(drawn: Any, seed: int, nudged: bool) -> None:
    model = randomised(compile_energy(drawn[0]), seed)
    problem, state = some_problem(model, rows=3, nudged=nudged and drawn[0].energy.name != "resistive")
    colouring = model.plan.nodes["hidden"].colouring
    assert colouring is not None
    seen = torch.zeros(model.graph.node("hidden").shape)
    for block in problem.blocks:
        before = problem.energy(state)
        moved = problem.minimise(block, state)
        colours = [part.colour for part in block if part.node == "hidden"]
        for colour in colours:
            units = torch.as_tensor(colouring.colours == colour)
            seen += units
            assert torch.equal(moved["hidden"][:, ~units], state["hidden"][:, ~units])
        state = {**state, **moved}
        after = problem.energy(state)
        assert (after <= before + 1e-9 * (1 + before.abs())).all()
        if colours:  # the force on a unit that lies inside its domain, and that can come to rest, is gone
            free = problem.domain("hidden").project(state["hidden"] + problem.force(state)["hidden"])
            rests = (free - state["hidden"]).abs() <= 1e-6 * (1 + state["hidden"].abs())
            assert bool((rests | runs(problem, state, units))[:, units].all())
    assert (seen == 1).all()


def runs(problem: Problem, state: dict[str, Tensor], units: Tensor) -> Tensor:
    """Which hidden angles are driven round by their neighbours as they stand now: the force on them has one sign all
    the way round, so that their energy has no minimum. Only a drive that exceeds all couplings does so."""
    period = problem.domain("hidden").period
    if not period:
        return torch.zeros_like(state["hidden"], dtype=torch.bool)
    turns = torch.arange(64) * period / 64
    ways = [state["hidden"] + torch.where(units, turn, 0.0) for turn in turns]
    force = torch.stack([problem.force({**state, "hidden": way})["hidden"] for way in ways])
    return (force > 0).all(0) | (force < 0).all(0)


@given(graphs(least=4, most=12))
@settings(max_examples=20)
def test_units_of_one_colour_share_no_pair(graph: nx.Graph) -> None:
    network = EnergyGraph("xy").input("image", 2).state("hidden", len(graph)).couple("image", "hidden")
    colouring = compile_energy(network.couple("hidden", "hidden", Sparse(graph))).plan.nodes["hidden"].colouring
    assert colouring is not None
    assert all(colouring.colours[a] != colouring.colours[b] for a, b in graph.edges())
    if nx.is_bipartite(graph):
        assert colouring.count == 2


def lattice_of_spins(*sizes: int, **options: Any) -> EnergyGraph:
    graph = (
        EnergyGraph("xy").input("image", 3).state("hidden", list(sizes), parameters={"h": {"init": "normal(1, 0.2)"}})
    )
    graph.output("label", 2, cost="(cos(x) - y)**2/2", parameters={"h": {"init": "normal(1, 0.2)"}})
    graph.couple("image", "hidden", parameters={"w": {"gain": 0.4}})
    pattern = f"sparse('lattice', {', '.join(map(str, sizes))}, periodic=True)"
    graph.couple("hidden", "hidden", pattern, parameters={"w": {"gain": 0.3}}, **options)
    return graph.couple("hidden", "label", parameters={"w": {"gain": 0.4}})


def hopfield(units: int) -> EnergyGraph:
    """States that stay inside their box."""
    graph = EnergyGraph("hopfield").input("image", 3).state("hidden", units, domain=[-2, 2])
    return graph.output("label", 2, cost="(x - y)**2/2").couple("image", "hidden", parameters={"w": {"gain": 0.3}})


def small_world() -> EnergyGraph:
    graph = hopfield(12)
    graph.couple("hidden", "hidden", "sparse('watts_strogatz', 12, 4, 0.3, seed=1)", parameters={"w": {"gain": 0.2}})
    return graph.couple("hidden", "label", "sparse('random', 2, 12, 0.5)", parameters={"w": {"gain": 0.3}})


def mean_field(units: int = 8) -> EnergyGraph:
    weight = {"w": {"shape": "scalar", "init": f"{0.4 / units}*ones()"}}
    return hopfield(units).couple("hidden", "hidden", parameters=weight).couple("hidden", "label")


def no_product() -> EnergyGraph:
    graph = EnergyGraph("hopfield-smooth").input("image", 3).state("hidden", 6).output("label", 2, cost="(x - y)**2/2")
    graph.couple("image", "hidden")
    graph.couple("hidden", "hidden", "sparse('ring', 6)", term="-w*tanh(pre*post + pre)/2")
    return graph.couple("hidden", "label")


NETWORKS: dict[str, Callable[[], EnergyGraph]] = {
    "lattice": lambda: lattice_of_spins(4, 4),
    "odd lattice": lambda: lattice_of_spins(3, 3),
    "small world": small_world,
    "mean field": mean_field,
    "large mean field": lambda: mean_field(40),
    "inseparable": no_product,
}
FLOWING = ("large mean field", "inseparable")
COLOURED = [name for name in NETWORKS if name not in FLOWING]
SLOW = [*COLOURED, *(pytest.param(name, marks=pytest.mark.slow) for name in FLOWING)]


def network(name: str) -> tuple[EnergyModel, dict[str, Tensor]]:
    """A network, a batch of inputs and targets."""
    with pytest.warns(UserWarning, match="doesn't separate") if name == "inseparable" else contextlib.nullcontext():
        model = compile_energy(NETWORKS[name](), seed=2)
    return model, {"image": draw(7, 2, 3) / 2, "target": draw(8, 2, 2) / 4}


@float64
@pytest.mark.parametrize(
    ("name", "beta"), [("lattice", None), ("odd lattice", None), ("mean field", None), ("small world", 0.1)]
)
def test_blocks_and_flow_agree(name: str, beta: float | None) -> None:
    model, data = network(name)
    phase = {} if beta is None else {"target": data["target"], "beta": beta}
    image, phase = data["image"][:1], {key: value[:1] if key == "target" else value for key, value in phase.items()}
    found = [relax(model, Relaxation(kind, tolerance=1e-7), image=image, **phase) for kind in ("blocks", "flow")]
    assert found[0].converged.all() and found[1].converged.all()
    for node in model.free:
        assert close(found[0][node], found[1][node], 1e-5)


@float64
@pytest.mark.parametrize("name", list(NETWORKS))
def test_an_equilibrium_has_no_force_and_the_chosen_integrator_says_why(name: str) -> None:
    model, data = network(name)
    result = relax(model, Relaxation(tolerance=1e-8), image=data["image"])
    assert result.integrator == ("blocks" if name in COLOURED else "flow")
    if name == "large mean field":
        assert "all its 40 units interact" in result.reason
    for force in result.problem.force(result.states).values():
        assert float(force.detach().abs().max()) < 1e-6


@float64
def test_too_many_colours_are_left_to_the_flow() -> None:
    graph = EnergyGraph("hopfield").input("image", 2).state("hidden", 40).couple("image", "hidden")
    model = compile_energy(graph.couple("hidden", "hidden", Sparse(nx.complete_graph(40))))
    problem = model.problem(image=torch.zeros(1, 2))
    assert "take 40 colours" in problem.solver("hidden").reason
    with pytest.raises(RelaxationError, match="take 40 colours"):
        relax(model, "blocks", image=torch.zeros(1, 2))


@float64
@pytest.mark.parametrize("name", COLOURED)
def test_forward_is_one_sweep_from_zero_in_the_order_of_the_signal(name: str) -> None:
    model, data = network(name)
    problem = model.problem(image=data["image"])
    start = initial_state(problem, "forward", torch.Generator())
    expected = problem.zero()
    for node in model.free:
        colouring = model.plan.nodes[node].colouring
        for colour in range(1 if colouring is None else colouring.count):
            settled = problem.minimise((node,), expected)[node]  # all units of the node at once
            units = torch.ones(settled.shape[1:], dtype=torch.bool)
            if colouring is not None:
                units = torch.as_tensor(colouring.colours == colour)
            expected[node] = torch.where(units, settled, expected[node])
    assert all(torch.equal(start[node], expected[node]) for node in model.free)
    assert float((problem.energy(start) - problem.energy(problem.zero())).max()) < 0


@float64
def test_the_step_moves_every_unit_as_if_it_moved_alone() -> None:
    model, data = network("small world")
    problem = model.problem(image=data["image"])
    state = problem.random(torch.Generator().manual_seed(1))
    step = problem.step(state)["hidden"]
    for unit in range(12):
        value = torch.linspace(-1e-4, 1e-4, 3).view(-1, 1) + (state["hidden"] + step)[:1, unit]
        around = {name: x[:1].repeat(3, 1) for name, x in state.items()}
        around["hidden"][:, unit] = value[:, 0]
        three = model.problem(image=data["image"][:1].repeat(3, 1))
        energy = three.energy(around)
        assert energy[1] < energy[0] and energy[1] < energy[2]


@float64
@pytest.mark.parametrize("name", list(NETWORKS))
def test_the_force_of_every_network_is_autograd_of_its_energy(name: str) -> None:
    problem, state = some_problem(network(name)[0])
    for node, force in autograd_force(problem, state).items():
        assert torch.allclose(problem.force(state, [node])[node], force, rtol=1e-9, atol=1e-10), node


# --------------------------------------------------------------------------- gradients


@float64
@pytest.mark.parametrize("name", SLOW)
def test_gradients_of_equilibrium_propagation_and_of_the_implicit_reference(name: str) -> None:
    """Centered estimates are exact up to beta^2: the error falls by four when beta is halved."""
    model, data = network(name)
    tight = Relaxation(tolerance=1e-12 if name in COLOURED else 1e-9, max_sweeps=3000)
    for row in check_gradients(model, data, beta=0.01, protocols=["centered"], relaxation=tight):
        assert row.error < 5e-3, row
        assert row.error < 1e-5 or 3 < row.fall < 5, row


@float64
@pytest.mark.parametrize("name", SLOW)
def test_implicit_gradients_are_finite_differences_of_the_cost(name: str) -> None:
    model, data = network(name)
    tight = Relaxation(tolerance=1e-13 if name in COLOURED else 1e-9, max_sweeps=3000)
    exact = gradients(EquilibriumPropagation(model, protocol="implicit", relaxation=tight), **data)

    def cost() -> float:
        equilibrium = relax(model, tight, image=data["image"])
        wanted = {"target": data["target"]}
        return float(model.functions["cost"](model.tensors, equilibrium.states, wanted).mean())

    step = 1e-4
    directions = {tensor: draw(11, *value.shape) for tensor, value in model.tensors.items()}
    costs = []
    with torch.no_grad():
        for shift in (step, -2 * step):
            for tensor, value in model.tensors.items():
                value += shift * directions[tensor]
            costs.append(cost())
    expected = sum(float((exact[tensor] * direction).sum()) for tensor, direction in directions.items())
    assert (costs[0] - costs[1]) / (2 * step) == pytest.approx(
        expected, rel=1e-4, abs=1e-6 if name in COLOURED else 5e-5
    )


# --------------------------------------------------------------------------- physics


@float64
@pytest.mark.parametrize("pattern", ["sparse('ring', 12)", "sparse('lattice', 3, 4, periodic=True)", "dense"])
def test_ferromagnets_align(pattern: str) -> None:
    """With one angle held and positive couplings, all angles are equal in the ground state, at energy -1 per pair."""
    graph = EnergyGraph("xy").input("field", 1).state("spins", 12, parameters={"h": {"frozen": True}})
    one = {"w": {"init": "ones", "shape": "scalar"}}
    graph.couple("field", "spins", parameters=one).couple("spins", "spins", pattern, parameters=one)
    model = compile_energy(graph)
    result = relax(model, Relaxation(tolerance=1e-10), field=torch.tensor([[0.7]]))
    assert torch.allclose(result["spins"], torch.full((1, 12), 0.7), atol=1e-7)
    pairs = {"dense": 66, "sparse('ring', 12)": 12}.get(pattern, 24)
    assert result.energy.item() == pytest.approx(-12 - pairs)


def ladder(rungs: int) -> nx.Graph:
    return nx.convert_node_labels_to_integers(nx.grid_2d_graph(2, rungs))


@float64
@pytest.mark.parametrize(
    "graph", [nx.path_graph(5), ladder(6), nx.convert_node_labels_to_integers(nx.grid_2d_graph(4, 5))]
)
def test_resistor_networks_have_the_effective_resistance_of_their_laplacian(graph: nx.Graph) -> None:
    """Currents 1 and -1 at two corners: the voltage between them is the resistance, from the pseudoinverse."""
    units, conductance = len(graph), 0.5 + np.random.default_rng(1).random(graph.number_of_edges())
    network = EnergyGraph("resistive").input("ground", 1, encode=[])
    network.state("nodes", units, domain="real")
    network.couple("nodes", "nodes", Sparse(graph)).couple("ground", "nodes", "sparse('0>0')")
    model = compile_energy(network)
    current = torch.zeros(units)
    current[0], current[-1] = 1.0, -1.0
    with torch.no_grad():
        model.tensors["nodes_nodes.g"].copy_(torch.as_tensor(conductance))
        model.tensors["ground_nodes.g"].fill_(1.0)  # no current flows to the ground, which fixes the potential
        model.tensors["nodes.i"].copy_(current)
    voltages = relax(model, Relaxation(tolerance=1e-12, max_sweeps=20000), ground=torch.zeros(1, 1))["nodes"][0]
    laplacian = np.zeros((units, units))
    for (a, b), g in zip(undirected(graph), conductance, strict=True):
        laplacian[[a, b, a, b], [a, b, b, a]] += [g, g, -g, -g]
    expected = np.linalg.pinv(laplacian) @ current.numpy()
    assert float(voltages[0] - voltages[-1]) == pytest.approx(expected[0] - expected[-1], rel=1e-7)
    assert np.allclose(voltages.numpy(), expected - expected[0] + float(voltages[0]), atol=1e-7)


# --------------------------------------------------------------------------- the rest


def test_explain_says_how_units_take_turns() -> None:
    text = explain(compile_energy(lattice_of_spins(4, 4))).text
    assert "hidden (coloured, 2 of 2 in turn), then label" in text
    assert "sum_j hidden_hidden.w[i,j]*sin(hidden[j])" in text and "sum_j hidden_hidden.w[j,i]*sin(hidden[j])" in text
    assert "all its 40 units interact" in explain(compile_energy(mean_field(40))).text


def test_ten_thousand_units_compile_and_relax_in_seconds() -> None:
    start = time.process_time()
    graph = EnergyGraph("hopfield").input("image", 16).state("hidden", 10_000, domain="real")
    graph.couple("image", "hidden", parameters={"w": {"gain": 0.3}})
    graph.couple("hidden", "hidden", "sparse('random_regular', 10000, 10)", parameters={"w": {"gain": 0.3}})
    model = compile_energy(graph)
    result = relax(model, image=torch.rand(8, 16, generator=torch.Generator().manual_seed(0)))
    assert result.converged.all() and result.integrator == "blocks"
    assert float(result.problem.force(result.states)["hidden"].norm(dim=1).max()) < 0.1
    assert time.process_time() - start < 10
