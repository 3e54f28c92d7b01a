"""Costs: reductions and readouts against torch, majorised updates against closed forms and the true energy, gradients
against finite differences and the implicit gradient, regularisers against autograd."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import FOR_ALL, TIGHT, TIGHT_NUDGED, close
from torch import Tensor
from torch.nn import functional

from physnet import functions
from physnet.connections import Dense, Identity
from physnet.data import DataSet, match
from physnet.declaration import graph_from_yaml, graph_to_yaml, parse_experiment
from physnet.energy import Energy
from physnet.errors import DataError, DeclarationError, RelaxationError, ShapeError
from physnet.explaining import explain
from physnet.expressions import symbol
from physnet.graph import EnergyGraph
from physnet.learning import EquilibriumPropagation, gradients
from physnet.metrics import rank
from physnet.model import EnergyModel, compile_energy
from physnet.problem import Problem
from physnet.protocols import PROTOCOLS
from physnet.reductions import REDUCTIONS, CrossEntropy, Reduction
from physnet.relaxation import Relaxation, relax, run

pytestmark = pytest.mark.usefixtures("float64")
CLASSES = torch.tensor([0, 2, 1, 2])
seeds = st.integers(0, 2**31)


class Wild(Reduction):
    """log(1 + |z - y|^2), of which nothing but value and curvature is written down."""

    name = "wild"
    slope = "2*(z - y)/(1 + norm(z - y)**2)"
    curvature = 2.0

    def value(self, z: Tensor, y: Tensor) -> Tensor:
        return (1 + ((z - y) ** 2).flatten(1).sum(1)).log()


@pytest.fixture(autouse=True)
def _wild(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REDUCTIONS, "wild", Wild)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chain(
    energy: str = "hopfield", domain: object = None, edges: dict | None = None, nodes: dict | None = None
) -> EnergyGraph:
    """image(5) -> hidden(4) -> deep(3), which carries no cost yet."""
    gain = {"w": {"gain": 0.5}} if edges is None else edges
    own = {"b": {"init": "uniform(0.3, 0.6)"}} if nodes is None else nodes
    graph = EnergyGraph(energy).input("image", 5).state("hidden", 4, parameters=own)
    graph.state("deep", 3, domain=domain, parameters=own)
    return graph.couple("image", "hidden", parameters=gain).couple("hidden", "deep", parameters=gain)


NETWORKS: dict[str, Callable[[], EnergyGraph]] = {
    "classifier": lambda: chain().cost("deep", "cross_entropy", readout="dense(3)", name="head", weight=0.7),
    "own logits": lambda: chain(domain="real").cost("deep", "cross_entropy", weight=2),
    "squared": lambda: chain().cost("deep", "(x - y)**2/2", readout="dense(3)", name="head"),
    "newton": lambda: chain("hopfield-smooth").cost("deep", "cross_entropy", readout="dense(3)", name="head"),
    "steep": lambda: chain().cost("deep", "log_cosh(x - y)", readout="dense(3)", name="head"),
    "concave": lambda: chain(domain="real").cost("deep", "-x*y", readout="dense(3)", name="head", weight=-0.5),
    "plugged in": lambda: chain().cost("deep", "wild", readout="dense(3)", name="head"),
    "mean field": lambda: chain().cost(
        "deep",
        "(x - y)**2/2",
        readout="dense([3, 1])",
        name="head",
        parameters={"w": {"shape": "scalar", "init": "0.3*ones()"}, "b": {"shape": "channel"}},
    ),
    "oscillators": lambda: chain("xy", None, {"w": {"gain": 0.4}}, {"h": {"init": "normal(1, 0.2)"}}).cost(
        "deep", "cross_entropy", readout="dense(3)", name="head"
    ),
    "several": lambda: (
        chain(domain="real")
        .cost("deep", "cross_entropy", readout="dense(3)", name="head")
        .cost("deep", "sqrt(1 + (x - y)**2)", weight=0.3)
        .cost("deep", "wild", weight=0.2)
        .cost("hidden", "cross_entropy", readout="dense(3)", weight=0.4)
        .cost("hidden", "(x - 0.2)**2/2", target="unused", weight=0.1)
        .regularise("0.02*w**2/2")
        .regularise("0.03*b**2", on=["hidden", "head"])
    ),
}


EXACT = [name for name in NETWORKS if name != "steep"]  # which has no exact update in nudged phases


def targets(model: EnergyModel) -> dict[str, Tensor]:
    """Classes for every target that has one axis."""
    hot = functional.one_hot(CLASSES, 3)[..., None].to(torch.float64)
    by_shape = {(3,): CLASSES, (3, 1): hot, (4,): torch.zeros(4, 4)}
    return {name: by_shape[target.shape] for name, target in model.targets.items()}


@cache
def model_of(name: str) -> EnergyModel:
    REDUCTIONS["wild"] = Wild
    return compile_energy(NETWORKS[name](), seed=2)


def image() -> Tensor:
    return torch.rand(4, 5, generator=generator())


@cache
def estimate(name: str, beta: float, protocol: str) -> dict[str, Tensor]:
    model = model_of(name)
    ep = EquilibriumPropagation(model, beta, protocol, relaxation=TIGHT, nudged=TIGHT_NUDGED)
    return gradients(ep, image=image(), **targets(model))


def written_loss(name: str, model: EnergyModel) -> float:
    """The mean cost at the equilibrium, written out with torch."""
    free, p = relax(model, TIGHT, image=image()), model.tensors
    deep, hot = free["deep"], functional.one_hot(CLASSES, 3).to(torch.float64)

    def head(owner: str = "head", state: Tensor = deep) -> Tensor:
        return functional.linear(state, p[f"{owner}.w"], p[f"{owner}.b"])

    def wild(z: Tensor) -> Tensor:
        return (1 + ((z - hot) ** 2).sum(1)).log().mean()

    entropy = functional.cross_entropy
    losses: dict[str, Callable[[], Tensor]] = {
        "classifier": lambda: 0.7 * entropy(head(), CLASSES),
        "own logits": lambda: 2 * entropy(deep, CLASSES),
        "squared": lambda: ((head() - hot) ** 2 / 2).sum(1).mean(),
        **dict.fromkeys(("newton", "oscillators"), lambda: entropy(head(), CLASSES)),
        "steep": lambda: torch.cosh(head() - hot).log().sum(1).mean(),
        "concave": lambda: 0.5 * (head() * hot).sum(1).mean(),
        "plugged in": lambda: wild(head()),
        "mean field": lambda: ((p["head.w"] * deep.sum(1, keepdim=True) + p["head.b"] - hot) ** 2 / 2).sum(1).mean(),
        "several": lambda: (
            entropy(head(), CLASSES)
            + 0.3 * (1 + (deep - hot) ** 2).sqrt().sum(1).mean()
            + 0.2 * wild(deep)
            + 0.4 * entropy(head("hidden_readout", free["hidden"]), CLASSES)
            + 0.1 * ((free["hidden"] - 0.2) ** 2 / 2).sum(1).mean()
            + sum(0.01 * (value**2).sum() for key, value in p.items() if key.endswith(".w"))
            + 0.03 * ((p["hidden.b"] ** 2).sum() + (p["head.b"] ** 2).sum())
        ),
    }
    with torch.no_grad():
        return float(losses[name]())


# --------------------------------------------------------------------------- reductions


@given(seed=seeds, scale=st.sampled_from([1e-3, 1.0, 1e2, 1e4]))
def test_cross_entropy_is_that_of_torch(seed: int, scale: float) -> None:
    z = (scale * torch.randn(6, 5, generator=generator(seed))).requires_grad_()
    y = torch.rand(6, 5, generator=generator(seed + 1)).softmax(1)
    expected = functional.cross_entropy(z, y, reduction="none")
    assert torch.allclose(CrossEntropy().value(z, y), expected, rtol=1e-12, atol=1e-12)
    (slope,) = torch.autograd.grad(expected.sum(), z)
    assert torch.allclose(CrossEntropy().gradient(z, y), slope, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("kind", [CrossEntropy, Wild])
@given(seed=seeds, scale=st.floats(0, 20))
@settings(max_examples=30)
def test_the_bound_on_the_curvature_holds(kind: type[Reduction], seed: int, scale: float) -> None:
    z, y = scale * torch.randn(1, 4, generator=generator(seed)), torch.eye(4)[:1]
    hessian = torch.autograd.functional.hessian(lambda v: kind().value(v, y).sum(), z).view(4, 4)
    assert kind.curvature is not None
    assert float(torch.linalg.eigvalsh(hessian).abs().max()) <= kind.curvature + 1e-12


def test_a_reduction_needs_no_more_than_its_value() -> None:
    """The slope and the scores that the base class makes of it are those that are written down for cross-entropy."""
    z, y = torch.randn(3, 2, 2, generator=generator()), torch.rand(3, 2, 2, generator=generator(1))
    assert torch.allclose(Reduction.gradient(CrossEntropy(), z, y), CrossEntropy().gradient(z, y), atol=1e-14)
    assert torch.allclose(Reduction.scores(CrossEntropy(), z), z.flatten(1), atol=1e-14)


@given(seed=seeds, shape=st.tuples(st.integers(1, 6), st.integers(1, 6)))
def test_the_bound_on_the_squared_norm_holds(seed: int, shape: tuple[int, int]) -> None:
    w = torch.randn(shape, generator=generator(seed))
    bound = functions.squared_norm(Dense().bind((shape[1],), (shape[0],)), w)
    assert float(bound) >= float(torch.linalg.matrix_norm(w, 2)) ** 2 * (1 - 1e-12)
    every = functions.squared_norm(Dense().bind((shape[1],), (shape[0],)), torch.tensor(0.7))
    assert float(every) == pytest.approx(0.49 * shape[0] * shape[1])
    diagonal = functions.squared_norm(Identity().bind((shape[1],), (shape[1],)), w[0])
    assert float(diagonal) == pytest.approx(float((w[0] ** 2).max()))


# --------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("name", NETWORKS)
def test_the_loss_is_the_mean_cost(name: str) -> None:
    model = model_of(name)
    with torch.no_grad():
        loss = EquilibriumPropagation(model, relaxation=TIGHT)(image=image(), **targets(model))
    assert float(loss) == pytest.approx(written_loss(name, model), rel=1e-10)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_implicit_gradient_is_that_of_finite_differences(name: str) -> None:
    model = model_of(name)
    for key, value in estimate(name, 0.1, "implicit").items():
        tensor, direction, h = model.tensors[key], torch.randn(value.shape, generator=generator(3)), 1e-5
        losses = []
        for step in (h, -2 * h):
            with torch.no_grad():
                tensor.add_(step * direction)
            losses.append(written_loss(name, model))
        with torch.no_grad():
            tensor.add_(h * direction)
        expected = (losses[0] - losses[1]) / (2 * h)
        assert float((value * direction).sum()) == pytest.approx(expected, rel=1e-5, abs=1e-8), key


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize(("protocol", "fall"), [("centered", 4), ("positive", 2), ("negative", 2)])
def test_errors_fall_with_their_power_of_beta(name: str, protocol: str, fall: int) -> None:
    for key, exact in estimate(name, 0.1, "implicit").items():
        large, small = (float((estimate(name, b, protocol)[key] - exact).norm()) for b in (0.02, 0.01))
        if float(exact.norm()) > 1e-6 and large > 1e-9:
            assert large < 0.3 * float(exact.norm()), key
            assert large / small == pytest.approx(fall, rel=0.1), key


def test_what_the_readout_learns_is_the_gradient_of_a_linear_layer() -> None:
    """As beta vanishes: that of torch for a classifier on the free states, which are no function of the readout."""
    model = model_of("classifier")
    state = relax(model, TIGHT, image=image())["deep"]
    w, b = (model.tensors[f"head.{key}"].detach().requires_grad_() for key in "wb")
    loss = 0.7 * functional.cross_entropy(functional.linear(state, w, b), CLASSES)
    found = estimate("classifier", 1e-4, "centered")
    for key, value in zip(("head.w", "head.b"), torch.autograd.grad(loss, (w, b)), strict=True):
        assert close(found[key], value, 1e-7)


def test_costs_add_with_their_weights() -> None:
    """Two targets, two costs on one node, one on a hidden node: the gradient is linear in the weights."""
    terms = [
        ("deep", "(x - y)**2/2", "one", None),
        ("deep", "(x*y)**2", "two", None),
        ("hidden", "cross_entropy", "classes", "dense(3)"),
        ("hidden", "log_cosh(x)", "one_more", None),
    ]
    batch = {
        "image": image(),
        "one": torch.rand(4, 3, generator=generator(1)),
        "two": torch.rand(4, 3, generator=generator(2)),
        "classes": CLASSES,
        "one_more": torch.zeros(4, 4),
    }

    def exact(weights: list[float]) -> dict[str, Tensor]:
        graph = chain()
        for (node, term, target, readout), weight in zip(terms, weights, strict=True):
            graph.cost(node, term, target=target, readout=readout, weight=weight)
        ep = EquilibriumPropagation(compile_energy(graph, 2), 0.1, "implicit", relaxation=TIGHT)
        return gradients(ep, **batch)

    weights = [0.5, -0.3, 2.0, 0.7]
    whole = exact(weights)
    parts = [exact([float(i == k) for i in range(4)]) for k in range(4)]
    for key, value in whole.items():
        assert float(value.norm()) > 1e-6
        assert close(value, sum(w * part[key] for w, part in zip(weights, parts, strict=True)), 1e-9)  # pyright: ignore


# --------------------------------------------------------------------------- majorised updates


def nudged_problem(model: EnergyModel, beta: float) -> Problem:
    return model.problem(image=image()).nudged(targets(model), [beta])


@pytest.mark.parametrize("name", EXACT)
@given(seed=seeds, beta=st.sampled_from([-0.3, -0.05, 0.05, 1.0, 30.0]))
@settings(max_examples=15)
def test_a_majorised_update_never_raises_the_true_energy(name: str, seed: int, beta: float) -> None:
    problem = nudged_problem(model_of(name), beta)
    state = problem.project({key: 2 * value for key, value in problem.random(generator(seed)).items()})
    for _ in range(3):
        for block in problem.blocks:
            before = problem.energy(state)
            state |= problem.minimise(block, state)
            assert bool((problem.energy(state) <= before + 1e-10 * (1 + before.abs())).all())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("beta", [-0.1, 0.0, 0.3])
def test_the_force_is_the_slope_of_the_true_energy(name: str, beta: float) -> None:
    problem = nudged_problem(model_of(name), beta)
    state = {key: value.requires_grad_() for key, value in problem.random(generator(1)).items()}
    slopes = torch.autograd.grad(problem.energy(state).sum(), list(state.values()))
    for found, slope in zip(problem.force(state).values(), slopes, strict=True):
        assert close(found.detach(), -slope, 1e-10)


@pytest.mark.parametrize(("name", "beta"), [("classifier", -0.1), ("own logits", 0.3), ("several", -0.1)])
def test_majorised_sweeps_end_where_the_gradient_flow_ends(name: str, beta: float) -> None:
    model = model_of(name)
    free = relax(model, TIGHT, image=image())
    problem = free.problem.nudged(targets(model), [beta])
    swept = run(problem, free.states, Relaxation("blocks", tolerance=1e-10))
    flowed = run(problem, free.states, Relaxation("flow", tolerance=1e-5))
    assert bool(swept.converged.all())
    for node, value in swept.states.items():
        moved = float((value - free[node]).norm())
        assert moved > 1e-4, "the nudge moves it"
        assert float((value - flowed[node]).norm()) < 1e-3 * moved


def test_a_squared_error_on_a_readout_has_a_closed_form() -> None:
    """(1 + beta W^T W) x = drive + beta W^T (y - c), for one node without a domain."""
    energy = Energy(node="x**2/2", coupling="-w*pre*post", parameters={"w": {"on": "edge", "init": "normal(0, 1)"}})
    graph = EnergyGraph(energy).input("image", 5).state("deep", 3).couple("image", "deep", name="edge")
    model = compile_energy(graph.cost("deep", "(x - y)**2/2", readout="dense(2)", name="head"), seed=4)
    y, beta = torch.rand(4, 2, generator=generator(2)), 0.8
    w, c = model.tensors["head.w"].detach(), model.tensors["head.b"].detach()
    drive = image() @ model.tensors["edge.w"].detach().T
    expected = torch.linalg.solve(torch.eye(3) + beta * w.T @ w, (drive + beta * (y - c) @ w).T).T
    found = relax(model, Relaxation(tolerance=1e-12), image=image(), target=y, beta=beta)["deep"]
    assert close(found, expected, 1e-10)


def test_a_cost_whose_curvature_has_no_bound_is_left_to_the_flow() -> None:
    model = model_of("steep")
    problem = nudged_problem(model, 0.1)
    with pytest.raises(RelaxationError, match=r"log_cosh.*no constant bound"):
        relax(model, "blocks", image=image(), target=CLASSES, beta=0.1)
    assert relax(model, image=image(), target=CLASSES, beta=0.1).integrator == "flow"
    assert relax(model, image=image()).integrator == "blocks", "the free phase has no cost"
    assert "no constant bound" in str(explain(model))
    assert problem.solver("hidden").name == "quadratic"
    ep = EquilibriumPropagation(model, 0.05, relaxation=TIGHT, nudged=Relaxation("flow", tolerance=1e-2))
    for key, found in gradients(ep, image=image(), target=CLASSES).items():
        assert close(found, estimate("steep", 0.1, "implicit")[key], 0.05), key


@pytest.mark.parametrize("name", ["classifier", "own logits", "squared"])
def test_the_update_that_is_shown_is_the_one_that_is_made(name: str) -> None:
    model, beta = model_of(name), -0.2
    problem = nudged_problem(model, beta)
    state = problem.random(generator(1))
    made = problem.minimise(("deep",), state)["deep"]
    explanation = explain(model)
    entry = next(item for item in explanation.nodes if item.name == "deep")
    assert entry.updates["nudged"].kind == "majorised"
    assert "(majorised; nudged phase" in explanation.text
    p, hot = model.tensors, functional.one_hot(CLASSES, 3).to(torch.float64)
    w = p["head.w"] if "head.w" in p else torch.eye(3)
    z = state["deep"] @ w.T + p.get("head.b", 0)
    slope = (z if name == "squared" else z.softmax(1)) - hot
    norm = float((w @ w.T).abs().sum(1).max())
    values = {
        "x": state["deep"],
        "b": p["deep.b"],
        "h": state["hidden"] @ p["hidden_deep.w"].T,
        "g": slope @ w,
        "L": torch.tensor(norm if name == "squared" else norm / 2),
        "beta": torch.tensor(beta),
    }
    formula = entry.updates["nudged"].cases[0].state
    at = [(i, j) for i in range(4) for j in range(3)]
    for i, j in at:
        numbers = {symbol(key): float(value.expand(4, 3)[i, j]) for key, value in values.items()}
        assert float(formula.subs(numbers)) == pytest.approx(float(made[i, j].detach()), abs=1e-12)


# --------------------------------------------------------------------------- regularisers

RULES: dict[str, tuple[list[tuple[str, object, float]], Callable[[dict[str, Tensor]], Tensor]]] = {
    "decay": (
        [("1e-2*w**2/2", (), 1.0)],
        lambda p: 5e-3 * sum((v**2).sum() for k, v in p.items() if k.endswith(".w")),  # pyright: ignore
    ),
    "sparse": (
        [("abs(w) + w", "image_hidden", 0.1)],
        lambda p: 0.1 * (p["image_hidden.w"].abs() + p["image_hidden.w"]).sum(),
    ),
    "scalar and tensor": (
        [("c*w**2 + c", (), 0.3)],
        lambda p: 0.3 * (p["hidden_deep.c"] * p["hidden_deep.w"] ** 2 + p["hidden_deep.c"]).sum(),
    ),
    "channels and units": (
        [("(b - r)**2", ["map"], 1.0)],
        lambda p: ((p["map.b"][:, None, None] - p["map.r"]) ** 2).sum(),
    ),
    "readout": ([("b**4", "head", 2.0)], lambda p: 2 * (p["head.b"] ** 4).sum()),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("protocol", [*(name for name in FOR_ALL if not PROTOCOLS[name].clamps), "implicit"])
def test_a_regulariser_adds_its_value_and_its_gradient(rule: str, protocol: str) -> None:
    declared, written = RULES[rule]

    def learner(regularised: bool) -> EquilibriumPropagation:
        scalar = {"c": {"on": "edge", "shape": "scalar", "init": "0.7*ones()"}}
        graph = EnergyGraph("hopfield").input("image", 5).state("hidden", 4)
        graph.state(
            "map", [2, 2, 2], term="x**2/2 - b*x - r*x", parameters={"b": {"shape": "channel"}, "r": {"on": "node"}}
        )
        graph.state("deep", 3).couple("image", "hidden").couple("hidden", "map")
        graph.couple("hidden", "deep", term="-c*w*pre*post", parameters=scalar)
        graph.cost("deep", "cross_entropy", readout="dense(3)", name="head")
        for term, on, weight in declared if regularised else ():
            graph.regularise(term, on=on, weight=weight)  # pyright: ignore[reportArgumentType]
        with torch.no_grad():
            model = compile_energy(graph, seed=3)
            for number, value in enumerate(model.tensors.values()):
                value.add_(0.3 * torch.rand(value.shape, generator=generator(number)))
        return EquilibriumPropagation(model, 0.1, protocol, relaxation=Relaxation(tolerance=1e-11))

    plain, full = learner(False), learner(True)
    batch = {"image": image(), "target": CLASSES}
    p = {name: value.detach().requires_grad_() for name, value in full.model.tensors.items()}
    value = written(p)
    slopes = torch.autograd.grad(value, list(p.values()), materialize_grads=True, allow_unused=True)
    assert float((full(**batch) - plain(**batch)).detach()) == pytest.approx(float(value.detach()), rel=1e-12)
    before, after = gradients(plain, **batch), gradients(full, **batch)
    touched = [name for name, slope in zip(p, slopes, strict=True) if bool(slope.any())]
    assert touched
    for name, slope in zip(p, slopes, strict=True):
        assert torch.allclose(after[name], before[name] + slope, rtol=1e-9, atol=1e-10), name


def test_an_energy_is_no_place_for_a_regulariser() -> None:
    graph = EnergyGraph("hopfield").input("image", 5).state("deep", 3)
    graph.couple("image", "deep", term="-w*pre*post + w**2/2").cost("deep", "x**2")
    with pytest.raises(DeclarationError) as caught:
        compile_energy(graph)
    assert "costs: - {term: w**2/2}" in caught.value.faults[0].fix


# --------------------------------------------------------------------------- predictions and targets


@pytest.mark.parametrize("name", ["classifier", "own logits", "squared", "newton"])
def test_predictions_are_the_largest_logit(name: str) -> None:
    model = model_of(name)
    x = torch.randn(50, 5, generator=generator(6))
    states = relax(model, image=x).states
    p = model.tensors
    z = functional.linear(states["deep"], p["head.w"], p["head.b"]) if "head.w" in p else states["deep"]
    y = torch.randint(3, (50,), generator=generator(7))
    assert len(set(z.argmax(1).tolist())) > 1 or name != "own logits"
    assert torch.equal(model.scores(states).argmax(1), z.argmax(1))
    order = torch.argsort(z, dim=1, descending=True)
    places = (order == y.view(-1, 1)).int().argmax(1)  # that of the true class among all
    found = rank(EquilibriumPropagation(model), states, {"target": y})
    assert found is not None and torch.equal(found, places)


def test_targets_have_the_shape_of_the_readout() -> None:
    model = compile_energy(chain().cost("deep", "cross_entropy", readout="dense(7)", name="head", target="label"))
    hot = model.as_targets({"label": torch.tensor([6, 0])}, 2)["label"]
    assert torch.equal(hot, torch.eye(7)[[6, 0]])
    for wrong in (torch.tensor([7, 0]), torch.rand(2, 3)):
        with pytest.raises(ShapeError, match="label"):
            model.as_targets({"label": wrong}, 2)
    arrays = {"image": torch.rand(2, 5).numpy(), "label": torch.tensor([0, 7]).numpy()}
    with pytest.raises(DataError, match=r"classes up to 7.*7 units"):
        match(DataSet("own", arrays, arrays), model.graph)


def test_readouts_are_drawn_like_linear_layers() -> None:
    model = compile_energy(chain().cost("deep", "cross_entropy", readout="dense(2000)", name="head"))
    layer = torch.nn.Linear(3, 2000)
    for found, like in ((model.tensors["head.w"], layer.weight), (model.tensors["head.b"], layer.bias)):
        assert found.shape == like.shape
        assert float(found.abs().max().detach()) <= 3**-0.5
        assert float(found.detach().std()) == pytest.approx((1 / 9) ** 0.5, rel=0.05)


# --------------------------------------------------------------------------- declarations

GOOD = """\
energy: hopfield
nodes:
  image: {shape: 4, role: input}
  hidden: {shape: 3}
