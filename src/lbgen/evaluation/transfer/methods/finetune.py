"""Full fine-tuning: every weight is trained; learning rate and weight decay are chosen only on val."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2  # type: ignore[import-untyped]

from lbgen.evaluation.transfer.methods.features import Seen
from lbgen.evaluation.transfer.scores import score
from lbgen.evaluation.transfer.sets.splits import Division, Rows
from lbgen.evaluation.transfer.values import Metric
from lbgen.models.backbones.backbone import Backbone
from lbgen.runs.console import Progress
from lbgen.runs.processes.spawned import heed_no_signals

SMALLEST_CROP = 0.5
"""Smallest share of a picture's area in a training crop."""
WARM_UP = 0.1
"""Share of the updates in which the learning rate rises."""


class Pair(NamedTuple):
    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class FineTuning:
    """The settings of fine-tuning a backbone on one data set."""

    backbone: Backbone
    images: Any
    """images[row] is (picture, label)."""
    mirrored: bool
    pairs: tuple[Pair, ...]
    epochs: int
    batch_size: int
    seed: int
    workers: Callable[[int], int]
    name: str
    """Title of the progress bar."""


def fine_tune(
    setup: FineTuning, division: Division, metric: Metric, known: Callable[[Pair, Callable[[], float]], float]
) -> tuple[NDArray[np.int64], dict[str, float]]:
    """(n_test,) predicted categories, and the chosen pair with its value on val.

    known: returns the value of a pair on val, and stores it for a continued run.
    """

    def value_of(pair: Pair) -> float:
        model = train(setup, pair, division.train, division.label)
        return score(predict(setup, model, division.val), division.label[division.val], metric)

    values = {pair: known(pair, lambda pair=pair: value_of(pair)) for pair in setup.pairs}  # type: ignore[misc]
    best = max(values, key=lambda pair: values[pair])  # the first of equal values
    model = train(setup, best, division.final, division.label)
    return predict(setup, model, division.test), {**best._asdict(), "val": values[best]}


def train(setup: FineTuning, pair: Pair, rows: Rows, label: Rows) -> nn.Module:
    """A copy of the backbone with a new classifier, trained on these rows by AdamW with a cosine schedule."""
    device = setup.backbone.device
    batches = Batches(rows, setup.epochs, setup.batch_size, setup.seed)
    steps = len(batches)
    with torch.random.fork_rng(), Progress(f"{setup.name}: fine-tuning", steps, "updates", leave=False) as progress:
        # A model with a new classifier.
        torch.manual_seed(setup.seed)
        model: Any = copy.deepcopy(setup.backbone.model).requires_grad_(True)
        model.reset_classifier(int(label.max()) + 1)
        model.to(device).train()
        optimizer = create_optimizer_v2(model, "adamw", lr=pair.learning_rate, weight_decay=pair.weight_decay)
        warm_up = round(WARM_UP * steps)
        schedule = CosineLRScheduler(
            optimizer, max(steps, 2), warmup_t=warm_up, warmup_lr_init=pair.learning_rate / steps, t_in_epochs=False
        )

        # Train.
        augmented = Augmented(setup.images, augmentation(setup.backbone, setup.mirrored), setup.seed)
        workers = setup.workers(len(rows))
        loader = DataLoader(augmented, batch_sampler=batches, num_workers=workers, worker_init_fn=heed_no_signals)
        for step, (images, row) in enumerate(loader):
            schedule.step_update(step)
            loss = F.cross_entropy(model(images.to(device)), torch.from_numpy(label)[row].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            progress.advance()
    return model.eval()


def predict(setup: FineTuning, model: nn.Module, rows: Rows) -> NDArray[np.int64]:
    """(n,) categories of these rows."""
    seen = Seen(setup.images, rows, setup.backbone.transform)
    found = []
    with torch.inference_mode():
        workers = setup.workers(len(rows))
        for batch in DataLoader(seen, setup.batch_size, num_workers=workers, worker_init_fn=heed_no_signals):
            found.append(model(batch.to(setup.backbone.device)).argmax(dim=1).cpu().numpy())
    return np.concatenate(found)


# ---- training images ----


def augmentation(backbone: Backbone, mirrored: bool) -> Callable[[Any], Tensor]:
    """A random crop, and random mirroring if that preserves the category."""
    interpolation = InterpolationMode(backbone.interpolation)
    size = backbone.input_size[1:]
    steps: list[Any] = [v2.ToImage(), v2.RandomResizedCrop(size, (SMALLEST_CROP, 1), interpolation=interpolation)]
    steps += [v2.RandomHorizontalFlip()] * mirrored
    return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(backbone.mean, backbone.std)])


class Batches:
    """Batches of (epoch, row); each epoch has its own order, which depends on the seed."""

    def __init__(self, rows: Rows, epochs: int, batch_size: int, seed: int) -> None:
        self.rows, self.epochs, self.batch_size, self.seed = rows, epochs, batch_size, seed

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch in range(self.epochs):
            order = np.random.default_rng([self.seed, epoch]).permutation(self.rows)
            for part in np.array_split(order, self.in_epoch):
                yield [(epoch, row) for row in part.tolist()]

    @property
    def in_epoch(self) -> int:
        """Number of batches per epoch; they have nearly equal sizes, because batch normalisation cannot train on a
        single remaining image.
        """
        return -(-len(self.rows) // self.batch_size)

    def __len__(self) -> int:
        return self.epochs * self.in_epoch


@dataclass
class Augmented(Dataset):
    """Augmented images; the augmentation depends only on seed, epoch and row, not on the process."""

    images: Any
    transform: Callable[[Any], Tensor]
    seed: int

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, row = place
        digest = sha256(f"{self.seed} {epoch} {row}".encode()).digest()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(digest[:7]))
            return self.transform(self.images[row][0].convert("RGB")), row
