"""What an audit can be told."""

from dataclasses import dataclass
from pathlib import Path

from lbgen.configuration.flags import require


@dataclass(frozen=True)
class AuditConfig:
    output: Path = Path("runs/audit")
    """Folder for report.html, measures.json, measures.parquet and the cache of what was seen of each image."""
    semantics: str = "clip-vit-l-14"
    """Language space that images are read in: microworld, clip-vit-l-14, siglip-base, a hub id or a folder."""
    attributes: Path | None = None
    """YAML file of attributes to look for in place of the built-in list, which for the micro world's space is that of
    its scenes (docs/audit.md says how to write one)."""
    features: str | None = None
    """Vision model in which datasets are compared, a hub id or a folder; none is DINOv2 (facebook/dinov2-base) where it
    was downloaded before, else the language space."""
    probe_images: int = 20000
    """Most images that the probes learn from and that datasets are compared on, drawn evenly over the categories;
    the probes take 5 or more of each, and where there is no room for that, fewer categories."""
    permutations: int = 999
    """Shuffles of the labels in the test of each attribute; the smallest possible p-value is 1 / (this + 1)."""
    batch_size: int = 64
    """Images read by the model at once."""
    seed: int = 0
    """Seed of every draw: which images the probes see, folds, shuffles, bootstrap."""

    def __post_init__(self) -> None:
        require(self, "probe_images", self.probe_images >= 100, "give 100 or more")
        require(self, "permutations", self.permutations >= 99, "give 99 or more, for p-values down to 0.01")
        require(self, "batch_size", self.batch_size >= 1, "give 1 or more")
        require(self, "seed", 0 <= self.seed < 2**63, "give 0 or more, below 2**63")
