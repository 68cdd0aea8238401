"""The workers of an audit, by what runs them."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from lbgen.audit.config import AuditConfig
from lbgen.audit.workers.observer import NewImage, Observer, SeenBatch, canvas_side, observe_batch
from lbgen.configuration import extensions
from lbgen.errors import UserError
from lbgen.models.loading import device_of
from lbgen.models.registry import SEMANTICS, semantics_location
from lbgen.models.semantics import load_semantics
from lbgen.runs.processes.ray import LOST, actors_to_start, import_ray, join_cluster, one_line
from lbgen.runs.processes.spawned import MEMORY, begin, starting

BATCHES_AHEAD = 2
"""Batches that each worker has or will get next."""
MOST_FAILURES = 3
"""Of one actor of Ray, which is then not started again."""
DECODERS = 8
"""Threads that decode, at most."""


class Workers(NamedTuple):
    """What observes batches of new images."""

    submit: Callable[[Sequence[NewImage]], Future[SeenBatch]]
    ahead: int
    """Batches that may wait for their results."""


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker in another process has to know."""

    semantics: str
    threads: int
    """Of torch on a CPU; sums depend on it in their last bits."""
    decoders: int
    """Threads that decode images."""


@contextmanager
def workers_of(config: AuditConfig, observer: Observer) -> Iterator[Workers]:
    """The workers that a configuration asks for.  observer: of this process."""
    known_here_alone = config.semantics in extensions.REGISTERED["semantics"]
    count = config.workers or (1 if known_here_alone else max(1, torch.cuda.device_count()))
    if config.engine == "local" and count == 1:
        yield this_process(observer)
        return
    decoders = min(DECODERS, max(1, (os.cpu_count() or 1) // count))
    settings = WorkerSettings(with_absolute_path(config.semantics), torch.get_num_threads(), decoders)
    ray = config.engine == "ray"
    with ray_actors(settings, config.workers, config.ray_address) if ray else processes(settings, count) as workers:
        yield workers


def with_absolute_path(semantics: str) -> str:
    """The same language space for workers that run in other folders."""
    place = semantics_location(semantics)
    is_path = semantics not in SEMANTICS and os.path.exists(place)
    return semantics.removesuffix(place) + os.path.abspath(place) if is_path else semantics


# ---- this process ----


def this_process(observer: Observer) -> Workers:
    """Batches are observed when they are submitted."""
    decoders = ThreadPoolExecutor(min(DECODERS, os.cpu_count() or 1))

    def submit(images: Sequence[NewImage]) -> Future[SeenBatch]:
        return done(observe_batch(observer, images, decoders))

    return Workers(submit, 0)


def done(seen: SeenBatch) -> Future[SeenBatch]:
    future: Future[SeenBatch] = Future()
    future.set_result(seen)
    return future


NOTHING = SeenBatch([], {}, {})


# ---- processes of this machine ----


class InWorker:
    """The models of a worker in another process."""

    def __init__(self, settings: WorkerSettings, number: int) -> None:
        torch.set_num_threads(settings.threads)
        space = load_semantics(settings.semantics, torch.device(device_of(number)))
        self.observer = Observer(space, canvas_side(space))
        self.decoders = ThreadPoolExecutor(settings.decoders)

    def observe(self, images: Sequence[NewImage]) -> SeenBatch:
        return observe_batch(self.observer, images, self.decoders)


_worker: InWorker
"""Of this process, where it is a worker."""


def _begin(settings: WorkerSettings, started: Any) -> None:
    """started: shared counter of the workers."""
    global _worker
    begin()
    with started.get_lock():
        number, started.value = started.value, started.value + 1
    _worker = InWorker(settings, number)


def _observe(images: Sequence[NewImage]) -> SeenBatch:
    return _worker.observe(images)


@contextmanager
def processes(settings: WorkerSettings, count: int) -> Iterator[Workers]:
    """Up to `count` processes, each with its own model, on the GPUs in turn; no more than there are batches."""
    spawn = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(count, spawn, _begin, (settings, spawn.Value("q", 0)))

    def submit(images: Sequence[NewImage]) -> Future[SeenBatch]:
        if not images:
            return done(NOTHING)
        with starting():  # the first calls start the processes
            return pool.submit(_observe, images)

    try:
        yield Workers(submit, BATCHES_AHEAD * count)
    except BrokenProcessPool as error:
        raise UserError(f"a worker process of the audit was killed ({one_line(error)}); {MEMORY}") from None
    finally:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        pool.shutdown(cancel_futures=True)


# ---- Ray ----


@contextmanager
def ray_actors(settings: WorkerSettings, count: int | None, address: str | None) -> Iterator[Workers]:
    """Actors of Ray, on the GPUs of the cluster, or on its CPU slots if it has none; no more than there are batches.

    Ray itself starts an actor again that died, and gives it its batches again.
    """
    ray = import_ray()
    join_cluster(ray, address, count)
    try:
        size = actors_to_start(ray, count, address)
        needs = {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {"num_cpus": 1}
        kind = ray.remote(InWorker).options(max_restarts=MOST_FAILURES, max_task_retries=MOST_FAILURES, **needs)
        actors: list[Any] = []
        turn = 0

        def submit(images: Sequence[NewImage]) -> Any:
            nonlocal turn
            if not images:
                return done(NOTHING)
            if len(actors) < size:
                actors.append(kind.remote(settings, 0))  # Ray shows an actor its own GPU alone
            actor = actors[turn % len(actors)]
            turn += 1
            return actor.observe.remote(list(images)).future()

        yield Workers(submit, BATCHES_AHEAD * size)
    except tuple(getattr(ray.exceptions, name) for name in LOST) as error:
        raise UserError(f"Ray workers died: {one_line(error)}; {MEMORY}") from None
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise UserError(f"--engine ray: {one_line(error)}; nothing is lost, start again") from error
    finally:
        ray.shutdown()
