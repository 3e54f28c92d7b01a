"""Ctrl-C and SIGTERM as a wish to stop, instead of an end in the middle of something."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
MESSAGE = b"\nstopping after this step; once more to leave at once\n"


@contextmanager
def stopping_on_signals(stop: Callable[[], None], *, repeated: bool = False) -> Iterator[list[int]]:
    """Inside this context the first SIGINT or SIGTERM calls `stop`; a second one ends the process on the spot.

    Arguments:
        repeated: whether one wish may arrive as several signals, as below a launcher that passes them on. Later ones
            are then ignored, and leaving at once is left to the launcher.

    Yields:
        The signals that have come, as a list that grows.
    """
    received: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN if repeated else signal.SIG_DFL)
        received.append(number)
        stop()
        if not repeated:
            os.write(2, MESSAGE)

    # a process in the background of a shell ignores SIGINT, and goes on doing so
    before = {each: signal.getsignal(each) for each in SIGNALS if signal.getsignal(each) is not signal.SIG_IGN}
    for each in before:
        signal.signal(each, handle)
    try:
        yield received
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
