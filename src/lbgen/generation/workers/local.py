"""The local engine: shards are drawn by this process, or by several processes of this machine."""

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
from lbgen.generation.workers.loading import load_models
from lbgen.generation.workers.preflight import PreflightResult, preflight
from lbgen.generation.workers.progress import WorkerProgress
from lbgen.generation.workers.shard import Worker, WorkerContext
from lbgen.models.loading import device_of
from lbgen.runs.identity import Identity
from lbgen.runs.processes.spawned import MEMORY, follow_parent, starting
from lbgen.runs.signals import SIGNALS, noted_signals
from lbgen.runs.storage import storage_errors

POLL_SECONDS = 0.2
"""Seconds between two checks for signals."""
GRACE_SECONDS = 60.0
"""Seconds that a process has to finish its batch when the run ends early."""

Report = Callable[[WorkerProgress], None]


class Engine(NamedTuple):
    """Runs the workers of a run; the generator is already loaded, in this or another process."""

    preflight: PreflightResult
    draw: Callable[[WorkerContext, Sequence[int], Report, list[int]], None]
    """Draw these shards and report each batch; stop before the next batch after a signal."""


@contextmanager
def this_process(config: GenerateConfig, plan: Plan, count: int, recorded: Identity | None) -> Iterator[Engine]:
    """Draw the shards in this process, one after the other."""
    models = load_models(config, plan, device_of(0))

    def draw(context: WorkerContext, shards: Sequence[int], report: Report, signals: list[int]) -> None:
        draw_here(Worker(context, worker_name(config), models), shards, report, signals)

    yield Engine(preflight(models, config, plan, recorded), draw)


@contextmanager
def processes(config: GenerateConfig, plan: Plan, count: int, recorded: Identity | None) -> Iterator[Engine]:
    """Distribute the shards in turn among `count` processes, each with its own generator."""
    result = preflight(load_models(config, plan, device_of(0)), config, plan, recorded)
    torch.cuda.empty_cache()
    yield Engine(result, partial(draw_in_processes, count))


def draw_here(worker: Worker, shards: Sequence[int], report: Report, signals: list[int]) -> None:
    """Draw the shards in this process; a signal ends the run before the next batch."""
    try:
        for shard in shards:
            for progress in worker.make_shard(shard):
                report(progress)
                if signals:
                    worker.finish()
                    raise interrupted(signals[0], worker.config.output)
        worker.finish()
        worker.clear()
    finally:
        worker.close()


def draw_in_processes(
    count: int, context: WorkerContext, shards: Sequence[int], report: Report, signals: list[int]
) -> None:
    """Draw the shards in `count` processes; a signal, or the failure of one process, ends all of them."""
    spawn = multiprocessing.get_context("spawn")
    running: dict[Connection, SpawnProcess] = {}
    for number in range(min(count, len(shards))):
        receiving, sending = spawn.Pipe(duplex=False)
        running[receiving] = spawn.Process(target=serve, args=(context, number, shards[number::count], sending))
        with starting():
            running[receiving].start()
        sending.close()
    started = list(running.values())
    try:
        relay(running, report, signals, context.config.output)
    finally:
        for process in started:
            process.terminate()  # `serve` notes the signal and finishes its batch
        for process in started:
            process.join(GRACE_SECONDS)
            process.kill()


def relay(running: dict[Connection, SpawnProcess], report: Report, signals: list[int], output: str) -> None:
    """Pass on the reports of the processes until all have ended."""
    while running:
        if signals:
            raise interrupted(signals[0], output)
        for connection in wait(list(running), timeout=POLL_SECONDS):
            assert isinstance(connection, Connection)
            try:
                message = connection.recv()
            except EOFError:
                process = running.pop(connection)
                process.join()
                raise_failure(process, output)
                continue
            if isinstance(message, str):
                raise UserError(message)
            report(message)


def raise_failure(process: SpawnProcess, output: str) -> None:
    """Raise UserError for a process that was killed, and RuntimeError for one that failed because of a bug."""
    assert process.exitcode is not None
    if process.exitcode < 0:
        raise UserError(
            f"{output}: worker process {process.name} (pid {process.pid}) was killed by "
            f"{signal.Signals(-process.exitcode).name}; {MEMORY}"
        )
    if process.exitcode > 0:
        raise RuntimeError(f"worker process {process.name} failed, see its traceback above")


def serve(context: WorkerContext, number: int, shards: Sequence[int], reports: Connection) -> None:
    """The main function of each process. It sends its progress, and the text of a UserError, through `reports`."""
    end_with_parent()
    config = context.config
    torch.set_num_threads(context.threads)  # as in the first process: sums depend on it in their last bits
    try:
        with noted_signals() as signals, storage_errors(config.output):
            models = load_models(config, context.plan, device_of(number))
            worker = Worker(context, f"{worker_name(config)}.{number}", models)
            draw_here(worker, shards, reports.send, signals)
    except Interrupted:
        pass
    except UserError as error:
        reports.send(str(error))


def end_with_parent() -> None:
    """Make this process ignore SIGINT and SIGTERM, and end when its parent ends for any reason."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    follow_parent()


def interrupted(signum: int, output: str) -> Interrupted:
    return Interrupted(signum, f"{output} keeps its finished shards and what is drawn of others; start again to go on")
