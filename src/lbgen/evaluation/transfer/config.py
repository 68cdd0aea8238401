"""The settings of a transfer and of a comparison, and the names of the files that they write."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from lbgen.configuration.ranges import (
    Count,
    ImagesAtOnce,
    Loaders,
    NameOrPath,
    Range,
    Repeats,
    Seed,
    Settings,
    expand_home,
    require,
)
from lbgen.configuration.recipes import TakesRecipes
from lbgen.configuration.saved import CONFIG
from lbgen.configuration.settings import Output

LOCK = "cache/transfer.lock"
PAGE, TRANSFER = "report.html", "transfer.json"
RESULTS, ANSWERS, CACHE, TRAININGS = "results", "answers", "cache", "trainings"
DETECTION, SEGMENTATION = "detection", "segmentation"
DENSE = (DETECTION, SEGMENTATION)
"""Dense prediction methods. Their settings are stored separately, in a file named after the method."""
CONFIGS = (CONFIG, *(f"{method}.yaml" for method in DENSE))
WRITTEN = (*CONFIGS, PAGE, TRANSFER, RESULTS, ANSWERS, CACHE, TRAININGS)
"""Files and folders that a transfer writes in its folder."""
COMPARISON, COMPARISON_PAGE = "comparison.json", "comparison.html"

Method = Literal["linear", "finetune", "detection", "segmentation"]
RESULT_METHODS = ("linear", "finetune", "detection", "detection_mask", "segmentation")
"""Methods in transfer.json, in the order of output; detection has values for boxes and for masks."""
USUAL: dict[str, dict[str, Any]] = {
    "linear": {
        "seeds": 5, "epochs": 30, "batch_size": 64, "learning_rates": (1e-4, 3e-4, 1e-3), "weight_decays": (0.0, 0.05),
        "image_size": None,
    },
    DETECTION: {
        "seeds": 1, "epochs": 12, "batch_size": 16, "learning_rates": (1e-4,), "weight_decays": (0.05,),
        "image_size": 800,
    },
    SEGMENTATION: {
        "seeds": 1, "epochs": 64, "batch_size": 16, "learning_rates": (1e-4,), "weight_decays": (0.05,),
        "image_size": 512,
    },
}  # fmt: skip
"""Method -> defaults of fields that are not given; fine-tuning has the defaults of `linear`."""
OF_METHOD: Any = None
"""Default of a field that means the method's value in USUAL."""
SHOT = re.compile(r"[1-9][0-9]{0,5}|(?:[1-9][0-9]?|0?\.[0-9]*[1-9]|[1-9][0-9]?\.[0-9]*[1-9])%")
"""A number of images per category, or a share of the images below 100%."""
FREE = ("output", "datasets", "data", "method", "shots", "fraction", "workers")
"""Fields that may differ between runs in the same folder, because they only add results."""
FREE_DENSE = (*FREE, "seeds")
"""The same for detection and segmentation, where each seed has its own results."""

Numbers = Annotated[
    tuple[float, ...],
    Range(lambda all: len(all) > 0 and 0 <= min(all) <= max(all) <= 1e6, "give numbers from 0 to 1e6"),
]
Rates = Annotated[
    tuple[float, ...],
    Range(lambda all: len(all) > 0 and 0 < min(all) <= max(all) <= 1e6, "give numbers above 0, 1e6 at most"),
]
Fractions = Annotated[
    tuple[float, ...],
    Range(lambda all: len(all) > 0 and 0 < min(all) <= max(all) <= 1, "give shares in (0, 1], such as 0.2 1.0"),
]
Side = Annotated[int, Range(lambda n: 32 <= n <= 4096, "give 32 to 4096")]

DATASETS = (
    *("digits", "fgvcaircraft", "stanfordcars", "dtd", "eurosat"),
    *("flowers102", "food101", "oxfordiiitpet", "sun397"),
)


