"""`lbgen pretrain --plan`: the data and cost of a run, from its configuration and a few measured updates."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lbgen.configuration.documentation import Documented
from lbgen.configuration.ranges import ensure_config
from lbgen.pretraining.config import PretrainConfig
from lbgen.pretraining.lines import described_data, described_model
from lbgen.pretraining.run import dataset_folders, ensure_can_begin, make_course, make_state, ready_sources
from lbgen.runs.console import SIZES, TIMES, counted, device_name, in_units, peak_memory, table
from lbgen.runs.storage import storage_errors
from lbgen.training import processes

if TYPE_CHECKING:
    from lbgen.pretraining.feed.catalogue import Sources
    from lbgen.pretraining.state import PretrainingState

MEASURED_UPDATES, LONGEST = 10, 30.0
"""Number of measured updates after a first one, and seconds after which no further update is begun."""


@dataclass(frozen=True)
class PretrainEstimate(Documented):
    """The work and cost of a pre-training."""

    images: int
    """Number of images in an epoch, over all folders with their weights."""
    validation_images: int
    """Number of validation images."""
    updates: int
    """Remaining updates of all epochs."""
    epochs: int
    """Remaining epochs."""
    seconds_per_update: float | None
    """Measured, including the loading of images; None if nothing is to be made."""
    seconds_per_validation: float | None
    """Measured; None if nothing is to be made."""
    bytes_of_memory: int | None
    """Peak memory of one process: on the GPU, or of the process if there is no GPU."""
    device: str
    """Name of the device that was measured."""

    @property
    def hours(self) -> float | None:
        """Wall time of the run, without reading the index and writing checkpoints."""
        if self.seconds_per_update is None or self.seconds_per_validation is None:
            return None
        return (self.updates * self.seconds_per_update + self.epochs * self.seconds_per_validation) / 3600


def plan_pretrain(
    directories: str | Path | Sequence[str | Path], config: PretrainConfig | None = None
) -> PretrainEstimate:
    """Print and return the work and cost of `pretrain(directories, config)`; nothing is written.

    A few updates are made for the measurement. Raises UserError if `pretrain` would do so before its first update.

    >>> import lbgen
    >>> estimate = lbgen.plan_pretrain("data/toy", lbgen.PretrainConfig.from_recipe("micro"))
    """
    config = PretrainConfig() if config is None else config
    ensure_config(config, PretrainConfig)
    folders = dataset_folders(directories)
    ensure_can_begin(folders, config)
    with storage_errors(f"--output {config.folder}"):
        sources = ready_sources(folders, config)
        from lbgen.pretraining.loop import kept_randomness, updates_of  # late: imports torch

        accelerator = processes.start_accelerator(config.precision, "none", config.folder, [])
        with kept_randomness():
            state = make_state(config, sources, accelerator)
            left = config.epochs - state.progress.epoch
            made = state.progress.update
            images = sum(updates_of(state, sources).images)
            measured = measure(state, sources) if left else None
    estimate = PretrainEstimate(
        images=images,
        validation_images=sum(map(len, sources.validation)),
        updates=left * state.updates_per_epoch - made,
        epochs=left,
        seconds_per_update=measured and measured[0],
        seconds_per_validation=measured and measured[1],
        bytes_of_memory=measured and measured[2],
        device=device_name(accelerator.device),
    )
    if accelerator.is_main_process:
        print(as_text(estimate, config, folders, sources, state))
    return estimate


def measure(state: PretrainingState, sources: Sources) -> tuple[float, float, int]:
    """Seconds of an update and of a validation, and peak memory in bytes."""
    import torch

    from lbgen.pretraining.loop import training_step, updates_of, validate_on, validation_requests

    device, course = state.accelerator.device, make_course(state, sources, [])
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with course.feed.working():
        plan = updates_of(state, sources)
        first, batches = state.progress.update, course.feed.batches(plan.requests[: 1 + MEASURED_UPDATES])
        state.trained.train()
        update = timed_steps(
            (training_step(state, batch, len(batch.labels) / plan.images[first]) for batch in batches), device
        )
        requests = validation_requests(state, sources)
        validation = 0.0
        if requests:
            steps = (validate_on(state, batch) for batch in course.feed.batches(requests[: 1 + MEASURED_UPDATES]))
            validation = timed_steps(steps, device) * len(requests)
    return update, validation, peak_memory(device)


def timed_steps(steps: Iterator[object], device: object) -> float:
    """Seconds of one step; the first step, which includes one-time work, is left out if there are more."""
    import torch

    took, began = [], time.perf_counter()
    for _ in steps:
        if getattr(device, "type", "") == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        took.append(now - began)
        began = now
        if sum(took) > LONGEST:
            break
    later = took[1:] or took
    return sum(later) / len(later)


def as_text(
    estimate: PretrainEstimate,
    config: PretrainConfig,
    folders: Sequence[Path],
    sources: Sources,
    state: PretrainingState,
) -> str:
    """The lines that `lbgen pretrain --plan` prints."""
    processes = state.accelerator.num_processes
    rows = [
        *described_data(config, folders, sources),
        ("architecture", described_model(config, state)),
        ("update", f"{counted(state.images_per_update, 'image')} at most"),
        ("epoch", f"{counted(estimate.images, 'image')} in {counted(state.updates_per_epoch, 'update')}"),
        ("to make", f"{counted(estimate.updates, 'update')} of {counted(estimate.epochs, 'epoch')}"),
    ]
    if estimate.hours is None or estimate.seconds_per_update is None or estimate.bytes_of_memory is None:
        return table([*rows[:-1], ("to make", "nothing")])
    where = "GPU memory" if estimate.device.partition(",")[0] != "CPU" else "memory"
    devices = "one such device" if processes == 1 else f"{processes} such devices"
    images = estimate.images / state.updates_per_epoch / estimate.seconds_per_update
    rows += [
        ("speed", f"{images:,.0f} images/s, measured here ({estimate.device})"),
        ("time", f"{in_units(estimate.hours * 3600, TIMES)} of {devices}"),
        ("memory", f"{in_units(estimate.bytes_of_memory, SIZES)} of {where} a process, measured"),
    ]
    return table(rows)
