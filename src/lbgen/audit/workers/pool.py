"""Running the workers of an audit: in this process, in local processes, or by Ray."""

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
"""Number of batches that each worker has or will get next."""
MOST_FAILURES = 3
"""Number of deaths after which a Ray actor is not started again."""
DECODERS = 8
"""Threads that decode, at most."""


class Workers(NamedTuple):
    """Workers that observe batches of new images."""

    submit: Callable[[Sequence[NewImage]], Future[SeenBatch]]
    ahead: int
    """Batches that may wait for their results."""


@dataclass(frozen=True)
class WorkerSettings:
    """The settings of a worker in another process."""

    semantics: str
    threads: int
    """Number of torch's threads on a CPU; the last bits of sums depend on it."""
    decoders: int
    """Number of threads that decode images."""


@contextmanager
def workers_of(config: AuditConfig, observer: Observer) -> Iterator[Workers]:
    """The configured workers.  observer: of this process."""
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
    """The language space with an absolute path, for workers in other working folders."""
    place = semantics_location(semantics)
    is_path = semantics not in SEMANTICS and os.path.exists(place)
    return semantics.removesuffix(place) + os.path.abspath(place) if is_path else semantics


# ---- this process ----


def this_process(observer: Observer) -> Workers:
    """A worker in this process, which observes a batch when it is submitted."""
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
"""The models of this process, if it is a worker."""


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
    """Up to `count` processes, but no more than batches, each with its own model, on the GPUs in turn."""
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
    """Ray actors on the GPUs of the cluster, or on its CPU slots if it has no GPU; no more than batches.

    Ray itself restarts an actor that died, and submits its batches again.
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
                actors.append(kind.remote(settings, 0))  # an actor sees only its own GPU
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
