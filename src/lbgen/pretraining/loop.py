"""The training loop: one update reads from top to bottom in `training_step`, the course of a run in `train`."""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from timm.utils.distributed import distribute_bn
from torch import Tensor, nn

from lbgen.errors import Interrupted, UserError
from lbgen.pretraining import export
from lbgen.pretraining.config import CHECKPOINT
from lbgen.pretraining.feed.catalogue import Catalogue, Sources
from lbgen.pretraining.feed.images import MOST_BROKEN, Feed, Request, TrainingBatch
from lbgen.pretraining.feed.order import Numbers, batch_sizes, epoch_batches, images_of_epoch, read_blocks
from lbgen.pretraining.state import Best, PretrainingState
from lbgen.runs.console import Progress, warn
from lbgen.training import metrics
from lbgen.training.processes import received_signal

SHOWN_EVERY = 20
"""Updates between two checks of the loss, which have to wait for the GPU."""
VALIDATION_BATCHES = 2
"""Size of validation batches relative to training batches; they need less memory."""
NAMED_FAULTS = 3
"""Most broken images named per epoch; further ones are only counted."""


class Validation(NamedTuple):
    """The results on the validation images."""

    loss: float
    top1: float
    top5: float
    """Shares in [0, 1]; top-5 of fewer than five categories is 1."""


@dataclass
class Course:
    """The data of a run besides the state: its images, and the signals to stop it."""

    sources: Sources
    feed: Feed
    signals: list[int]
    """Numbers of the signals received so far."""


def training_step(state: PretrainingState, batch: TrainingBatch, share: float) -> Tensor:
    """One update.  share: this process's share of the update's images.  Returns the sum of the losses, float64."""
    # Images on the device, normalised; randomness of this update and process.
    seed_step(state.config.seed, state.step, state.accelerator.process_index)
    images, labels = on_device(state, batch)
    images = state.erase(images) if state.config.random_erasing else images
    targets = labels
    if state.mix is not None:
        images, targets = state.mix(images, labels)

    # Loss: the mean over the images of all processes, whose gradients are averaged with equal weights.
    with state.accelerator.autocast():
        logits = state.trained(images)
    loss = state.loss(logits.float(), targets)
    state.accelerator.backward(loss * (share * state.accelerator.num_processes))

    # Weights, their average, and the learning rate of the next update.
    if state.config.max_grad_norm:
        state.accelerator.clip_grad_norm_(state.trained.parameters(), state.config.max_grad_norm)
    state.optimizer.step()
    state.optimizer.zero_grad()
    if state.average is not None:
        state.average.update(state.model, step=state.step + 1)
    state.progress.update += 1
    state.schedule.step_update(state.step)
    return loss.detach().double() * len(labels)


