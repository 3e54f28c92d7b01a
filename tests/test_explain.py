"""`explain` against derivatives and minima worked out here, by hand or from the declaration alone."""

from __future__ import annotations

import io
import re

import pytest
import sympy as sp
import torch
from images import conv_hopfield
from matplotlib.mathtext import MathTextParser
from rich.console import Console

from physnet.energy import Energy
from physnet.explaining import explain
from physnet.explanation import Explanation, NodeEntry
from physnet.expressions import clip, parse, symbol
from physnet.graph import EnergyGraph
from physnet.learning import EquilibriumPropagation, gradients
from physnet.lowering import lower
from physnet.model import EnergyModel, compile_energy

CATALOGUE = ["hopfield", "hopfield-smooth", "resistive", "xy"]
MEAN_FIELD = Energy(
    node="-b*x + x**4/4",
    coupling="-v**2*pre*post",
    parameters={"v": {"on": "edge", "shape": "scalar", "init": "0.3*ones()"}, "b": {"on": "node"}},
)
BROADCAST = Energy(node="x**2/2", coupling="log_cosh(w*pre*post)", parameters={"w": {"on": "edge", "frozen": True}})
BANG_BANG = Energy(
    node="-b*x",
    coupling="-w*pre*post",
    domain={"state": [{"[-1, 1]": 2}, [0, 2]], "output": "real"},
    parameters={"w": {"on": "edge", "init": "normal(0, 1)"}, "b": {"on": "node", "shape": "scalar"}},
)
ALL = [*CATALOGUE, MEAN_FIELD, BANG_BANG, BROADCAST]


def called(energy: str | Energy) -> str:
    return energy if isinstance(energy, str) else str(energy.coupling)


def network(energy: str | Energy) -> EnergyModel:
    graph = EnergyGraph(energy=energy)
    graph.input("image", 4)
    graph.state("hidden_1", 6)
    graph.output("label", 3, cost="(cos(x) - y)**2/2" if energy == "xy" else "(x - y)**2/2")
    graph.couple("image", "hidden_1")
    graph.couple("hidden_1", "label", name="readout")
    return compile_energy(graph, seed=3)


def node(explanation: Explanation, name: str) -> NodeEntry:
    return next(entry for entry in explanation.nodes if entry.name == name)


def shown(entry: NodeEntry, explanation: Explanation, what: str) -> list[str]:
    """What the text says about a node after a certain word."""
    part = explanation.text.split(f"\nnode {entry.name}:")[1].split("\n\n")[0]
    return [line.split(what, 1)[1].strip() for line in part.splitlines() if line.strip().startswith(what)]


def test_hopfield_says_what_is_known_of_it() -> None:
    model = network("hopfield")
    explanation = explain(model)
    hidden, label = node(explanation, "hidden_1"), node(explanation, "label")
    assert shown(hidden, explanation, "update") == ["x <- clip(b + h, 0, 1)  (exact)"]
    assert parse(shown(hidden, explanation, "force")[0]) == parse("b + h - x")
    assert shown(hidden, explanation, "with") == [
        "h = sum_j image[j]*image_hidden_1.w[i,j] + sum_j label[j]*readout.w[j,i]"
    ]
    assert label.updates["free"].cases[0].state == parse("b + h")
    assert sp.simplify(label.updates["nudged"].cases[0].state - parse("(b + h + beta*y)/(1 + beta)")) == 0
    assert "blocks, since every unit has an exact update" in explanation.text
    assert "dL/d image_hidden_1.w[i,j] = 1/(2*beta) * [-hidden_1[i]*image[j]] from -beta to beta" in explanation.text
    assert explanation.blocks["free phase"] == (("hidden_1",), ("label",))


@pytest.mark.filterwarnings("ignore:the coupling")
@pytest.mark.parametrize("energy", ALL, ids=called)
def test_the_force_that_is_shown_is_minus_the_slope_of_the_energy_that_is_shown(energy: str | Energy) -> None:
    explanation = explain(network(energy))
    for entry in explanation.nodes:
        force = parse(shown(entry, explanation, "force")[0])
        assert force == entry.force
        # the two halves of a coupling that is not separated are shown as sums of their own
        table = {name: sum(item.body for item in sums) for name, sums in entry.fields.items()}
        broadcast = any("pairs" in str(name) for name in table)
        energy_shown = parse(shown(entry, explanation, "energy")[0])
        if broadcast:
            force, energy_shown = force.subs(table), energy_shown.subs(table)
        difference = force + sp.diff(energy_shown, symbol("x"))
        values = {item: sp.Rational(k + 2, 7) for k, item in enumerate(sorted(difference.free_symbols, key=str))}
        assert abs(complex(difference.doit().subs(values).evalf())) < 1e-12


