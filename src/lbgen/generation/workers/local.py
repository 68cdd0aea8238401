"""The local engine: shards are drawn by this process, or by several of this machine."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import NamedTuple

import torch

from lbgen.errors import Interrupted, UserError
from lbgen.generation.config import GenerateConfig, worker_name
from lbgen.generation.plan import Plan
from lbgen.generation.workers.preflight import Checked, check
from lbgen.generation.workers.progress import Progress
from lbgen.generation.workers.shard import Job, Worker, device_of, load_models
from lbgen.generation.workers.writer import end_with_parent, start_writers
from lbgen.runs.signals import held_signals, noted_signals
from lbgen.runs.storage import storage_errors

POLL = 0.2
"""Seconds between looks at the signals."""
GRACE = 60.0
"""Seconds that a process has to finish its batch when a run is to end."""


def interrupted(signum: int, output: str) -> Interrupted:
    return Interrupted(signum, f"{output} keeps its finished shards; start again to go on")


class Engine(NamedTuple):
    """What draws, once it has loaded the generator somewhere."""

    checked: Checked
    draw: Callable[[Job, Sequence[int], Callable[[Progress], None], list[int]], None]
    """Draw these shards, report each batch, and end before the next one when there are signals."""


@contextmanager
def this_process(config: GenerateConfig, plan: Plan, count: int) -> Iterator[Engine]:
    """The shards are drawn here, one after the other; the writers start while the generator loads."""
    with start_writers(config.writers) as pool:
        models = load_models(config, plan, device_of(0))

        def draw(job: Job, shards: Sequence[int], report: Callable[[Progress], None], signals: list[int]) -> None:
            draw_here(Worker(job, worker_name(config), models, pool), shards, report, signals)

        yield Engine(check(models.generator, config, plan), draw)


@contextmanager
def processes(config: GenerateConfig, plan: Plan, count: int) -> Iterator[Engine]:
    """The shards are shared out in turn among `count` processes, each with a generator of its own."""
    checked = check(load_models(config, plan, device_of(0)).generator, config, plan)
    torch.cuda.empty_cache()
    yield Engine(checked, partial(draw_in_processes, count))


def draw_here(worker: Worker, shards: Sequence[int], report: Callable[[Progress], None], signals: list[int]) -> None:
    """Draw the shards in this process; a signal ends the run before the next batch."""
    try:
        for shard in shards:
            for progress in worker.make(shard):
                report(progress)
                if signals:
                    worker.finish()
                    raise interrupted(signals[0], worker.config.output)
        worker.finish()
    finally:
        worker.close()


def draw_in_processes(
    count: int, job: Job, shards: Sequence[int], report: Callable[[Progress], None], signals: list[int]
) -> None:
    """Draw the shards in `count` processes; a signal or a process that fails ends them all."""
    spawn = multiprocessing.get_context("spawn")
    running: dict[Connection, SpawnProcess] = {}
    for number in range(min(count, len(shards))):
        ours, theirs = spawn.Pipe(duplex=False)
        running[ours] = spawn.Process(target=serve, args=(job, number, shards[number::count], theirs))
        with held_signals([signal.SIGINT]):  # SIGTERM, which is what `terminate` sends, may end it while it imports
            running[ours].start()
        theirs.close()
    started = list(running.values())
    try:
        follow(running, report, signals, job.config.output)
    finally:
        for process in started:
            process.terminate()  # which it notes, see serve
        for process in started:
            process.join(GRACE)
            process.kill()


def follow(
    running: dict[Connection, SpawnProcess], report: Callable[[Progress], None], signals: list[int], output: str
) -> None:
    """Pass on what the processes report until all have ended."""
    while running:
        if signals:
            raise interrupted(signals[0], output)
        for connection in wait(list(running), timeout=POLL):
            assert isinstance(connection, Connection)
            try:
                message = connection.recv()
            except EOFError:
                process = running.pop(connection)
                process.join()
                refuse_failed(process, output)
                continue
            if isinstance(message, str):
                raise UserError(message)
            report(message)


def refuse_failed(process: SpawnProcess, output: str) -> None:
    """A process that was killed is the user's to mend; one that ended by itself has shown its traceback: our bug."""
    assert process.exitcode is not None
    if process.exitcode < 0:
        raise UserError(
            f"{output}: worker process {process.name} (pid {process.pid}) was killed by "
            f"{signal.Signals(-process.exitcode).name}; if memory ran out, give fewer --workers or a smaller "
            "--batch-size; nothing is lost, start again"
        )
    if process.exitcode > 0:
        raise RuntimeError(f"worker process {process.name} failed, see its traceback above")


def serve(job: Job, number: int, shards: Sequence[int], reports: Connection) -> None:
    """What each of several processes does: progress goes through the connection, and a user's mistake as a text."""
    end_with_parent()
    torch.set_num_threads(job.threads)  # as the first process: the bits of a sum depend on it
    try:
        with noted_signals() as signals, storage_errors(job.config.output), start_writers(job.config.writers) as pool:
            models = load_models(job.config, job.plan, device_of(number))
            worker = Worker(job, f"{worker_name(job.config)}.{number}", models, pool)
            draw_here(worker, shards, reports.send, signals)
    except Interrupted:
        pass
    except UserError as error:
        reports.send(str(error))
