"""Distances of datasets from the first one, in features of a vision model or, without one, of the semantic space."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers import AutoImageProcessor, AutoModel

from lbgen.audit import views
from lbgen.audit.config import AuditConfig
from lbgen.audit.measures import MeasuredDataset
from lbgen.audit.workers.row_cache import RowCache
from lbgen.datasets.records import DatasetReader
from lbgen.metrics import distances
from lbgen.metrics.copies import originals, picture_hashes
from lbgen.metrics.intervals import FEW_RESAMPLES, Estimate, joint_resample, mean, normal_interval, widened
from lbgen.models.loading import load_model, loading
from lbgen.models.semantics import Preprocessing
from lbgen.runs import identity
from lbgen.runs.console import tracked

DEFAULT = "facebook/dinov2-base"
VERSION = 3
"""Version of the cached features. A run with another version starts a new cache."""
LabelledFeatures = tuple[NDArray, NDArray[np.int64]]
"""Features (N, D) and labels (N,)."""
Comparisons = dict[str, dict[str, Estimate]]
"""Dataset -> key of a definition -> distance from the first dataset."""


def compare_with_first(
    measured: list[MeasuredDataset], readers: list[DatasetReader], config: AuditConfig
) -> tuple[str, Comparisons]:
    """The name of the feature space, and the comparisons of all datasets with the first; empty for one dataset."""
    if len(measured) < 2:
        return "", {}
    space, features = features_of(measured, readers, config)
    first, *others = [(f, m.observed.label[m.compared]) for f, m in zip(features, measured, strict=True)]
    found: Comparisons = {}
    for m, other in zip(measured[1:], others, strict=True):
        copies = copies_between(measured[0], m)
        copied = np.isin(np.arange(len(m.compared)), copies[:, 1])
        found[m.observed.name] = {
            "shared_images": mean(copied, other[1], config.seed, (0, 1)),
            **compare(first, other, config.seed, with_equal_keys(copies, measured[0], m)),
        }
    return space, found


def copies_between(first: MeasuredDataset, other: MeasuredDataset) -> distances.Pairs:
    """(P, 2) pairs of near-duplicates among the compared images of two datasets; each image is in at most one pair."""
    pictures = np.concatenate([m.observed.column("picture", m.compared) for m in (first, other)])
    original = originals(*picture_hashes(pictures), lambda rows: pictures[rows]).tolist()
    count, unpaired, pairs = len(first.compared), defaultdict(list), []
    for row, group in enumerate(original[:count]):
        unpaired[group].append(row)
    for row, group in enumerate(original[count:]):
        if unpaired[group]:
            pairs.append((unpaired[group].pop(0), row))
    return np.array(pairs, np.int64).reshape(-1, 2)


def with_equal_keys(copies: distances.Pairs, first: MeasuredDataset, other: MeasuredDataset) -> distances.Pairs:
    """The pairs, and additional pairs of images with equal keys, because these may be made from the same noise."""
    left, right = ({m.observed.keys[row]: place for place, row in enumerate(m.compared)} for m in (first, other))
    paired = (set(copies[:, 0].tolist()), set(copies[:, 1].tolist()))
    more = [(left[key], place) for key, place in right.items() if key in left]
    more = [pair for pair in more if pair[0] not in paired[0] and pair[1] not in paired[1]]
    return np.concatenate([copies, np.array(more, np.int64).reshape(-1, 2)])


def compare(
    reference: LabelledFeatures, other: LabelledFeatures, seed: int, pairs: distances.Pairs = distances.NO_PAIRS
) -> dict[str, Estimate]:
    """Distances of a set from the reference.  pairs: (P, 2) row indices of pairs that are not independent draws."""
    x, y = (torch.from_numpy(features.astype(np.float32)) for features, _ in (reference, other))
    label_x, label_y = reference[1], other[1]

    found = _neighbourhood_figures(x, y, label_x, label_y, seed)

    # Fréchet and kernel distance, from the same resamples of both sets; pairs are drawn together.
    rng = np.random.default_rng(seed)
    resamples = [joint_resample(label_x, label_y, pairs, rng) for _ in range(FEW_RESAMPLES // 3)]
    frechet = np.array([distances.frechet_distance(x[a], y[b]) for a, b in resamples])
    extrapolated = distances.extrapolated_frechet_distance(x, y, label_x, label_y, rng, pairs)
    found["frechet_distance"] = normal_interval(extrapolated, frechet, (0, np.inf))
    partner_y = len(x) + np.arange(len(y))
    partner_y[pairs[:, 1]] = pairs[:, 0]
    by_x, by_y, partners = torch.from_numpy(label_x), torch.from_numpy(label_y), torch.from_numpy(partner_y)

    def kernel(a: NDArray, b: NDArray) -> float:
        rows = torch.from_numpy(a)
        return distances.kernel_distance(x[a], y[b], by_x[a], by_y[b], rows, partners[b])

    kernels = np.array([kernel(a, b) for a, b in resamples])
    found["kernel_distance"] = normal_interval(kernel(np.arange(len(x)), np.arange(len(y))), kernels)
    return found


def _neighbourhood_figures(
    x: torch.Tensor, y: torch.Tensor, label_x: NDArray[np.int64], label_y: NDArray[np.int64], seed: int
) -> dict[str, Estimate]:
    """Precision, density, recall and coverage.

    The bootstrap resamples only the set whose images are counted, so the intervals are widened for the variation of
    the other set.
    """
    near = distances.neighbourhoods(x, y)
    counted = {
        "precision": (label_y, 1),
        "density": (label_y, np.inf),
        "recall": (label_x, 1),
        "coverage": (label_x, 1),
    }
    return {
        name: widened(mean(near[name].numpy(), label, seed, (0, most)), (0, most))
        for name, (label, most) in counted.items()
    }


# ---- features ----


class PooledVisionModel:
    """A transformers image model with pooled, L2-normalised features."""

    def __init__(self, where: str, device: torch.device) -> None:
        with loading("features", where, marker="config.json"):
            model = load_model(AutoModel, where, torch.float32, trust_remote_code=False)
            self.model = model.eval().requires_grad_(False).to(device)
            self.preprocessing = Preprocessing(AutoImageProcessor.from_pretrained(where, trust_remote_code=False))
            self.side = (self.preprocessing.crop or self.preprocessing.size)["height"]
            self.dimension: int = self.model.config.hidden_size
        self.where, self.device = where, device

    @torch.no_grad()
    def embed(self, canvas: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) in [0, 1] to (B, D) float32."""
        pooled = self.model(pixel_values=self.preprocessing(canvas.to(self.device))).pooler_output
        return F.normalize(pooled.float(), dim=-1)


