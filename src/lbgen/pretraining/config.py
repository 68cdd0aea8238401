"""The configuration of a pre-training. The defaults are the usual recipe for a ResNet-50 on ImageNet."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import yaml

from lbgen.configuration.ranges import (
    Betas,
    Count,
    LearningRate,
    Loaders,
    NameOrPath,
    NonNegative,
    NonNegativeInt,
    PositiveShare,
    Range,
    Seed,
    Settings,
    Share,
    require,
)
from lbgen.configuration.recipes import TakesRecipes
from lbgen.configuration.settings import LabelColumn, Output, Precision

Pair = Annotated[tuple[float, float], Range(lambda pair: 0 < pair[0] <= pair[1], "give two numbers above 0, in order")]
Alpha = Annotated[float, Range(lambda x: x == 0 or 1e-3 <= x <= 1e3, "give 0 (off), or 0.001 to 1,000")]
Strength = Annotated[float, Range(lambda x: 0 <= x <= 1e6, "give 0 to 1e6")]
BelowOne = Annotated[float, Range(lambda x: 0 <= x < 1, "give 0 (off) or a number below 1")]
BACKBONE, MODEL_CONFIG, CHECKPOINT = "backbone.safetensors", "config.json", "checkpoint.pt"
"""Files that a run writes."""
REFERENCE_BATCH = 256
"""Number of images per update for which the learning rate is given."""


def parsed_argument(text: str) -> tuple[str, Any]:
    """Name and value of NAME=VALUE, the value as YAML reads it; ValueError for anything else."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(text)
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError:
        raise ValueError(text) from None


@dataclass(frozen=True)
class PretrainData(LabelColumn):
    """Data."""

    weights: tuple[float, ...] = ()
    """Number of times that an epoch shows each image, one number per folder: 1 shows every image once, 2 twice, 0.5
    half of the images, and the other half in the next epoch. empty means 1 for all folders."""
    validation: NameOrPath | None = None
    """Folder of images for validation; if it has splits, its validation split is used. none holds out a share."""
    held_out: Annotated[float, Range(lambda x: 0 <= x < 1, "give 0 (none) or a share below 1")] = 0.05
    """Without --validation: share of the images, in [0, 1), held out for validation. They are chosen by a hash of their
    names, so every run holds out the same images. 0 means no validation."""


@dataclass(frozen=True)
class PretrainModel(Settings):
    """Model."""

    architecture: str = "resnet50"
    """Name of any of timm's architectures, without pre-trained weights."""
    model_arguments: tuple[str, ...] = ()
    """Additional arguments of timm.create_model, each as NAME=VALUE, such as patch_size=8."""
    drop_path: BelowOne = 0.0
    """Share of the residual branches, in [0, 1), that are dropped at random (stochastic depth)."""
    image_size: Annotated[int, Range(lambda n: 8 <= n <= 4096, "give 8 to 4096")] = 224
    """Side in pixels of the model's input, 8 to 4096."""
    crop_share: PositiveShare = 0.875
    """Side of the centre crop in validation, as a share of the image's shorter side, in (0, 1]."""

    @property
    def arguments(self) -> dict[str, Any]:
        """Further arguments of timm.create_model, by name."""
        return dict(map(parsed_argument, self.model_arguments))


@dataclass(frozen=True)
class PretrainDuration(Settings):
    """Duration and checkpoints."""

    epochs: Count = 100
    """Passes over the images, 1 or more."""
    batch_size: Annotated[int, Range(lambda n: 4 <= n <= 2**20, "give 4 to 1,048,576")] = 256
    """Largest number of images per update in each process, 4 or more. The updates of an epoch differ by at
    most one image."""
    checkpoint_every: Count = 2000
    """Updates between checkpoints, in addition to a checkpoint after every epoch."""
    seed: Seed = 0
    """Seed of all randomness: weights, order, augmentation."""