def on_device(state: PretrainingState, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
    """The model's input images (B, 3, H, W), float32, and labels (B,)."""
    device = state.accelerator.device
    images = batch.images.to(device, non_blocking=True).float()  # keeps the layout
    return images.sub_(state.mean).div_(state.std), batch.labels.to(device, non_blocking=True)


# ---- the course of a run ----


def train(state: PretrainingState, course: Course) -> None:
    """Train up to config.epochs; validate after each, and save.

    Raises Interrupted, after saving, if a signal is received; UserError for a loss that is not finite.
    """
    while state.progress.epoch < state.config.epochs:
        # Updates, then validation.
        plan, began, first = updates_of(state, course.sources), time.perf_counter(), state.progress.update
        loss_sum = train_epoch(state, course, plan)
        seconds = time.perf_counter() - began
        validation = validate(state, course)

        # Write the epoch's metrics, the backbone if it is the best so far, and a checkpoint.
        row = {
            "epoch": state.progress.epoch + 1,
            "step": state.step,
            "loss": state.accelerator.reduce(loss_sum, "sum").item() / sum(plan.images),
            "top1": validation and validation.top1,
            "top5": validation and validation.top5,
            "validation_loss": validation and validation.loss,
            "learning_rate": max(group["lr"] for group in state.optimizer.param_groups),
            "images_per_second": sum(plan.images[first:]) / seconds,
        }
        ensure_finite(state, row)
        finish_epoch(state, row)
        leave_if_asked(state, course, torch.zeros_like(loss_sum))


class EpochPlan(NamedTuple):
    """The plan of an epoch."""

    requests: list[Request]
    """This process's part of each remaining update."""
    images: list[int]
    """Number of images of each update, in all processes together."""


def updates_of(state: PretrainingState, sources: Sources) -> EpochPlan:
    """The plan of the current epoch: its remaining updates, and the sizes of all its updates."""
    config, progress, accelerator = state.config, state.progress, state.accelerator
    blocks = [block_numbers(catalogue) for catalogue in sources.training]
    weights = config.weights_of(len(blocks))
    process, processes = accelerator.process_index, accelerator.num_processes
    own = epoch_batches(blocks, weights, config.seed, progress.epoch, config.batch_size, process, processes)
    images = images_of_epoch([len(each) for each in blocks], weights, progress.epoch)
    sizes = batch_sizes(images, state.updates_per_epoch, processes).sum(axis=1)
    return EpochPlan([Request(numbers, progress.epoch) for numbers in own[progress.update :]], sizes.tolist())


def train_epoch(state: PretrainingState, course: Course, plan: EpochPlan) -> Tensor:
    """Make the remaining updates of the current epoch.  Returns this process's sum of losses, float64."""
    config, progress, total = state.config, state.progress, len(plan.images)
    earlier = progress.loss_sums[state.accelerator.process_index] if progress.loss_sums else 0.0
    loss_sum = torch.tensor(earlier, dtype=torch.float64, device=state.accelerator.device)
    state.trained.train()
    speed, faults = Speed(), Faults()
    with epoch_bar(state, total) as bar:
        for batch in course.feed.batches(plan.requests):
            faults.add(batch.faults)
            images = plan.images[progress.update]
            loss = training_step(state, batch, len(batch.labels) / images)
            loss_sum += loss
            speed.images += images
            show = progress.update % SHOWN_EVERY == 0 or progress.update == total
            bar.advance(note=running_note(state, loss.item() / len(batch.labels), speed) if show else "")
            if progress.update < total:
                if progress.update % config.checkpoint_every == 0:
                    state.save(loss_sum)
                leave_if_asked(state, course, loss_sum)
    faults.say()
    return loss_sum


def finish_epoch(state: PretrainingState, row: dict[str, Any]) -> None:
    """Write the backbone if it is the best so far, then the line of metrics, then the checkpoint."""
    progress, config = state.progress, state.config
    progress.epoch, progress.update, progress.loss_sums = row["epoch"], 0, []
    score = row["top1"] or 0.0
    if score >= progress.best.top1:  # of equal epochs the later one, which was trained longer
        progress.best = Best(row["epoch"], score)
        if state.accelerator.is_main_process:
            export.write_backbone(state)
    if state.accelerator.is_main_process:
        metrics.append_line(config.folder / metrics.FILE, row)
    numbers = {f"metrics/{name}": value for name, value in row.items() if isinstance(value, float)}
    state.accelerator.log(numbers, step=row["step"])
    state.save(torch.zeros((), dtype=torch.float64, device=state.accelerator.device))


def validate(state: PretrainingState, course: Course) -> Validation | None:
    """Loss and accuracies on all validation images, each once over all processes; None without such images."""
    requests = validation_requests(state, course.sources)
    if not requests:
        return None
    if state.accelerator.num_processes > 1:
        distribute_bn(state.validated, state.accelerator.num_processes)  # use the first process's, which are saved
    sums, faults = torch.zeros(4, dtype=torch.float64, device=state.accelerator.device), Faults()
    with epoch_bar(state, len(requests), "validation") as bar:
        for batch in course.feed.batches(requests):
            faults.add(batch.faults)
            sums += validate_on(state, batch)
            bar.advance()
    faults.say()
    images, loss, first, fifth = state.accelerator.reduce(sums, "sum").tolist()
    if not images:
        raise UserError("none of the validation images can be decoded; give another --validation")
    return Validation(loss / images, first / images, fifth / images)


def validation_requests(state: PretrainingState, sources: Sources) -> list[Request]:
    """This process's validation images; each image belongs to one process."""
    total, processes = sum(map(len, sources.validation)), state.accelerator.num_processes
    own = np.arange(state.accelerator.process_index, total, processes)
    size = VALIDATION_BATCHES * state.config.batch_size
    return [Request(own[start : start + size], None) for start in range(0, len(own), size)]


@torch.no_grad()
def validate_on(state: PretrainingState, batch: TrainingBatch) -> Tensor:
    """(4,) float64 of one batch: images, sum of losses, number of top-1 hits, number of top-5 hits."""
    images, labels = on_device(state, batch)
    model = state.validated.eval()
    with state.accelerator.autocast():
        logits = model(images)
    usable = labels >= 0
    logits, labels = logits.float()[usable], labels[usable]
    ranked = logits.topk(min(5, state.classes), dim=-1).indices == labels[:, None]  # (B, 5)
    loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
    return torch.stack([each.double() for each in (usable.sum(), loss, ranked[:, 0].sum(), ranked.sum())])


def leave_if_asked(state: PretrainingState, course: Course, loss_sum: Tensor) -> None:
    """Save and stop every process if one of them has received a signal; raises Interrupted."""
    if signum := received_signal(state.accelerator, course.signals):
        if state.progress.epoch == state.config.epochs:
            return  # the run is finished, and reports that
        if state.progress.update:
            state.save(loss_sum)
        state.accelerator.end_training()
        raise Interrupted(signum, f"saved {state.config.folder / CHECKPOINT}; the same command goes on from there")


# ---- parts ----


def block_numbers(catalogue: Catalogue) -> Numbers:
    return read_blocks(catalogue.file, catalogue.block, catalogue.reader.reads_blocks)


def seed_step(seed: int, step: int, process: int) -> None:
    """Seed all random generators of an update: for mixing, erasing, dropout and stochastic depth."""
    number = int.from_bytes(hashlib.sha256(repr((seed, "update", step, process)).encode()).digest()[:8], "big") >> 1
    random.seed(number)
    torch.manual_seed(number)


@contextmanager
def kept_randomness() -> Iterator[None]:
    """Restore the caller's random generators after the context; everything within is seeded by the run."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)


class Speed:
    """Measures images per second over all processes since this run began or resumed the epoch."""

    def __init__(self) -> None:
        self.images, self.began = 0, time.perf_counter()

    def per_second(self) -> float:
        return self.images / (time.perf_counter() - self.began)


def running_note(state: PretrainingState, loss: float, speed: Speed) -> str:
    """Loss of an update and images per second; raises UserError for a loss that is not finite."""
    ensure_finite(state, {"loss": loss})
    return f"loss {loss:.3f}, {speed.per_second():,.0f} images/s"


def ensure_finite(state: PretrainingState, row: dict[str, Any]) -> None:
    """Raise UserError if a loss, by its name, is not finite."""
    for name in ("loss", "validation_loss"):
        if (loss := row.get(name)) is not None and not math.isfinite(loss):
            raise UserError(
                f"{state.config.folder}, step {state.step}: the {name.replace('_', ' ')} is {loss}; choose another "
                "--output and a lower --learning-rate, or --max-grad-norm 1"
            )


def epoch_bar(state: PretrainingState, total: int, name: str = "") -> Progress:
    done = 0 if name else state.progress.update
    title = name or f"epoch {state.progress.epoch + 1} of {state.config.epochs}"
    unit = "batches" if name else "updates"
    return Progress(title, total, unit, done=done, leave=not name, shown=state.accelerator.is_main_process)


class Faults:
    """Images that cannot be decoded: the first are named, all are counted, and too many in one batch end the run."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, faults: tuple[str, ...]) -> None:
        if len(faults) >= MOST_BROKEN:
            raise UserError(f"{faults[0]}; too many images in one batch cannot be decoded; restore them")
        for fault in faults[: max(0, NAMED_FAULTS - self.count)]:
            warn(f"{fault}; it is left out")
        self.count += len(faults)

    def say(self) -> None:
        if self.count > NAMED_FAULTS:
            warn(f"{self.count:,} images cannot be decoded, and are left out")
