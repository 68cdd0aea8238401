"""The stored images of a data set with their published splits.

The paper's eight sets are read by torchvision's loaders, the digits come with scikit-learn, and every other name is a
folder that `lbgen.datasets.open` reads.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from lbgen.errors import UserError
from lbgen.evaluation.transfer.sets.splits import ANY, TEST, TRAIN, VAL
from lbgen.evaluation.transfer.values import Metric
from lbgen.runs import atomic

DIGITS = "digits"
DOWNLOAD = "python -c 'from torchvision.datasets import {loader}; {loader}(\"{root}\", download=True)'"
PARTITIONS = "https://vision.princeton.edu/projects/2010/SUN/download/Partitions.zip"
CARS = (
    "kaggle datasets download -d rickyyyyyyy/torchvision-stanford-cars --unzip -p {root} (its own page is gone, see "
    "https://github.com/pytorch/vision/issues/7545)"
)
ALL_SPLITS = {TRAIN: "train", VAL: "val", TEST: "test"}


class Published(NamedTuple):
    """One of the sets that torchvision loads, with the protocol of Kornblith et al. (arXiv 1805.08974)."""

    loader: str
    """Its class in torchvision.datasets."""
    folder: str
    """Its folder below --data."""
    metric: Metric
    splits: Mapping[str, str] | None
    """Our splits -> the loader's splits; None if the loader has none."""
    remedy: str = DOWNLOAD
    """How to get it, with {root} for --data."""


PUBLISHED = {
    "fgvcaircraft": Published("FGVCAircraft", "fgvc-aircraft-2013b", "mean_per_class", ALL_SPLITS),
    "stanfordcars": Published("StanfordCars", "stanford_cars", "accuracy", {TRAIN: "train", TEST: "test"}, CARS),
    "dtd": Published("DTD", "dtd", "accuracy", ALL_SPLITS),
    "eurosat": Published("EuroSAT", "eurosat", "accuracy", None),
    "flowers102": Published("Flowers102", "flowers-102", "mean_per_class", ALL_SPLITS),
    "food101": Published("Food101", "food-101", "accuracy", {TRAIN: "train", TEST: "test"}),
    "oxfordiiitpet": Published("OxfordIIITPet", "oxford-iiit-pet", "mean_per_class", {TRAIN: "trainval", TEST: "test"}),
    "sun397": Published(
        "SUN397", "SUN397", "accuracy", None, f"{DOWNLOAD}; and unpack {PARTITIONS} in {{root}}/SUN397"
    ),
}
SHORT = {
    "aircraft": "fgvcaircraft",
    "cars": "stanfordcars",
    "flowers": "flowers102",
    "food": "food101",
    "pets": "oxfordiiitpet",
    "sun": "sun397",
}


class NotHere(UserError):
    """A known data set is missing in --data; the run continues with the others."""


@dataclass(frozen=True)
class Source:
    images: Any
    """images[i] is the picture in RGB and its category's index."""
    keys: tuple[str, ...]
    """Name of each image, the same on every machine."""
    split: tuple[str, ...]
    """train, val or test; ANY for images that are still to be divided."""
    categories: tuple[str, ...]
    metric: Metric = "accuracy"
    mirrored: bool = True
    """Whether mirroring preserves the category."""
    fingerprint: str = ""
    """Changes when a file changes: see `fingerprint_of`."""


def known_name(name: str) -> str:
    """The set's own name: `digits`, one of PUBLISHED, or the folder that was given."""
    short = re.sub(r"[^a-z0-9]", "", name.lower())
    short = SHORT.get(short, short)
    return short if short in PUBLISHED or short == DIGITS else name


def place_of(name: str, root: Path) -> Path | None:
    """The folder of a set; None for digits. An unknown name is a folder in `root`, or a path."""
    known = known_name(name)
    if known == DIGITS:
        return None
    if known in PUBLISHED:
        return root / PUBLISHED[known].folder
    return root / name if os.path.isdir(root / name) else Path(os.path.expanduser(name))