def features_of(
    measured: list[MeasuredDataset], readers: list[DatasetReader], config: AuditConfig
) -> tuple[str, list[NDArray]]:
    """The name of the feature space, and the features (N, D) of each dataset's compared images."""
    where = config.features or (DEFAULT if identity.weights_sha256(DEFAULT) else None)
    if where is None:
        return config.semantics, [m.observed.column("image", m.compared) for m in measured]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = PooledVisionModel(where, device)
    cache = open_cache(config.folder / "cache", model)
    return where, [
        _vision_features(model, cache, m, reader, config) for m, reader in zip(measured, readers, strict=True)
    ]


def open_cache(folder: Path, model: PooledVisionModel) -> RowCache:
    cache_identity = f"features, version {VERSION}, {identity.model_identity(model.where)}, side {model.side}"
    return RowCache(folder, cache_identity, [("features", np.float16, (model.dimension,))])


def _vision_features(
    model: PooledVisionModel, cache: RowCache, measured: MeasuredDataset, reader: DatasetReader, config: AuditConfig
) -> NDArray:
    """Features of the compared images; images that are not in the cache are read from the dataset again."""
    observed = measured.observed
    digests = [digest.tobytes() for digest in observed.column("content", measured.compared)]
    pairs = zip(measured.compared, digests, strict=True)
    new = {observed.keys[row] for row, digest in pairs if digest not in cache.row_of}
    for contents in _batches(reader, new, config.batch_size, observed.name):
        decoded = {hashlib.sha256(c).digest(): views.decode(c, None, model.side) for c in contents}
        canvases = [image.canvas for image in decoded.values() if not isinstance(image, str)]
        features = model.embed(torch.stack(canvases).float() / 255).cpu().numpy()
        cache.append(list(decoded), {"features": features})
    return cache.read("features", np.array([cache.row_of[digest] for digest in digests]))


def _batches(reader: DatasetReader, wanted: set[str], size: int, name: str) -> Iterator[list[bytes]]:
    """The files of the wanted images, `size` at a time."""
    if not wanted:
        return
    batch: list[bytes] = []
    for record in tracked(reader.records(wanted), f"{name}, features", reader.count, "images"):
        if record.content is not None and record.key in wanted:
            batch.append(record.content)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
