"""Chains of connections, and how connections are written.

    conv2d(3, padding=1) >> max_pool2d(2)

A chain carries one weight, that of one of its members. Where the last one selects, as max-pooling does, the coupling is
-<v, max over windows of conv(u, w)>,  and its derivatives flow through the places where the maxima are, the *winners*.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from physnet.calls import parse_call
from physnet.connections import CONNECTIONS, Connection, Linked, Shape
from physnet.errors import DeclarationError


@dataclass(frozen=True)
class Chain(Connection):
    """Connections one after the other. One of them has the weight; one that selects comes last.

    Arguments:
        members: in the order in which a signal passes them.
    """

    members: tuple[Connection, ...]

    def __rshift__(self, other: Connection) -> Chain:
        return Chain((*self.members, *(other.members if isinstance(other, Chain) else (other,))))

    @property
    def selects(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.members[-1].selects

    @property
    def place(self) -> int:
        """Which member has the weight."""
        return next(i for i, member in enumerate(self.members) if member.weighted)

    def shapes(self, pre: Shape, post: Shape) -> tuple[Shape, ...]:
        """The shapes before, between and behind the members."""
        shapes = [pre]
        for member in self.members[:-1]:
            shapes.append(member.makes(shapes[-1], post[0]))
        return (*shapes, post)

    def check_members(self) -> None:
        """Raise `DeclarationError` if these connections don't make a chain, whatever the shapes."""
        if sum(member.weighted for member in self.members) != 1:
            raise DeclarationError(
                f"exactly one member of a chain has a weight, unlike in {self.declaration()}",
                "such as conv2d(3, padding=1) >> avg_pool2d(2); put a node between two weighted connections",
            )
        if any(member.selects for member in self.members[:-1]):
            raise DeclarationError(
                f"max_pool2d can only be the last of a chain, unlike in {self.declaration()}",
                "put a node behind it, or use avg_pool2d, which is linear",
            )

    def check(self, pre: Shape, post: Shape) -> None:
        self.check_members()
        for member, (before, after) in zip(self.members, pairwise(self.shapes(pre, post)), strict=True):
            member.check(before, after)

    def _weighted(self, pre: Shape, post: Shape) -> tuple[Connection, Shape, Shape]:
        shapes = self.shapes(pre, post)
        return self.members[self.place], shapes[self.place], shapes[self.place + 1]

    def weight_shape(self, pre: Shape, post: Shape) -> Shape:
        member, before, after = self._weighted(pre, post)
        return member.weight_shape(before, after)

    def fans(self, pre: Shape, post: Shape) -> tuple[int, int]:
        member, before, after = self._weighted(pre, post)
        return member.fans(before, after)

    def bind(self, pre: Shape, post: Shape) -> Linked:
        from physnet.convolved import ChainLink

        linear = self.members[:-1] if self.selects else self.members
        links, place = list[Linked](), 0
        for member, ends in zip(linear, pairwise(self.shapes(pre, post)), strict=False):
            joined = member.join(links[-1], ends[1]) if links else None
            links[-1 if joined else len(links) :] = [joined or member.bind_member(*ends)]
            place = len(links) - 1 if member.weighted else place
        link = links[0] if len(links) == 1 else ChainLink(tuple(links), place)
        return self.members[-1].select(link, post) if self.selects else link

    def declaration(self) -> str:
        return " >> ".join(member.declaration() for member in self.members)


def parse_connection(declared: object) -> Connection:
    """A connection from its declaration, such as `dense`, or `conv2d(3, padding=1) >> max_pool2d(2)`.

    Raises:
        DeclarationError: for unknown names and wrong arguments, with a caret.
    """
    connection = _read(declared)
    if isinstance(connection, Chain):
        connection.check_members()
    elif connection.selects:
        fix = "put it behind a connection that has one, such as conv2d(3) >> max_pool2d(2)"
        raise DeclarationError(f"{connection.declaration()} alone has no weight", fix)
    return connection


def _read(declared: object) -> Connection:
    if isinstance(declared, Connection):
        return declared
    if not isinstance(declared, str):
        raise DeclarationError(f"expected a connection, found {declared!r}", f"use one of {', '.join(CONNECTIONS)}")
    if ">>" not in declared:
        return parse_call(declared, CONNECTIONS)
    return Chain(tuple(parse_call(member, CONNECTIONS) for member in declared.split(">>")))
