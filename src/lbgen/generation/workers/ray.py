"""The Ray engine: actors, one a GPU or CPU slot, take shards until none is left; a dead one is replaced."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig
from lbgen.generation.plan import Plan
from lbgen.generation.workers.local import Engine, interrupted
from lbgen.generation.workers.preflight import Checked, check
from lbgen.generation.workers.progress import Progress
from lbgen.generation.workers.shard import Job, Models, Worker, load_models
from lbgen.generation.workers.writer import start_writers
from lbgen.runs.storage import is_remote

POLL = 0.5
"""Seconds between looks at the signals."""
LARGEST_LOSS = 3
"""Workers in a row that may die without a finished batch before the run gives up."""


class RayWorker:
    """Runs as an actor, in a process of its own on the machine that Ray chose; loads when it is first called."""

    def __init__(self, name: str, device: str, threads: int) -> None:
        self.name, self.device, self.threads = name, device, threads
        self.models: Models | None = None
        self.worker: Worker | None = None

    def check(self, config: GenerateConfig, plan: Plan) -> Checked:
        return check(self._load(config, plan).generator, config, plan)

    def make(self, job: Job, shard: int) -> Iterator[Progress]:
        """Draw a shard, one item a batch; when they end, the shard before is published and this one is on its way."""
        if self.worker is None:
            models = self.models or self._load(job.config, job.plan)
            self.worker = Worker(job, self.name, models, self.pool)
        yield from self.worker.make(shard)

    def finish(self) -> Iterator[Progress]:
        """Wait until the last shard is published, too."""
        assert self.worker is not None
        self.worker.finish()
        self.worker.close()
        yield from ()

    def _load(self, config: GenerateConfig, plan: Plan) -> Models:
        torch.set_num_threads(self.threads)  # as the first process: the bits of a sum depend on it
        self.pool = start_writers(config.writers)
        self.models = load_models(config, plan, self.device)
        return self.models


@contextmanager
def ray_actors(config: GenerateConfig, plan: Plan, count: int) -> Iterator[Engine]:
    """Actors of the cluster at config.ray_address, or of one that is started here for this run, draw the shards."""
    ray = import_ray()
    join(ray, config.ray_address)
    try:
        if not is_remote(config.output):  # actors run in other folders
            config = replace(config, output=os.path.abspath(config.output))
        crew = Crew(ray, config)
        yield Engine(crew.check(plan), crew.draw)
    finally:
        ray.shutdown()


def join(ray: Any, address: str | None) -> None:
    """Join the cluster at `address`, or start one here; the signals stay ours."""
    try:
        if address is not None and re.fullmatch(r"[^/]+:\d+", address):  # Ray itself asks for minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
        handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
        ray.init(
            address=address, include_dashboard=None if address else False, log_to_driver=False, logging_level="ERROR"
        )
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    except OSError as error:  # a ConnectionError, a time-out, an unknown host
        raise UserError(f"--ray-address {address}: no cluster answers there ({error})") from None


@dataclass(frozen=True)
class Busy:
    """An actor and the shards that would be lost with it."""

    actor: Any
    drawing: int | None
    """None once it only publishes."""
    publishing: int | None
    reports: Any
    """Ray's generator of references to what the actor yields."""


class Crew:
    """The actors of a run, and which shards each makes."""

    def __init__(self, ray: Any, config: GenerateConfig) -> None:
        self.ray, self.config = ray, config
        resources = ray.cluster_resources()
        self.gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        self.size = config.workers or self.gpus or cpus
        self.hired = self.losses = 0
        self.first: Any = None

    def check(self, plan: Plan) -> Checked:
        """Asked of the first actor: this process may have neither a GPU nor the weights."""
        self.first = self.hire()
        try:
            with self.own_errors():
                return self.ray.get(self.first.check.remote(self.config, plan))
        except self.ray.exceptions.RayActorError as error:
            raise UserError(f"a Ray worker died while it loaded the generator: {one_line(error)}") from None

    def draw(self, job: Job, shards: Sequence[int], report: Callable[[Progress], None], signals: list[int]) -> None:
        waiting, hired = deque(shards), [self.first, *(self.hire() for _ in range(min(self.size, len(shards)) - 1))]
        self.job = replace(job, config=replace(job.config, output=self.config.output))
        busy = [self.assign(actor, waiting.popleft()) for actor in hired]
        while busy:
            if signals:
                raise interrupted(signals[0], job.config.output)
            ready, _ = self.ray.wait([one.reports for one in busy], num_returns=1, timeout=POLL)
            for one in [one for one in busy if one.reports in ready]:
                if (after := self.follow(one, waiting, report)) is not one:
                    busy.remove(one)
                    busy += [after] if after else []

    def follow(self, one: Busy, waiting: deque[int], report: Callable[[Progress], None]) -> Busy | None:
        """Take one report of an actor; what is it busy with from then on?"""
        try:
            with self.own_errors():
                report(self.ray.get(next(one.reports)))
            self.losses = 0
            return one
        except StopIteration:  # drawn, so that the shard before is published
            if one.drawing is None:
                return None
            if waiting:
                return self.assign(one.actor, waiting.popleft(), publishing=one.drawing)
            return Busy(one.actor, None, one.drawing, one.actor.finish.remote())
        except self.ray.exceptions.RayActorError as error:
            self.losses += 1
            if self.losses >= LARGEST_LOSS:
                raise UserError(f"{self.losses} Ray workers in a row died at once: {one_line(error)}") from None
            waiting.extend(shard for shard in (one.publishing, one.drawing) if shard is not None)
            return self.assign(self.hire(), waiting.popleft())  # half-made shards do not count

    @contextmanager
    def own_errors(self) -> Iterator[None]:
        """Raise what an actor raised; a bug's traceback there is in its cause."""
        try:
            yield
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from error

    def hire(self) -> Any:
        """A new actor, on a GPU where the cluster has any."""
        self.hired += 1
        device, resources = ("cuda", {"num_gpus": 1}) if self.gpus else ("cpu", {"num_cpus": 1})
        actor = self.ray.remote(RayWorker).options(**resources)
        return actor.remote(f"ray-{self.hired}", device, torch.get_num_threads())

    def assign(self, actor: Any, shard: int, publishing: int | None = None) -> Busy:
        return Busy(actor, shard, publishing, actor.make.remote(self.job, shard))


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise UserError("--engine ray needs Ray; install it with `pip install 'lbgen[ray]'`") from None
    return ray
