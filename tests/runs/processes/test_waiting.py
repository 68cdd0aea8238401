"""The number of idle cores, from times like those of Linux."""

import os

import pytest

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


@pytest.mark.parametrize("content", [None, "", "cpu  0 0 0 0 0 0 0 0 0 0\n", "cpu  1 2 3\n", "cpu  a b c d e\n"])
def test_idle_cores_are_not_known_without_such_times(content, tmp_path, monkeypatch):
    """Without the file, or where a container shows numbers that stand still, or other content."""
    times = tmp_path / "stat"
    if content is not None:
        times.write_text(content)
    monkeypatch.setattr(waiting, "PROCESSOR_TIMES", times)
    monkeypatch.setattr(waiting, "OBSERVED_FOR", 0)
    assert waiting.idle_cores() is None
