"""Time and peak memory of a command. A light module: a child process starts with the peak memory of its parent."""

import os
import subprocess
import sys
import time


def run_lbgen(*arguments: str) -> tuple[float, int]:
    """Run `lbgen ARGUMENTS`; seconds of wall time and peak bytes."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "lbgen", *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"lbgen {' '.join(arguments)}: exit code {process.returncode}")
    return time.perf_counter() - began, usage.ru_maxrss * 1024
