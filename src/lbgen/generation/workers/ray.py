"""The Ray engine: each actor, on one GPU or CPU slot, takes shards until none is left; a dead actor is replaced."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig
from lbgen.generation.plan import Plan
from lbgen.generation.workers.loading import Models, load_models
from lbgen.generation.workers.local import Engine, Report, interrupted
from lbgen.generation.workers.preflight import PreflightResult, preflight
from lbgen.generation.workers.progress import WorkerProgress
from lbgen.generation.workers.shard import Worker, WorkerContext
from lbgen.runs.identity import Identity
from lbgen.runs.processes.ray import LOST, actors_to_start, import_ray, join_cluster, one_line
from lbgen.runs.processes.spawned import MEMORY
from lbgen.runs.storage import is_remote

POLL_SECONDS = 0.5
"""Seconds between two checks for signals."""
MOST_FAILURES = 3
"""The run fails after this number of actors in a row died without finishing a batch."""


class RayWorker:
    """An actor: it runs in its own process on a machine chosen by Ray, and loads its models at the first call."""

    def __init__(self, name: str, device: str, threads: int) -> None:
        self.name, self.device, self.threads = name, device, threads
        self.models: Models | None = None
        self.worker: Worker | None = None

    def preflight(self, config: GenerateConfig, plan: Plan, recorded: Identity | None = None) -> PreflightResult:
        return preflight(self._load(config, plan), config, plan, recorded)

    def make_shard(self, context: WorkerContext, shard: int) -> Iterator[WorkerProgress]:
        """Draw a shard; yields once per batch. At the end only the previous shard is certainly published."""
        if self.worker is None:
            models = self.models or self._load(context.config, context.plan)
            self.worker = Worker(context, self.name, models)
        yield from self.worker.make_shard(shard)

    def finish(self) -> Iterator[WorkerProgress]:
        """Wait until the last shard is published; yields nothing."""
        assert self.worker is not None
        self.worker.finish()
        self.worker.close()
        self.worker.clear()
        yield from ()

    def _load(self, config: GenerateConfig, plan: Plan) -> Models:
        torch.set_num_threads(self.threads)  # as in the first process: sums depend on it in their last bits
        self.models = load_models(config, plan, self.device)
        return self.models


@contextmanager
def ray_actors(config: GenerateConfig, plan: Plan, count: int, recorded: Identity | None) -> Iterator[Engine]:
    """Draw the shards by actors, in the cluster at config.ray_address or in one that is started for this run."""
    ray = import_ray()
    join_cluster(ray, config.ray_address, config.workers)
    try:
        if not is_remote(config.output):  # actors have other working folders
            config = replace(config, output=os.path.abspath(config.output))
        pool = ActorPool(ray, config)
        yield Engine(pool.preflight(plan, recorded), pool.draw)
    except ray.exceptions.RayError as error:
        raise UserError(f"--engine ray: {one_line(error)}; nothing is lost, start again") from error
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class Assignment:
    """An actor, and the shards that would have to be drawn again if it dies."""

    actor: Any
    drawing: int | None
    """None if it only finishes publishing."""
    publishing: int | None
    reports: Any
    """Ray's generator of references to the actor's results."""


class ActorPool:
    """The actors of a run, and the assignment of shards to them."""

    def __init__(self, ray: Any, config: GenerateConfig) -> None:
        self.ray, self.config = ray, config
        self.gpus = int(ray.cluster_resources().get("GPU", 0))
        self.size = actors_to_start(ray, config.workers, config.ray_address)
        self.spawned = self.failures = 0
        self.lost = tuple(getattr(ray.exceptions, name) for name in LOST)
        self.first: Any = None

    def preflight(self, plan: Plan, recorded: Identity | None) -> PreflightResult:
        """Run the preflight in the first actor, because this process may have neither a GPU nor the weights."""
        self.first = self.spawn()
        try:
            with self.actor_errors():
                return self.ray.get(self.first.preflight.remote(self.config, plan, recorded))
        except self.lost as error:
            raise UserError(f"a Ray worker died while it loaded the generator: {one_line(error)}; {MEMORY}") from None

    def draw(self, context: WorkerContext, shards: Sequence[int], report: Report, signals: list[int]) -> None:
        """Draw the shards and report each batch; stop after a signal."""
        waiting = deque(shards)
        actors = [self.first, *(self.spawn() for _ in range(min(self.size, len(shards)) - 1))]
        # Stored once for all shards: with its plan, the context of a large vocabulary has megabytes.
        self.context = self.ray.put(replace(context, config=replace(context.config, output=self.config.output)))
        assignments = [self.assign(actor, waiting.popleft()) for actor in actors]
        while assignments:
            if signals:
                raise interrupted(signals[0], context.config.output)
            ready, _ = self.ray.wait([each.reports for each in assignments], num_returns=1, timeout=POLL_SECONDS)
            for assignment in [each for each in assignments if each.reports in ready]:
                following = self.take_report(assignment, waiting, report)
                if following is not assignment:
                    assignments.remove(assignment)
                    assignments += [following] if following else []

    def take_report(self, assignment: Assignment, waiting: deque[int], report: Report) -> Assignment | None:
        """Take one report of an actor, and return its next assignment; None if it is done."""
        try:
            with self.actor_errors():
                report(self.ray.get(next(assignment.reports)))
            self.failures = 0
            return assignment
        except StopIteration:  # the shard is drawn, so the previous shard is published
            if assignment.drawing is None:
                return None
            if waiting:
                return self.assign(assignment.actor, waiting.popleft(), publishing=assignment.drawing)
            return Assignment(assignment.actor, None, assignment.drawing, assignment.actor.finish.remote())
        except self.lost as error:
            self.ray.kill(assignment.actor)  # if it is still alive, it would keep its GPU or CPU slot
            self.failures += 1
            if self.failures >= MOST_FAILURES:
                message = f"{self.failures} Ray workers in a row died at once: {one_line(error)}; {MEMORY}"
                raise UserError(message) from None
            lost = (assignment.publishing, assignment.drawing)
            waiting.extend(shard for shard in lost if shard is not None)
            return self.assign(self.spawn(), waiting.popleft())

    @contextmanager
    def actor_errors(self) -> Iterator[None]:
        """Re-raise an actor's exception; its cause holds the actor's traceback."""
        try:
            yield
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from error

    def spawn(self) -> Any:
        """A new actor, on a GPU if the cluster has any."""
        self.spawned += 1
        device, resources = ("cuda", {"num_gpus": 1}) if self.gpus else ("cpu", {"num_cpus": 1})
        actor = self.ray.remote(RayWorker).options(**resources)
        return actor.remote(f"ray-{self.spawned}", device, torch.get_num_threads())

    def assign(self, actor: Any, shard: int, publishing: int | None = None) -> Assignment:
        return Assignment(actor, shard, publishing, actor.make_shard.remote(self.context, shard))
