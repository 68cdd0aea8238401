"""The feature space that datasets are compared in: a vision model where there is one, else the language space."""

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import AutoImageProcessor, AutoModel

from lbgen.audit import views
from lbgen.audit.cache import RowCache
from lbgen.audit.config import AuditConfig
from lbgen.audit.measures import Measured
from lbgen.audit.observe import VERSION, model_identity
from lbgen.datasets.records import Source
from lbgen.models.loading import complete, loading
from lbgen.models.semantics import Preprocessing
from lbgen.runs import identity

DEFAULT = "facebook/dinov2-base"


class VisionModel:
    """A transformers image model; its features are what it pools, of unit norm."""

    def __init__(self, where: str, device: torch.device) -> None:
        with loading("features", where, marker="config.json"):
            model = complete(AutoModel, where, torch.float32, trust_remote_code=False)
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


def compared_features(
    measured: list[Measured], sources: list[Source], config: AuditConfig
) -> tuple[str, list[NDArray]]:
    """The space's name, and the features of the images that sets are compared on, (N, D) for each dataset."""
    where = config.features or (DEFAULT if identity.weights_sha256(DEFAULT) else None)
    if where is None:
        return config.semantics, [m.observed.column("image", m.compared) for m in measured]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = VisionModel(where, device)
    kept = f"features, version {VERSION}, {model_identity(where)}, side {model.side}"
    cache = RowCache(config.folder / "cache", kept, [("features", np.float16, (model.dimension,))])
    return where, [_features(model, cache, m, source, config) for m, source in zip(measured, sources, strict=True)]


def _features(model: VisionModel, cache: RowCache, measured: Measured, source: Source, config: AuditConfig) -> NDArray:
    observed = measured.observed
    digests = [digest.tobytes() for digest in observed.column("content", measured.compared)]
    new = {
        observed.keys[row] for row, digest in zip(measured.compared, digests, strict=True) if digest not in cache.places
    }
    for contents in _batches(source, new, config.batch_size, observed.name):
        decoded = {hashlib.sha256(c).digest(): views.decode(c, None, model.side) for c in contents}
        canvases = [seen.canvas for seen in decoded.values() if not isinstance(seen, str)]
        features = model.embed(torch.stack(canvases).float() / 255).cpu().numpy()
        cache.append(list(decoded), {"features": features})
    return cache.read("features", np.array([cache.places[digest] for digest in digests]))


def _batches(source: Source, wanted: set[str], size: int, name: str) -> Iterator[list[bytes]]:
    """The wanted images' files, so many at once."""
    if not wanted:
        return
    batch: list[bytes] = []
    for record in tqdm(source.records(wanted), desc=f"{name}, features", total=source.count, disable=None):
        if record.content is not None and record.key in wanted:
            batch.append(record.content)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
