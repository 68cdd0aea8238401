"""`lbgen align --plan`: the work and cost of a run, from its configuration and at most two measured updates."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lbgen.alignment.checkpoint import AlignmentProgress, initial_progress, saved_progress
from lbgen.alignment.config import AlignConfig
from lbgen.alignment.reports.lines import updates
from lbgen.alignment.run import (
    ensure_can_begin,
    ensure_output,
    is_finished,
    start_accelerator,
    system_errors,
    with_evaluation_images,
)
from lbgen.configuration.documentation import Documented
from lbgen.configuration.ranges import ensure_config
from lbgen.runs.console import SIZES, TIMES, counted, device_name, in_units, peak_memory, table
from lbgen.vocabulary.vocabulary import Vocabulary

if TYPE_CHECKING:
    from accelerate import Accelerator

LONGEST_UPDATE = 60.0
"""Seconds. If the first update, which includes one-time work, takes longer, no second update is measured."""


class MeasuredCost(NamedTuple):
    """The measured values in `AlignEstimate`, for one process; None if nothing is to be made."""

    seconds_per_update: float | None = None
    seconds_per_image: float | None = None
    bytes_of_memory: int | None = None


@dataclass(frozen=True)
class AlignEstimate(Documented):
    """The work and cost of an alignment run."""

    updates: int
    """Remaining updates of the adapter."""
    sampled_images: int
    """Images sampled without gradient: for warm-up, evaluations and the bank of the independence term."""
    seconds_per_update: float | None
    """Measured; None if nothing is to be made."""
    seconds_per_image: float | None
    """Time for sampling without gradient, in one process."""
    bytes_of_memory: int | None
    """Peak memory of one process: on the GPU, or of the process if there is no GPU."""
    device: str
    """Name of the device that was measured."""

    @property
    def hours(self) -> float | None:
        """Wall time of the run, without loading models and writing checkpoints."""
        if self.seconds_per_update is None or self.seconds_per_image is None:
            return None
        return (self.updates * self.seconds_per_update + self.sampled_images * self.seconds_per_image) / 3600


def plan_align(config: AlignConfig) -> AlignEstimate:
    """Print and return the work and cost of `align(config)`; nothing is written.

    One or two updates and one batch without gradient are made for the measurement. Raises UserError if `align` would
    do so before its first update.

    >>> import lbgen
    >>> estimate = lbgen.plan_align(lbgen.AlignConfig.from_recipe("independent"))
    """
    ensure_config(config, AlignConfig)
    ensure_output(config)
    config = with_evaluation_images(config)
    with system_errors(config):
        vocabulary, resumed = ensure_can_begin(config)
        accelerator = start_accelerator(config)
        processes = accelerator.num_processes
        progress = initial_progress(config, vocabulary, processes) if resumed is None else saved_progress(resumed)
        nothing = is_finished(config, resumed)
        measured = MeasuredCost() if nothing else measure(config, vocabulary, accelerator, resumed)
    estimate = AlignEstimate(
        updates=max(0, config.max_steps - progress.step),
        sampled_images=sampled_images(config, vocabulary, progress),
        seconds_per_update=measured.seconds_per_update,
        seconds_per_image=measured.seconds_per_image,
        bytes_of_memory=measured.bytes_of_memory,
        device=device_name(accelerator.device),
    )
    if accelerator.is_main_process:
        print(as_text(estimate, config, vocabulary, progress, processes))
    return estimate


def sampled_images(config: AlignConfig, vocabulary: Vocabulary, progress: AlignmentProgress) -> int:
    """Number of images that the main process samples without gradient in the rest of the run."""
    from lbgen.alignment.independence.bank import bank_images  # late: imports torch

    warmup = (config.discriminator_warmup_steps - progress.warmup) * config.warmup_batch
    bank = 0
    if config.independence_weight > 0 and not (progress.step or progress.warmup):
        share = config.batch_size / progress.images_per_update
        bank = round(share * len(bank_images(config.independence_bank, len(vocabulary))))
    assert config.evaluation_images is not None
    return warmup + evaluations(config, progress.step) * config.evaluation_images + bank


def evaluations(config: AlignConfig, done: int) -> int:
    """Number of evaluations after `done` updates: at the start, at every `evaluate_every`-th update and at the end."""
    every = config.evaluate_every or config.max_steps
    regular = config.max_steps // every - done // every
    last = 1 if config.max_steps % every and done < config.max_steps else 0
    return regular + last + (done == 0)


def measure(
    config: AlignConfig, vocabulary: Vocabulary, accelerator: Accelerator, resumed: Path | None
) -> MeasuredCost:
    """Time and memory of one or two updates and of a batch without gradient.

    The independence term is left out: it costs little per update (docs/independence.md), but would need its bank.
    """
    import torch  # late, like all imports that need it

    from lbgen.alignment.loop import training_images, training_step
    from lbgen.alignment.state import AlignmentState

    others = sum(config.weights.values()) - config.independence_weight - config.base_weight
    individual = config.individual_weight if others else 1.0  # an objective without any term is refused
    config = replace(config, individual_weight=individual, independence_weight=0.0)
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(accelerator.device)
    state = AlignmentState(config, vocabulary, accelerator, resumed)
    batch_index = max(state.progress.batch_index, config.discriminator_warmup_steps)  # warm-up batches may be larger

    def sample() -> None:
        with torch.no_grad(), accelerator.autocast():
            training_images(state, batch_index)

    update = timed(lambda: training_step(state, batch_index), accelerator)
    if update < LONGEST_UPDATE:
        update = timed(lambda: training_step(state, batch_index + 1), accelerator)
    return MeasuredCost(update, timed(sample, accelerator) / config.batch_size, peak_memory(accelerator.device))


def timed(work: Callable[[], object], accelerator: Accelerator) -> float:
    """Seconds until the device has finished the work."""
    import torch

    began = time.perf_counter()
    work()
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize(accelerator.device)
    return time.perf_counter() - began


def as_text(
    estimate: AlignEstimate, config: AlignConfig, vocabulary: Vocabulary, progress: AlignmentProgress, processes: int
) -> str:
    """The lines that `lbgen align --plan` prints."""
    prompt = vocabulary.texts(config.prompt_template)[0]
    steps = f"{counted(config.steps, f'{config.scheduler} step')}, {config.differentiated_steps} of them with gradient"
    rows = [
        ("prompt", f'"{prompt}", of the first of {len(vocabulary):,} categories, id {vocabulary[0].id}'),
        ("steps", f"{steps}, {config.guidance}"),
        ("update", counted(progress.images_per_update, "image")),
        ("updates", updates(config) + (f"; {progress.step:,} of them are made" if progress.step else "")),
    ]
    if estimate.hours is None or estimate.seconds_per_update is None or estimate.bytes_of_memory is None:
        return table([*rows, ("to make", "nothing")])
    where = "GPU memory" if estimate.device.partition(",")[0] != "CPU" else "memory"
    devices = "one such device" if processes == 1 else f"{processes} such devices"
    rows += [
        ("besides", f"{counted(estimate.sampled_images, 'image')} to evaluate, warm up and compare with, no gradient"),
        ("speed", f"{in_units(estimate.seconds_per_update, TIMES)} an update, measured here ({estimate.device})"),
        ("time", f"{in_units(estimate.hours * 3600, TIMES)} of {devices}"),
        ("memory", f"{in_units(estimate.bytes_of_memory, SIZES)} of {where} a process, measured"),
    ]
    return table(rows)
