"""The settings of `lbgen bias`, and the names of the files that it writes."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from lbgen.configuration.ranges import ImagesAtOnce, NameOrPath, require
from lbgen.configuration.saved import CONFIG
from lbgen.configuration.settings import Output

FIGURES, ANSWERS, LOCK = "bias.json", "answers", ".lock"
WRITTEN = (FIGURES, CONFIG, ANSWERS)
"""Names of the files and folders that a run writes in its folder."""

BenchmarkName = Literal[
    "cue-conflict",
    "focus",
    "imagenet9",
    "imagenet-c",
    "imagenet-r",
    "imagenet-a",
    "imagenet-sketch",
    "objectnet",
]


@dataclass(frozen=True)
class BiasConfig(Output):
    """Benchmarks."""

    VERB: ClassVar = "bias"
    POSITIONAL: ClassVar = ("backbones",)
    MOST_USED: ClassVar = ("benchmarks", "data", "output")

    output: str = "runs/bias"
    """Folder for bias.json, config.yaml and the answers to every image. An interrupted run is continued there."""
    backbones: tuple[str, ...] = ()
    """Image classifiers of ImageNet's 1,000 classes: folders of lbgen pretrain, names of timm such as resnet50.a1_in1k,
    or ARCHITECTURE:FILE.safetensors. None with --answers."""
    benchmarks: tuple[BenchmarkName, ...] = ("cue-conflict", "focus", "imagenet9")
    """Any of cue-conflict, focus, imagenet9, imagenet-c, imagenet-r, imagenet-a, imagenet-sketch and objectnet."""
    data: NameOrPath | None = None
    """Folder that contains the published folders of the benchmarks (docs/bias.md); for a single benchmark it may be the
    benchmark's own folder."""
    answers: NameOrPath | None = None
    """Saved answers of one classifier to score instead of backbones: a CSV from the folder answers/ of a run, the
    published raw data of cue-conflict, or FOCUS's .npz with `predictions`. Give one benchmark."""
    batch_size: ImagesAtOnce = 64
    """Number of images that a backbone reads at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = self.benchmarks
        require(self, "benchmarks", bool(names), "name one or more")
        require(self, "benchmarks", len(set(names)) == len(names), "name every benchmark once")
        if self.answers is not None:
            remedy = "score answers or measure backbones; drop one of --answers, --data and the backbones"
            require(self, "answers", not self.backbones and self.data is None, remedy)
            require(self, "benchmarks", len(names) == 1, "name the one benchmark that the --answers are of")
        else:
            require(self, "backbones", bool(self.backbones), "name one or more, or give --answers")
            require(self, "data", self.data is not None, "give the folder that holds the benchmarks")
