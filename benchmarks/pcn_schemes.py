"""How many sweeps the relaxations of a predictive coding network take to its gradient, and which gradient that is.

Two networks of ten layers, trained for 300 steps on Fashion-MNIST (cross-entropy, `single`, errors as coordinates),
then one batch, centered: `docs/pcn_schemes.md` and `docs/pcn_schemes.png`. Weights begin smaller
than by He's initialisation, whose ten layers are carried over many kinks by beta = .05.

    python benchmarks/pcn_schemes.py
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from judging import Gradients, backprop_reference, in_float64, judge
from pcn_report import Found, report
from timing import interleaved
from torch import Tensor

from physnet import EnergyGraph, EnergyModel, EquilibriumPropagation, Relaxation, compile_energy, gradients, relax
from physnet.data import load_data
from physnet.dual import DualPropagation
from physnet.dyads import DualSettings
from physnet.integrators.sweeps import LayerSweeps
from physnet.methods import METHODS
from physnet.nudged import Ended, Nudged
from physnet.nudging import nudge
from physnet.problem import State
from physnet.randomness import stream
from physnet.relaxation import Equilibrium
from physnet.stopping import StoppingRule

STEPS, ROWS, LEARNING_RATE = 300, 64, 0.02
MEASURED = 16
"""Rows of the batch that is measured."""
NUDGES = (1e-5, 0.02, 0.05, 0.5)
BETA = 0.05
SWEEPS = 40
WEIGHTS = {"w": {"gain": 3**0.5}}
"""Between what torch draws, with which ten layers of rectifiers hardly begin to learn, and He's initialisation."""
WIDTHS = (8, 16, 32, 32, 64, 64, 64, 64)
POOLED = (0, 1, 3, 5, 7)
"""Of the convolutions of VGG10, those that end in max-pooling (arXiv 2606.03584)."""


@dataclass(frozen=True)
class Scheme:
    """A way to relax: one or several integrators, whose sweeps take turns."""

    name: str
    turns: tuple[LayerSweeps, ...]
    rule: str


def sweeps(order: str, rule: str, rate: float = 1.0) -> LayerSweeps:
    return LayerSweeps(rule, order, rate, dtype="model")


RULES = {"mod_pgd": "mod-PGD", "pgd": "PGD", "gradient": "gradient"}
ORDERS = {"even_odd": "even, then odd", "forward": "forward", "backward": "backward", "synchronous": "synchronous"}
SCHEMES = [
    Scheme(f"{ORDERS[order]}, {RULES[rule]}", (sweeps(order, rule),), rule)
    for order in ("even_odd", "forward", "backward")
    for rule in RULES
]
THERE_AND_BACK = (sweeps("backward", "gradient"), sweeps("forward", "gradient"))
SCHEMES += [
    Scheme("backward and forward in turn, gradient", THERE_AND_BACK, "gradient"),
    Scheme("synchronous, gradient, rate 0.1", (sweeps("synchronous", "gradient", 0.1),), "gradient"),
    Scheme("synchronous, gradient, rate 0.5", (sweeps("synchronous", "gradient", 0.5),), "gradient"),
    Scheme("synchronous, gradient, rate 1", (sweeps("synchronous", "gradient"),), "gradient"),
    Scheme("synchronous, mod-PGD, rate 1", (sweeps("synchronous", "mod_pgd"),), "mod_pgd"),
]


# --------------------------------------------------------------------------- networks


def mlp(widths: Sequence[int] = (784, *(256,) * 9, 10)) -> EnergyGraph:
    """Ten dense layers."""
    graph, names = EnergyGraph("predictive").input("image", widths[0]), ["image"]
    for number, width in enumerate(widths[1:-1], 1):
        names.append(f"h{number}")
        graph.state(names[-1], width)
    graph.output("label", widths[-1], cost="cross_entropy")
    for pre, post in itertools.pairwise([*names, "label"]):
        graph.couple(pre, post, parameters={} if post == "label" else WEIGHTS)
    return graph


