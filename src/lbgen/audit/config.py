"""The settings of an audit, and the names of the files that it writes."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from lbgen.configuration.ranges import ImagesAtOnce, NameOrPath, Range, Seed, Workers, between
from lbgen.configuration.recipes import TakesRecipes
from lbgen.configuration.settings import EngineChoice, LabelColumn, Output
from lbgen.configuration.values import PathOrText

PAGE, MEASURES, IMAGES = "report.html", "measures.json", "images.parquet"
WRITTEN = (PAGE, MEASURES, "measures.parquet", IMAGES, "cache")
"""Files and folders that an audit writes in its folder."""


@dataclass(frozen=True)
class AuditRunning(EngineChoice):
    """Running."""

    workers: Workers | None = None
    """Number of processes that decode images and run the model; none means one per GPU, or only this process with
    fewer than two GPUs. The figures do not depend on it."""


@dataclass(frozen=True)
class AuditConfig(AuditRunning, LabelColumn, Output, TakesRecipes):
    """Measures."""

    VERB: ClassVar = "audit"
    MOST_USED: ClassVar = ("output", "semantics", "attributes")

    output: str = "runs/audit"
    """Folder for report.html, measures.json, measures.parquet, images.parquet and the cache of measurements of each
    image."""
    semantics: NameOrPath = "clip-vit-l-14"
    """Language space in which images are read: microworld, clip-vit-l-14, siglip-base, a hub id or a folder."""
    attributes: PathOrText | None = None
    """YAML file of the attributes to look for (see docs/audit.md); none means the built-in list. The micro world's
    language space has its own list."""
    features: NameOrPath | None = None
    """Vision model in whose features datasets are compared, a hub id or a folder. none means DINOv2
    (facebook/dinov2-base) if it is already downloaded, otherwise the language space."""
    probe_images: Annotated[int, between(100, 10**9)] = 20000
    """Largest number of images, 100 or more, on which probes are trained and datasets are compared. They are drawn
    evenly over the categories. Probes need at least 5 images per category; if this number is too small for that, they
    use fewer categories."""
    permutations: Annotated[int, between(99, 10**6, ", for p-values down to 0.01")] = 999
    """Number of label shuffles in the test of each attribute, 99 or more. The smallest possible p-value is
    1 / (this + 1)."""
    batch_size: ImagesAtOnce = 64
    """Number of images that the model reads at once."""
    sample: Annotated[float, Range(lambda x: 0 < x <= 1, "give more than 0 and at most 1")] = 1.0
    """Share of each dataset's images that is measured, drawn at random: above 0, up to 1. The sizes of categories and
    splits still count all images."""
    seed: Seed = 0
    """Seed of all randomness: choice of probe images, folds, permutations, bootstrap."""
