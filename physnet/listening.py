"""Listening to what nodes tell each other, while they relax.

    with listening(listener):
        relax(model, spiking, image=x)

Whoever wants to count spikes or to draw them says so here, and integrators that send messages tell it what is said.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from physnet.coding import Voice
    from physnet.messages import Channel
    from physnet.spiking import Conversation


class Listener:
    """Hears all messages of all relaxations within `listening`; does nothing by itself."""

    def begin(self, talk: Conversation) -> None:
        """A phase begins."""

    def said(self, talk: Conversation, channel: Channel, t: int, message: Tensor, voice: Voice) -> None:
        """A node has said something. What is given is worked on afterwards: keep copies.

        Arguments:
            talk: the messages of the batch.
            channel: who speaks, and of what.
            t: the time since the free phase began, from 1; inputs may speak ahead of the others.
            message: in units of what is said, [rows, *node]; of an input, which all phases hear, a row per sample.
            voice: what there was to say, what is left of it, and what has been understood.
        """


_LISTENERS: ContextVar[tuple[Listener, ...]] = ContextVar("listeners", default=())


def listeners() -> tuple[Listener, ...]:
    """Who listens."""
    return _LISTENERS.get()


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """A context in which a listener hears what is said."""
    token = _LISTENERS.set((*_LISTENERS.get(), listener))
    try:
        yield
    finally:
        _LISTENERS.reset(token)