def vgg10(widths: Sequence[int] = WIDTHS, dense: int = 128) -> EnergyGraph:
    """Eight convolutions, five of them max-pooled, and two dense layers, on 32 x 32 pixels."""
    graph, pre, side = EnergyGraph("predictive").input("image", (1, 32, 32)), "image", 32
    for number, width in enumerate(widths):
        side //= 1 + (number in POOLED)
        name = f"c{number + 1}"
        graph.state(name, (width, side, side))
        pooled = " >> max_pool2d(2)" * (number in POOLED)
        graph.couple(pre, name, f"conv2d(3, padding=1){pooled}", parameters=WEIGHTS)
        pre = name
    graph.state("dense", dense).output("label", 10, cost="cross_entropy")
    return graph.couple(pre, "dense", parameters=WEIGHTS).couple("dense", "label")


def batches(shape: Sequence[int], steps: int) -> Iterator[dict[str, Tensor]]:
    """Batches of training pictures; all others are the same in every run, too."""
    data = load_data({"fashion_mnist": {"normalise": True} | ({"pad": 2} if len(shape) > 1 else {})})
    x, y = torch.from_numpy(data.train["x"]), torch.from_numpy(data.train["y"])
    order = torch.randperm(len(x), generator=stream(0, "pcn schemes"))
    for step in range(steps):
        rows = order[step * ROWS : (step + 1) * ROWS]
        yield {"image": x[rows].reshape(len(rows), *shape), "target": y[rows]}


def trained(graph: EnergyGraph, steps: int) -> tuple[EnergyModel, dict[str, Tensor], float]:
    """The network after training, a batch that it hasn't seen, and its error there in percent."""
    model = compile_energy(graph, 0)
    engine = in_errors(model, "single", BETA)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9, nesterov=True)
    *seen, batch = batches(model.inputs["image"].data_shape, steps + 1)
    for rows in seen:
        optimizer.zero_grad()
        engine(**rows).backward()
        optimizer.step()
    batch = {name: value[:MEASURED] for name, value in batch.items()}
    label = relax(model, image=batch["image"]).states["label"]
    return model, batch, 100 * float((label.argmax(1) != batch["target"]).float().mean())


# --------------------------------------------------------------------------- gradients


@dataclass
class Phases:
    """The two phases of the centered protocol around the free equilibrium of a batch."""

    free: Equilibrium
    problem: Nudged
    beta: float

    @classmethod
    def of(cls, model: EnergyModel, batch: dict[str, Tensor], beta: float, coordinates: str) -> Phases:
        free = relax(model, image=batch["image"].to(model.dtype))
        problem = nudge(free.problem, free.states, {"target": batch["target"]}, [beta, -beta], coordinates=coordinates)
        return cls(free, problem, beta)

    def gradient(self, displacement: State) -> Gradients:
        states, names = self.problem.states(displacement), list(self.free.problem.parameters)
        weights = (0.5 / self.beta, -0.5 / self.beta)
        ended = Ended(self.free.problem, displacement, states, weights, 1 / self.free.problem.rows)
        return self.problem.contrasts(ended, names)

    def sweep(self, scheme: Scheme, count: int) -> Iterator[Gradients]:
        """The gradient after each sweep, as long as it is finite."""
        state, rule = self.problem.zero(), StoppingRule(self.problem, 1e-30, 1)
        for turn in itertools.islice(itertools.cycle(scheme.turns), count):
            state = turn.relax(self.problem, state, rule).states
            found = self.gradient(state)
            if not all(bool(torch.isfinite(value).all()) for value in found.values()):
                return
            yield found


def fixed_point(model: EnergyModel, batch: dict[str, Tensor], beta: float, rule: str) -> tuple[Gradients, int]:
    """The centered gradient at the fixed point of a rule in float64, and how many rows haven't settled."""
    exact = in_float64(model)
    if rule == "gradient":
        engine = EquilibriumPropagation(exact, beta, nudged=Relaxation("errors", 1e-11, 200), watch=0)
        found = gradients(engine, image=batch["image"].double(), target=batch["target"])
        assert engine.last is not None and engine.last.nudged is not None
        return found, int((~engine.last.nudged.converged).sum())
    phases = Phases.of(exact, batch, beta, "states")
    arrived = StoppingRule(phases.problem, 1e-5, 60)
    result = LayerSweeps(rule, "forward").relax(phases.problem, phases.problem.zero(), arrived)
    return phases.gradient(result.states), int((~result.converged).sum())


