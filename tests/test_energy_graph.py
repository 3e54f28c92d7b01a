"""Energies and graphs as declarations: what they mean, what is refused, and their identity."""

from __future__ import annotations

from typing import Any

import pytest

from physnet.domains import NONNEGATIVE, REAL, Interval
from physnet.energy import Energy, catalogue, energy_from_mapping, load_energy
from physnet.errors import DeclarationError, ShapeError
from physnet.expressions import parse
from physnet.graph import EnergyGraph


def digits(**options: Any) -> EnergyGraph:
    graph = EnergyGraph("hopfield", name=options.pop("name", ""))
    graph.input("image", 6).state("hidden", (2, 3)).output("label", 4, cost="(x - y)**2/2")
    return graph.couple("image", "hidden", **options).couple("hidden", "label")


@pytest.mark.parametrize("name", sorted(catalogue()))
def test_catalogue_entries_are_read_back(name: str) -> None:
    energy = load_energy(name)
    again = energy_from_mapping(energy.declaration(), name)
    assert (again.node, again.coupling, again.domain, again.encode) == (
        energy.node,
        energy.coupling,
        energy.domain,
        energy.encode,
    )
    assert again.parameters == energy.parameters


@pytest.mark.parametrize(
    ("name", "node", "coupling"),
    [
        ("hopfield", "x**2/2 - b*x", "-w*pre*post"),
        ("hopfield-smooth", "x**2/2 - b*tanh(x)", "-w*tanh(pre)*tanh(post)"),
        ("resistive", "-i*x", "g*(pre - post)**2/2"),
        ("xy", "-h*cos(x - psi)", "-w*cos(pre - post)"),
    ],
)
def test_catalogue_holds_the_published_energies(name: str, node: str, coupling: str) -> None:
    energy = load_energy(name)
    assert energy.node == parse(node)
    assert energy.coupling == parse(coupling)


def test_domains_follow_the_role() -> None:
    graph = digits()
    assert graph.node("hidden").domain == Interval(0.0, 1.0)
    assert graph.node("label").domain == REAL
    graph.state("extra", 3, domain="nonnegative")
    assert graph.node("extra").domain == NONNEGATIVE


def test_tensors_have_the_shapes_of_their_owners() -> None:
    shapes = {name: (shape, fans) for name, (_, shape, fans) in digits().tensors().items()}
    assert shapes == {
        "hidden.b": ((2,), (6, 4)),
        "label.b": ((4,), (6, 1)),
        "image_hidden.w": ((6, 6), (6, 6)),
        "hidden_label.w": ((4, 6), (6, 4)),
    }


def test_encoding_multiplies_the_first_axis() -> None:
    graph = (
        EnergyGraph("resistive").input("a", (3, 2)).input("b", 5, encode=["x", "-x", "2*x"]).input("c", 4, encode=[])
    )
    assert [node.shape for node in graph.nodes()] == [(6, 2), (15,), (4,)]
    assert [node.data_shape for node in graph.nodes()] == [(3, 2), (5,), (4,)]


def test_digest_is_that_of_the_content() -> None:
    assert digits().digest == digits(name="another name").digest
    assert digits() == digits()
    others = [
        digits(parameters={"w": {"gain": 0.5}}),
        digits(term="-w*pre*post/2"),
        digits(name="x").cost("hidden", "x**2"),
        digits().state("more", 2).couple("hidden", "more"),
    ]
    assert len({graph.digest for graph in [digits(), *others]}) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"node": "x**2 - q*x"}, "undeclared symbol 'q'"),
        ({"coupling": "-w*pre*x"}, "'x' has no meaning"),
        ({"node": "b*x", "parameters": {"bb": {"on": "node"}}}, "did you mean bb"),
        ({"parameters": {"pre": {"on": "node"}}}, "reserved"),
        ({"parameters": {"b": 3}}, "expected a mapping"),
        ({"domain": {"hidden": "real"}}, "unknown role"),
        ({"domain": "sphere"}, "unknown domain"),
        ({"encode": ["x", "y*x"]}, "'y' has no meaning"),
    ],
)
def test_energy_faults(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        Energy(**options)


def test_all_faults_of_an_energy_come_at_once() -> None:
    with pytest.raises(DeclarationError) as caught:
        Energy(node="x**2 - q*x", coupling="pre*post*(", domain="sphere")
    assert {fault.path[0] for fault in caught.value.faults} == {"node", "coupling", "domain"}


def test_fault_points_at_the_symbol() -> None:
    with pytest.raises(DeclarationError) as caught:
        Energy(node="x**2/2 - beta*x")
    (fault,) = caught.value.faults
    assert fault.offset == "x**2/2 - beta*x".index("beta")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda g: g.couple("image", "hiden"), "did you mean hidden"),
        (lambda g: g.state("image", 3), "is taken"),
        (lambda g: g.couple("image", "hidden"), "is taken"),
        (lambda g: g.state("a b", 3), "is not a name"),
        (lambda g: g.state("_a", 3), "is not a name"),
        (lambda g: g.state("n", 0), "positive whole numbers"),
        (lambda g: g.state("n", (3, -1)), "positive whole numbers"),
        (lambda g: g.state("n", ()), "shape"),
        (lambda g: g.state("n", True), "positive whole numbers"),
        (lambda g: g.cost("image", "x**2"), "clamped"),
        (lambda g: g.cost("labl", "x**2"), "did you mean label"),
        (lambda g: g.cost("label", "(x - z)**2"), "undeclared symbol 'z'"),
        (lambda g: g.cost("label", "x**2", weight=float("nan")), "finite number"),
        (lambda g: g.couple("image", "label", "identety"), "did you mean identity"),
        (lambda g: g.couple("image", "label", term="-u*pre*post"), "undeclared symbol 'u'"),
        (lambda g: g.couple("image", "label", parameters={"w": {"gian": 2}}), "did you mean gain"),
        (lambda g: g.state("n", 2, domain=[{"nonnegative": 3}]), "take 3 units"),
        (lambda g: g.state("n", 2, energy="hopfeild"), "did you mean hopfield"),
    ],
)
def test_graph_faults(build: Any, message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        build(digits())


def test_validation_lists_everything() -> None:
    graph = (
        digits()
        .state("island", 3)
        .input("other", 2)
        .couple("image", "other")
        .state("twin", 3)
        .couple("image", "twin", "identity")
    )
    with pytest.raises(DeclarationError) as caught:
        graph.validate()
    text = str(caught.value)
    assert len(caught.value.faults) == 3
    for part in (
        "'island' isn't connected",
        "both ends of this edge are clamped",
        "identity joins nodes of one shape",
    ):
        assert part in text


def test_shapes_that_do_not_fit_are_a_shape_error() -> None:
    with pytest.raises(ShapeError):
        digits().couple("image", "label", "identity").validate()


def test_a_graph_needs_a_free_node() -> None:
    with pytest.raises(DeclarationError, match="no free node"):
        EnergyGraph("xy").input("a", 2).validate()
