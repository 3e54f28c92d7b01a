"""Which pairs of units a coupling joins, and how weights are shared among them.

A connection is a linear map of the state of its pre node for a given weight, with its adjoint and the correlation that
is the gradient with respect to the weight:

    <v, apply(u, w)> = <adjoint(v, w), u> = <correlate(u, v, w), w>

`adjoint` and `correlate` have default implementations by automatic differentiation, so that a new connection needs no
more than shapes and `apply`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from physnet.calls import write_call
from physnet.errors import DeclarationError, ShapeError
from physnet.registry import Registry, subclass_of

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Connection(ABC):
    """Base of all connections: a frozen dataclass whose fields are the arguments of its declaration."""

    weighted: ClassVar[bool] = True
    """Whether it has a weight of its own when it is the member of a chain."""
    selects: ClassVar[bool] = False
    """Whether it passes on the largest of several values: `select` then says of what, and comes last in a chain."""

    @abstractmethod
    def check(self, pre: Shape, post: Shape) -> None:
        """Raise `ShapeError` if nodes of these shapes can't be connected so."""

    @abstractmethod
    def weight_shape(self, pre: Shape, post: Shape) -> Shape:
        """Shape of one edge parameter."""

    @abstractmethod
    def fans(self, pre: Shape, post: Shape) -> tuple[int, int]:
        """How many units feed one unit of post, and how many units one unit of pre feeds."""

    @abstractmethod
    def bind(self, pre: Shape, post: Shape) -> Linked:
        """The map between nodes of these shapes."""

    def makes(self, pre: Shape, channels: int) -> Shape:
        """What shape follows on `pre` in a chain; `channels` of them, if that is free.

        Raises:
            ShapeError: if nothing can follow, or it can't take that shape.
        """
        name = self.declaration()
        raise ShapeError(f"nothing can follow {name} in a chain, since it makes any shape", f"put {name} last")

    def bind_member(self, pre: Shape, post: Shape) -> Linked:
        """The map as the member of a chain, where what isn't `weighted` ignores its weight."""
        return self.bind(pre, post)

    def join(self, link: Linked, post: Shape) -> Linked | None:
        """The map behind another one as a single map, where that is cheaper than one after the other."""
        return None

    def select(self, link: Linked, post: Shape) -> Linked:
        """The map behind another one, for a connection that `selects`."""
        raise NotImplementedError

    def declaration(self) -> str:
        """The connection as it is written in a file; `parse_connection` reads it back."""
        return write_call(self, CONNECTIONS)


class Linked(ABC):
    """A connection between two nodes of known shapes. States are [rows, *node]; one row is one sample of one phase."""

    @abstractmethod
    def apply(self, u: Tensor, w: Tensor) -> Tensor:
        """The drive on post: linear in u, [rows, *pre] -> [rows, *post], and linear in w."""

    def affine(self, u: Tensor, w: Tensor, b: Tensor) -> Tensor:
        """apply(u, w) + b, where b broadcasts over [rows, *post]."""
        return self.apply(u, w) + b

    def adjoint(self, v: Tensor, w: Tensor) -> Tensor:
        """The drive on pre: [rows, *post] -> [rows, *pre], the transpose of `apply` in u."""
        import torch

        with torch.inference_mode(False), torch.enable_grad():
            u = torch.zeros((v.shape[0], *self.pre), dtype=v.dtype, device=v.device, requires_grad=True)
            return torch.autograd.grad(self.apply(u, w), u, v)[0]

    def correlate(self, u: Tensor, v: Tensor, w: Tensor) -> Tensor:
        """d <v, apply(u, w)> / dw, summed over rows; has the shape of w, whose values aren't used."""
        import torch

        with torch.enable_grad():
            w = w.detach().requires_grad_()
            return torch.autograd.grad(self.apply(u, w), w, v)[0]

    # Couplings that don't separate are evaluated over all pairs. A connection that can list its pairs overrides these.

    def pairs(self, pre: Tensor, post: Tensor) -> tuple[Tensor, Tensor]:
        """States of both ends, shaped so that they and a weight broadcast to [rows, *weight]."""
        raise DeclarationError(
            f"over {type(self).__name__} a coupling must separate into products of pre and post",
            "use a dense connection, or another coupling",
        )

    def to_pre(self, values: Tensor) -> Tensor:
        """Sum over the pairs of each unit of pre: [rows, *weight] -> [rows, *pre]."""
        return self.pairs(values, values)[0]

    def to_post(self, values: Tensor) -> Tensor:
        """Sum over the pairs of each unit of post: [rows, *weight] -> [rows, *post]."""
        return self.pairs(values, values)[1]

    def __init__(self, pre: Shape, post: Shape) -> None:
        self.pre, self.post = pre, post


