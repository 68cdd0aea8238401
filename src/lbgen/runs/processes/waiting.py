"""How threads of torch wait for each other on a CPU."""

import os

SHORT_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
"""Environment of OpenMP, read when torch is loaded: waiting threads spin for some microseconds, then sleep. If they
only slept, torch would take twice as long on an idle machine; if they only spun, which is the default, four times as
long beside other work (`benchmarks/speed/waiting.py`)."""


def short_waiting() -> dict[str, str]:
    """The variables to add to the environment; none if the user has set how threads wait."""
    if "OMP_WAIT_POLICY" in os.environ:
        return {}
    return {name: value for name, value in SHORT_WAITING.items() if name not in os.environ}