def ensure_here(name: str, root: Path) -> None:
    """Refuse a missing set: NotHere for a known set, UserError for an unknown name."""
    place, known = place_of(name, root), known_name(name)
    if place is None or os.path.isdir(place):
        return
    if known in PUBLISHED:
        raise not_here(name, root)
    raise UserError(
        f"--datasets {name}: no such set, and no folder of this name here or in {root}; give a folder or one of "
        f"{', '.join([DIGITS, *PUBLISHED])}"
    )


def not_here(name: str, root: Path) -> NotHere:
    published = PUBLISHED[known_name(name)]
    remedy = published.remedy.format(loader=published.loader, root=root)
    return NotHere(f"{name}: not there as {root / published.folder}; to get it: {remedy}")


def fingerprint_of(files: Iterable[Path]) -> str:
    """Hash of the paths, sizes and times of files; only the path of a missing file."""
    lines = []
    for path in sorted(files):
        status = path.stat() if os.path.exists(path) else None
        lines.append(f"{path}\t{status.st_size}\t{status.st_mtime_ns}" if status else str(path))
    return sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


# ---- reading ----


def open_digits() -> Source:
    """1,797 scans of 8x8 pixels (UCI's optical digits, the test part), with grey values from 0 to 16."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # late: slow

    digits = load_digits()
    pixels = (digits.images * 255 / 16).round().astype(np.uint8)
    images = [
        (Image.fromarray(picture).convert("RGB"), int(label))
        for picture, label in zip(pixels, digits.target, strict=True)
    ]
    keys = tuple(map(str, range(len(images))))
    return Source(images, keys, (ANY,) * len(keys), tuple(map(str, range(10))), mirrored=False)


def open_published(name: str, root: Path) -> Source:
    """One of the eight sets. Raises NotHere if a part of it is missing."""
    from torchvision import datasets  # type: ignore[import-untyped]  # late: slow

    published = PUBLISHED[name]
    loader = getattr(datasets, published.loader)
    try:
        if published.splits is not None:
            source = _of_splits(loader, published, root)
        else:
            images = loader(str(root))
            source = _of_lists(images, published, root) if name == "sun397" else _of_files(images, published)
        return replace(source, fingerprint=fingerprint_of(atomic.files_below(root / published.folder)))
    except Exception as error:  # loaders may raise anything if a file is missing or damaged
        cause = " ".join(str(error).split())[:200]
        raise NotHere(f"{not_here(name, root)} (torchvision cannot read it: {cause})") from error


def _of_splits(loader: Any, published: Published, root: Path) -> Source:
    from torch.utils.data import ConcatDataset

    assert published.splits is not None
    parts = {split: loader(str(root), split=theirs) for split, theirs in published.splits.items()}
    categories = {tuple(part.classes) for part in parts.values()}
    if len(categories) > 1:
        raise ValueError("its splits have different categories")
    keys = [(split, f"{split}/{number}") for split, part in parts.items() for number in range(len(part))]
    split, names = zip(*keys, strict=True)
    return Source(ConcatDataset(parts.values()), names, split, categories.pop(), published.metric)


def _of_files(images: Any, published: Published) -> Source:
    """EuroSAT, which has no published split."""
    keys = tuple("/".join(Path(path).parts[-2:]) for path, _ in images.samples)
    return Source(images, keys, (ANY,) * len(keys), tuple(images.classes), published.metric)


def _of_lists(images: Any, published: Published, root: Path) -> Source:
    """SUN397: the first of its ten published partitions, with 50 images per category in each list."""
    from torch.utils.data import Subset

    folder = root / published.folder
    places = {f"/{path.relative_to(folder).as_posix()}": row for row, path in enumerate(images._image_files)}
    lists = {TRAIN: "Training_01.txt", TEST: "Testing_01.txt"}
    named = [(split, line) for split, name in lists.items() for line in (folder / name).read_text().split()]
    missing = [line for _, line in named if line not in places]
    if missing:
        raise FileNotFoundError(f"{len(missing):,} images of the lists are missing, {missing[0]} for one")
    rows = [places[line] for _, line in named]
    split, keys = zip(*named, strict=True)
    return Source(Subset(images, rows), keys, split, tuple(images.classes), published.metric)