@pytest.mark.parametrize("energy", [*CATALOGUE, MEAN_FIELD, BANG_BANG], ids=called)
def test_an_exact_update_leads_to_the_minimum_of_the_energy_that_is_shown(energy: str | Energy) -> None:
    x, beta = symbol("x"), symbol("beta")
    for entry in explain(network(energy)).nodes:
        for phase, update in entry.updates.items():
            for case in update.cases if update.kind == "exact" else ():
                total = entry.energy.subs(beta, 0) if phase == "free" else entry.energy
                inputs = sorted((total.free_symbols | case.state.free_symbols) - {x}, key=str)
                values = {item: sp.Rational(k + 3, 5) for k, item in enumerate(inputs)}
                if case.condition.subs(values) == sp.false:  # the other bound: the drive has the other sign
                    values |= {symbol("b"): -9}
                assert case.condition.subs(values) == sp.true
                best, profile = float(case.state.subs(values)), sp.lambdify(x, total.subs(values))
                allowed = [best + step / 1000 for step in range(-4000, 4001, 10)]
                lo, hi = bounds(case.state, case.condition, update.cases)
                assert lo <= best <= hi
                assert profile(best) <= min(profile(point) for point in allowed if lo <= point <= hi) + 1e-12


def bounds(state: sp.Expr, condition: sp.Basic, cases: tuple) -> tuple[float, float]:
    """The domain, as the form of an update implies it."""
    if condition != sp.true:
        return {1: (-1.0, 1.0), -1: (-1.0, 1.0), 2: (0.0, 2.0), 0: (0.0, 2.0)}[int(state)]
    if isinstance(state, clip):
        return float(state.args[1]), float(state.args[2])
    return (0.0 if isinstance(state, sp.Max) else -1e9), (0.0 if isinstance(state, sp.Min) else 1e9)


@pytest.mark.parametrize("energy", [*CATALOGUE, MEAN_FIELD], ids=called)
@pytest.mark.parametrize("protocol", ["positive", "centered"])
def test_the_learning_rule_that_is_shown_gives_the_gradient(energy: str | Energy, protocol: str) -> None:
    """Evaluate the sympy rule with NumPy on the relaxed states, sum over what shares an entry, and compare."""
    model = network(energy).double()
    generator = torch.Generator().manual_seed(5)
    image, target = torch.rand(2, 4, generator=generator).double(), torch.rand(2, 3, generator=generator).double()
    beta = 0.05
    ep = EquilibriumPropagation(model, beta=beta, protocol=protocol)
    expected = gradients(ep, image=image, target=target)
    assert ep.last is not None and ep.last.nudged is not None
    settled = {
        nudge: {name: value.unflatten(0, (2, 2))[k] for name, value in ep.last.nudged.states.items()}
        for k, nudge in enumerate(ep.last.betas)
    }
    clamped = model.encode({"image": image})
    low, high = sorted(ep.last.betas)
    for entry in explain(model, protocol).parameters:
        owner = entry.name.split(".")[0]

        def slope(nudge: float, entry=entry, owner=owner) -> torch.Tensor:
            states = {**clamped, **settled[nudge]}
            values = {str(k): v.detach() for k, v in vars(model._modules[owner])["_parameters"].items()}
            if owner in model.plan.nodes:
                values |= {"x": states[owner], "y": target, "beta": torch.tensor(nudge)}
            else:
                edge = model.graph.edge(owner)
                values |= {"pre": states[edge.pre][:, None, :], "post": states[edge.post][:, :, None]}
            order = sorted(map(str, entry.slope.free_symbols))
            modules = [{"log_cosh": lambda z: torch.log(torch.cosh(z))}, torch]
            result = sp.lambdify(list(map(symbol, order)), entry.slope, modules)(*(values[name] for name in order))
            total = torch.as_tensor(result).sum(0) / 2
            return total.sum() if not entry.shape else total

        found = (slope(high) - slope(low)) / (high - low)
        assert torch.allclose(found, expected[entry.name], rtol=1e-6, atol=1e-9), entry.name


@pytest.mark.filterwarnings("ignore:the coupling")
@pytest.mark.parametrize("energy", ALL, ids=called)
def test_latex_is_balanced_and_its_formulas_can_be_set(energy: str | Energy) -> None:
    latex = explain(network(energy)).latex
    bare = re.sub(r"\\[{}]", "", latex)
    depth = [0]
    for letter in bare:
        depth.append(depth[-1] + (letter == "{") - (letter == "}"))
    assert depth[-1] == 0 and min(depth) == 0
    assert latex.count(r"\left") - latex.count(r"\leftarrow") == latex.count(r"\right")
    for environment in ("itemize", "align*"):
        assert latex.count(rf"\begin{{{environment}}}") == latex.count(rf"\end{{{environment}}}") > 0
    setter = MathTextParser("path")
    for block in re.findall(r"\\begin\{align\*\}\n(.*?)\n\\end\{align\*\}", latex, re.DOTALL):
        for row in block.split(" \\\\\n"):
            assert row.count("&") == 1
            setter.parse(f"${row.replace('&', '')}$")  # raises if TeX's little brother can't read it


