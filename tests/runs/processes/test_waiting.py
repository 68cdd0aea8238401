"""The number of idle cores, from times like those of Linux, and the threads that a quickstart takes."""

import os
import sys

import pytest
import torch

from lbgen.quickstart.run import threads_on_idle_cores
from lbgen.runs.processes import waiting


@pytest.mark.parametrize(("idle_of_100", "cores"), [(100, 4), (74, 3), (50, 2), (26, 1), (0, 1)])
def test_idle_cores(idle_of_100, cores, tmp_path, monkeypatch):
    """Four processors; the guests' times, at the end, are counted a second time by Linux and must not be."""
    before, after = "cpu  50 5 20 900 100 3 2 1 40 5", "cpu  {} 5 20 {} {} 3 2 1 90 5"
    times = tmp_path / "stat"
    times.write_text(before + "\ncpu0 1 2 3\n")
    waited = idle_of_100 // 4  # a processor that waits for a disk is idle too
    later = after.format(150 - idle_of_100, 900 + idle_of_100 - waited, 100 + waited)
    monkeypatch.setattr(waiting, "PROCESSOR_TIMES", times)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr("time.sleep", lambda seconds: times.write_text(later + "\n"))
    assert waiting.idle_cores() == cores


def test_idle_cores_are_not_known_without_such_times(tmp_path, monkeypatch):
    monkeypatch.setattr(waiting, "PROCESSOR_TIMES", tmp_path / "absent")
    assert waiting.idle_cores() is None


@pytest.mark.parametrize(
    ("set_by_user", "idle", "threads"), [(None, 1, 1), (None, 64, 2), (None, None, 2), ("2", 1, 2)]
)
def test_threads_of_a_quickstart(set_by_user, idle, threads, monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if set_by_user is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", set_by_user)
    module = sys.modules[threads_on_idle_cores.__module__]  # `lbgen.quickstart` is also the name of the function
    monkeypatch.setattr(module, "idle_cores", lambda: idle)
    torch.set_num_threads(2)
    try:
        with threads_on_idle_cores():
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
