"""Runs that are killed, interrupted or spread over processes end as one that was left alone."""

import dataclasses
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pretrained import assert_equal_runs

from lbgen import cli
from lbgen.configuration.saved import save
from lbgen.pretraining import loop
from lbgen.pretraining.run import pretrain

context = multiprocessing.get_context("forkserver")
LOOP = "lbgen.pretraining.loop"
context.set_forkserver_preload([LOOP])


def train_until(config, folder, module, name, calls):
    """Train, and be killed by the system at the given call of a function; in a process of its own."""
    module = importlib.import_module(module)
    function, left = getattr(module, name), [calls]

    def fatal(*arguments, **options):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    setattr(module, name, fatal)
    pretrain(folder, config)


def ended(target, *arguments) -> int:
    process = context.Process(target=target, args=arguments)
    process.start()
    process.join(120)
    return process.exitcode


def test_killed_at_any_moment_and_resumed_the_run_ends_bit_identical(folder, whole, tmp_path):
    """SIGKILL before the first checkpoint, in the middle of epochs, and between the files of one's end."""
    killed = dataclasses.replace(whole, output=tmp_path / "run")
    moments = [
        (LOOP, "training_step", 2),  # before the first checkpoint
        (LOOP, "training_step", 4),  # a checkpoint was written after two updates
        ("lbgen.pretraining.export", "write_backbone", 1),  # the end of the first epoch
        ("lbgen.training.metrics", "append_line", 1),  # resumed, the backbone is written
        (LOOP, "validate", 2),  # in the validation of the second epoch
        (LOOP, "training_step", 5),  # in the third epoch
    ]
    for module, name, calls in moments:
        assert ended(train_until, killed, folder, module, name, calls) == -signal.SIGKILL, (name, calls)
    assert ended(pretrain, folder, killed) == 0
    assert_equal_runs(killed, whole)


def test_workers_and_checkpoints_change_nothing(folder, whole, tmp_path):
    """Two worker processes and no checkpoint within epochs, against none and one after two updates."""
    other = dataclasses.replace(whole, output=tmp_path / "run", workers=2, checkpoint_every=100)
    pretrain(folder, other)
    assert_equal_runs(other, whole)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_next_start_goes_on_bit_identically(folder, whole, tmp_path, signum):
    stopped = dataclasses.replace(whole, output=tmp_path / "run", checkpoint_every=100)
    save(stopped, tmp_path / "recipe.yaml")
    argv = ["pretrain", str(folder), "--recipe", str(tmp_path / "recipe.yaml")]
    assert ended(command_line_until, argv, signum, 7) == 128 + signum
    assert ended(cli.main, argv) == 0
    assert_equal_runs(stopped, whole)


def command_line_until(argv, signum, calls):
    """`lbgen pretrain`, signalled in the update of this number."""
    step, left = loop.training_step, [calls]

    def signalled(*arguments):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signum)
        return step(*arguments)

    loop.training_step = signalled
    cli.main(argv)


TWO_PROCESSES = """
import os, signal, sys
from lbgen.pretraining import loop
from lbgen.cli import main
step, left = loop.training_step, [int(sys.argv[1])]
def fatal(*arguments):
    left[0] -= 1
    if left[0] == 0 and os.environ["RANK"] == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*arguments)
loop.training_step = fatal
main(sys.argv[3:])
"""
"""lbgen, in which one of the processes is killed at an update."""


def test_of_two_processes_one_is_killed_and_the_resumed_run_ends_bit_identical(folder, whole, tmp_path):
    """In the middle of the second epoch, against two processes that were left alone."""
    script = tmp_path / "killed.py"
    script.write_text(TWO_PROCESSES)
    runs = [dataclasses.replace(whole, output=tmp_path / name, batch_size=6) for name in ("left-alone", "killed")]
    left_alone, killed = runs
    assert two_processes(script, 99, folder, left_alone, tmp_path) == 0
    assert two_processes(script, 6, folder, killed, tmp_path) != 0
    assert not (killed.folder / "metrics.jsonl").read_text().count('"epoch": 2')
    assert two_processes(script, 99, folder, killed, tmp_path) == 0
    assert_equal_runs(killed, left_alone)


def two_processes(script: Path, calls: int, folder: Path, config, tmp_path: Path) -> int:
    save(config, tmp_path / "recipe.yaml")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    own = [str(calls), "1", "pretrain", str(folder), "--recipe", str(tmp_path / "recipe.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([*command, *own], env=environment, capture_output=True, text=True, timeout=180).returncode