class Selecting(Linked):
    """A connection that passes on the largest of several values: linear once these *winners* are known.

        apply(u, w) = S_u link(u, w),      S_u depends on u

    Its adjoint therefore takes the state of pre too, and so does what stands in for v in a correlation. Changes are
    those from a state of pre `u` and of post `v`, in the dtype of the products if that is narrower.
    """

    link: Linked
    """The map before the selection."""

    @abstractmethod
    def adjoint(self, v: Tensor, w: Tensor, u: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The drive on pre, through the winners that `u` has."""

    @abstractmethod
    def place(self, v: Tensor, w: Tensor, u: Tensor) -> Tensor:
        """S_u^T v: what `correlate` takes for v."""

    def placed(self, v: Tensor, w: Tensor, u: Tensor) -> Tensor:
        """`place`, for who needs it both to go back through the link and to correlate: it may be kept."""
        return self.place(v, w, u)

    @abstractmethod
    def place_moved(self, v: Tensor, w: Tensor, moved: Tensor, u: Tensor) -> Tensor:
        """place(v, w, u + moved)"""

    @abstractmethod
    def apply_change(self, change: Tensor, w: Tensor, u: Tensor) -> Tensor:
        """apply(u + change, w) - apply(u, w)"""

    @abstractmethod
    def adjoint_change(self, change: Tensor, w: Tensor, v: Tensor, moved: Tensor, u: Tensor) -> Tensor:
        """adjoint(v + change, w, u + moved) - adjoint(v, w, u)"""

    @abstractmethod
    def place_change(self, change: Tensor, w: Tensor, v: Tensor, moved: Tensor, u: Tensor) -> Tensor:
        """place(v + change, w, u + moved) - place(v, w, u)"""


class RealLink(Linked):
    """A connection whose weights are real, for states that may be complex: real and imaginary parts pass it apart.

    Products run in the dtype of the weight, and give the dtype of the state.
    """

    def __init__(self, link: Linked) -> None:
        super().__init__(link.pre, link.post)
        self.link, self.pairs, self.to_pre, self.to_post = link, link.pairs, link.to_pre, link.to_post

    def apply(self, u: Tensor, w: Tensor) -> Tensor:
        return _in_parts(u, w, self.link.apply)

    def affine(self, u: Tensor, w: Tensor, b: Tensor) -> Tensor:
        if u.dtype == w.dtype == b.dtype:
            return self.link.affine(u, w, b)
        return self.apply(u, w) + b

    def adjoint(self, v: Tensor, w: Tensor) -> Tensor:
        found = _in_parts(v, w, self.link.adjoint)
        return found if found.dtype == v.dtype else found.to(v.dtype)  # sums may have come in a wider one

    def correlate(self, u: Tensor, v: Tensor, w: Tensor) -> Tensor:
        return self.link.correlate(u, v, w)


def _in_parts(u: Tensor, w: Tensor, apply: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    if not u.is_complex():
        return apply(u, w) if w.dtype == u.dtype else apply(u.to(w.dtype), w).to(u.dtype)
    import torch

    rows = u.shape[0]
    both = apply(torch.cat([u.real, u.imag]), w)
    return torch.complex(both[:rows], both[rows:])


@dataclass(frozen=True)
class Dense(Connection):
    """Every unit of pre with every unit of post:  apply(u, w)_i = sum_j w_ij u_j.

    The weight has shape [post units, pre units], as that of `torch.nn.Linear`; nodes of several axes are flattened,
    channels first. A scalar weight makes it a mean field: one sum instead of a matrix product.
    """

    def check(self, pre: Shape, post: Shape) -> None:
        pass

    def weight_shape(self, pre: Shape, post: Shape) -> Shape:
        return math.prod(post), math.prod(pre)

    def fans(self, pre: Shape, post: Shape) -> tuple[int, int]:
        return math.prod(pre), math.prod(post)

    def bind(self, pre: Shape, post: Shape) -> Linked:
        return _DenseLink(pre, post)


class _DenseLink(Linked):
    def apply(self, u: Tensor, w: Tensor) -> Tensor:
        if w.dim() == 0:
            return (u.flatten(1).sum(1) * w).view(-1, *(1,) * len(self.post)).expand(-1, *self.post)
        return self._as(_flat(u) @ w.mT, self.post)

    def affine(self, u: Tensor, w: Tensor, b: Tensor) -> Tensor:
        if w.dim() == 0 or b.shape != self.post or len(self.post) > 1:
            return self.apply(u, w) + b
        return b.addmm(_flat(u), w.mT)

    def adjoint(self, v: Tensor, w: Tensor) -> Tensor:
        if w.dim() == 0:
            return (v.flatten(1).sum(1) * w).view(-1, *(1,) * len(self.pre)).expand(-1, *self.pre)
        return self._as(_flat(v) @ w, self.pre)

    def correlate(self, u: Tensor, v: Tensor, w: Tensor) -> Tensor:
        if w.dim() == 0:
            return v.flatten(1).sum(1) @ u.flatten(1).sum(1)
        return _flat(v).mT @ _flat(u)

    def pairs(self, pre: Tensor, post: Tensor) -> tuple[Tensor, Tensor]:
        return pre.flatten(1)[:, None, :], post.flatten(1)[:, :, None]

    def to_pre(self, values: Tensor) -> Tensor:
        return self._as(values.sum(1), self.pre)

    def to_post(self, values: Tensor) -> Tensor:
        return self._as(values.sum(2), self.post)

    @staticmethod
    def _as(x: Tensor, shape: Shape) -> Tensor:
        return x if len(shape) == 1 else x.unflatten(1, shape)


def _flat(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x.flatten(1)


@dataclass(frozen=True)
class Identity(Connection):
    """Unit i of pre with unit i of post:  apply(u, w)_i = w_i u_i. The weight has the shape of the nodes."""

    def check(self, pre: Shape, post: Shape) -> None:
        if pre != post:
            raise ShapeError(
                f"identity joins nodes of one shape, but pre has {list(pre)} and post has {list(post)}",
                "make the shapes equal, or use dense",
            )

    def weight_shape(self, pre: Shape, post: Shape) -> Shape:
        return post

    def fans(self, pre: Shape, post: Shape) -> tuple[int, int]:
        return 1, 1

    def bind(self, pre: Shape, post: Shape) -> Linked:
        return _IdentityLink(pre, post)


class _IdentityLink(Linked):
    def apply(self, u: Tensor, w: Tensor) -> Tensor:
        return u * w

    def adjoint(self, v: Tensor, w: Tensor) -> Tensor:
        return v * w

    def correlate(self, u: Tensor, v: Tensor, w: Tensor) -> Tensor:
        return (u * v).sum(0) if w.dim() else (u * v).sum()

    def pairs(self, pre: Tensor, post: Tensor) -> tuple[Tensor, Tensor]:
        return pre, post

    def to_pre(self, values: Tensor) -> Tensor:
        return values

    def to_post(self, values: Tensor) -> Tensor:
        return values


CONNECTIONS: Registry[type[Connection]] = Registry(
    "connection", "physnet.connections", {"dense": Dense, "identity": Identity}, subclass_of(Connection)
)
"""Connections by the name that declarations use."""
