"""The settings of a transfer and of a comparison, and the names of what they write."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

from lbgen.configuration.ranges import (
    Count,
    NonNegativeInt,
    Place,
    Range,
    Seed,
    Settings,
    expand_home,
    require,
)
from lbgen.configuration.recipes import TakesRecipes
from lbgen.configuration.settings import Output

CONFIG, LOCK = "config.yaml", "cache/transfer.lock"
PAGE, TRANSFER = "report.html", "transfer.json"
RESULTS, ANSWERS, CACHE = "results", "answers", "cache"
WRITTEN = (CONFIG, PAGE, TRANSFER, RESULTS, ANSWERS, CACHE)
"""Files and folders that a transfer writes in its folder."""
COMPARISON, COMPARISON_PAGE = "comparison.json", "comparison.html"

Method = Literal["linear", "finetune"]
METHODS = get_args(Method)
SHOT = re.compile(r"[1-9][0-9]{0,5}|(?:[1-9][0-9]?|0?\.[0-9]*[1-9]|[1-9][0-9]?\.[0-9]*[1-9])%")
"""A number of images of each category, or a share of them below 100%."""
FREE = ("output", "datasets", "data", "method", "shots", "workers")
"""Fields that another run in the same folder may have changed: they add results, and change none."""

Numbers = Annotated[tuple[float, ...], Range(lambda all: len(all) > 0 and min(all) >= 0, "give numbers of 0 or more")]
Rates = Annotated[tuple[float, ...], Range(lambda all: len(all) > 0 and min(all) > 0, "give numbers above 0")]


@dataclass(frozen=True)
class TransferConfig(Output, TakesRecipes):
    """Transfer."""

    VERB: ClassVar = "transfer"
    MOST_USED: ClassVar = ("output", "datasets", "data", "method", "shots")

    output: str = "runs/transfer"
    """Folder for transfer.json, report.html, the answers for every test image and the cache of features. A folder that
    holds a transfer is added to: what is there is not computed again."""
    datasets: tuple[str, ...] = (
        *("digits", "fgvcaircraft", "stanfordcars", "dtd", "eurosat"),
        *("flowers102", "food101", "oxfordiiitpet", "sun397"),
    )
    """Downstream sets: digits, which is always there, fgvcaircraft, stanfordcars, dtd, eurosat, flowers102, food101,
    oxfordiiitpet and sun397, which torchvision reads from --data, and folders with splits train, test and perhaps val
    in any format that lbgen reads. A set that is not there is named with the way to get it, and left out."""
    data: Place = "data"
    """Folder in which the data sets lie, each under the name that torchvision gives it."""
    method: tuple[Method, ...] = ("linear",)
    """linear: logistic regression on frozen features. finetune: all weights are trained."""
    shots: tuple[str, ...] = ()
    """Few-shot besides all training images: shares of them (1%, 5%), or numbers of images of each category (1, 10)."""
    seeds: Count = 5
    """Number of draws for each of --shots. A value is the mean over the draws, with Student's interval for the mean."""
    seed: Seed = 0
    """Seed of fine-tuning and of the draws. The splits of a data set do not depend on it."""
    epochs: Count = 30
    """Passes over the training images in fine-tuning."""
    learning_rates: Rates = (1e-4, 3e-4, 1e-3)
    """Learning rates of AdamW that fine-tuning chooses from, by the images of val."""
    weight_decays: Numbers = (0.0, 0.05)
    """Weight decays that it chooses from, together with the learning rate."""
    batch_size: Count = 64
    """Images that a model reads at once; in fine-tuning, those of one update."""
    workers: NonNegativeInt | None = None
    """Processes that decode images. none is up to 8 for sets of more than 2,000 images, and 0 for smaller ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        expand_home(self, "datasets")
        for name in ("datasets", "method"):
            given = getattr(self, name)
            require(self, name, len(given) > 0, "name one or more")
            require(self, name, len(set(given)) == len(given), "one is given twice; name each once")
        for shot in self.shots:
            require(self, "shots", SHOT.fullmatch(shot) is not None, f"{shot} is neither a share like 5% nor a number")
        require(self, "shots", len(set(self.shots)) == len(self.shots), "one is given twice; name each once")


@dataclass(frozen=True)
class CompareConfig(Settings):
    """Comparison."""

    MOST_USED: ClassVar = ("output",)

    output: Path | None = None
    """Folder for comparison.json and comparison.html; none prints the comparison only."""
