"""The local engine: shards are drawn by this process, or by several of this machine."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from lbgen.errors import Interrupted, UserError
from lbgen.generation.bar import Progress
from lbgen.generation.config import worker_name
from lbgen.generation.run import disk_message
from lbgen.generation.worker import Job, Worker, device_of, open_worker
from lbgen.generation.writing import end_with_parent
from lbgen.interrupts import noted_signals

POLL = 0.2
"""Seconds between looks at the signals."""
GRACE = 60.0
"""Seconds that a process has to finish its batch when a run is to end."""


def interrupted(signum: int, output: str) -> Interrupted:
    return Interrupted(signum, f"{output} keeps its finished shards; start again to go on")


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
    job: Job, count: int, shards: Sequence[int], report: Callable[[Progress], None], signals: list[int]
) -> None:
    """Draw the shards in `count` processes, shared out in turn; a signal or a process that fails ends them all."""
    spawn = multiprocessing.get_context("spawn")
    processes: dict[Connection, SpawnProcess] = {}
    for number in range(min(count, len(shards))):
        ours, theirs = spawn.Pipe(duplex=False)
        processes[ours] = spawn.Process(target=serve, args=(job, number, shards[number::count], theirs))
        processes[ours].start()
        theirs.close()
    try:
        follow(dict(processes), report, signals, job.config.output)
    finally:
        for process in processes.values():
            process.terminate()  # which it notes, see serve
        for process in processes.values():
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
                if process.exitcode:
                    lost = f"{output}: a worker process was killed (out of memory?); nothing is lost, start again"
                    raise UserError(lost) from None
                continue
            if isinstance(message, str):
                raise UserError(message)
            report(message)


def serve(job: Job, number: int, shards: Sequence[int], reports: Connection) -> None:
    """What each of several processes does: progress goes through the connection, and a user's mistake as a text."""
    end_with_parent()
    try:
        with noted_signals() as signals:
            draw_here(
                open_worker(job, f"{worker_name(job.config)}.{number}", device_of(number)),
                shards,
                reports.send,
                signals,
            )
    except Interrupted:
        pass
    except UserError as error:
        reports.send(str(error))
    except OSError as error:
        reports.send(disk_message(job.config.output, error))
