"""The Ray engine: actors, one a GPU or CPU slot, take shards until none is left; a dead one is replaced."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lbgen.errors import UserError
from lbgen.generation.bar import Progress
from lbgen.generation.local_workers import interrupted
from lbgen.generation.worker import Job, open_worker
from lbgen.storage import is_remote

POLL = 0.5
"""Seconds between looks at the signals."""
LARGEST_LOSS = 3
"""Workers in a row that may die without a finished batch before the run gives up."""


class RayWorker:
    """Runs as an actor, in a process of its own on the machine that Ray chose."""

    def __init__(self, job: Job, name: str, device: str) -> None:
        self.worker = open_worker(job, name, device)

    def make(self, shard: int) -> Iterator[Progress]:
        """Draw and publish a shard; one item a batch."""
        yield from self.worker.make(shard)
        self.worker.finish()

    def close(self) -> None:
        self.worker.close()


@dataclass(frozen=True)
class Busy:
    """An actor and the shard that it makes."""

    actor: Any
    shard: int
    reports: Any
    """Ray's generator of references to what the actor yields."""


def draw_with_ray(job: Job, shards: Sequence[int], report: Callable[[Progress], None], signals: list[int]) -> None:
    """Draw the shards on the cluster at config.ray_address, or on one that is started here for this run."""
    ray = import_ray()
    join(ray, job.config.ray_address)
    try:
        config = job.config
        if not is_remote(config.output):  # actors run in other folders
            config = replace(config, output=os.path.abspath(config.output))
        Crew(ray, replace(job, config=config), report).draw(deque(shards), signals)
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


class Crew:
    """The actors of a run, and which shard each makes."""

    def __init__(self, ray: Any, job: Job, report: Callable[[Progress], None]) -> None:
        self.ray, self.job, self.report = ray, job, report
        resources = ray.cluster_resources()
        self.gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        self.size = job.config.workers or self.gpus or cpus
        self.hired = self.losses = 0

    def draw(self, shards: deque[int], signals: list[int]) -> None:
        busy = [self.assign(self.hire(), shards.popleft()) for _ in range(min(self.size, len(shards)))]
        while busy:
            if signals:
                raise interrupted(signals[0], self.job.config.output)
            ready, _ = self.ray.wait([one.reports for one in busy], num_returns=1, timeout=POLL)
            for one in [one for one in busy if one.reports in ready]:
                if (after := self.follow(one, shards)) is not one:
                    busy.remove(one)
                    busy += [after] if after else []

    def follow(self, one: Busy, shards: deque[int]) -> Busy | None:
        """Take one report of an actor; what is it busy with from then on?"""
        try:
            self.report(self.ray.get(next(one.reports)))
            self.losses = 0
            return one
        except StopIteration:
            if shards:
                return self.assign(one.actor, shards.popleft())
            one.actor.close.remote()
            return None
        except self.ray.exceptions.RayTaskError as error:  # what the worker itself raised
            raise error.cause from None
        except self.ray.exceptions.RayActorError as error:
            self.losses += 1
            if self.losses >= LARGEST_LOSS:
                raise UserError(
                    f"{self.losses} Ray workers in a row died at once: {' '.join(str(error).split())}"
                ) from None
            return self.assign(self.hire(), one.shard)  # a half-made shard does not count

    def hire(self) -> Any:
        """A new actor, on a GPU where the cluster has any."""
        self.hired += 1
        device, resources = ("cuda", {"num_gpus": 1}) if self.gpus else ("cpu", {"num_cpus": 1})
        return self.ray.remote(RayWorker).options(**resources).remote(self.job, f"ray-{self.hired}", device)

    def assign(self, actor: Any, shard: int) -> Busy:
        return Busy(actor, shard, actor.make.remote(shard))


def import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise UserError("--engine ray needs Ray; install it with `pip install 'lbgen[ray]'`") from None
    return ray
