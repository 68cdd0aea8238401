"""`lbgen` as a user runs it, in a process of its own or in this one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lbgen.cli import main


def run(*argv: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "lbgen", *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


def spawned_in(folder: Path) -> list[int]:
    """The processes that multiprocessing started from one whose folder this is."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            command, place = Path(f"/proc/{pid}/cmdline").read_bytes(), Path(f"/proc/{pid}/cwd").readlink()
        except OSError:  # it has ended
            continue
        if b"spawn_main" in command and place == folder:
            found.append(int(pid))
    return found


def refused(result: subprocess.CompletedProcess) -> str:
    """The one line on stderr of a run that ended with exit code 2; it may have said before what it was to do."""
    assert result.returncode == 2, result.stderr
    assert result.stdout == "" or result.stdout.startswith("lbgen ")
    assert result.stderr.startswith("lbgen: ") and result.stderr.count("\n") == 1
    return result.stderr


def refused_here(capsys, *argv: str) -> str:
    """The same in this process, which is faster."""
    with pytest.raises(SystemExit) as ended:
        main(argv)
    output = capsys.readouterr()
    return refused(subprocess.CompletedProcess(argv, ended.value.code, output.out, output.err))