def compared(found: Gradients, reference: Gradients) -> tuple[float, float]:
    """Cosines of all tensors together, and of the worst one."""
    judgement = judge(found, reference)
    return judgement.whole, judgement.worst


def last(found: Iterator[Gradients]) -> Gradients | None:
    gradient = None
    for gradient in found:  # noqa: B007
        pass
    return gradient


# --------------------------------------------------------------------------- measurements


def measure(graph: EnergyGraph, steps: int, count: int) -> Found:
    model, batch, error = trained(graph, steps)
    result, exact = Found(error), backprop_reference(model, batch).gradients
    points: dict[tuple[str, float], Gradients] = {}
    for beta in NUDGES:
        for rule in RULES:
            points[rule, beta], result.unsettled[rule, beta] = fixed_point(model, batch, beta, rule)
            result.nudges[f"fixed point of {RULES[rule]}, float64", beta] = compared(points[rule, beta], exact)
        for a, b in itertools.combinations(RULES, 2):
            result.points[f"{RULES[a]} to {RULES[b]}", beta] = compared(points[a, beta], points[b, beta])
        against_backprop(result, model, batch, beta, exact)
    with torch.no_grad():
        phases = Phases.of(model, batch, BETA, "plain states")
        for scheme in SCHEMES:
            own, stationary = points[scheme.rule, BETA], points["gradient", BETA]
            result.curves[scheme.name] = [
                (compared(g, own)[0], compared(g, stationary)[0]) for g in phases.sweep(scheme, count)
            ]
    for rounds in (1, 2):
        found = gradients(in_errors(model, "centered", BETA, rounds), **batch)
        result.curves.setdefault("errors", []).append((compared(found, points["gradient", BETA])[0],) * 2)
    result.costs = costs(model, batch)
    return result


def in_errors(model: EnergyModel, protocol: str, beta: float, rounds: int = 1) -> EquilibriumPropagation:
    return EquilibriumPropagation(model, beta, protocol, nudged=Relaxation("errors", 1e-6, rounds), watch=0)


def against_backprop(
    result: Found, model: EnergyModel, batch: dict[str, Tensor], beta: float, exact: Gradients
) -> None:
    """The methods at the dtype of the model, after as many sweeps as are published."""
    for protocol in ("centered", "single"):
        found = gradients(in_errors(model, protocol, beta), **batch)
        result.nudges[f"errors, one round, {protocol}", beta] = compared(found, exact)
    with torch.no_grad():
        for scheme in SCHEMES[:5]:
            if scheme.rule != "gradient":
                found = last(Phases.of(model, batch, beta, "plain states").sweep(scheme, 10))
                if found is not None:
                    result.nudges[f"{scheme.name}, 10 sweeps", beta] = compared(found, exact)
    dual = gradients(DualPropagation(model, DualSettings(beta)), **batch)
    result.nudges["dual propagation, alpha 1/2, one sweep", beta] = compared(dual, exact)


def costs(model: EnergyModel, batch: dict[str, Tensor]) -> dict[str, float]:
    """Times of a gradient, in those of the network's backpropagation twin."""
    published = Relaxation("layer_sweeps", 2e-7, 10, options={"dtype": "model"})
    engines = {
        "backpropagation": METHODS["backprop"].make(model),
        "errors, one round, single": in_errors(model, "single", BETA),
        "errors, one round, centered": in_errors(model, "centered", BETA),
        "even, then odd, mod-PGD, 10 sweeps, single": EquilibriumPropagation(
            model, BETA, "single", nudged=published, watch=0
        ),
        "even, then odd, mod-PGD, 10 sweeps, centered": EquilibriumPropagation(model, BETA, nudged=published, watch=0),
    }
    actions = [lambda engine=engine: gradients(engine, **batch) for engine in engines.values()]
    times = interleaved(actions, 9, warm_up=2)
    return {name: time / times[0] for name, time in zip(engines, times, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS, help="of training")
    parser.add_argument("--sweeps", type=int, default=SWEEPS)
    parser.add_argument("--folder", type=Path, default=Path("docs"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*have not converged")
    found = {
        "MLP 784-256x9-10": measure(mlp(), options.steps, options.sweeps),
        "small VGG10": measure(vgg10(), options.steps, options.sweeps),
    }
    report(found, options.folder, options.sweeps)


if __name__ == "__main__":
    main()
