"""Start, signals and end of the processes that a run spawns."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import ModuleType

from lbgen.runs.processes.waiting import short_waiting
from lbgen.runs.signals import blocked_signals

MEMORY = "if memory ran out, give fewer --workers or a smaller --batch-size; nothing is lost, start again"
"""The remedy for a worker that was killed."""


@contextmanager
def starting() -> Iterator[None]:
    """Context for starting processes; the code that they run first sets their handling of Ctrl-C, usually by `begin`.

    They do not import the caller's main module. Ctrl-C, which a terminal sends to all of them, is blocked while they
    import, so that it does not end them with a traceback; the process that started them ends them. Their threads wait
    like those of the command line (`waiting.py`).
    """
    added = short_waiting()
    resource_tracker.ensure_running()  # starting it within the context would unblock Ctrl-C
    os.environ |= added
    try:
        with blocked_signals([signal.SIGINT]), hidden_main():
            yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def begin() -> None:
    """Called in a new process: it ends with its parent, ignores Ctrl-C, and ends at SIGTERM."""
    follow_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def heed_no_signals(worker: int = 0) -> None:
    """Called in a DataLoader's worker: ignores Ctrl-C, which reaches it too, and leaves the decision to its parent."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def hidden_main() -> Iterator[None]:
    """Keep processes that are started within the context from importing the caller's main module.

    Python imports it in every spawned process, because functions may be defined there. A script without
    `if __name__ == "__main__"` would then run again in each, and a program from standard input cannot be found.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def follow_parent() -> None:
    """End this process as soon as its parent has ended, also if the parent was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
