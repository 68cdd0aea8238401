"""The local engine: shards are drawn by this process, or by several of this machine."""

from __future__ import annotations

import multiprocessing
import queue
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue

from lbgen.errors import Interrupted, UserError
from lbgen.generation.bar import Bar, Progress
from lbgen.generation.worker import Job, Worker, device_of, open_worker
from lbgen.generation.writing import end_with_parent
from lbgen.models.generator import Generator

POLL = 0.2
"""Seconds between looks at the other processes."""


def interrupted(signum: int, output: str) -> Interrupted:
    return Interrupted(signum, f"{output} keeps its finished shards; start again to go on")


def draw_here(job: Job, name: str, generator: Generator, shards: Sequence[int], bar: Bar, signals: list[int]) -> None:
    """Draw the shards in this process; a signal ends the run before the next batch."""
    worker = Worker(job, name, generator)
    try:
        for shard in shards:
            for progress in worker.make(shard):
                bar.add(progress)
                if signals:
                    worker.finish()
                    raise interrupted(signals[0], job.config.output)
        worker.finish()
    finally:
        worker.close()


def draw_in_processes(job: Job, count: int, shards: Sequence[int], bar: Bar, signals: list[int]) -> None:
    """Draw the shards in `count` processes, shared out in turn; a signal or a process that fails ends them all."""
    spawn = multiprocessing.get_context("spawn")
    reports: Queue[Progress | str] = spawn.Queue()
    parts = [shards[number::count] for number in range(min(count, len(shards)))]
    processes = [spawn.Process(target=serve, args=(job, number, part, reports)) for number, part in enumerate(parts)]
    for process in processes:
        process.start()
    try:
        watch(processes, reports, bar, signals, job.config.output)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def watch(
    processes: Sequence[BaseProcess], reports: Queue[Progress | str], bar: Bar, signals: list[int], output: str
) -> None:
    """Pass on what the processes report until all have ended."""
    running = True
    while running:
        running = any(process.is_alive() for process in processes)
        try:
            while True:
                report = reports.get(timeout=POLL if running else 0)
                if isinstance(report, str):
                    raise UserError(report)
                bar.add(report)
                if signals:
                    break
        except queue.Empty:
            pass
        if signals:
            raise interrupted(signals[0], output)
        if any(process.exitcode not in (None, 0) for process in processes):
            raise UserError(f"{output}: a worker process was killed (out of memory?); nothing is lost, start again")


def serve(job: Job, number: int, shards: Sequence[int], reports: Queue[Progress | str]) -> None:
    """What each of several processes does."""
    end_with_parent()
    try:
        worker = open_worker(job, f"worker-{number}", device_of(number))
        for shard in shards:
            for progress in worker.make(shard):
                reports.put(progress)
        worker.finish()
        worker.close()
    except UserError as error:
        reports.put(str(error))
    except OSError as error:
        reports.put(f"{job.config.output}: {error.strerror or error}; nothing is lost, mend it and start again")