@dataclass(frozen=True)
class PretrainOptimiser(Settings):
    """Optimiser."""

    optimizer: str = "sgd"
    """Any of timm's optimisers, such as sgd, adamw or lamb."""
    learning_rate: LearningRate = 0.1
    """Highest learning rate for updates of 256 images. It is multiplied by (images per update) / 256."""
    minimum_learning_rate: Strength = 0.0
    """Learning rate at the end, multiplied in the same way."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """Schedule of the learning rate after the warm-up. step divides it by 10 at 30, 60 and 90% of the epochs."""
    warmup_epochs: NonNegativeInt = 5
    """Number of epochs in which the learning rate rises to its highest value; at most all epochs but one."""
    momentum: BelowOne = 0.9
    """Momentum of optimisers that have one."""
    betas: Betas = (0.9, 0.999)
    """Betas of optimisers that have them, in [0, 1)."""
    weight_decay: Strength = 5e-5
    """Weight decay; biases and norms have none."""
    layer_decay: PositiveShare = 1.0
    """Factor, in (0, 1], by which the learning rate decreases from each layer to the layer before it; 1 is off."""
    max_grad_norm: NonNegative = 0.0
    """The gradient is clipped to this norm; 0 does not clip it."""
    loss: Literal["cross-entropy", "binary"] = "cross-entropy"
    """Cross-entropy over the categories, or binary cross-entropy of each category."""
    label_smoothing: BelowOne = 0.1
    """Share of the label, in [0, 1), that is spread over all categories."""
    ema_decay: BelowOne = 0.0
    """Decay per update, in [0, 1), of a moving average of the weights, which is then validated and saved; 0 is off. The
    decay is lower in the first updates."""


@dataclass(frozen=True)
class Augmentation(Settings):
    """Augmentation."""

    crop_area: Pair = (0.08, 1.0)
    """Smallest and largest area of a random crop, as a share of the image's area."""
    crop_ratio: Pair = (0.75, 4 / 3)
    """Smallest and largest ratio of width to height of a random crop."""
    flip: Share = 0.5
    """Share of the images that are mirrored."""
    color_jitter: NonNegative = 0.0
    """Strength of random changes of brightness, contrast and saturation; 0 is off. RandAugment replaces them."""
    auto_augment: str | None = None
    """RandAugment, AugMix or AutoAugment in timm's notation, such as rand-m9-mstd0.5-inc1; none is off."""
    interpolation: Literal["bilinear", "bicubic", "random"] = "bilinear"
    """How images are resized; random chooses one of the two for each training image."""
    random_erasing: Share = 0.0
    """Share of the images in which a random rectangle is filled with noise."""
    mixup: Alpha = 0.0
    """Alpha of mixup; 0 is off."""
    cutmix: Alpha = 0.0
    """Alpha of CutMix; 0 is off. If mixup is also on, each batch uses one of the two."""
    mix_probability: Share = 1.0
    """Share of the batches that are mixed."""


@dataclass(frozen=True)
class PretrainRunning(Precision):
    """Running."""

    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Precision of the computation; weights are kept in fp32. fp16 needs a GPU."""
    channels_last: bool = False
    """Use the channels-last memory layout, which is faster for convolutions on a GPU."""
    compile: bool = False
    """Compile the model with torch.compile. This takes minutes at the start."""
    workers: Loaders = 4
    """Number of processes that decode and augment images for each training process; 0 uses the training process."""
    logger: Literal["tensorboard", "wandb", "trackio", "none"] = "tensorboard"
    """Where losses and accuracies are logged, besides metrics.jsonl."""


@dataclass(frozen=True)
class PretrainConfig(  # dataclasses put the fields of the last base first
    PretrainRunning,
    Augmentation,
    PretrainOptimiser,
    PretrainDuration,
    PretrainModel,
    PretrainData,
    Output,
    TakesRecipes,
):
    """The configuration of a pre-training."""

    VERB: ClassVar = "pretrain"
    MOST_USED: ClassVar = ("architecture", "output", "epochs", "batch_size", "validation", "seed")

    output: str = "runs/pretrain"
    """Run folder, created if missing; a run with the same configuration and data in it is resumed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self,
            "weights",
            all(0 < weight <= 10_000 for weight in self.weights),
            "give numbers above 0, 10,000 at most",
        )
        try:
            names = [name for name, _ in map(parsed_argument, self.model_arguments)]
        except ValueError:
            names = ["", ""]
        taken = {"drop_path_rate", "img_size", "num_classes", "in_chans", "features_only", "out_indices"}
        taken |= {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
        fits = len(names) == len(set(names)) and not taken & set(names)
        remedy = f"give NAME=VALUE, each name once and none of {', '.join(sorted(taken))}"
        require(self, "model_arguments", fits, remedy)

    def weights_of(self, folders: int) -> tuple[float, ...]:
        """The weight of each folder.  folders: their number."""
        return self.weights or (1.0,) * folders
