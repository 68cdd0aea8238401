"""The settings of an audit."""

from dataclasses import dataclass
from pathlib import Path

from lbgen.configuration.flags import require


@dataclass(frozen=True)
class AuditConfig:
    output: Path = Path("runs/audit")
    """Folder for report.html, measures.json, measures.parquet and the cache of the images' features."""
    semantics: str = "clip-vit-l-14"
    """Semantic space of the features: microworld, clip-vit-l-14, siglip-base, a hub id or a folder."""
    attributes: Path | None = None
    """YAML file of attributes that replaces the built-in list (docs/audit.md says how to write one). The built-in list
    of the micro world's space is that of its scenes."""
    features: str | None = None
    """Vision model whose features datasets are compared in, a hub id or a folder. Default: DINOv2
    (facebook/dinov2-base) if it was downloaded before, else the semantic space."""
    probe_images: int = 20000
    """Maximum number of images for the probes and for comparisons, drawn evenly from the categories. The probes need 5
    images of a category; with too many categories for that, they use fewer categories."""
    permutations: int = 999
    """Shuffles of the labels in each attribute's test; the smallest possible p-value is 1 / (permutations + 1)."""
    batch_size: int = 64
    """Images in a batch of the model."""
    seed: int = 0
    """Seed of everything random: the probes' images, folds, shuffles, bootstrap."""

    def __post_init__(self) -> None:
        require(self, "probe_images", self.probe_images >= 100, "give 100 or more")
        require(self, "permutations", self.permutations >= 99, "give 99 or more, for p-values down to 0.01")
        require(self, "batch_size", self.batch_size >= 1, "give 1 or more")
        require(self, "seed", 0 <= self.seed < 2**63, "give 0 or more, below 2**63")
