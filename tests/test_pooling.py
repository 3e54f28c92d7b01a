"""Max-pooled convolutions: a map that is linear once its winners are known, and what is kept of it."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from images import compiled, conv_hopfield, photos, small
from torch import Tensor
from torch.nn import functional

from physnet.chains import parse_connection
from physnet.checking import relative_error
from physnet.connections import Shape
from physnet.convolved import PooledLink
from physnet.model import EnergyModel
from physnet.nudging import nudge
from physnet.plans import Block
from physnet.precision import full_precision
from physnet.problem import Problem, State
from physnet.relaxation import Relaxation, relax

CHAINS = [
    ("conv2d(3, padding=1)", {"kernel_size": 2}),
    ("conv2d(3, stride=2, padding=1)", {"kernel_size": 3, "stride": 1, "padding": 1}),
    ("conv2d((1, 3), groups=2)", {"kernel_size": (3, 2), "stride": (2, 1)}),
    ("avg_pool2d(2) >> conv2d(2)", {"kernel_size": 2, "stride": 1}),
    ("conv2d(3) >> upsample(2, mode='bilinear')", {"kernel_size": 3}),
]
PRE = (2, 9, 8)
chains = pytest.mark.parametrize(("before", "pool"), CHAINS, ids=[before for before, _ in CHAINS])


def linked(before: str, pool: dict[str, Any]) -> tuple[PooledLink, Shape]:
    """A pooled link, and the shape of its weight."""
    arguments = ", ".join(f"{key.replace('_size', '')}={value}" for key, value in pool.items())
    chain = parse_connection(f"{before} >> max_pool2d({arguments})")
    shapes = chain.shapes(PRE, (4,))[:-1]  # pyright: ignore[reportAttributeAccessIssue]
    post = chain.members[-1].makes(shapes[-1], 4)  # pyright: ignore[reportAttributeAccessIssue]
    link = chain.bind(PRE, post)
    assert isinstance(link, PooledLink)
    return link, chain.weight_shape(PRE, post)


def draw(seed: int, *shape: int, device: Any = "cpu") -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device)


def material(link: PooledLink, weight: Shape, size: float, device: Any = "cpu") -> dict[str, Tensor]:
    """A weight, a state at both ends, and changes of these."""
    return {
        "w": draw(1, *weight, device=device),
        "u": draw(2, 3, *PRE, device=device),
        "v": draw(3, 3, *link.post, device=device),
        "du": size * draw(4, 3, *PRE, device=device),
        "dv": size * draw(5, 3, *link.post, device=device),
    }


@chains
def test_values_and_slopes_are_those_of_autograd(device: torch.device, before: str, pool: dict[str, Any]) -> None:
    """Of <v, max_pool2d(link(u, w))>."""
    link, weight = linked(before, pool)
    at = material(link, weight, 1.0, device)
    u, w, v = at["u"].requires_grad_(), at["w"].requires_grad_(), at["v"]
    value = functional.max_pool2d(link.link.apply(u, w), **pool)
    assert value.shape == v.shape
    to_pre, to_weight = torch.autograd.grad(value, (u, w), v)
    with torch.no_grad():
        assert torch.allclose(link.apply(u, w), value)
        assert torch.allclose(link.adjoint(v, w, u), to_pre)
        assert torch.allclose(link.correlate(u, link.place(v, w, u), w), to_weight)
    with torch.enable_grad():  # where gradients are recorded, too
        assert torch.allclose(torch.autograd.grad(link.apply(u, w), u, v)[0], to_pre)


@chains
def test_a_clamped_pre_serves_all_phases(before: str, pool: dict[str, Any]) -> None:
    link, weight = linked(before, pool)
    at = material(link, weight, 1.0)
    both = torch.cat([at["v"], at["v"] + 1])
    expected = torch.cat([link.place(part, at["w"], at["u"]) for part in both.split(3)])
    assert torch.equal(link.place(both, at["w"], at["u"]), expected)


@chains
@pytest.mark.parametrize("size", [1.0, 1e-1, 1e-3])
def test_changes_are_differences(device: torch.device, before: str, pool: dict[str, Any], size: float) -> None:
    """In float64; large changes move winners, of which there must be some to see it."""
    link, weight = linked(before, pool)
    at = material(link, weight, size, device)
    w, u, v, du, dv = at.values()
    winners = link._windows(u, w).winners
    moved = link._windows(u + du, w).winners
    assert bool((winners != moved).any()) or size < 1e-2
    for found, new, old in (
        (link.apply_change(du, w, u), link.apply(u + du, w), link.apply(u, w)),
        (link.adjoint_change(dv, w, v, du, u), link.adjoint(v + dv, w, u + du), link.adjoint(v, w, u)),
        (link.place_change(dv, w, v, du, u), link.place(v + dv, w, u + du), link.place(v, w, u)),
        (link.place_moved(v, w, du, u), link.place(v, w, u + du), torch.zeros(())),
    ):
        assert torch.allclose(found, new - old, atol=1e-12)


@chains
def test_tiny_changes_keep_their_digits_in_float32(device: torch.device, before: str, pool: dict[str, Any]) -> None:
    """Changes of 1e-6, of which a difference of float32 states would lose nearly everything."""
    link, weight = linked(before, pool)
    narrow = {key: value.float() for key, value in material(link, weight, 1e-6, device).items()}
    wide = {key: value.double() for key, value in narrow.items()}

    def changes(at: dict[str, Tensor]) -> list[Tensor]:
        w, u, v, du, dv = at.values()
        return [link.apply_change(du, w, u), link.adjoint_change(dv, w, v, du, u), link.place_change(dv, w, v, du, u)]

    with full_precision(device):
        for found, exact in zip(changes(narrow), changes(wide), strict=True):
            assert relative_error(found.double(), exact) < 1e-5
        plain = link.apply(narrow["u"] + narrow["du"], narrow["w"]) - link.apply(narrow["u"], narrow["w"])
    assert relative_error(plain.double(), changes(wide)[0]) > 1e-2


# --------------------------------------------------------------------------- what is kept


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["apply", "adjoint", "place", "apply_change", "adjoint_change", "place_change", "place_moved"]),
        st.integers(0, 2),
        st.integers(0, 1),
        st.sampled_from(["", "", "", "write u", "write w", "write du", "delete u", "delete du", "write result"]),
    ),
    min_size=2,
    max_size=12,
)


@given(STEPS)
@settings(max_examples=60)
def test_nothing_depends_on_what_is_kept(steps: list[tuple[str, int, int, str]]) -> None:
    """Any order of calls, with tensors that are written to, deleted and made anew: as from a fresh link each time."""
    link, weight = linked(*CHAINS[0])
    states = [draw(10 + i, 3, *PRE) for i in range(3)]
    moves = [0.3 * draw(20 + i, 3, *PRE) for i in range(3)]
    weights = [draw(30 + i, *weight) for i in range(2)]
    v, dv = draw(3, 3, *link.post), 0.3 * draw(5, 3, *link.post)
    for number, (way, state, kernel, then) in enumerate(steps):

        def call(link: PooledLink, way: str = way, i: int = state, k: int = kernel) -> Tensor:
            u, du, w = states[i], moves[i], weights[k]
            arguments = {
                "apply": (u, w),
                "adjoint": (v, w, u),
                "place": (v, w, u),
                "apply_change": (du, w, u),
                "adjoint_change": (dv, w, v, du, u),
                "place_change": (dv, w, v, du, u),
                "place_moved": (v, w, du, u),
            }
            return getattr(link, way)(*arguments[way])

        found, fresh = call(link), call(linked(*CHAINS[0])[0])
        assert torch.equal(found, fresh)
        match then.split():
            case ["write", "u"]:
                states[state] *= -1
            case ["write", "du"]:
                moves[state] += 1
            case ["write", "w"]:
                weights[kernel] -= 0.5
            case ["write", "result"]:
                found += 1
            case ["delete", "u"]:
                states[state] = draw(100 + number, 3, *PRE)
            case ["delete", "du"]:
                moves[state] = draw(200 + number, 3, *PRE)
            case _:
                pass


def test_what_is_kept_goes_with_the_states() -> None:
    link, weight = linked(*CHAINS[0])
    at = material(link, weight, 0.1)
    link.place_change(at["dv"], at["w"], at["v"], at["du"], at["u"])
    assert link._here.last is not None
    assert link._moved.last is not None
    del at["du"]
    gc.collect()
    assert link._moved.last is None
    del at["u"]
    gc.collect()
    assert link._here.last is None


def test_data_of_a_parameter_that_is_replaced_is_noticed() -> None:
    link, weight = linked(*CHAINS[0])
    w, u = torch.nn.Parameter(draw(1, *weight)), draw(2, 3, *PRE)
    with torch.no_grad():
        before = link.apply(u, w)
        w.data = -w.data
        assert torch.equal(link.apply(u, w), linked(*CHAINS[0])[0].apply(u, w))
        assert not torch.equal(link.apply(u, w), before)


@torch.no_grad()
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_steps_of_fused_optimizers_are_noticed(kind: Any) -> None:
    """They write without counting it."""
    link, weight = linked(*CHAINS[0])
    w, u = torch.nn.Parameter(draw(1, *weight)), draw(2, 3, *PRE)
    before = link.apply(u, w)
    w.grad = torch.ones_like(w)
    kind([w], lr=0.5, fused=True).step()
    assert torch.equal(link.apply(u, w), linked(*CHAINS[0])[0].apply(u, w))
    assert not torch.equal(link.apply(u, w), before)


def test_inference_mode_keeps_nothing() -> None:
    link, weight = linked(*CHAINS[0])
    w, u = draw(1, *weight), draw(2, 3, *PRE)
    with torch.inference_mode():
        link.apply(u, w)
    v = draw(3, 3, *link.post).requires_grad_()
    (v * link.apply(u, w)).sum().backward()
    assert torch.equal(v.grad, link.apply(u, w))  # pyright: ignore[reportArgumentType]


def counting(counts: Counter[str], name: str, way: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def count(*arguments: Tensor) -> Tensor:
        counts[name] += 1
        return way(*arguments)

    return count


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Count the convolutions of every pooled edge of a model."""

    def count(model: EnergyModel) -> Counter[str]:
        counts: Counter[str] = Counter()
        for edge in model.graph.edges():
            link = model.functions[f"{edge.name}_edge"]
            for way in ("apply", "adjoint") if isinstance(link, PooledLink) else ():
                monkeypatch.setattr(link.link, way, counting(counts, f"{edge.name} {way}", getattr(link.link, way)))
        return counts

    return count


