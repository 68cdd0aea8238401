"""One pass over a data set before any backbone reads it: label and pixel hash of every image."""

import os
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from lbgen.evaluation.arrays import read_npy, write_npy
from lbgen.evaluation.transfer.sets.sources import Source
from lbgen.runs.console import Progress
from lbgen.runs.processes.spawned import heed_no_signals

SMALL = 2000
"""Largest number of images of a set that is read without additional processes."""
BATCH = 64
DIGEST = 32
"""Length of a hash in bytes."""


class Scan(NamedTuple):
    label: NDArray[np.int64]
    """(N,), -1 for an image that cannot be read."""
    content: NDArray[np.uint8]
    """(N, 32): SHA-256 of width, height and RGB pixels; zeros for an image that cannot be read."""
    faults: dict[int, str]
    """Row -> why the image cannot be read."""

    @property
    def hashes(self) -> list[str]:
        return [row.tobytes().hex() for row in self.content]


class _Hashed(Dataset):
    def __init__(self, images: Any) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[int, bytes, str]:
        try:
            image, label = self.images[row]
            size = f"{image.width}x{image.height} ".encode()
            return int(label), sha256(size + image.convert("RGB").tobytes()).digest(), ""
        except Exception as error:  # Pillow may raise anything for damaged files
            return -1, bytes(DIGEST), " ".join(str(error).split())[:200] or type(error).__name__


def scan(source: Source, name: str, cache: Path, workers: int | None) -> Scan:
    """Read every image of a set, or load the result of an earlier pass over the same files from the folder `cache`."""
    path = cache / f"scan-{_key(source)}.npy"
    if (known := _read(path, len(source.keys), len(source.categories))) is not None:
        return known
    loader = DataLoader(
        _Hashed(source.images), batch_size=BATCH, num_workers=processes(len(source.keys), workers), collate_fn=list,
        worker_init_fn=heed_no_signals,
    )  # fmt: skip
    found: list[tuple[int, bytes, str]] = []
    with Progress(f"{name}: reading", len(source.keys), "images", leave=False) as progress:
        for batch in loader:
            found += batch
            progress.advance(len(batch))
    label = np.array([each[0] for each in found], dtype=np.int64)
    content = np.frombuffer(b"".join(each[1] for each in found), np.uint8).reshape(-1, DIGEST)
    faults = {row: fault for row, (_, _, fault) in enumerate(found) if fault}
    if not faults:  # otherwise the set is read again next time, which reports the faults again
        write_npy(path, np.concatenate([label[:, None].view(np.uint8), content], axis=1))
    return Scan(label, content, faults)


def _key(source: Source) -> str:
    """Hash of everything that determines the pixels: names, order and state of the files."""
    return sha256("\n".join([source.fingerprint, *source.keys]).encode()).hexdigest()[:32]


def _read(path: Path, rows: int, categories: int) -> Scan | None:
    """A stored result of `scan`; None if there is none of this shape."""
    table = read_npy(path)
    if table is None or table.shape != (rows, 8 + DIGEST) or table.dtype != np.uint8:
        return None
    label = np.ascontiguousarray(table[:, :8]).view(np.int64)[:, 0]
    if label.min(initial=0) < 0 or label.max(initial=0) >= categories:  # no label of a readable image
        return None
    return Scan(label, np.array(table[:, 8:]), {})


def processes(images: int, workers: int | None) -> int:
    """Number of processes that read the images, besides this one."""
    if workers is not None:
        return workers
    return 0 if images <= SMALL else min(8, os.cpu_count() or 1)


def data_sha256(source: Source, content: Sequence[str], rows: Iterable[NDArray[np.int64]], label: NDArray) -> str:
    """Identity of the used part of a set: pixels and label of every image of train, val and test, in order."""
    digest = sha256()
    for part in rows:
        digest.update(f"{len(part)}\n".encode())
        for row in part.tolist():
            digest.update(f"{content[row]} {label[row]} {source.categories[label[row]]}\n".encode())
    return digest.hexdigest()
