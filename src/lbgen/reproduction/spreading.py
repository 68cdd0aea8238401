"""Distributing units of work over processes: each unit starts as soon as the units that it needs are done."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager

from lbgen.errors import Interrupted
from lbgen.reproduction.config import ReproduceConfig
from lbgen.reproduction.units import Done, Unit, needs, run_unit
from lbgen.runs.processes.spawned import begin, starting


def run_units(config: ReproduceConfig, units: Sequence[Unit], workers: int) -> Iterator[tuple[Unit, Done]]:
    """Do all units, none of which may be done; yields each unit with its marker as soon as it is done.

    A single worker is this process. After an error, the other workers finish their current unit and end.
    """
    waiting = list(units)
    if workers == 1:
        with one_thread():
            for unit in waiting:
                yield unit, run_unit(config, unit)
        return
    with _pool(workers) as pool:
        running: dict[Future[Done | int], Unit] = {}
        while waiting or running:
            # Start units whose needs are done, in order, up to the number of workers.
            missing = {*waiting, *running.values()}
            ready = [unit for unit in waiting if not missing & set(needs(unit))]
            for unit in ready[: workers - len(running)]:
                waiting.remove(unit)
                with starting():  # the first call starts the processes
                    running[pool.submit(_in_worker, config, unit)] = unit

            # Collect finished units.
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                unit, found = running.pop(future), future.result()
                if isinstance(found, int):
                    raise Interrupted(found, f"interrupted in {unit.title}; the same command goes on")
                yield unit, found


@contextmanager
def one_thread() -> Iterator[None]:
    """Make torch compute with one thread, so that results do not depend on the number of processors."""
    import torch  # late: slow

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes that are asked to stop if an error or a signal ends this one."""
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin_worker)
    try:
        yield pool
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin_worker() -> None:
    import torch

    begin()  # the main process forwards Ctrl-C as SIGTERM
    torch.set_num_threads(1)


def _in_worker(config: ReproduceConfig, unit: Unit) -> Done | int:
    """The finished unit, or the number of the signal that ended it, because Interrupted cannot be pickled."""
    try:
        return run_unit(config, unit)
    except Interrupted as interrupt:
        return interrupt.signum
