"""Batches of decoded and augmented images, made by worker processes with timm's transforms.

The augmentation of an image depends only on (seed, epoch, key of the image, number of earlier uses in this epoch), so
it is the same in every process and batch.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from lbgen.datasets.decode import picture_of
from lbgen.errors import UserError
from lbgen.pretraining.config import PretrainConfig
from lbgen.pretraining.feed.catalogue import Catalogue, Sources
from lbgen.pretraining.feed.order import Numbers, image_of
from lbgen.runs.processes.spawned import heed_no_signals
from lbgen.runs.remote import Unreachable

MOST_BROKEN = 50
"""Number of broken images in one batch at which a run fails."""


class Request(NamedTuple):
    """The images of one batch."""

    numbers: Numbers
    """Image numbers: in training from `epoch_batches`, in validation counted over its catalogues."""
    epoch: int | None
    """None for validation."""


class TrainingBatch(NamedTuple):
    images: Tensor
    """(B, 3, H, W) uint8, in the layout of the model."""
    labels: Tensor
    """(B,) int64; -1 in validation for an image that cannot be decoded."""
    faults: tuple[str, ...]
    """Location and cause for each image that cannot be decoded."""
    unreachable: str = ""
    """Why the storage did not answer; the batch is then invalid."""


class Images(Dataset[TrainingBatch]):
    """The images of a run by request, for training and for validation."""

    def __init__(self, sources: Sources, config: PretrainConfig, mean: Sequence[float], std: Sequence[float]) -> None:
        self.sources, self.seed, self.side = sources, config.seed, config.image_size
        self.total = sum(map(len, sources.training))
        self.training_ends = np.cumsum([len(each) for each in sources.training])
        self.validation_ends = np.cumsum([len(each) for each in sources.validation])
        self.augment, self.centre = transforms(config, mean, std)
        self.layout = layout_of(config)

    def __getitem__(self, request: Request) -> TrainingBatch:
        shape = (len(request.numbers), 3, self.side, self.side)
        images = torch.empty(shape, dtype=torch.uint8, memory_format=self.layout)
        labels = torch.empty(shape[0], dtype=torch.int64)
        if get_worker_info() is not None:  # like torch's collate function: avoids a copy when leaving the worker
            images.share_memory_()
        faults: list[str] = []
        try:
            self._fill(images, labels, request, faults)
        except Unreachable as error:  # returned as a value, because the loader adds a traceback to an exception's text
            return TrainingBatch(images, labels, (), str(error))
        return TrainingBatch(images, labels, tuple(faults))

    def _fill(self, images: Tensor, labels: Tensor, request: Request, faults: list[str]) -> None:
        if request.epoch is None:
            _prefetch(self.sources.validation, self.validation_ends, request.numbers)
            for place, number in enumerate(request.numbers):
                images[place], labels[place] = self._validated(int(number), faults)
        else:
            numbers, seen = image_of(request.numbers, self.total)
            _prefetch(self.sources.training, self.training_ends, numbers)
            for place, (number, times) in enumerate(zip(numbers, seen, strict=True)):
                images[place], labels[place] = self._augmented(int(number), int(times), request.epoch, faults)

    def _augmented(self, number: int, seen: int, epoch: int, faults: list[str]) -> tuple[Tensor, int]:
        """One training image; a broken image is replaced by the next intact one."""
        for attempt in range(min(MOST_BROKEN, self.total)):
            catalogue, row = _found(self.sources.training, self.training_ends, (number + attempt) % self.total)
            picture = decoded(catalogue, row, self.side)
            if isinstance(picture, Image.Image):
                seed_augmentation(self.seed, epoch, int(catalogue.key[row]), seen)
                return self.augment(picture), int(catalogue.label[row])
            faults.append(picture)
        return torch.zeros(3, self.side, self.side, dtype=torch.uint8), 0  # the run will fail

    def _validated(self, number: int, faults: list[str]) -> tuple[Tensor, int]:
        catalogue, row = _found(self.sources.validation, self.validation_ends, number)
        picture = decoded(catalogue, row, self.side)
        if isinstance(picture, Image.Image):
            return self.centre(picture), int(catalogue.label[row])
        faults.append(picture)
        return torch.zeros(3, self.side, self.side, dtype=torch.uint8), -1


def layout_of(config: PretrainConfig) -> torch.memory_format:
    """Memory format of the model's input; filling it in the workers costs less than converting later."""
    return torch.channels_last if config.channels_last else torch.contiguous_format


