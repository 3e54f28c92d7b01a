"""Spikes and synaptic operations, counted by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from physnet.activity import Activity, multiplications, table_of
from physnet.chains import parse_connection
from physnet.graph import EnergyGraph
from physnet.learning import EquilibriumPropagation
from physnet.listening import listening
from physnet.model import EnergyModel, compile_energy
from physnet.relaxation import Relaxation, relax

pytestmark = pytest.mark.usefixtures("float64")
CERTAIN = {"quantiser": "threshold", "smoothing": 1, "step_size": 1}
"""Every unit says in every step whether its state is above one half."""


def spiking(**options: Any) -> Relaxation:
    return Relaxation("sigma_delta", options=options)


def by_hand() -> EnergyModel:
    """Four inputs, three units, of which two go to 1 in the first step and stay, two outputs, of which one does."""
    graph = EnergyGraph("hopfield").input("image", 4).state("hidden", 3).output("label", 2, cost="(x - y)**2/2")
    model = compile_energy(graph.couple("image", "hidden").couple("hidden", "label"))
    with torch.no_grad():
        for name, value in model.tensors.items():
            value.zero_()
            if name.endswith(".b"):
                value[::2] = 1
    return model


def counted(activity: Activity) -> dict[str, tuple[float, float]]:
    return {row["channel"]: (row["spikes"], row["operations"]) for row in table_of(activity)}


IMAGE = torch.tensor([[1.0, 0, 1, 1], [0, 0, 0, 1]])
RANGES = {"label": [0, 1]}


def test_a_spike_costs_as_much_as_units_hear_it() -> None:
    activity = Activity()
    with listening(activity):
        relax(by_hand(), spiking(steps=5, ranges=RANGES, **CERTAIN), image=IMAGE.double())
    # inputs speak five times and 3 + 1 of them in two samples, the others from the second step on
    assert activity.samples == 2
    assert counted(activity) == {"image": (10, 30), "hidden": (8, 16), "label": (4, 12)}
    assert (activity.spikes, activity.operations) == (44, 116)
    assert multiplications(by_hand()) == (12, 12)


def test_a_training_step_is_all_its_phases() -> None:
    activity = Activity()
    ep = EquilibriumPropagation(by_hand(), 1e-3, "centered", relaxation=spiking(steps=[5, 3], ranges=RANGES, **CERTAIN))
    with listening(activity):
        ep(image=IMAGE.double(), target=torch.tensor([0, 0])).backward()
    # two nudged phases of three steps, in which everybody goes on as before, and the images are heard in both
    assert counted(activity) == {"image": (10 + 12, 30 + 36), "hidden": (8 + 12, 16 + 24), "label": (4 + 6, 12 + 18)}


def test_nobody_is_heard_who_is_exact_and_an_input_but_the_others_are() -> None:
    activity, quantiser = Activity(), {"image": "identity", "hidden": "threshold", "label": "threshold"}
    with listening(activity):
        relax(by_hand(), spiking(steps=5, ranges=RANGES, **CERTAIN | {"quantiser": quantiser}), image=IMAGE.double())
    assert counted(activity) == {"hidden": (8, 16), "label": (4, 12)}


def test_counting_changes_nothing() -> None:
    model, relaxation = by_hand(), spiking(steps=30, ranges=RANGES)
    quiet = relax(model, relaxation, image=0.3 * IMAGE.double())
    with listening(Activity()):
        counted = relax(model, relaxation, image=0.3 * IMAGE.double())
    assert all(torch.equal(quiet[name], counted[name]) for name in quiet.states)


@pytest.mark.parametrize(
    ("declared", "pre", "post"),
    [
        ("dense", (4,), (3,)),
        ("identity", (4,), (4,)),
        ("conv2d(3, padding=1)", (2, 5, 5), (3, 5, 5)),
        ("conv2d(3) >> avg_pool2d(2)", (2, 7, 6), (3, 2, 2)),
        ("conv2d(3) >> avg_pool2d(2, stride=1)", (2, 6, 6), (3, 3, 3)),
        ("conv2d(3, padding=1) >> avg_pool2d(2, padding=1)", (1, 4, 4), (2, 3, 3)),
        ("upsample(2) >> conv2d(3)", (2, 3, 3), (2, 4, 4)),
        ("avg_pool2d(2) >> dense", (2, 4, 4), (5,)),
        ("avg_pool2d(2)", (2, 4, 4), (2, 2, 2)),
    ],
)
def test_who_hears_whom_are_the_derivatives_that_are_not_zero(declared: str, pre: Any, post: Any) -> None:
    connection = parse_connection(declared)
    link, w = connection.bind(pre, post), torch.rand(connection.weight_shape(pre, post)) + 0.1
    jacobian = torch.autograd.functional.jacobian(
        lambda u: link.apply(u[None], w)[0], torch.zeros(pre)
    )  # [*post, *pre]
    assert isinstance(jacobian, torch.Tensor)
    joined = jacobian.abs() > 1e-12  # [*post, *pre]
    reached, heard = link.synapses(w)
    assert torch.equal(reached, joined.sum(tuple(range(len(post)))).to(w))
    assert torch.equal(heard, joined.sum(tuple(range(len(post), joined.dim()))).to(w))


def test_behind_maxima_a_unit_speaks_to_its_winner() -> None:
    link = parse_connection("conv2d(3) >> max_pool2d(2)").bind((2, 6, 6), (3, 2, 2))
    reached, heard = link.synapses(torch.zeros(3, 2, 3, 3))
    assert float(reached[0, 2, 2]) == 27  # nine places in each of three channels, all of which have to be compared
    assert float(reached[0, 0, 0]) == 3
    assert torch.equal(heard, torch.full((3, 2, 2), 18.0))
