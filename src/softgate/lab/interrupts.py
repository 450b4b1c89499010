"""Ctrl-C and SIGTERM while training: finish the step, write a checkpoint, then leave with the usual exit status."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(SystemExit):
    """A run stopped by a signal after its checkpoint was written.

    It is a ``SystemExit``: uncaught it ends the process with status 130 (SIGINT) or 143 (SIGTERM), and
    ``except Exception`` around a cell does not mistake it for a failure of the cell.

    Attributes:
        signum: the signal.
        exit_code: ``128 + signum``.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum
        self.exit_code = 128 + signum

    def __reduce__(self) -> tuple[type[Interrupted], tuple[int]]:
        return Interrupted, (self.signum,)


class SignalFlag:
    """Remembers the first signal that arrived; ``signum`` is 0 until then."""

    def __init__(self) -> None:
        self.signum = 0


@contextmanager
def deferred_signals() -> Iterator[SignalFlag]:
    """Turn the first SIGINT or SIGTERM inside the block into a flag; a second one acts at once, as outside the block.

    Outside the main thread Python delivers no signals, so nothing is installed there.
    """
    flag = SignalFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def note(signum: int, frame: FrameType | None) -> None:
        flag.signum = signum
        restore()

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield flag
    finally:
        restore()
