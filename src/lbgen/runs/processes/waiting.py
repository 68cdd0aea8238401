"""How threads of torch wait for each other on a CPU, and how many cores are idle for them."""

import os
import time
from pathlib import Path

SHORT_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
"""Environment of OpenMP, read when torch is loaded: waiting threads spin for some microseconds, then sleep. If they
only slept, torch would take twice as long on an idle machine; if they only spun, which is the default, four times as
long beside other work (`benchmarks/speed/waiting.py`)."""
PROCESSOR_TIMES = Path("/proc/stat")
"""Where Linux reports the time that all processors spent on each kind of work."""
OBSERVED_FOR = 0.5
"""Seconds for which `idle_cores` looks at the machine; Linux counts hundredths of a second."""


def short_waiting() -> dict[str, str]:
    """The variables to add to the environment; none if the user has set how threads wait."""
    if "OMP_WAIT_POLICY" in os.environ:
        return {}
    return {name: value for name, value in SHORT_WAITING.items() if name not in os.environ}


def idle_cores() -> int | None:
    """The mean number of idle processors over half a second, rounded, at least 1; None where the system does not tell.

    Threads of torch share each operation equally and wait for the slowest. So a thread on a busy processor makes all
    of them slow: beside other work one thread was faster than two (`benchmarks/speed/waiting.py`).
    """
    try:
        idle, total = _times()
        time.sleep(OBSERVED_FOR)
        idle_later, total_later = _times()
        share = (idle_later - idle) / (total_later - total)
    except (OSError, ValueError, IndexError, ZeroDivisionError):  # some containers hide the file or stop its numbers
        return None
    return max(1, round((os.cpu_count() or 1) * share))


def _times() -> tuple[int, int]:
    """Hundredths of a second, summed over the processors: idle or waiting for a disk, and in all."""
    times = [int(number) for number in PROCESSOR_TIMES.read_text().splitlines()[0].split()[1:9]]  # the rest is in these
    return times[3] + times[4], sum(times)