def update(problem: Problem, block: Block, state: State, omega: float = 1.0) -> None:
    for node, new in problem.minimise(block, state).items():
        domain = problem.domain(node)
        state[node] = domain.project(state[node] + omega * domain.difference(new, state[node]))


def sweep(problem: Problem, state: State, omega: float = 1.0) -> None:
    for block in problem.blocks:
        update(problem, block, state, omega)


@torch.no_grad()
@pytest.mark.parametrize("products", [torch.float32, torch.bfloat16])
def test_a_sweep_computes_every_convolution_once(counted: Any, products: torch.dtype) -> None:
    """One product forward and one backward for every edge between free nodes; none for that from the input."""
    model = compiled(conv_hopfield())
    image, target = photos(model)
    once = {f"conv{number} {way}": 1 for number in (2, 3, 4) for way in ("apply", "adjoint")}
    problem = model.problem(image=image).rounded(products)
    state = problem.random(torch.Generator().manual_seed(0))
    sweep(problem, state)
    counts = counted(model)
    for _ in range(3):
        counts.clear()
        sweep(problem, state, 1.3)
        assert counts == once
    free = relax(model, Relaxation(tolerance=1e-4), image=image)
    displaced = nudge(free.problem, free.states, {"target": target}, [0.1, -0.1]).rounded(products)
    moved = displaced.project({name: 0.01 * torch.randn_like(value) for name, value in displaced.zero().items()})
    sweep(displaced, moved)
    for _ in range(3):
        counts.clear()
        sweep(displaced, moved, 1.3)
        assert counts == once


@torch.no_grad()
@pytest.mark.usefixtures("float64")
def test_problems_that_take_turns_do_not_disturb_each_other() -> None:
    """Two batches, and some samples of one of them, swept in turns as they are swept alone."""
    model = compiled(small())
    whole = model.problem(image=photos(model, 4, seed=1)[0])
    problems = [whole, model.problem(image=photos(model, 2, seed=2)[0]), whole.select(torch.tensor([3, 1]))]

    def start(problem: Problem) -> State:
        return problem.random(torch.Generator().manual_seed(7))

    alone = [start(problem) for problem in problems]
    for problem, state in zip(problems, alone, strict=True):
        for _ in range(4):
            sweep(problem, state)
    together = [start(problem) for problem in problems]
    for _ in range(4):
        blocks = [list(problem.blocks) for problem in problems]
        for step in zip(*blocks, strict=True):
            for problem, state, block in zip(problems, together, step, strict=True):
                update(problem, block, state)
    for one, other in zip(alone, together, strict=True):
        for name, value in one.items():
            assert torch.equal(value, other[name])
