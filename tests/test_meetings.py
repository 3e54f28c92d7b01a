"""Where features meet: combinations that no file of its own covers."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from networks import TIGHT, TIGHT_NUDGED, batch, catalogue_model, close
from torch import Tensor

from physnet.chains import parse_connection
from physnet.checking import check_gradients, cosine
from physnet.errors import RelaxationError
from physnet.gdu import gradient_descending_updates
from physnet.graph import EnergyGraph
from physnet.integration import integrators
from physnet.learning import EquilibriumPropagation, gradients
from physnet.model import EnergyModel, compile_energy
from physnet.nonfinite import explain_nonfinite
from physnet.nudging import nudge
from physnet.relaxation import Relaxation, relax
from physnet.sweeping import parse_values
from physnet.topologies import Sparse

pytestmark = pytest.mark.usefixtures("float64")


def ring(energy: str, readout: bool = False) -> EnergyModel:
    """image -> hidden, a ring among the hidden units, hidden -> label."""
    graph = EnergyGraph(energy).input("image", 5).state("hidden", 6)
    weak = {"w": {"init": "normal(0, 0.2)"}}
    graph.couple("image", "hidden", parameters=weak)
    graph.couple("hidden", "hidden", Sparse(nx.cycle_graph(6)), parameters=weak)
    if readout:
        graph.cost("hidden", "cross_entropy", readout="dense(3)", name="head")
    else:
        graph.output("label", 3, cost="(x - y)**2/2").couple("hidden", "label", parameters=weak)
    return compile_energy(graph, seed=4)


def estimate(model: EnergyModel, protocol: str, beta: float = 0.01) -> dict[str, Tensor]:
    x, y = batch()
    ep = EquilibriumPropagation(model, beta, protocol, relaxation=TIGHT, nudged=TIGHT_NUDGED)
    return gradients(ep, image=x, target=y)


@pytest.mark.parametrize("energy", ["hopfield", "hopfield-smooth"])
@pytest.mark.parametrize("readout", [False, True])
@pytest.mark.parametrize("method", ["centered", "recurrent_backprop", "truncated_backprop(60)"])
def test_couplings_inside_a_node_with_every_way_to_a_gradient(energy: str, readout: bool, method: str) -> None:
    model = ring(energy, readout)
    exact = estimate(model, "implicit")
    for name, value in estimate(model, method).items():
        assert close(value, exact[name], 1e-3 if method == "centered" else 1e-7), name


def test_gdu_of_couplings_inside_a_node() -> None:
    x, y = batch()
    model = ring("hopfield-smooth")
    large, small = (
        gradient_descending_updates(model, {"image": x, "target": y}, beta=beta, steps=6, relaxation=TIGHT)
        for beta in (1e-3, 1e-4)
    )
    for a, b in zip(large, small, strict=True):
        assert a.error < 1e-2, a.name
        assert a.error / b.error == pytest.approx(10, rel=0.2), a.name


@pytest.mark.parametrize("name", [name for name in integrators() if name not in ("blocks", "errors", "layer_sweeps")])
def test_complex_nudges_are_refused_where_a_minimum_is_sought(name: str) -> None:
    model, (x, y) = catalogue_model("hopfield-smooth"), batch()
    ep = EquilibriumPropagation(model, 0.1, "holomorphic(4)", relaxation=TIGHT, nudged=name)
    with pytest.raises(RelaxationError, match="complex"):
        ep(image=x, target=y)


def test_the_check_of_a_clamped_protocol_is_that_of_the_protocol() -> None:
    model, (x, y) = ring("hopfield-smooth"), batch()
    rows = check_gradients(model, {"image": x, "target": y}, 0.1, ["contrastive"], relaxation=TIGHT)
    direct, exact = estimate(model, "contrastive"), estimate(model, "implicit")
    for row in rows:
        assert row.cosine == pytest.approx(cosine(direct[row.tensor], exact[row.tensor]), abs=1e-6)


def test_clamped_angles_take_the_shorter_way() -> None:
    graph = EnergyGraph("xy").input("image", 1).output("label", 1, cost="1 - cos(x - y)").couple("image", "label")
    model = compile_energy(graph)
    free = relax(model, TIGHT, image=torch.tensor([[3.1]]), start={"label": torch.tensor([[3.1]])})
    tied = nudge(free.problem, free.states, {"target": torch.tensor([[-3.1]])}, [0.1], clamps=True)
    way = torch.remainder(torch.tensor(-3.1) - free["label"] + torch.pi, 2 * torch.pi) - torch.pi
    assert torch.allclose(tied.zero()["label"], 0.1 * way)
    assert float(way.abs()) < torch.pi


@pytest.mark.parametrize(
    ("bias", "named"),
    [([1e100] * 3, "the regularisers are"), ([1.5e308, -1.5e308, -1.5e308], "cross_entropy on 'hidden'")],
)
def test_what_overflows_in_a_readout_or_a_regulariser_is_named(bias: list[float], named: str) -> None:
    graph = ring("hopfield-smooth", readout=True).graph
    model, (x, _) = compile_energy(graph.regularise("b**4", on="head") if bias[0] < 1e200 else graph), batch()
    with torch.no_grad():
        model.tensors["head.b"].copy_(torch.tensor(bias))
        ep = EquilibriumPropagation(model, 0.1)
        data = {"image": x, "target": torch.tensor([1, 1, 1])}
        assert not torch.isfinite(ep(**data))
    assert named in str(explain_nonfinite(ep, data, "here"))


def test_patterns_used_in_inference_mode_serve_gradients_later() -> None:
    model, (x, _) = ring("hopfield"), batch()
    with torch.inference_mode():
        relax(model, TIGHT, image=x)
    assert estimate(model, "truncated_backprop(5)").keys() == model.tensors.keys()


@pytest.mark.parametrize("undirected", [False, True])
def test_a_long_pattern_leaves_sizes_open(undirected: bool, tmp_path) -> None:
    """What is read from a file of pairs fits every node that holds them, also after a round trip."""
    pairs = np.array([(i, i + 1) for i in range(150)])
    np.savetxt(tmp_path / "pairs.csv", pairs, fmt="%d", delimiter=",", header="pre,post", comments="")
    connection = Sparse(file=str(tmp_path / "pairs.csv"), undirected=undirected)
    again = parse_connection(connection.declaration())
    assert isinstance(again, Sparse)
    assert again.pattern.digest == connection.pattern.digest
    graph = EnergyGraph("hopfield").input("i", 2).state("h", 200).couple("i", "h").couple("h", "h", again)
    assert compile_energy(graph).tensors["h_h.w"].shape == (150,)


def test_swept_values_may_be_calls() -> None:
    found = parse_values("k", "centered,truncated_backprop(5),dense,sparse('ring', 6)")
    assert found == ["centered", "truncated_backprop(5)", "dense", "sparse('ring', 6)"]
    assert parse_values("k", "[64],[128]") == [[64], [128]]


def test_an_unknown_option_of_an_integrator_is_named() -> None:
    from physnet.errors import DeclarationError

    with pytest.raises(DeclarationError, match=r"'blocks' has no option 'omga'(.|\n)*omega"):
        relax(catalogue_model("hopfield"), Relaxation("blocks", options={"omga": 1.5}), image=batch()[0])
