"""One training for detection or segmentation, and its checkpoint."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lbgen.errors import UserError
from lbgen.evaluation.transfer.sets.splits import Rows
from lbgen.runs import atomic
from lbgen.runs.console import Progress, say
from lbgen.runs.processes.spawned import heed_no_signals
from lbgen.training.tensors import DAMAGE, load_tensors

LARGEST_WARM_UP = 0.1
"""Largest share of the updates in which the learning rate rises."""
FIRST_RATE = 1e-3
"""Learning rate of the first update, relative to the highest."""


class Evaluation(NamedTuple):
    """The results of a trained model on the test images."""

    values: dict[str, float]
    """Metric -> value in [0, 1]."""
    figures: dict[str, float]
    """Further figures, in [0, 1]."""
    resampled: dict[str, list[float]]
    """Metric -> its values on bootstraps over the test images."""
    answers: pa.Table


class Task(Protocol):
    """A method applied to a set."""

    warm_up: int
    """Number of updates in which the learning rate rises."""
    metrics: tuple[str, ...]

    def factor(self, update: int, updates: int) -> float:
        """The learning rate of an update, relative to the highest.  updates: their total."""

    def model(self) -> nn.Module: ...

    def example(self, row: int) -> Any:
        """An augmented training image with its target."""

    def loss(self, model: nn.Module, batch: Sequence[Any]) -> Tensor: ...

    def evaluate(self, model: nn.Module, progress: Progress) -> Evaluation: ...


@dataclass(frozen=True)
class DenseTraining:
    """The settings of a training on these rows."""

    task: Task
    rows: Rows
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    seed: int
    device: torch.device
    workers: int
    name: str
    """Title of the progress bar."""

    @property
    def updates_per_epoch(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    @property
    def updates(self) -> int:
        return self.epochs * self.updates_per_epoch

    def batches(self, epoch: int) -> list[list[tuple[int, int]]]:
        """(epoch, row) of the images in each update of an epoch; updates differ by at most one image."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.rows)
        return [[(epoch, row) for row in part.tolist()] for part in np.array_split(order, self.updates_per_epoch)]

    def rate(self, update: int) -> float:
        """The learning rate of an update."""
        warm_up = min(self.task.warm_up, LARGEST_WARM_UP * self.updates)
        rising = FIRST_RATE + (1 - FIRST_RATE) * update / warm_up if update < warm_up else 1.0
        return self.learning_rate * rising * self.task.factor(update, self.updates)


def train(setup: DenseTraining, checkpoint: Path) -> nn.Module:
    """The trained model, in eval mode. Training continues after the last epoch stored in `checkpoint`.

    Random draws depend only on the seed, the epoch and the update or row, so an interrupted training ends with the same
    weights.
    """
    with torch.random.fork_rng():
        # A model with new heads, or the model of the checkpoint.
        torch.manual_seed(setup.seed)
        model = setup.task.model().to(setup.device)
        optimizer = create_optimizer_v2(model, "adamw", lr=setup.learning_rate, weight_decay=setup.weight_decay)
        done = _load(checkpoint, model, optimizer, setup)
        update = done * setup.updates_per_epoch

        # Train.
        with Progress(f"{setup.name}: training", setup.updates, "updates", done=update, leave=False) as progress:
            for epoch in range(done, setup.epochs):
                model.train()
                loader = DataLoader(
                    Examples(setup.task, setup.seed), batch_sampler=setup.batches(epoch), num_workers=setup.workers,
                    collate_fn=list, worker_init_fn=heed_no_signals,
                )  # fmt: skip
                for batch in loader:
                    loss = training_step(setup, model, optimizer, batch, update)
                    update += 1
                    progress.advance(note=f"epoch {epoch + 1}")
                _ensure_finite(loss, setup, epoch)
                _save(checkpoint, model, optimizer, epoch + 1)
    return model.eval()


def training_step(
    setup: DenseTraining, model: nn.Module, optimizer: torch.optim.Optimizer, batch: Sequence[Any], update: int
) -> Tensor:
    """One update by AdamW. Returns the loss."""
    torch.manual_seed(_number(setup.seed, "update", update))
    for group in optimizer.param_groups:
        group["lr"] = setup.rate(update)
    loss = setup.task.loss(model, batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


@dataclass
class Examples(Dataset):
    """Augmented images; the augmentation depends only on seed, epoch and row, not on the process."""

    task: Task
    seed: int

    def __getitem__(self, place: tuple[int, int]) -> Any:
        epoch, row = place
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_number(self.seed, epoch, row))
            return self.task.example(row)


def _number(*parts: object) -> int:
    return int.from_bytes(sha256(repr(parts).encode()).digest()[:7], "big")


def _ensure_finite(loss: Tensor, setup: DenseTraining, epoch: int) -> None:
    if not math.isfinite(value := float(loss)):
        raise UserError(f"{setup.name}, epoch {epoch + 1}: the loss is {value}; give a lower --learning-rates")


# ---- the checkpoint ----


def _save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int) -> None:
    buffer = io.BytesIO()
    torch.save({"epochs": epochs, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(path, buffer.getvalue())


def _load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, setup: DenseTraining) -> int:
    """Load a checkpoint; returns its number of finished epochs, 0 if there is none."""
    if not path.is_file():
        return 0
    try:
        stored = load_tensors(path, setup.device)
        epochs = stored["epochs"]
        if not isinstance(epochs, int) or not 0 < epochs <= setup.epochs:
            raise ValueError(f"epoch {epochs} is none of this training")
        model.load_state_dict(stored["model"])
        optimizer.load_state_dict(stored["optimizer"])
    except DAMAGE as error:
        cause = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not the checkpoint of this training ({cause}); remove it to begin again") from None
    say(f"{setup.name}: going on after epoch {epochs} of {setup.epochs}")
    return epochs
