"""Signals that end a run at its next safe point instead of at once."""

import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from lbgen.runs.console import warn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def blocked_signals(signums: Sequence[signal.Signals]) -> Iterator[None]:
    """Block these signals. A process started within the context inherits the block and removes it once it is ready."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signums)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signums)


@contextmanager
def noted_signals(finishing: str = "") -> Iterator[list[int]]:
    """Yield a list to which SIGINT and SIGTERM append their number; a second signal acts as usual.

    finishing: what the run finishes first. The user is told at once, even while the main thread computes.
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
        with _acknowledged(finishing):
            yield received
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


@contextmanager
def _acknowledged(finishing: str) -> Iterator[None]:
    """Answer the first signal with a line from another thread.

    Python's own handlers run only when the main thread returns from C code, and a backward pass may take minutes. The
    C-level handler writes to the wakeup socket immediately.
    """
    if not finishing:
        yield
        return
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_answer, args=(reading, finishing), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writing.shutdown(socket.SHUT_RDWR)  # ends the thread's read, even if a child process inherited this socket
        writing.close()
        thread.join()
        reading.close()


def _answer(reading: socket.socket, finishing: str) -> None:
    while number := reading.recv(1):
        if number[0] in SIGNALS:
            what = "interrupted" if number[0] == signal.SIGINT else "terminated"
            warn(f"{what}; finishing {finishing} first (once more to stop at once)")
            return