@pytest.mark.filterwarnings("ignore:the coupling")
@pytest.mark.parametrize("energy", ALL, ids=called)
def test_every_node_and_parameter_is_named(energy: str | Energy) -> None:
    model = network(energy)
    explanation = explain(model)
    for name in model.tensors:
        assert f"parameter {name}:" in explanation.text
        assert f"parameter {name}:".replace("_", r"\_") in explanation.latex
    assert all(f"node {name}:" in str(explanation) for name in model.free)


@pytest.mark.filterwarnings("ignore:the coupling")
def test_what_has_no_exact_update_says_why() -> None:
    explanation = explain(network(BROADCAST))
    assert "no exact update" not in explain(network("hopfield")).text
    assert "flow, since not blocks" in explanation.text
    assert "doesn't separate" in explanation.text and "warning: the coupling" in explanation.text
    assert "frozen" in explanation.text
    assert not node(explanation, "label").updates["every"].cases


def test_constraints_and_divided_domains_are_shown() -> None:
    explanation = explain(network("resistive"))
    assert "parameter readout.g: 3 x 6, nonnegative, learned" in explanation.text
    states = [(case.units, type(case.state)) for case in node(explanation, "hidden_1").updates["every"].cases]
    assert states == [("units 0 to 2", sp.Max), ("units 3 to 5", sp.Min)]


def test_names_of_the_user_are_not_confused_with_those_of_the_explanation() -> None:
    own = {"h": {"on": "node"}, "beta": {"on": "node"}, "w": {"on": "edge"}}
    model = network(Energy(node="beta*x**2/2 - h*x", coupling="-w*pre*post", parameters=own))
    label = node(explain(model), "label")
    x, y = symbol("x"), symbol("y")
    names = {str(item) for item in label.energy.free_symbols}
    assert names == {"beta", "beta_", "h", "h_", "x", "y"}
    assert sp.expand(label.energy - parse("beta*x**2/2 - h*x - h_*x + beta_*(x - y)**2/2")) == 0
    assert {x, y} <= label.energy.free_symbols


def test_rules_of_other_protocols() -> None:
    model = network("hopfield")
    assert "1/beta * [-hidden_1[i]*image[j]] from 0 to beta" in explain(model, "positive", 0.25).text
    assert "beta = 0.25" in explain(model, "positive", 0.25).text
    both = explain(model, "random_sign").text
    assert "from 0 to beta" in both and "from -beta to 0" in both


def test_nodes_of_several_axes_and_several_targets() -> None:
    own = {"w": {"on": "edge"}, "k": {"on": "node", "shape": "channel"}}
    graph = EnergyGraph(
        energy=Energy(node="k**2*x**2/2", coupling="-w**2*pre**2*post/4", domain=[0, 1], parameters=own)
    )
    graph.input("image", (2, 3)).state("map", (2, 3)).output("label", 2, cost="(x - y)**2/2", target="one")
    graph.cost("label", "x*y", target="two", weight=0.5).couple("image", "map", "identity").couple("map", "label")
    explanation = explain(compile_energy(graph), "implicit")
    table = {entry.name: (entry.local.index, str(entry.local.body)) for entry in explanation.parameters}
    assert table["map.k"] == ("i in c", "map.k[c]*map[i]**2")
    assert table["label.k"] == ("", "label.k[i]*label[i]**2")
    assert table["image_map.w"] == ("", "-image[i]**2*image_map.w[i]*map[i]/2")
    x, k, h, beta, one, two = map(symbol, ("x", "k", "h", "beta", "y_one", "y_two"))
    expected = k**2 * x**2 / 2 - h * x / 4 + beta * ((x - one) ** 2 / 2 + x * two / 2)
    assert sp.expand(node(explanation, "label").energy - expected) == 0
    assert r"\sum_{i \in c}" in explanation.latex


def test_indices_are_not_markup() -> None:
    explanation, output = explain(network("hopfield")), io.StringIO()
    Console(file=output, width=1000).print(explanation)
    assert "[-hidden_1[i]*image[j]]" in output.getvalue()


