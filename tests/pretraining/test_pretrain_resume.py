"""Runs that are killed, interrupted or spread over processes end as one that was left alone."""

import dataclasses
import importlib
import multiprocessing
import os
import signal
import socket

import pytest
import torch
from pretrained import assert_equal_runs, lines
from safetensors.torch import load_file

from lbgen import cli
from lbgen.configuration.saved import save
from lbgen.errors import UserError
from lbgen.pretraining import loop
from lbgen.pretraining.run import pretrain

context = multiprocessing.get_context("forkserver")
LOOP = "lbgen.pretraining.loop"
pytestmark = pytest.mark.usefixtures("warm_processes")


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


@pytest.mark.parametrize("update", [2, 4, 6], ids=["within an epoch", "before validation", "of the second epoch"])
def test_the_death_of_a_worker_process_is_told_and_costs_nothing(folder, whole, tmp_path, monkeypatch, update):
    """As the system kills one where memory runs out; the other one does not outlive the run."""
    config = dataclasses.replace(whole, output=tmp_path / "run", workers=2, checkpoint_every=1)
    step, left, others = loop.training_step, [update], set(torch.multiprocessing.active_children())

    def fatal(*arguments):
        left[0] -= 1
        if left[0] == 0:
            worker, _ = set(torch.multiprocessing.active_children()) - others
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()
        return step(*arguments)

    monkeypatch.setattr(loop, "training_step", fatal)
    message = r"a process that loads images ended .*; give fewer --workers and start again"
    with pytest.raises(UserError, match=message) as kept:  # with the frames of the run, as a notebook keeps them
        pretrain(folder, config)
    assert set(torch.multiprocessing.active_children()) <= others, kept
    pretrain(folder, dataclasses.replace(config, workers=0))
    assert_equal_runs(config, whole)


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


def ranked(rank, port, config, folder, calls, signum):
    """One of two processes as torchrun starts them; the second is signalled at an update, with 0 never."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in places.items()})
    step, left = loop.training_step, [calls]

    def signalled(*arguments):
        left[0] -= 1
        if left[0] == 0 and rank == 1:
            os.kill(os.getpid(), signum)
        return step(*arguments)

    loop.training_step = signalled
    save(config, config.folder.parent / f"recipe-{rank}.yaml")
    cli.main(["pretrain", str(folder), "--recipe", str(config.folder.parent / f"recipe-{rank}.yaml")])


def two_processes(config, folder, calls=0, signum=0) -> list[int | None]:
    """Their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [context.Process(target=ranked, args=(rank, port, config, folder, calls, signum)) for rank in (0, 1)]
    for process in started:
        process.start()
    started[1].join(100)
    started[0].join(20 if signum != signal.SIGKILL else 2)
    for process in started:  # the first waits for the second, which was killed
        process.kill()
        process.join()
    return [process.exitcode for process in started]


def test_of_two_processes_one_is_killed_or_stopped_and_the_resumed_run_ends_bit_identical(folder, whole, tmp_path):
    """In the middle of the second epoch, against two processes that were left alone."""
    left_alone, killed, stopped = (
        dataclasses.replace(whole, output=tmp_path / name, batch_size=6) for name in ("left-alone", "killed", "stopped")
    )
    assert two_processes(left_alone, folder) == [0, 0]
    assert two_processes(killed, folder, 6, signal.SIGKILL)[1] == -signal.SIGKILL
    assert two_processes(stopped, folder, 6, signal.SIGTERM) == [143, 143]
    for config in (killed, stopped):
        assert '"epoch": 1,' in (config.folder / "metrics.jsonl").read_text().splitlines()[-1]
        assert two_processes(config, folder) == [0, 0]
        assert_equal_runs(config, left_alone)


def test_two_processes_with_half_the_batch_each_make_the_same_updates(folder, whole, tmp_path):
    """The loss of an epoch without anything random, where only the order of sums differs, against one process.

    A held-out image more or less would change it by far more.
    """
    plain = {"drop_path": 0.0, "auto_augment": None, "mixup": 0.0, "cutmix": 0.0, "random_erasing": 0.0, "epochs": 1}
    plain |= {
        "flip": 0.0,
        "crop_area": (1.0, 1.0),
        "crop_ratio": (1.0, 1.0),
        "interpolation": "bilinear",
        "ema_decay": 0.0,
    }
    # All images in one update, so that the order does not matter.
    one = dataclasses.replace(whole, output=tmp_path / "one", batch_size=44, **plain)
    pretrain(folder, one)
    two = dataclasses.replace(whole, output=tmp_path / "two", batch_size=22, **plain)
    assert two_processes(two, folder) == [0, 0]
    ours, theirs = load_file(two.folder / "backbone.safetensors"), load_file(one.folder / "backbone.safetensors")
    assert all(torch.allclose(ours[name], theirs[name], atol=2e-5) for name in theirs)
    assert lines(two)[0]["loss"] == pytest.approx(lines(one)[0]["loss"], abs=1e-5)
    assert lines(two)[0]["top1"] == pytest.approx(lines(one)[0]["top1"])