def transforms(config: PretrainConfig, mean: Sequence[float], std: Sequence[float]) -> tuple[Any, Any]:
    """timm's transforms from a picture to (3, H, W) uint8, for training and for validation."""
    shared: dict[str, Any] = {
        "input_size": config.image_size,
        "mean": tuple(mean),
        "std": tuple(std),
        "use_prefetcher": True,
    }
    resized = "bicubic" if config.interpolation == "random" else config.interpolation
    try:
        augment: Any = create_transform(
            is_training=True,
            scale=config.crop_area,
            ratio=config.crop_ratio,
            hflip=config.flip,
            color_jitter=config.color_jitter or None,  # type: ignore[arg-type]
            auto_augment=config.auto_augment,
            interpolation=config.interpolation,
            **shared,
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise UserError(
            f"--auto-augment {config.auto_augment}: timm does not know this notation; give one such as "
            "rand-m9-mstd0.5-inc1, original or augmix-m3-w3"
        ) from error
    for step in augment.transforms:
        keep_one_bit(step)
    return augment, create_transform(crop_pct=config.crop_share, interpolation=resized, **shared)


def keep_one_bit(step: Any) -> None:
    """Make timm's posterisation keep at least one bit; at the highest level it keeps none, which Pillow 13 refuses."""
    policies = [getattr(step, "ops", []), *getattr(step, "policy", [])]
    for op in itertools.chain(*policies):
        if op.name.startswith("Posterize"):
            op.aug_fn = posterized


def posterized(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    return ImageOps.posterize(image, max(1, bits)) if bits < 8 else image


def decoded(catalogue: Catalogue, row: int, side: int) -> Image.Image | str:
    """The picture in RGB, or its location and why it cannot be decoded."""
    location = catalogue.location(row)
    try:
        picture = picture_of(catalogue.reader.read(location), side)
    except (OSError, ValueError) as error:
        picture = str(error)
    if isinstance(picture, Image.Image):
        return picture
    return f"{catalogue.folder / location.file}{f', at {location.start:,}' if location.start else ''}: {picture}"


def seed_augmentation(*key: int) -> None:
    """Seed every generator that timm's transforms draw from."""
    seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") >> 1
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


def _found(catalogues: Sequence[Catalogue], ends: Numbers, number: int) -> tuple[Catalogue, int]:
    """The catalogue that holds an image, by its number over all catalogues, and its row there."""
    which = int(np.searchsorted(ends, number, side="right"))
    return catalogues[which], number - (int(ends[which - 1]) if which else 0)


def _prefetch(catalogues: Sequence[Catalogue], ends: Numbers, numbers: Numbers) -> None:
    """Announce the images of this batch to their readers."""
    which = np.searchsorted(ends, numbers, side="right")
    for each in np.unique(which):
        catalogue, rows = catalogues[each], numbers[which == each] - (ends[each - 1] if each else 0)
        catalogue.reader.prefetch(map(catalogue.location, rows))


# ---- worker processes ----


class Requests(Sampler[Request]):
    """The next requests of the loader; they are set before the loader is iterated."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)

    def __len__(self) -> int:
        return len(self.requests)


class Feed:
    """Batches in the order of requests, from the same workers for training and validation."""

    def __init__(self, images: Images, workers: int, pinned: bool) -> None:
        """pinned: whether batches are in pinned memory, from which they are copied to a GPU in the background."""
        self.requests = Requests()
        self.loader: DataLoader[TrainingBatch] = DataLoader(
            images, batch_size=None, sampler=self.requests, collate_fn=_unchanged, num_workers=workers,
            persistent_workers=workers > 0, pin_memory=pinned, worker_init_fn=heed_no_signals,
        )  # fmt: skip

    def batches(self, requests: list[Request]) -> Iterator[TrainingBatch]:
        """The batches of these requests; raises UserError if the storage does not answer."""
        self.requests.requests = requests
        for batch in self.loader:
            if batch.unreachable:
                raise UserError(
                    f"images could not be read from their storage ({batch.unreachable}); start again, the run "
                    "continues from its checkpoint"
                )
            yield batch

    @contextmanager
    def working(self) -> Iterator[None]:
        """End the worker processes after the block; otherwise Python ends them only when it collects the loader.

        Raises UserError if a worker process dies, usually because memory ran out. torch learns of it by a signal and
        can raise at any point of the block, also outside `batches`.
        """
        try:
            yield
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            cause = " ".join(str(error).split())[:150]
            raise UserError(
                f"a process that loads images ended ({cause}); give fewer --workers and start again, the run continues "
                "from its checkpoint"
            ) from error
        finally:
            if end := getattr(self.loader._iterator, "_shutdown_workers", None):
                end()


def _unchanged(batch: Any) -> Any:
    return batch
