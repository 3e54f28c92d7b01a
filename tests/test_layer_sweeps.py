"""The published relaxations of predictive coding, against plain torch and against what `errors` reaches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import cache

import pytest
import torch
from networks import close
from test_predictions import compiled
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d

from physnet.errors import DeclarationError, RelaxationError
from physnet.graph import EnergyGraph
from physnet.integration import choose, make_integrator
from physnet.learning import EquilibriumPropagation, gradients
from physnet.model import EnergyModel, compile_energy
from physnet.nudging import nudge
from physnet.predicted import InStates
from physnet.relaxation import Equilibrium, Relaxation, relax

pytestmark = pytest.mark.filterwarnings("ignore:.*have not converged")
State = Mapping[str, Tensor]
Drives = Callable[[State], dict[str, Tensor]]
LAYERS = 6


@cache
def chain(cost: str = "(x - y)**2/2") -> EnergyModel:
    """image -> h1 -> ... -> h5 -> label, with weights that keep the size of a signal."""
    graph, names = EnergyGraph("predictive").input("image", 5), ["image"]
    for number in range(1, LAYERS):
        names.append(f"h{number}")
        graph.state(names[-1], 7)
    graph.output("label", 3, cost=cost)
    for pre, post in zip(names, [*names[1:], "label"], strict=True):
        graph.couple(pre, post, parameters={"w": {"gain": 2.0}})
    return compile_energy(graph, 5).double()


def samples() -> tuple[Tensor, Tensor]:
    return torch.rand(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64), torch.arange(4) % 3


def sweeping(sweeps: int, tolerance: float = 1e-15, **options: object) -> Relaxation:
    return Relaxation("layer_sweeps", tolerance, sweeps, options=options)


def chain_drives(model: EnergyModel, image: Tensor) -> Drives:
    p, names = model.tensors, [*model.free]

    def drives(s: State) -> dict[str, Tensor]:
        before = dict(zip(names, ["image", *names], strict=False))
        full = {"image": image, **s}
        return {n: full[before[n]] @ p[f"{before[n]}_{n}.w"].T + p[f"{n}.b"] for n in names}

    return drives


def conv_drives(model: EnergyModel, image: Tensor) -> Drives:
    p = model.tensors

    def drives(s: State) -> dict[str, Tensor]:
        c1 = max_pool2d(conv2d(image, p["image_c1.w"], p["c1.b"], padding=1), 2)
        c2 = max_pool2d(conv2d(s["c1"], p["c1_c2.w"], p["c2.b"], padding=1), 2)
        c3 = conv2d(s["c2"], p["c2_c3.w"], p["c3.b"], padding=1) + conv2d(s["c1"], p["c1_c3.w"], stride=2)
        return {"c1": c1, "c2": c2, "c3": c3, "label": s["c3"].flatten(1) @ p["c3_label.w"].T + p["label.b"]}

    return drives


def published(
    drives: Drives, free: State, nudged: Callable[[State], Tensor], settings: Relaxation
) -> dict[str, Tensor]:
    """The sweeps in plain torch; what comes back is minus the derivative of the squared errors of other layers."""
    rule, order, rate = (
        settings.options.get(key, default) for key, default in (("rule", ""), ("order", ""), ("rate", 1))
    )
    names, last = list(free), list(free)[-1]
    stages = {
        "even_odd": [names[1::2], names[::2]],
        "forward": [[n] for n in names],
        "backward": [[n] for n in names[::-1]],
        "synchronous": [names],
    }[str(order)]
    s = dict(free)
    for _ in range(settings.max_sweeps):
        for stage in stages:
            new = {}
            for name in stage:
                leaf = s[name].detach().clone().requires_grad_()
                here = {**s, name: leaf}
                a = drives(here)
                predicted = {n: a[n] if n == last else a[n].relu() for n in names}
                others = sum((here[n] - predicted[n]).square().sum() / 2 for n in names if n != name) + nudged(here)
                (slope,) = torch.autograd.grad(others, leaf, allow_unused=True)
                whole = (a if rule == "mod_pgd" else predicted)[name].detach() - (0 if slope is None else slope)
                value = s[name] + rate * (whole - s[name])
                new[name] = value if rule == "gradient" or name == last else value.clamp_min(0)
            s |= new
    return {name: value.detach() for name, value in s.items()}


@pytest.mark.parametrize("order", ["even_odd", "forward", "backward", "synchronous"])
@pytest.mark.parametrize(
    ("rule", "rate"), [("mod_pgd", 1), ("pgd", 1), ("gradient", 1), ("mod_pgd", 0.3), ("pgd", 0.3)]
)
@pytest.mark.parametrize("sweeps", [1, 5])
def test_sweeps_are_those_of_plain_torch(order: str, rule: str, rate: float, sweeps: int) -> None:
    model, (image, target) = chain(), samples()
    wanted = torch.nn.functional.one_hot(target, 3).double()
    settings = sweeping(sweeps, rule=rule, order=order, rate=rate)
    free = relax(model, image=image).states
    expected = published(
        chain_drives(model, image), free, lambda s: 0.3 * (s["label"] - wanted).square().sum() / 2, settings
    )
    found = relax(model, settings, target=target, beta=0.3, image=image)
    for name, value in expected.items():
        close(found[name], value, 1e-12)


@pytest.mark.parametrize("rule", ["mod_pgd", "pgd"])
def test_sweeps_through_winners_and_skip_edges_are_those_of_plain_torch(rule: str) -> None:
    model, image, target = compiled("conv")
    settings = sweeping(6, rule=rule, order="even_odd")
    free = relax(model, image=image).states

    def nudged(s: State) -> Tensor:
        return 0.5 * torch.nn.functional.cross_entropy(s["label"], target, reduction="sum")

    expected = published(conv_drives(model, image), free, nudged, settings)
    found = relax(model, settings, target=target, beta=0.5, image=image)
    assert float((expected["c1"] - free["c1"]).abs().max()) > 1e-4
    for name, value in expected.items():
        close(found[name], value, 1e-12)


# --------------------------------------------------------------------------- how far the signal has come


@pytest.mark.parametrize(("order", "layers_per_sweep"), [("forward", 1), ("even_odd", 2)])
@pytest.mark.parametrize("rule", ["mod_pgd", "pgd", "gradient"])
def test_layers_that_the_signal_has_not_reached_have_no_gradient(order: str, layers_per_sweep: int, rule: str) -> None:
    model, (image, target) = chain("cross_entropy"), samples()
    names = [*model.free]
    for sweeps in range(1, LAYERS // layers_per_sweep + 1):
        engine = EquilibriumPropagation(
            model, 0.05, "single", relaxation=sweeping(sweeps, rule=rule, order=order), watch=0
        )
        found = gradients(engine, image=image, target=target)
        for number, name in enumerate(names):
            reached = number >= LAYERS - layers_per_sweep * sweeps
            assert bool((found[f"{name}.b"] != 0).any()) == reached


def test_as_many_sweeps_forward_as_layers_find_the_gradient_of_errors() -> None:
    """They move errors back by a layer each, as one pass backwards does; what is left is of second order in beta."""
    model, (image, target) = chain("cross_entropy"), samples()
    exact = gradients(EquilibriumPropagation(model, 1e-4, "single"), image=image, target=target)
    settings = sweeping(LAYERS, rule="gradient", order="forward")
    found = gradients(EquilibriumPropagation(model, 1e-4, "single", relaxation=settings), image=image, target=target)
    for name, value in exact.items():
        close(found[name], value, 2e-4 * float(value.abs().max()) + 1e-9)


# --------------------------------------------------------------------------- where sweeps end


@pytest.mark.parametrize(
    "options", [{"order": "forward"}, {"order": "even_odd"}, {"order": "synchronous", "rate": 0.2}], ids=str
)
def test_gradient_steps_lead_to_where_errors_do(options: dict[str, object]) -> None:
    model, image, target = compiled("precise")
    settings = Relaxation(tolerance=1e-12)
    expected = relax(model, settings, target=target, beta=0.2, image=image)
    found = relax(model, sweeping(1000, 1e-9, rule="gradient", **options), target=target, beta=0.2, image=image)
    assert bool(found.converged.all())
    for name, value in expected.states.items():
        close(found[name], value, 1e-8)


def settled(rule: str) -> tuple[Equilibrium, dict[str, Tensor], dict[str, Tensor]]:
    """A nudged equilibrium, the force there, and the drives of its layers."""
    model, (image, target) = chain(), samples()
    found = relax(model, sweeping(500, 1e-12, rule=rule, order="forward"), target=target, beta=0.2, image=image)
    assert bool(found.converged.all())
    return found, found.problem.force(found.states), chain_drives(model, image)(found.states)


def test_projected_steps_end_where_no_force_points_into_the_half_space() -> None:
    found, force, _ = settled("pgd")
    for name in [*found.states][:-1]:
        state = found[name]
        assert bool((state >= 0).all())
        assert float(force[name][state > 0].abs().max()) < 1e-10
        assert float(force[name][state == 0].max()) < 1e-10
    assert float(force["label"].abs().max()) < 1e-10


def test_modified_steps_are_not_stationary_where_a_drive_holds_back() -> None:
    """At x = relu(a + e) the force is relu(a) + e - x: -a where a < 0 < x, and e > 0 where 0 < e < -a."""
    found, force, drives = settled("mod_pgd")
    held = 0
    for name in [*found.states][:-1]:
        error = force[name] + found[name] - drives[name].relu()
        close(found[name], (drives[name] + error).relu(), 1e-10)
        held += int(((drives[name] < 0) & (error > 0)).sum())
        agree = (drives[name] > 0) & (found[name] > 0)
        assert float(force[name][agree].abs().max()) < 1e-10
    assert held > 0  # so that the rule was put to the test
    assert max(float(value.abs().max()) for value in force.values()) > 1e-4


def test_clamped_outputs_pull_on_the_layers_before() -> None:
    """Outputs stand at their targets, and no force is left on the others."""
    model, image, target = compiled("precise")
    sweeps = sweeping(400, 1e-8, rule="gradient", order="even_odd", rate=0.3)
    engine = EquilibriumPropagation(model, protocol="contrastive", nudged=sweeps, watch=0)
    gradients(engine, image=image, target=target)
    assert engine.last is not None and engine.last.nudged is not None
    found = engine.last.nudged
    close(found["label"][4:], torch.nn.functional.one_hot(target, 3).double(), 1e-12)
    force = found.problem.force(found.states, ["h0", "h1", "h2"])
    assert max(float(value.abs().max()) for value in force.values()) < 1e-6
    assert float((found["h0"][4:] - found["h0"][:4]).abs().max()) > 1e-4


# --------------------------------------------------------------------------- digits


def test_plain_states_lose_what_displacements_keep() -> None:
    model, (image, target) = chain("cross_entropy"), samples()
    exact = gradients(EquilibriumPropagation(model, 1e-6), image=image, target=target)
    model, image = deepcopy(model).float(), image.float()

    def distance(dtype: str) -> float:
        engine = EquilibriumPropagation(
            model, 1e-6, relaxation=sweeping(20, 1e-6, rule="gradient", order="forward", dtype=dtype)
        )
        found = gradients(engine, image=image, target=target)
        assert {value.dtype for value in found.values()} == {torch.float32}
        size = sum(float(value.square().sum()) for value in exact.values())
        return (sum(float((found[n] - value).square().sum()) for n, value in exact.items()) / size) ** 0.5

    assert distance("float64") < 1e-5
    assert distance("model") > 1e-2  # beta is 10 rounding errors


def test_plain_states_are_those_of_the_model() -> None:
    model, (image, target) = deepcopy(chain()).float(), samples()
    free = relax(model, image=image.float())
    for coordinates, dtype in (("states", torch.float64), ("plain states", torch.float32)):
        problem = nudge(free.problem, free.states, {"target": target}, [0.1], coordinates=coordinates)
        assert isinstance(problem, InStates) and problem.like.dtype == dtype
        assert {value.dtype for value in problem.zero().values()} == {dtype}


# --------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "modified"}, "unknown rule 'modified'"),
        ({"order": "random"}, "unknown order 'random'"),
        ({"rate": 0}, "rate is 0, outside"),
        ({"rate": 1.5}, "rate is 1.5, outside"),
        ({"dtype": "float16"}, "unknown dtype"),
        ({"rules": "pgd"}, "has no option 'rules'"),
    ],
)
def test_slips_in_options_are_named(options: dict[str, object], message: str) -> None:
    make_integrator("layer_sweeps", {"rule": "pgd", "order": "forward", "rate": 1, "dtype": "model"})
    with pytest.raises(DeclarationError, match=message) as caught:
        make_integrator("layer_sweeps", options)
    assert caught.value.faults[0].path == ("options", next(iter(options)))


@pytest.mark.parametrize("rule", ["mod_pgd", "pgd"])
def test_projections_are_refused_where_predictions_are_not_rectified(rule: str) -> None:
    model, image, _ = compiled("precise")
    with pytest.raises(RelaxationError, match=r"rule: gradient"):
        relax(model, sweeping(5, rule=rule), image=image)
    relax(model, sweeping(5, rule="gradient"), image=image)


def test_energies_without_predictions_are_refused_and_auto_takes_errors() -> None:
    graph = EnergyGraph("hopfield").input("image", 3).output("label", 2, cost="(x - y)**2/2").couple("image", "label")
    with pytest.raises(RelaxationError, match="its energy makes no predictions"):
        relax(compile_energy(graph), "layer_sweeps", image=torch.rand(2, 3))
    model, (image, _) = chain(), samples()
    assert choose(model.problem(image=image))[0].name == "errors"