def test_images_are_explained_by_the_maps_that_a_signal_passes() -> None:
    """Forward, backward through the winners, and what correlates at both ends of a weight."""
    explanation = explain(compile_energy(conv_hopfield()))
    text = explanation.text
    assert shown(node(explanation, "c2"), explanation, "with") == [
        "h = max_pool2d(conv2d(c1, conv2.w)) + conv2d_transposed(max_pool2d_transposed(c3), conv3.w)"
    ]
    assert shown(node(explanation, "c2"), explanation, "update") == [
        "x <- clip(b + h, 0, 1)  (majorised (winners held))"
    ]
    assert shown(node(explanation, "c4"), explanation, "update") == ["x <- clip(b + h, 0, 1)  (exact)"]
    assert "dL/d conv2.w = 1/(2*beta) * [-correlate(c1, max_pool2d_transposed(c2))] from -beta to beta" in text
    assert "dL/d c2.b[c] = 1/(2*beta) * [sum_(i in c) -c2[i]]" in text
    assert "majorised (winners held)" in explanation.latex
    assert r"\operatorname{max\_pool2d}{\left(\operatorname{conv2d}" in explanation.latex
    for equation in explanation.equations.values():
        for row in re.findall(r"&=? ?(.*?)(?: \\\\)?$", equation, re.MULTILINE):
            MathTextParser("path").parse(f"${row}$".replace(r"\text", r"\mathrm").replace(r"\quad", r"\ "))


@pytest.mark.usefixtures("float64")
def test_the_rule_that_is_shown_for_a_pooled_weight_is_its_contrast() -> None:
    """correlate and max_pool2d_transposed, taken from torch, at the states of both phases."""
    model = compile_energy(conv_hopfield(), 1)
    ep = EquilibriumPropagation(model, 0.1)
    found = gradients(ep, image=torch.rand(2, 3, 16, 16), target=torch.tensor([0, 1]))["conv2.w"]
    assert ep.last is not None
    assert ep.last.nudged is not None
    expected = torch.zeros_like(found)
    for phase, beta in enumerate(ep.last.betas):
        c1, c2 = (ep.last.nudged[name].unflatten(0, (2, 2))[phase].detach() for name in ("c1", "c2"))
        w = model.tensors["conv2.w"].detach().requires_grad_()
        energy = -(c2 * torch.nn.functional.max_pool2d(torch.conv2d(c1, w, padding=1), 2)).sum(0)
        expected += torch.autograd.grad(energy.sum() / 2, w)[0] / (2 * complex(beta).real)
    assert torch.allclose(expected, found, rtol=1e-6, atol=1e-12)


def test_several_products_and_fixed_maps_between_images_are_explained() -> None:
    graph = EnergyGraph("resistive").input("image", (2, 4, 4)).output("out", (3, 2, 2), cost="(x - y)**2/2")
    explanation = explain(compile_energy(graph.couple("image", "out", "avg_pool2d(2) >> conv2d(1)", name="edge")))
    assert "h1 = conv2d(avg_pool2d(1), edge.g)" in explanation.text
    assert "correlate(avg_pool2d(1), out**2)/2 - correlate(avg_pool2d(image), out) + corr" in explanation.text
    assert "correlate(avg_pool2d(image**2), 1)/2" in explanation.text
    graph = EnergyGraph("hopfield").input("image", (2, 4, 4)).output("out", (2, 8, 8), cost="(x - y)**2/2")
    explanation = explain(compile_energy(graph.couple("image", "out", "upsample(2)", name="edge")))
    assert "h = edge.w*upsample(image)" in explanation.text


@pytest.mark.parametrize(
    ("domain", "sign", "warned"),
    [
        ("real", -1, True),
        ([-1, 1], -1, True),
        (["nonnegative", "nonpositive"], -1, True),
        ("nonnegative", -1, False),
        ([0, 6], -1, False),
        ("nonnegative", 1, True),
        ("nonpositive", 1, False),
    ],
)
def test_maxima_that_may_raise_the_energy_are_warned_of(domain: object, sign: int, warned: bool) -> None:
    """Held winners bound -v max(z) from above for v >= 0, and v max(z) for v <= 0."""
    graph = EnergyGraph("hopfield").input("image", (2, 4, 4)).state("c1", (2, 4, 4))
    graph.state("c2", (2, 2, 2), domain=domain)
    graph.couple("image", "c1", "conv2d(3, padding=1) >> max_pool2d(1)")
    graph.couple("c1", "c2", "conv2d(3, padding=1) >> max_pool2d(2)", name="pooled", term=f"{sign}*w*pre*post")
    graph.output("label", 3, cost="(x - y)**2/2").couple("c2", "label")
    plan = lower(graph)
    messages = [message for message in plan.warnings if "'pooled' takes maxima" in message]
    assert len(messages) == warned
    assert len(plan.warnings) == len(messages)
    if messages:
        with pytest.warns(UserWarning, match="updates? of 'c1', which holds the winners"):
            explanation = explain(compile_energy(graph))
        assert "warning: the coupling" in explanation.text
