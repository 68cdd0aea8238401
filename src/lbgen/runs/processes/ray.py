"""Joining a Ray cluster and reporting its errors. The actors themselves are defined in the stages."""

from __future__ import annotations

import os
import re
import signal
import socket
from typing import Any

from lbgen.errors import UserError
from lbgen.runs.console import warn

LOST = ("RayActorError", "OutOfMemoryError", "WorkerCrashedError", "NodeDiedError", "ObjectLostError")
"""Ray's exceptions for a process that was killed (also for lack of memory) or whose machine failed."""
LONGEST_CAUSE = 300
"""Characters kept of Ray's own message, which can list all processes of a machine."""


def join_cluster(ray: Any, address: str | None, workers: int | None = None) -> None:
    """Join the cluster at `address`, or start one here; the signal handlers of this process are unchanged.

    Without an address, the one in the environment is used, as Ray does; a cluster that happens to run on this machine
    is not joined.
    workers: the number of workers of the run. A cluster started here has a CPU slot for each; an actor without a slot
    would wait forever.
    """
    joins = starts_nothing(address)
    slots = {} if joins or not workers else {"num_cpus": max(workers, os.cpu_count() or 1)}
    try:
        if address is not None and re.fullmatch(r"[^/]+:\d+", address):  # Ray itself would try for minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
        handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
        ray.init(
            address=address if joins else "local",
            include_dashboard=None if joins else False,
            log_to_driver=False,
            logging_level="ERROR",
            **slots,
        )
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    except OSError as error:  # a ConnectionError, a time-out, an unknown host
        raise UserError(
            f"--ray-address {address}: no cluster answers there ({error}); correct it, or leave it out to start Ray "
            "on this machine"
        ) from None


def starts_nothing(address: str | None) -> bool:
    """Whether there is a cluster to join, so that none is started."""
    return address is not None or "RAY_ADDRESS" in os.environ


def actors_to_start(ray: Any, workers: int | None, address: str | None) -> int:
    """`workers`, or one for each GPU of the cluster, or for each CPU slot if it has none.

    Further actors would wait forever if Ray was started here, and in a cluster until it grows.
    """
    resources = ray.cluster_resources()
    places = int(resources.get("GPU", 0)) or int(resources.get("CPU", 1))
    if workers is None or workers <= places:
        return workers or places
    if not starts_nothing(address):
        return places
    warn(f"the Ray cluster has slots for {places} of {workers} workers; the others wait until it grows")
    return workers


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= LONGEST_CAUSE else f"{text[:LONGEST_CAUSE]}..."


def import_ray() -> Any:
    try:
        import ray  # late: an optional dependency
    except ImportError:
        raise UserError("--engine ray needs Ray; install it with `pip install 'lbgen[ray]'`") from None
    return ray
