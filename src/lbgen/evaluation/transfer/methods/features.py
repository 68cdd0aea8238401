"""Features of a data set's images, computed once per backbone and cached on disk."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lbgen.errors import UserError
from lbgen.evaluation.arrays import read_npy, write_npy
from lbgen.models.backbones.backbone import Backbone
from lbgen.runs.console import Progress
from lbgen.runs.processes.spawned import heed_no_signals

PART = 4096
"""Number of images per file, the most that an interrupted run loses."""


@dataclass
class Seen(Dataset):
    """The images of these rows after the backbone's preprocessing."""

    images: Any
    rows: NDArray[np.int64]
    transform: Callable[[Any], Tensor]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Tensor:
        return self.transform(self.images[int(self.rows[place])][0].convert("RGB"))


class FeatureCache:
    """A folder of features, float32, in files named by a hash of everything that determines the features."""

    def __init__(self, folder: Path, batch_size: int, workers: Callable[[int], int]) -> None:
        """workers: function from a number of images to the number of processes that decode them."""
        self.folder, self.batch_size, self.workers = folder, batch_size, workers

    def features(
        self, backbone: Backbone, images: Any, hashes: list[str], rows: NDArray[np.int64], name: str
    ) -> Tensor:
        """(N, D) features on the CPU of the images in these sorted rows; zeros for all others.  name: for progress."""
        parts = [rows[start : start + PART] for start in range(0, len(rows), PART)]
        paths = [self._path(backbone, [hashes[row] for row in part.tolist()]) for part in parts]
        found = [_read(path, len(part)) for path, part in zip(paths, parts, strict=True)]
        done = sum(len(each) for each in found if each is not None)
        with Progress(f"{name}: features", len(rows), "images", done=done, leave=False) as progress:
            for index, part in enumerate(parts):
                if found[index] is None:
                    computed = self._compute(backbone, images, part, progress)
                    if not np.isfinite(computed).all():
                        raise UserError(f"{name}: the backbone's features are not finite; give another backbone")
                    write_npy(paths[index], computed)
                    found[index] = computed
        columns = [each for each in found if each is not None]
        all_rows = np.zeros((len(hashes), columns[0].shape[1]), np.float32)
        all_rows[rows] = np.concatenate(columns)
        return torch.from_numpy(all_rows)

    def _compute(self, backbone: Backbone, images: Any, rows: NDArray[np.int64], progress: Progress) -> NDArray:
        seen = Seen(images, rows, backbone.transform)
        found = []
        workers = self.workers(len(rows))
        for batch in DataLoader(seen, self.batch_size, num_workers=workers, worker_init_fn=heed_no_signals):
            found.append(backbone.features(batch).float().cpu().numpy())
            progress.advance(len(batch))
        return np.concatenate(found)

    def _path(self, backbone: Backbone, hashes: list[str]) -> Path:
        """The file, named by a hash of weights, preprocessing, the transform's text and the images' pixels."""
        identity = "\n".join([backbone.key, repr(backbone.transform), *hashes])
        return self.folder / f"features-{sha256(identity.encode()).hexdigest()[:32]}.npy"


def _read(path: Path, rows: int) -> NDArray | None:
    """The features of `rows` rows; None if the file is missing or has other content."""
    stored = read_npy(path)
    if stored is None or stored.dtype != np.float32 or stored.ndim != 2 or len(stored) != rows:
        return None
    return stored if np.isfinite(stored).all() else None
