"""Times: of a step, of backpropagation through a plain net of the same shapes, and of the bare products."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn

from physnet import EnergyModel
from physnet.connections import Linked
from physnet.convolved import PooledLink

Action = Callable[[], object]


def timed(action: Action) -> float:
    """Milliseconds that the processor spends on one call: on one thread the time that passes, less what the machine
    gives to others meanwhile."""
    began = time.process_time()
    action()
    return 1e3 * (time.process_time() - began)


def interleaved(actions: Sequence[Action], rounds: int, warm_up: int = 0) -> list[float]:
    """The median time of each action in milliseconds, run in turn, so that what else a machine does meets all alike."""
    times: list[list[float]] = [[] for _ in actions]
    for number in range(warm_up + rounds):
        for action, record in zip(actions, times, strict=True):
            elapsed = timed(action)
            if number >= warm_up:
                record.append(elapsed)
    return [median(record) for record in times]


def several(action: Action, times: int) -> Action:
    """An action many times over."""

    def call() -> None:
        for _ in range(times):
            action()

    return call


def backprop_step(net: nn.Module, x: Tensor, classes: Tensor, rate: float = 1e-9, half: bool = False) -> Action:
    """One step of plain backprop: forward, backward and SGD update.

    Arguments:
        half: whether products are in bfloat16.
    """
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    targets: Tensor | None = None

    def step() -> None:
        nonlocal targets
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, torch.bfloat16) if half else nullcontext():
            out = net(x)
        targets = nn.functional.one_hot(classes, out.shape[1]).float() if targets is None else targets
        (((out.float() - targets) ** 2).sum(1).mean() / 2).backward()
        optimizer.step()

    return step


# --------------------------------------------------------------------------- the floor


class Product(NamedTuple):
    """One of the products that an energy is made of, bare: no pooling, no clip, nothing kept.

    Arguments:
        call: computes it.
        times: how often a step can't help doing so.
    """

    name: str
    call: Action
    times: float


def products(model: EnergyModel, rows: int, free: float, nudged: float, phases: int = 2) -> Iterable[Product]:
    """What a step has to multiply: both directions of every edge between free nodes in every sweep, the products with
    clamped nodes once, and the contrast.

    Arguments:
        rows: samples in the batch.
        free, nudged: sweeps of both phases, in the mean over the rows.
    """
    clamped = set(model.inputs)
    for edge in model.graph.edges():
        link = bare(edge.connection.bind(model.graph.node(edge.pre).shape, model.graph.node(edge.post).shape))
        w = next(model.tensors[f"{edge.name}.{key}"] for key, spec in edge.parameters.items() if spec.on == "edge")
        w, fixed = w.detach(), edge.pre in clamped or edge.post in clamped
        # a free phase of predictions is one pass forwards, and a nudged one begins with a pass backwards
        passes = {"free": (free, free), "nudged": (nudged, nudged)}
        passes = {"free": (1, 0), "nudged": (nudged - 1, nudged)} if model.plan.predictive else passes
        for stage, count in (("free", rows), ("nudged", phases * rows)):
            forwards, backwards = passes[stage]
            u, v = torch.rand(count, *link.pre), torch.rand(count, *link.post)
            if not fixed:
                yield Product(f"{edge.name} forward, {stage}", lambda u=u, w=w, k=link: k.apply(u, w), forwards)
                yield Product(f"{edge.name} transposed, {stage}", lambda v=v, w=w, k=link: k.adjoint(v, w), backwards)
            elif stage == "free":
                yield Product(f"{edge.name} forward, fixed", lambda u=u, w=w, k=link: k.apply(u, w), 1)
            if fixed == (stage == "free"):
                yield Product(f"{edge.name} contrast", lambda u=u, v=v, w=w, k=link: k.correlate(u, v, w), 1)


def bare(link: Linked) -> Linked:
    """The linear map of a connection, without the pooling behind it."""
    return link.link if isinstance(link, PooledLink) else link


def floor(model: EnergyModel, rows: int, free: float, nudged: float, phases: int = 2, repeats: int = 3) -> float:
    """Milliseconds of the bare products and the update of the parameters: what no implementation of these sweeps can
    do without."""
    with torch.no_grad():
        total = 0.0
        for product in products(model, rows, free, nudged, phases):
            product.call()
            total += product.times * median(timed(product.call) for _ in range(repeats))
        copies = [torch.empty_like(value) for value in model.parameters()]
        return total + timed(lambda: [copy.add_(copy, alpha=-1e-9) for copy in copies])