edges:
  - image -> hidden
costs:
  - {term: 1e-4*w**2/2, on: [image_hidden, head]}
  - {node: hidden, readout: dense(2), term: cross_entropy, target: label, name: head}
  - {node: hidden, term: (x - y)**2/2, weight: 0.5, target: hint}
"""
BROKEN = [
    ("cross_entropy", "cross_entrpy", (9, 45), "neither a reduction", "did you mean cross_entropy"),
    ("cross_entropy", "2*cross_entropy", (9, 47), "undeclared symbol 'cross_entropy'", ""),
    ("dense(2)", "dense", (9, 29), "not a readout", "dense(10)"),
    ("dense(2)", "dense(0)", (9, 29), "positive whole numbers", ""),
    ("dense(2)", "dens(2)", (9, 29), "unknown connection 'dens'", "dense"),
    ("dense(2)", "identity(2)", (9, 29), "identity joins nodes of one shape", "dense"),
    ("name: head}", "name: hidden}", (9, 81), "the name 'hidden' is taken", "another name"),
    ("name: head}", "parameters: {v: {init: ones}}}", (9, 88), "no term uses the parameter 'v'", ""),
    ("node: hidden, term", "node: hiden, term", (10, 6), "there is no node 'hiden'", "did you mean hidden"),
    ("node: hidden, term", "node: image, term", (10, 12), "clamped", "free node"),
    ("node: hidden, term", "term", (10, 39), "without a node has no target", "add node:"),
    ("1e-4*w**2/2", "x*w", (8, 12), "'x' has no meaning in a cost without a node", "add node:"),
    ("1e-4*w**2/2", "1e-4*v**2/2, weight: 2", None, "has no parameter 'v'", "'image_hidden' has w"),
    ("1e-4*w**2/2, on: [image_hidden, head]", "1e-4*v**2", (8, 12), "nothing has the parameter v", "there are b, w"),
    ("[image_hidden, head]", "[image_hiden]", (8, 25), "no node, edge or readout 'image_hiden'", "image_hidden"),
    ("[image_hidden, head]", "5", (8, 29), "5 is not a list of names", "such as"),
    ("[image_hidden, head]", "[[w]]", (8, 25), "not a list of names", "such as"),
    ("cross_entropy", "x*b", (9, 47), "undeclared symbol 'b'", "in x and y"),
    ("weight: 0.5", "readout: dense(3), on: head", (10, 63), "has no key on", "remove"),
    ("weight: 0.5", "weight: .inf", (10, 48), "should be a finite number", ""),
    ("target: hint", "target: label", (10, 61), "shapes (2,) and (3,)", "own target"),
    ("term: (x - y)**2/2", "name: own, term: (x - y)**2/2", (10, 20), "only a cost with a readout has name", "remove"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "place", "message", "fix"), BROKEN)
def test_a_broken_cost_is_answered_with_place_and_fix(
    old: str, new: str, place: tuple[int, int] | None, message: str, fix: str
) -> None:
    assert GOOD.count(old) == 1
    with pytest.raises(DeclarationError) as caught:
        parse_experiment(GOOD.replace(old, new), "small.yaml")
    fault = next(fault for fault in caught.value.faults if message in fault.message)
    assert fix in fault.fix
    assert fault.place is not None
    assert place in (None, (fault.place.line, fault.place.column))


def test_costs_survive_the_round_trip() -> None:
    graph = parse_experiment(GOOD).graph
    own = "{w: {init: zeros, frozen: true}, b: {shape: scalar, constraint: [0, 1]}}"
    changed = parse_experiment(GOOD.replace("name: head", f"name: head, parameters: {own}")).graph
    for declared in (graph, changed):
        again = graph_from_yaml(graph_to_yaml(declared))
        assert again == declared
        assert again.digest == declared.digest
    others = ["dense(3)", "0.25", "(x - y)**4", "1e-3*w**2"]
    texts = [
        GOOD.replace(old, new)
        for old, new in zip(("dense(2)", "0.5", "(x - y)**2/2", "1e-4*w**2/2"), others, strict=True)
    ]
    assert len({graph.digest, changed.digest, *(parse_experiment(text).graph.digest for text in texts)}) == 6
    assert set(changed.tensors()) == {"image_hidden.w", "hidden.b", "head.w", "head.b"}
    assert changed.tensors()["head.b"][1] == ()


def test_the_only_output_may_name_a_reduction() -> None:
    text = "energy: hopfield\nnodes: {image: {shape: 4, role: input}, label: {shape: 3, role: output}}\n"
    graph = parse_experiment(text + "edges: [image -> label]\ncost: cross_entropy\n").graph
    assert graph.costs[0].reduction == "cross_entropy"
    with pytest.raises(DeclarationError, match=r"4:7: 'cross_entrop' is neither"):
        parse_experiment(text + "edges: [image -> label]\ncost: cross_entrop\n")


def test_coefficients_may_have_many_digits() -> None:
    """Exact fractions of long decimals don't overflow: a quotient by 2^-1.5 is the product with its inverse."""
    found = []
    for term in ("(x/0.35355339059327376 - y)**2/2", "(2.8284271247461903*x - y)**2/2"):
        model = compile_energy(chain(domain="real").cost("deep", term), seed=2)
        ep = EquilibriumPropagation(model, 0.01, "centered", relaxation=TIGHT, nudged=TIGHT_NUDGED)
        found.append(gradients(ep, image=image(), target=functional.one_hot(CLASSES, 3).double()))
    for name, value in found[0].items():
        assert close(value, found[1][name], 1e-9)