@dataclass(frozen=True)
class TransferConfig(Output, TakesRecipes):
    """Transfer."""

    VERB: ClassVar = "transfer"
    MOST_USED: ClassVar = ("output", "datasets", "data", "method", "shots", "fraction")
    ADDED: ClassVar = {"fraction": [1.0], "image_size": None}

    output: str = "runs/transfer"
    """Folder for transfer.json, report.html, the answers for every test image and the cache of features. In a folder
    with results of a transfer, only missing results are computed."""
    datasets: tuple[str, ...] = DATASETS
    """Downstream sets: digits, which is always available; fgvcaircraft, stanfordcars, dtd, eurosat, flowers102,
    food101, oxfordiiitpet and sun397, which torchvision reads from --data; and folders with splits train, test and
    optionally val in any format that lbgen reads. Missing sets are left out, with a line on how to get them."""
    data: NameOrPath = "data"
    """Folder with the data sets, each in the folder that torchvision expects. With detection, the folder of one set in
    COCO's format; with segmentation, of one set in ADE20K's format."""
    method: tuple[Method, ...] = ("linear",)
    """linear: logistic regression on frozen features. finetune: all weights are trained. detection: Mask R-CNN.
    segmentation: Semantic FPN. The last two train all weights, and are run one at a time."""
    shots: tuple[str, ...] = ()
    """Few-shot besides all training images: shares of them (1%, 5%), or numbers of images per category (1, 10)."""
    fraction: Fractions = (1.0,)
    """Shares of the training images for detection and segmentation, such as 0.2 1.0. They are drawn with the seed; a
    smaller share is part of a larger one."""
    seeds: Repeats = OF_METHOD
    """Number of draws for each of --shots, by default 5; in detection and segmentation, of trainings for each
    --fraction, by default 1. A value is the mean over them, with Student's interval for the mean."""
    seed: Seed = 0
    """Seed of fine-tuning and of the draws. The splits of a data set do not depend on it."""
    epochs: Count = OF_METHOD
    """Passes over the training images, by default 30 in fine-tuning, 12 in detection (1x), 64 in segmentation."""
    learning_rates: Rates = OF_METHOD
    """AdamW learning rates from which fine-tuning chooses on val, by default 1e-4, 3e-4 and 1e-3. Detection and
    segmentation use a single one, by default 1e-4."""
    weight_decays: Numbers = OF_METHOD
    """Weight decays from which fine-tuning chooses together with the learning rate, by default 0 and 0.05. Detection
    and segmentation use a single one, by default 0.05."""
    batch_size: ImagesAtOnce = OF_METHOD
    """Images that a model reads at once, also per update; by default 64, in detection and segmentation 16."""
    image_size: Side | None = None
    """Shorter side of an image in pixels. Detection: by default 800, with a longer side of at most 5/3 of it.
    Segmentation: by default 512, which is also the side of a training crop."""
    workers: Loaders | None = None
    """Number of processes that decode images. none means up to 8 for sets of more than 2,000 images, 0 for smaller."""

    def __post_init__(self) -> None:
        usual = USUAL.get(next(iter(self.method), ""), USUAL["linear"])
        for name, value in usual.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        super().__post_init__()
        expand_home(self, "datasets")
        for name in ("datasets", "method", "fraction"):
            given = getattr(self, name)
            require(self, name, len(given) > 0, "name one or more")
            require(self, name, len(set(given)) == len(given), "one is given twice; name each once")
        for shot in self.shots:
            require(
                self,
                "shots",
                SHOT.fullmatch(shot) is not None,
                f"{shot} is neither a share like 5% nor a number of 1 to 999999",
            )
        require(self, "shots", len(set(self.shots)) == len(self.shots), "one is given twice; name each once")
        self._refuse_of_other_methods()

    def _refuse_of_other_methods(self) -> None:
        """Refuse fields that the method does not read."""
        if self.dense is None:
            require(self, "fraction", self.fraction == (1.0,), "it is for detection and segmentation; give --shots 20%")
            require(self, "image_size", self.image_size is None, "it is for detection and segmentation; leave it out")
            return
        require(self, "method", len(self.method) == 1, f"{self.dense} reads --data in its own way; run it alone")
        require(self, "shots", not self.shots, f"with {self.dense} give --fraction, such as 0.2")
        require(self, "datasets", self.datasets == DATASETS, f"{self.dense} reads --data itself; leave it out")
        for name in ("learning_rates", "weight_decays"):
            require(self, name, len(getattr(self, name)) == 1, f"{self.dense} trains with a single one; give one")

    @property
    def dense(self) -> str | None:
        """detection, segmentation or None."""
        return next((method for method in self.method if method in DENSE), None)

    @property
    def saved_as(self) -> str:
        """The file of these settings in the folder; each dense method has its own file."""
        return f"{self.dense}.yaml" if self.dense else CONFIG


@dataclass(frozen=True)
class CompareConfig(Settings):
    """Comparison."""

    MOST_USED: ClassVar = ("output",)

    output: NameOrPath | None = None
    """Folder for comparison.json and comparison.html; none only prints the comparison."""
