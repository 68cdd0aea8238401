"""The settings of the reproduction, and the names of the files that it writes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

from lbgen.configuration.ranges import Count, NameOrPath, Range, Repeats, Settings, Workers, between, require
from lbgen.configuration.recipes import TakesRecipes
from lbgen.configuration.saved import CONFIG
from lbgen.configuration.settings import Output
from lbgen.reproduction.sets import SetName

LOCK, ROWS, PAGE = "reproduce.lock", "rows.jsonl", "reproduction.md"
DONE, SEEDS, UNSEEN_FOLDER, DENSE_FOLDER = "done", "seeds", "unseen", "dense"
WRITTEN = (CONFIG, LOCK, ROWS, DONE, SEEDS, UNSEEN_FOLDER, DENSE_FOLDER)
"""Files and folders that a reproduction writes in its folder, besides the page."""
MARK = "<!-- table: "
"""Beginning of a mark in the page after which a table is written."""
FREE = ("output", "seeds", "sets", "architectures", "dense", "workers", "page")
"""Fields that may differ between runs in the same folder, because they only add results."""
OF_DENSE = ("dense_images", "detection_recipe", "segmentation_recipe")
"""Fields that may differ until the folder has results of detection or segmentation."""

Architecture = Literal["resnet", "vit"]
DenseMethod = Literal["detection", "segmentation"]
MultipleOfFour = Annotated[
    int, Range(lambda n: 4 <= n <= 10**6 and n % 4 == 0, "give a multiple of 4, 1,000,000 at most")
]


@dataclass(frozen=True)
class ComparedSets(Settings):
    """What is compared."""

    seeds: Repeats = 5
    """Number of seeds, from 0 on, each with its own alignments, images and backbones. More seeds can be added later."""
    sets: tuple[SetName, ...] = get_args(SetName)
    """Sets of images on which backbones are trained."""
    architectures: tuple[Architecture, ...] = get_args(Architecture)
    """Backbones that are trained on each set."""
    images_per_category: Annotated[int, between(2, 10**5)] = 100
    """Images per category (of 12) in each set, 2 or more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sets", "architectures"):
            given = getattr(self, name)
            require(self, name, 0 < len(set(given)) == len(given), "name one or more, each once")


@dataclass(frozen=True)
class Made(Settings):
    """How images and backbones are made."""

    paper_recipe: NameOrPath = "microworld"
    """Recipe of lbgen align for the paper's objective."""
    released_code_recipe: NameOrPath = "microworld-released-code"
    """Recipe of lbgen align for the objective of the authors' released code."""
    independence_recipe: NameOrPath = "independent"
    """Recipe of lbgen align for the independence term."""
    resnet_recipe: NameOrPath = "micro"
    """Recipe of lbgen pretrain for the ResNet."""
    vit_recipe: NameOrPath = "micro-vit"
    """Recipe of lbgen pretrain for the ViT."""
    max_steps: Count | None = None
    """Updates of each alignment; none means the recipe's number."""
    epochs: Count | None = None
    """Epochs of each pre-training; none means the recipe's number."""


@dataclass(frozen=True)
class Tests(Settings):
    """What backbones are tested on."""

    test_images: MultipleOfFour = 1200
    """Number of renders in each test, a multiple of 4."""
    unseen_images: Annotated[int, between(5, 10**5)] = 40
    """Training images per unseen category for the linear probe; there are half as many val and twice as many test
    images."""
    shots: tuple[str, ...] = ("5",)
    """Few-shot on the unseen categories, besides all training images: images per category, or shares such as 5%."""
    draws: Repeats = 5
    """Number of draws for each of --shots."""
    datasets: tuple[str, ...] = ("digits",)
    """Data sets of lbgen transfer for linear probes, besides the unseen categories."""
    dense: tuple[DenseMethod, ...] = get_args(DenseMethod)
    """Methods of lbgen transfer by which backbones are fine-tuned on renders with known masks. They need the extra
    dense; a method without its package is left out until the reproduction is started again."""
    dense_images: Annotated[int, between(2, 10**5)] = 120
    """Number of training renders for these methods, 2 or more; there are half as many test renders."""
    detection_recipe: NameOrPath = "micro-detection"
    """Recipe of lbgen transfer for detection."""
    segmentation_recipe: NameOrPath = "micro-segmentation"
    """Recipe of lbgen transfer for segmentation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "dense", len(set(self.dense)) == len(self.dense), "name each once")


@dataclass(frozen=True)
class ReproduceConfig(Tests, Made, ComparedSets, Output, TakesRecipes):  # fields of the last base come first
    """The configuration of the reproduction."""

    VERB: ClassVar = "reproduce"
    MOST_USED: ClassVar = ("output", "seeds", "sets", "workers", "page")

    output: str = "runs/reproduction"
    """Folder for everything that is made. An interrupted reproduction continues when it is started again."""
    page: NameOrPath | None = None
    """Markdown page into which tables are written, with pictures beside it; created if missing. none means
    reproduction.md in the output."""
    workers: Workers | None = None
    """Number of processes that align, generate and train. Each has one thread, so the number does not change results;
    none means one per processor."""

    @property
    def page_path(self) -> Path:
        return Path(self.page) if self.page else self.folder / PAGE
