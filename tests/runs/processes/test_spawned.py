"""What processes that a run starts get from it."""

import multiprocessing
import os

import pytest

from lbgen.runs.processes.spawned import starting


@pytest.mark.parametrize(
    "own, expected",
    [
        ({}, ("PASSIVE", "1000")),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ("ACTIVE", None)),
        ({"GOMP_SPINCOUNT": "7"}, ("PASSIVE", "7")),
    ],
)
def test_threads_of_a_worker_wait_briefly_unless_the_user_says_otherwise(monkeypatch, own, expected):
    """Also where Python starts it, not the command line; the environment of the caller stays as it was."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with starting(), multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.map(os.getenv, ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"))
    assert tuple(found) == expected and dict(os.environ) == before
