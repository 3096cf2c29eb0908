"""Signals as something that a loop may look at when it suits it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType


class Interrupted(Exception):  # noqa: N818 (an answer to a signal, not an error)
    """SIGTERM or SIGINT came, here or in another process of the run; the run is saved."""

    def __init__(self, signals: list[int], saved: Path) -> None:
        self.signum = signals[0] if signals else signal.SIGTERM
        super().__init__(f"{signal.Signals(self.signum).name}: saved {saved}; continue with --resume")


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """A list that SIGTERM and SIGINT append themselves to; a second SIGINT acts as it always did.

    A second SIGTERM does not: at a time limit SLURM sends one to every process, and torchrun another to its workers.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught  # Python delivers signals to the main thread alone
        return
    previous = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}

    def handle(signum: int, _frame: FrameType | None) -> None:
        caught.append(signum)
        if signum == signal.SIGINT:
            signal.signal(signum, previous[signal.SIGINT])

    for signum in previous:
        signal.signal(signum, handle)
    try:
        yield caught
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
