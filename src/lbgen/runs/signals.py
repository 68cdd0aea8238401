"""Signals that end a run at its next safe point instead of at once."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def blocked_signals(signums: Sequence[signal.Signals]) -> Iterator[None]:
    """Block these signals. A process started within the context inherits that, and unblocks them once it is ready."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signums)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signums)


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Yield a list to which SIGINT and SIGTERM append their number; a second signal acts as usual.

    The list stays empty outside the main thread, because Python delivers signals to the main thread only.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        signal.signal(signum, previous[signal.Signals(signum)])

    previous = {signum: signal.signal(signum, note) for signum in SIGNALS}
    try:
        yield received
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
