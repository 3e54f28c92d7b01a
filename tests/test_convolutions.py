"""Connections between images: against explicit sums and torch's own functions, and how mistakes are answered."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from physnet.chains import Chain, parse_connection
from physnet.connections import Connection, Dense, Linked, RealLink, Shape
from physnet.convolutions import AvgPool2d, Conv2d, MaxPool2d, Upsample
from physnet.convolved import AveragedLink
from physnet.declaration import load_experiment
from physnet.errors import DeclarationError, ShapeError
from physnet.graph import EnergyGraph
from physnet.model import compile_energy

ONE_OR_TWO = st.one_of(st.integers(1, 3), st.tuples(st.integers(1, 3), st.integers(1, 3)))
PADDING = st.one_of(st.integers(0, 2), st.tuples(st.integers(0, 2), st.integers(0, 2)))
CONVOLUTIONS = st.builds(Conv2d, ONE_OR_TWO, ONE_OR_TWO, PADDING, ONE_OR_TWO, st.integers(1, 2))
IMAGES = st.tuples(st.sampled_from([2, 4]), st.integers(3, 7), st.integers(3, 7))
POOLS = ["avg_pool2d(2)", "avg_pool2d(3, stride=2, padding=1)", "avg_pool2d((1, 2), stride=(2, 1))", "avg_pool2d(2, 1)"]
SCALES = ["upsample(2)", "upsample((1, 3))", "upsample(2, mode='bilinear')", "upsample((3, 2), 'bilinear')"]
CHAINS = [
    "avg_pool2d(2) >> conv2d(3, padding=1)",
    "conv2d(3, padding=1) >> avg_pool2d(2)",
    "upsample(2) >> conv2d(3)",
    "conv2d(2, stride=2) >> upsample(2, mode='bilinear')",
    "avg_pool2d(2) >> dense",
    "upsample(2) >> avg_pool2d(3) >> dense",
    "avg_pool2d(2) >> conv2d(2, groups=2) >> upsample((2, 1))",
]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bound(declared: str | Connection, pre: Shape, channels: int, device: Any = "cpu", scalar: bool = False):
    """A bound connection with its weight and a state at both ends."""
    connection = parse_connection(declared)
    last = connection.members[-1] if isinstance(connection, Chain) else connection
    if isinstance(last, Dense):
        post = (5,)
    elif isinstance(connection, Chain):
        *_, before, _ = connection.shapes(pre, (channels,))
        post = last.makes(before, channels)
    else:
        post = connection.makes(pre, channels)
    connection.check(pre, post)
    w = draw(1, *(() if scalar else connection.weight_shape(pre, post))).to(device)
    return connection.bind(pre, post), w, draw(2, 3, *pre).to(device), draw(3, 3, *post).to(device)


def check_adjoints(link: Linked, w: Tensor, u: Tensor, v: Tensor) -> None:
    """<v, apply(u, w)> = <adjoint(v, w), u> = <correlate(u, v, w), w>, and all three by automatic differentiation."""
    value = (v * link.apply(u, w)).sum().item()
    assert link.adjoint(v, w).shape == u.shape
    assert link.correlate(u, v, w).shape == w.shape
    assert (u * link.adjoint(v, w)).sum().item() == pytest.approx(value, abs=1e-9)
    assert (w * link.correlate(u, v, w)).sum().item() == pytest.approx(value, abs=1e-9)
    assert torch.allclose(Linked.adjoint(link, v, w), link.adjoint(v, w))
    assert torch.allclose(Linked.correlate(link, u, v, w), link.correlate(u, v, w))


# --------------------------------------------------------------------------- linear maps


@given(IMAGES, CONVOLUTIONS, st.sampled_from([2, 4]), st.booleans())
@settings(max_examples=80)
def test_a_convolution_is_that_of_torch(
    device: torch.device, pre: Shape, connection: Conv2d, channels: int, scalar: bool
) -> None:
    span, padding = connection.window(), connection.padding
    pads = padding if isinstance(padding, tuple) else (padding, padding)
    assume(all(size + 2 * pad >= window for size, pad, window in zip(pre[1:], pads, span, strict=True)))
    link, w, u, v = bound(connection, pre, channels, device, scalar)
    shape = connection.weight_shape(pre, link.post)
    layer = torch.nn.Conv2d(
        pre[0], channels, connection.kernel, connection.stride, padding, connection.dilation, connection.groups
    )
    assert layer.weight.shape == shape
    arguments = (connection.stride, padding, connection.dilation, connection.groups)
    assert torch.allclose(link.apply(u, w), functional.conv2d(u, w.expand(shape), None, *arguments))
    assert link.apply(u, w).shape == v.shape
    check_adjoints(link, w, u, v)


@given(
    st.tuples(st.just(2), st.integers(2, 4), st.integers(2, 4)),
    st.integers(1, 2),
    st.integers(1, 2),
    st.integers(0, 1),
    st.integers(1, 2),
    st.integers(1, 2),
)
@settings(max_examples=25)
def test_a_convolution_is_the_sum_it_says(
    pre: Shape, kernel: int, stride: int, padding: int, dilation: int, groups: int
) -> None:
    connection = Conv2d(kernel, stride, padding, dilation, groups)
    assume(min(pre[1:]) + 2 * padding >= connection.window()[0])
    link, w, u, _ = bound(connection, pre, 2)
    expected = torch.zeros(3, *link.post, dtype=torch.float64)
    inputs = pre[0] // groups
    for o, y, x in itertools.product(*map(range, link.post)):
        for c, i, j in itertools.product(range(inputs), range(kernel), range(kernel)):
            down, across = y * stride + i * dilation - padding, x * stride + j * dilation - padding
            if 0 <= down < pre[1] and 0 <= across < pre[2]:
                group = o // (2 // groups)
                expected[:, o, y, x] += w[o, c, i, j] * u[:, group * inputs + c, down, across]
    assert torch.allclose(link.apply(u, w), expected)


@torch.no_grad()
@given(IMAGES, CONVOLUTIONS, st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=60)
def test_large_kernels_as_matrix_products_are_the_same_map(pre: Shape, connection: Conv2d, dtype: torch.dtype) -> None:
    """What is taken for large weights on a CPU, here for small ones."""
    assume(min(pre[1:]) >= max(connection.window()))
    link, *tensors = bound(connection, pre, 4)
    w, u, v = (value.to(dtype) for value in tensors)
    expected = link.apply(u, w), link.adjoint(v, w)
    with mock.patch("physnet.convolved.LARGE", 0), mock.patch("physnet.unfolded.MAX_PIXELS", 10**6):
        found = link.apply(u, w), link.adjoint(v, w)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        assert torch.allclose(one, other, rtol=1e-4 if dtype == torch.float32 else 1e-10, atol=1e-5)


@torch.no_grad()
def test_a_model_in_half_precision_keeps_its_dtype() -> None:
    """Where kernels are matrix products, sums over windows are made in float32."""
    with mock.patch("physnet.convolved.LARGE", 0), mock.patch("physnet.unfolded.MAX_PIXELS", 10**6):
        link, *tensors = bound(Conv2d(3, 1, 1), (2, 4, 4), 4)
        w, _, v = (value.bfloat16() for value in tensors)
        found = RealLink(link).adjoint(v, w)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.double(), link.adjoint(v.double(), w.double()), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("declared", SCALES + CHAINS)
def test_adjoints_in_inference_mode(declared: str) -> None:
    link, w, _, v = bound(declared, (2, 4, 4), 2)
    expected = link.adjoint(v, w)
    with torch.inference_mode():
        assert torch.equal(link.adjoint(v.clone(), w), expected)


@pytest.mark.parametrize("size", [6, 7])
@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_the_adjoint_of_a_strided_convolution_has_the_size_of_pre(size: int, kernel: int) -> None:
    """Odd and even sizes that lead to the same post, which a transposed convolution alone can't tell apart."""
    link, w, u, v = bound(Conv2d(kernel, 2, kernel // 2), (2, size, size), 4)
    assert link.adjoint(v, w).shape[1:] == (2, size, size)
    check_adjoints(link, w, u, v)


@given(IMAGES, st.sampled_from(POOLS + SCALES), st.booleans())
@settings(max_examples=60)
def test_fixed_maps_are_those_of_torch_scaled_per_channel(
    device: torch.device, pre: Shape, declared: str, scalar: bool
) -> None:
    connection = parse_connection(declared)
    link, w, u, v = bound(connection, pre, 1, device, scalar)
    if isinstance(connection, AvgPool2d):
        expected = functional.avg_pool2d(u, connection.kernel, connection.steps, connection.padding)
    else:
        assert isinstance(connection, Upsample)
        expected = functional.interpolate(u, size=link.post[1:], mode=connection.mode)
    assert torch.allclose(link.apply(u, w), expected * (w if scalar else w[:, None, None]))
    check_adjoints(link, w, u, v)


@pytest.mark.parametrize("declared", CHAINS)
@pytest.mark.parametrize("size", [(4, 4), (5, 6)])
def test_a_chain_is_one_map_after_the_other(device: torch.device, declared: str, size: tuple[int, int]) -> None:
    link, w, u, v = bound(declared, (2, *size), 4, device)
    value = u
    for member in declared.split(" >> "):
        if member == "dense":
            value = functional.linear(value.flatten(1), w)
        elif member.startswith("conv2d"):
            connection = parse_connection(member)
            assert isinstance(connection, Conv2d)
            settings = connection.stride, connection.padding, connection.dilation, connection.groups
            value = functional.conv2d(value, w, None, *settings)
        else:
            fixed = parse_connection(member)
            assert isinstance(fixed, AvgPool2d | Upsample)
            value = fixed.map(value)
    assert torch.allclose(link.apply(u, w), value)
    check_adjoints(link, w, u, v)


@given(
    st.tuples(st.sampled_from([2, 4]), st.integers(4, 9), st.integers(4, 9)),
    st.builds(Conv2d, st.sampled_from([2, 3, (3, 2)]), st.just(1), PADDING, st.just(1), st.integers(1, 2)),
    st.builds(AvgPool2d, st.sampled_from([2, 3, (2, 3)]), st.sampled_from([None, 2, (3, 2)])),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_convolution_with_average_pooling_is_one_convolution(
    pre: Shape, convolution: Conv2d, pooling: AvgPool2d, scalar: bool
) -> None:
    made = convolution.makes(pre, 4)
    assume(all(size >= window for size, window in zip(made[1:], pooling.sizes[0], strict=True)))
    link, w, u, v = bound(convolution >> pooling, pre, 4, scalar=scalar)
    kernel = w.expand(convolution.weight_shape(pre, made))
    plain = functional.conv2d(u, kernel, None, 1, convolution.padding, 1, convolution.groups)
    assert torch.allclose(link.apply(u, w), pooling.map(plain))
    assert torch.allclose(link.affine(u, w, v[:1]), link.apply(u, w) + v[:1])
    check_adjoints(link, w, u, v)


def test_pooling_joins_the_convolution_where_that_is_less_work() -> None:
    for declared, joined in (("conv2d(5) >> avg_pool2d(2)", True), ("conv2d(5) >> avg_pool2d(2, stride=1)", False)):
        assert isinstance(bound(declared, (2, 9, 9), 4)[0], AveragedLink) == joined


@given(IMAGES, CONVOLUTIONS)
@settings(max_examples=30)
def test_fans_are_those_of_the_kernel(pre: Shape, connection: Conv2d) -> None:
    """fan_in: every unit of post sums so many products, the entries of its row of the weight."""
    assume(min(pre[1:]) >= max(connection.window()))
    post = connection.makes(pre, 4)
    shape = connection.weight_shape(pre, post)
    assert connection.fans(pre, post) == (math.prod(shape[1:]), math.prod(shape) // shape[1] // connection.groups)
    chain = connection >> AvgPool2d(1)
    assert chain.fans(pre, post) == connection.fans(pre, post)


def test_initial_weights_lie_within_gain_over_the_root_of_fan_in() -> None:
    graph = EnergyGraph("hopfield").input("image", (3, 8, 8)).state("c1", (16, 4, 4))
    graph.output("c2", (32, 2, 2), cost="(x - y)**2/2")
    graph.couple("image", "c1", "conv2d(3, padding=1) >> max_pool2d(2)", parameters={"w": {"gain": 0.4}})
    graph.couple("c1", "c2", "conv2d(3, stride=2, padding=1)", parameters={"w": {"gain": 0.7}})
    model = compile_energy(graph)
    for name, fan_in, gain in (("image_c1.w", 27, 0.4), ("c1_c2.w", 144, 0.7)):
        largest, bound = float(model.tensors[name].detach().abs().max()), gain / fan_in**0.5
        assert 0.95 * bound < largest <= bound


# --------------------------------------------------------------------------- declarations


@given(CONVOLUTIONS, st.sampled_from(["", *POOLS, *SCALES, "max_pool2d(3, stride=2, padding=1)"]))
@settings(max_examples=40)
def test_declarations_are_read_back(connection: Conv2d, behind: str) -> None:
    declared = connection.declaration() + (f" >> {behind}" if behind else "")
    read = parse_connection(declared)
    assert parse_connection(read.declaration()) == read
    if not behind:
        assert read == connection


def test_chains_are_written_alike_in_python_and_yaml() -> None:
    chain = parse_connection("avg_pool2d(2) >> conv2d(3, padding=1) >> max_pool2d(2)")
    assert AvgPool2d(2) >> Conv2d(3, padding=1) >> MaxPool2d(2) == chain
    assert AvgPool2d(2) >> (Conv2d(3, padding=1) >> MaxPool2d(2)) == chain
    assert parse_connection(chain) is chain


WRONG: list[tuple[str, str]] = [
    ("conv2d(0)", "kernel is 0"),
    ("conv2d((3, 0))", r"kernel is \(3, 0\)"),
    ("conv2d((1, 2, 3))", "give a whole number from 1 on, or a pair"),
    ("conv2d(True)", "kernel is True"),
    ("conv2d('a')", "kernel is 'a'"),
    ("conv2d()", "missing a required argument: 'kernel'"),
    ("conv2d(3, stride=0)", "stride is 0"),
    ("conv2d(3, padding=-1)", "padding is -1"),
    ("conv2d(3, dilation=0)", "dilation is 0"),
    ("conv2d(3, groups=0)", "groups is 0"),
    ("conv2d(3, groups=(2, 2))", r"groups is \(2, 2\)"),
    ("conv2d(1, groups=2)", "3 and 4 channels don't divide into 2 groups"),
    ("conv2d(9)", r"window of conv2d\(kernel=9\) is larger than the image \[3, 8, 8\]"),
    ("conv2d(3)", r"makes \[4, 6, 6\] of \[3, 8, 8\], but post has \[4, 8, 8\]"),
    ("conv2d(3, padding=99)", r"makes \[4, 204, 204\]"),
    ("avg_pool2d(2, padding=2)", "padding 2 is more than half of the kernel 2"),
    ("avg_pool2d(1)", r"makes \[3, 8, 8\] of \[3, 8, 8\], but post has \[4, 8, 8\]"),
    ("upsample(0)", "scale is 0"),
    ("upsample(2, mode='cubic')", "unknown mode 'cubic'"),
    ("max_pool2d(2)", "alone has no weight"),
    ("max_pool2d(1) >> conv2d(1)", "max_pool2d can only be the last"),
    ("conv2d(1) >> max_pool2d(1) >> avg_pool2d(1)", "max_pool2d can only be the last"),
    ("conv2d(1) >> conv2d(1)", "exactly one member of a chain has a weight"),
    ("avg_pool2d(1) >> upsample(1)", "exactly one member of a chain has a weight"),
    ("conv2d(1) >> identity", "exactly one member of a chain has a weight"),
    ("dense >> avg_pool2d(1)", "nothing can follow dense in a chain"),
    ("conv2d(1) >> ", "is not a connection"),
    ("conv2d(1) >> max_pol2d(1)", "did you mean max_pool2d"),
]


def images(declared: str, pre: Any = (3, 8, 8), post: Any = (4, 8, 8)) -> EnergyGraph:
    graph = EnergyGraph("hopfield").input("image", pre).output("out", post, cost="(x - y)**2/2")
    return graph.couple("image", "out", declared)


@pytest.mark.parametrize(("declared", "message"), WRONG, ids=[declared for declared, _ in WRONG])
def test_mistakes_name_the_edge_and_the_fix(declared: str, message: str) -> None:
    with pytest.raises(DeclarationError, match=message) as caught:
        compile_energy(images(declared))
    fault = caught.value.faults[0]
    assert fault.path[:2] == ("edges", "image -> out")
    assert fault.fix


@pytest.mark.parametrize("declared", ["conv2d(9)", "max_pool2d(2)", "conv2d(1) >> conv2d(1)", "conv2d(0)"])
def test_mistakes_name_file_and_line(tmp_path: Path, declared: str) -> None:
    file = tmp_path / "net.yaml"
    file.write_text(
        "energy: hopfield\nnodes:\n  image: {shape: [3, 8, 8], role: input}\n  out: {shape: [4, 8, 8], role: output}\n"
        f"edges:\n  - image -> out: {declared!r}\ncost: (x - y)**2/2\n"
    )
    with pytest.raises(DeclarationError, match=r"net\.yaml:6") as caught:
        load_experiment(file)
    assert re.search(dict(WRONG)[declared], str(caught.value))


def test_nodes_that_are_no_images_are_refused() -> None:
    for pre, post in (((8,), (4,)), ((8, 8), (4, 8, 8))):
        with pytest.raises(ShapeError, match="takes images, but the node has shape"):
            compile_energy(images("conv2d(1)", pre, post))
    with pytest.raises(ShapeError, match=r"but post has \[4\]"):
        compile_energy(images("conv2d(1)", post=(4,)))


def test_inside_a_node_a_convolution_is_refused() -> None:
    graph = EnergyGraph("hopfield").input("image", 3).state("a", (3, 8, 8)).couple("image", "a")
    for declared in ("conv2d(3, padding=1)", "conv2d(3, padding=1) >> max_pool2d(1)"):
        with pytest.raises(DeclarationError, match="doesn't connect the units of one node"):
            graph.couple("a", "a", declared)


@pytest.mark.filterwarnings("ignore:the coupling")
def test_a_coupling_that_does_not_separate_needs_pairs() -> None:
    graph = EnergyGraph("hopfield").input("image", (3, 8, 8)).output("out", (4, 8, 8), cost="(x - y)**2/2")
    graph.couple("image", "out", "conv2d(1)", term="log_cosh(w*pre*post)")
    with pytest.raises(DeclarationError, match=r"over conv2d\(kernel=1\) a coupling must separate") as caught:
        compile_energy(graph)
    assert caught.value.faults[0].path == ("edges", "image -> out")


@pytest.mark.parametrize(
    "term",
    [
        "-w*pre*tanh(post)",
        "-w*(pre + pre**2)*post",
        "w*(pre - post)**2/2",
        "-w*pre*post - w*post",
        "-w*cos(pre - post)",
        "-w*pre*post**2",
        "log_cosh(w*pre*post)",
    ],
)
def test_through_max_pooling_a_coupling_is_one_product_with_post(term: str) -> None:
    graph = EnergyGraph("hopfield").input("image", (3, 8, 8)).output("out", (4, 4, 4), cost="(x - y)**2/2")
    graph.couple("image", "out", "conv2d(3, padding=1) >> max_pool2d(2)", term=term)
    with pytest.raises(
        DeclarationError, match="a coupling must be one product, of post and a function of pre"
    ) as caught:
        compile_energy(graph)
    assert caught.value.faults[0].path == ("edges", "image -> out")
    assert "avg_pool2d" in (caught.value.faults[0].fix or "")
