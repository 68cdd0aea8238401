"""Distances of datasets from the first one, in features of a vision model or, without one, of the semantic space."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import AutoImageProcessor, AutoModel

from lbgen.audit import views
from lbgen.audit.config import AuditConfig
from lbgen.audit.measures import Measured
from lbgen.audit.observe import RowCache
from lbgen.datasets.records import DatasetReader
from lbgen.metrics import distances
from lbgen.metrics.intervals import FEW_RESAMPLES, Estimate, mean, normal_interval, resample, widened
from lbgen.models.loading import load_model, loading
from lbgen.models.semantics import Preprocessing
from lbgen.runs import identity

DEFAULT = "facebook/dinov2-base"
VERSION = 3
"""Of the cached features. A run with another number starts a new cache."""
LabelledFeatures = tuple[NDArray, NDArray[np.int64]]
"""Features (N, D) and labels (N,)."""
Comparisons = dict[str, dict[str, Estimate]]
"""Dataset -> key of a definition -> distance from the first dataset."""


def compare_with_first(
    measured: list[Measured], readers: list[DatasetReader], config: AuditConfig
) -> tuple[str, Comparisons]:
    """The name of the feature space, and every dataset but the first compared in it; empty for one dataset."""
    if len(measured) < 2:
        return "", {}
    space, features = features_of(measured, readers, config)
    first, *others = [(f, m.observed.label[m.compared]) for f, m in zip(features, measured, strict=True)]
    names = [m.observed.name for m in measured[1:]]
    return space, {name: compare(first, other, config.seed) for name, other in zip(names, others, strict=True)}


def compare(reference: LabelledFeatures, other: LabelledFeatures, seed: int) -> dict[str, Estimate]:
    """Distances of a set from the reference.

    The bootstrap of precision, recall, density and coverage resamples only the set whose images are counted; their
    intervals are widened because the other set varies too.
    """
    x, y = (torch.from_numpy(features.astype(np.float32)) for features, _ in (reference, other))
    label_x, label_y = reference[1], other[1]

    # Neighbourhoods.
    near = distances.neighbourhoods(x, y)
    counted = {
        "precision": (label_y, 1),
        "density": (label_y, np.inf),
        "recall": (label_x, 1),
        "coverage": (label_x, 1),
    }
    found = {
        name: widened(mean(near[name].numpy(), label, seed, (0, most)), (0, most))
        for name, (label, most) in counted.items()
    }

    # Fréchet and kernel distance, from the same resamples of both sets.
    rng = np.random.default_rng(seed)
    resamples = [(resample(label_x, rng), resample(label_y, rng)) for _ in range(FEW_RESAMPLES // 3)]
    frechet = np.array([distances.frechet_distance(x[a], y[b]) for a, b in resamples])
    extrapolated = distances.extrapolated_frechet_distance(x, y, label_x, label_y, rng)
    found["frechet_distance"] = normal_interval(extrapolated, frechet, (0, np.inf))
    by_x, by_y = torch.from_numpy(label_x), torch.from_numpy(label_y)
    kernel = np.array([distances.kernel_distance(x[a], y[b], by_x[a], by_y[b]) for a, b in resamples])
    found["kernel_distance"] = normal_interval(distances.kernel_distance(x, y, by_x, by_y), kernel)
    return found


# ---- features ----


class VisionModel:
    """A transformers image model with pooled, L2-normalised features."""

    def __init__(self, where: str, device: torch.device) -> None:
        with loading("features", where, marker="config.json"):
            model = load_model(AutoModel, where, torch.float32, trust_remote_code=False)
            self.model = model.eval().requires_grad_(False).to(device)
            self.preprocessing = Preprocessing(AutoImageProcessor.from_pretrained(where, trust_remote_code=False))
        self.where, self.device = where, device
        self.side = (self.preprocessing.crop or self.preprocessing.size)["height"]
        self.dimension: int = self.model.config.hidden_size

    @torch.no_grad()
    def embed(self, canvas: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) in [0, 1] to (B, D) float32."""
        pooled = self.model(pixel_values=self.preprocessing(canvas.to(self.device))).pooler_output
        return F.normalize(pooled.float(), dim=-1)


def features_of(
    measured: list[Measured], readers: list[DatasetReader], config: AuditConfig
) -> tuple[str, list[NDArray]]:
    """The name of the feature space, and the features (N, D) of each dataset's compared images."""
    where = config.features or (DEFAULT if identity.weights_sha256(DEFAULT) else None)
    if where is None:
        return config.semantics, [m.observed.column("image", m.compared) for m in measured]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = VisionModel(where, device)
    cache = open_cache(config.folder / "cache", model)
    return where, [
        _vision_features(model, cache, m, reader, config) for m, reader in zip(measured, readers, strict=True)
    ]


def open_cache(folder: Path, model: VisionModel) -> RowCache:
    cache_identity = f"features, version {VERSION}, {identity.model_identity(model.where)}, side {model.side}"
    return RowCache(folder, cache_identity, [("features", np.float16, (model.dimension,))])


def _vision_features(
    model: VisionModel, cache: RowCache, measured: Measured, reader: DatasetReader, config: AuditConfig
) -> NDArray:
    """Features of the compared images; those that are not in the cache are read from the dataset once more."""
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
    for record in tqdm(reader.records(wanted), desc=f"{name}, features", total=reader.count, disable=None):
        if record.content is not None and record.key in wanted:
            batch.append(record.content)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
