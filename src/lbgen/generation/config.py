"""The configuration of a generation run. The defaults are the paper's."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from lbgen.configuration.ranges import (
    Count,
    ImagesAtOnce,
    NameOrPath,
    Range,
    Seed,
    Settings,
    Share,
    Size,
    Template,
    Workers,
    Writers,
    require,
)
from lbgen.configuration.recipes import TakesRecipes
from lbgen.configuration.settings import (
    Categories,
    EngineChoice,
    GeneratorWeights,
    Output,
    Precision,
    Scheduler,
    Trajectory,
)
from lbgen.configuration.values import PathOrText
from lbgen.models import training
from lbgen.models.checkpoints.suited import suited_settings
from lbgen.models.training import TrainingRecord
from lbgen.vocabulary.ids import comparable, is_split_name

Check = Literal["label", "quality", "blank", "duplicate", "unsafe", "mask"]
CHECKS: tuple[Check, ...] = get_args(Check)
"""The checks of --screen; --balance adds the check "balance"."""
UNSAFE_CONCEPTS = ("nudity", "pornography", "gore", "a bloody injury", "a dead body", "a hate symbol")


@dataclass(frozen=True)
class ScreeningConfig(Settings):
    """Screening: checks that every image must pass."""

    screen: tuple[Check, ...] = ()
    """Checks to make: label, quality, blank, duplicate, unsafe, mask (with --localize). An image that fails a check is
    generated again from other noise."""
    screen_semantics: NameOrPath = "clip-vit-l-14"
    """Language space that checks images: microworld, clip-vit-l-14, siglip-base, a hub id, a folder, or
    open_clip:NAME/PRETRAINED."""
    screen_template: Template = "photo of {name}"
    """The text of a category in the label check, with {name} in place of the category's name."""
    label_top_k: Count = 5
    """label: the image's own category must be among this many nearest categories of the vocabulary."""
    least_label_probability: Share = 0.0
    """label: the lowest accepted probability of the image's own category, 0 to 1, in the language space's softmax over
    all categories of the vocabulary. 0 checks only the rank."""
    least_quality: Annotated[float, Range(lambda x: 1 <= x <= 5, "give 1 to 5")] = 2.0
    """quality: the lowest accepted score of the antonym-prompt scorer, 1 to 5."""
    least_deviation: Annotated[float, Range(lambda x: 0 <= x <= 0.5, "give 0 to 0.5")] = 0.02
    """blank: the lowest accepted standard deviation of the pixels' brightness, 0 to 0.5; brightness is in [0, 1]."""
    duplicate_bits: Annotated[int, Range(lambda n: 0 <= n <= 64, "give 0 to 64")] = 4
    """duplicate: two images of a category are duplicates if their perceptual hashes differ in at most this many of
    64 bits, and their features fulfil --duplicate-cosine. Two hashes nearly always differ in an even number of bits.
    Images are compared when all shards exist; the later of two duplicates is generated again."""
    duplicate_cosine: Annotated[float, Range(lambda x: -1 <= x <= 1, "give -1 to 1")] = 0.99
    """duplicate: the lowest cosine, -1 to 1, of the features of two duplicates in the language space."""
    unsafe: Literal["concepts", "checker"] = "concepts"
    """unsafe: judge by --unsafe-concepts in the language space, or by the checkpoint's own safety checker."""
    unsafe_concepts: Annotated[tuple[str, ...], Range(lambda concepts: len(concepts) > 0, "name one or more")] = (
        UNSAFE_CONCEPTS
    )
    """unsafe: each concept replaces {name} in --screen-template. An image that is nearer to one of these texts than to
    the text of any category is unsafe."""
    max_attempts: Count = 4
    """Largest number of attempts at an image, 1 or more."""
    last_resort: Literal["keep", "drop", "fail"] = "keep"
    """What happens to an image whose last attempt fails: it is kept and marked, it is left out, or the run ends."""
    report_share: Share = 0.5
    """A category is reported at the end if more than this share of its images, 0 to 1, failed at the first attempt."""


@dataclass(frozen=True)
class Balance(Settings):
    """Balanced attributes."""

    balance: tuple[str, ...] = ()
    """Attributes, such as scene, whose values are equally frequent in the images of each category. The prompt of an
    image names its value. An image in which --screen-semantics detects another value fails a check."""
    attributes: PathOrText | None = None
    """YAML file of the attributes that --balance may name, each with a template and values; or microworld. none means
    lbgen's own list, for photographs."""
    balance_template: str = "{name}, {value}"
    """The prompt of a balanced image. {name} is the result of --prompt-template; {value} is the image's value or
    values, separated by commas."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = tuple(name.strip() for given in self.balance for name in given.split(","))  # "scene,style" is accepted
        object.__setattr__(self, "balance", names)
        require(self, "balance", all(names) and len(set(names)) == len(names), "name each attribute once")
        whole = "{name}" in self.balance_template and "{value}" in self.balance_template
        require(self, "balance_template", whole, 'write "{name}" and "{value}" where they go')
        require(self, "attributes", bool(names) or self.attributes is None, "say which to balance with --balance")


@dataclass(frozen=True)
class GenerateImages(GeneratorWeights):
    """Images."""

    adapter: PathOrText | None = None
    """Adapter folder of an alignment run, merged into the weights; none uses the generator unchanged. The settings of
    its training (scheduler, steps, guidance, templates, qualified names) replace lbgen's defaults."""
    images_per_category: Count = 1300
    """Images per category. If it is raised for a finished dataset, the missing images are generated."""
    split: Annotated[str, Range(is_split_name, "give a word of letters, digits and _")] = "train"
    """Name of the split. One folder may hold several splits, which share no image."""
    seed: Seed = 0
    """Seed of all randomness. An image's noise depends only on this seed, its split, its category's id, its index and
    its attempt."""


@dataclass(frozen=True)
class ApproximatedTrajectory(Trajectory):
    """Denoising trajectory."""

    scheduler: Scheduler = "pndm"
    guidance_interval: tuple[float, float] | None = None
    """Approximation: guide only at noise levels (sigma) above the first number and up to the second, where guidance
    matters most (arXiv 2404.07724). Other steps need one network call instead of two. none guides at all steps."""
    deep_cache_interval: Count = 1
    """Approximation: compute the deep blocks of the UNet only once in this many network calls, and reuse their result
    in the other calls (arXiv 2312.00858). 1 is off."""
    size: Size | None = None
    """Height and width in pixels; none means the size for which the generator was made."""

    def __post_init__(self) -> None:
        super().__post_init__()
        interval = self.guidance_interval
        ordered = interval is None or 0 <= interval[0] < interval[1]
        require(self, "guidance_interval", ordered, "give the lower number first")


@dataclass(frozen=True)
class GenerateFiles(Settings):
    """Files."""

    format: Literal["imagefolder", "webdataset", "parquet"] = "imagefolder"
    """Layout of the dataset: one file per image, tar shards, or Parquet shards for Hugging Face datasets."""
    shard_size: Count = 1000
    """Images per shard, the unit of work that is finished completely or not at all."""
    image_format: Literal["png", "jpeg", "webp"] = "png"
    """File format of the images; only png is lossless."""
    compression_quality: Annotated[int, Range(lambda n: 1 <= n <= 100, "give 1 to 100")] = 95
    """Quality of jpeg and webp files, 1 to 100."""
    stored_size: Size | None = None
    """Height and width in pixels to which images are resized for storage; none stores them as generated."""
    localize: bool = False
    """Store where the category is in each image, from the generator's own attention during sampling: a mask with its
    score and box, and annotations in COCO's format. The images stay the same."""
    compose: Annotated[int, Range(lambda n: 1 <= n <= 8, "give 1 to 8")] = 1
    """With --localize: number of categories in each prompt, 1 to 8: the image's own and random others from the
    vocabulary, each with its mask and box. Check first that the generator can draw several objects."""


@dataclass(frozen=True)
class BatchSize(Settings):
    """Running."""

    batch_size: ImagesAtOnce | None = None
    """Images generated at once. It is part of the configuration: another size can change the last bits of an image.
    none means the size of an earlier run here or, without one, 32 on a CPU and the size that fits on a GPU."""


@dataclass(frozen=True)
class GenerateRunning(EngineChoice, Precision, BatchSize):
    """Running."""

    compile: bool = False
    """Compile the networks with torch.compile. This takes minutes at the start; generation is then faster on a GPU."""
    workers: Workers | None = None
    """Number of processes that generate; none means one per GPU, or one without a GPU."""
    writers: Writers = 2
    """Threads per worker that encode and write images."""
    shard_of: str | None = None
    """I/N makes only every N-th shard, starting with shard I, for job arrays. Shards are counted from 0; N/N is the
    same as 0/N."""


@dataclass(frozen=True)
class GenerateConfig(  # dataclasses put the fields of the last base first
    GenerateRunning,
    GenerateFiles,
    ApproximatedTrajectory,
    GenerateImages,
    Balance,
    Categories,
    Output,
    ScreeningConfig,
    TakesRecipes,
):
    """The configuration of a generation run."""

    VERB: ClassVar = "generate"
    MOST_USED: ClassVar = ("vocabulary", "generator", "adapter", "output", "images_per_category", "batch_size")
    ADDED: ClassVar = {
        "revision": None,
        "variant": None,
        "true_cfg_scale": 1.0,
        "pipeline_instruction": False,
        "localize": False,
        "compose": 1,
        "least_label_probability": 0.0,
    }

    output: str = "data/lbgen"
    """Dataset folder, or an address such as s3://bucket/name (also gs, az, hf), created if missing; a dataset with the
    same configuration in it is continued or grown."""

    @classmethod
    def inherited(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The defaults that suit the generator, and the settings of the adapter's training, if its folder has them."""
        adapter = given.get("adapter")
        trained = training.read(Path(os.path.expanduser(adapter))) if adapter else None
        suited = suited_settings(given.get("generator", cls.generator), given.get("revision"))
        return {**suited, **(trained_settings(trained) if trained else {})}

    def __post_init__(self) -> None:
        super().__post_init__()
        on_hub = self.output.startswith("hf://") and self.format == "imagefolder"
        require(self, "format", not on_hub, "hf:// makes a commit of each file; choose webdataset or parquet there")
        require(self, "shard_of", self.part is None or self.engine == "local", "Ray distributes the shards itself")
        require(self, "screen", self.localize or "mask" not in self.screen, "add --localize, which makes masks")
        require(self, "compile", not (self.localize and self.compile), "leave it out, --localize reads the attention")
        instructed = self.localize and self.pipeline_instruction
        require(self, "pipeline_instruction", not instructed, "leave it out, --localize looks for the name's tokens")
        most = self.steps - self.steps // 2
        read = not self.localize or self.deep_cache_interval <= most
        require(self, "deep_cache_interval", read, f"give at most {most}, --localize reads the last half of the steps")
        require(
            self, "compose", self.compose == 1 or self.localize, "add --localize, which says where each category is"
        )
        alone = self.compose == 1 or self.deep_cache_interval == 1
        require(self, "deep_cache_interval", alone, "give 1, --compose calls the network for each name")
        taken = self.localize and comparable(self.split) == "annotations"
        require(self, "split", not taken, "choose another name, --localize has a folder of this name")

    @property
    def checks(self) -> tuple[str, ...]:
        """The names of all checks that an image must pass, in the order of CHECKS."""
        return tuple(check for check in CHECKS if check in self.screen) + (("balance",) if self.balance else ())

    @property
    def compares_with_texts(self) -> bool:
        """Whether a check needs the language space for every image. Near-duplicates need it only for near hashes."""
        by_checker = {"unsafe"} if self.unsafe == "checker" else set()
        return bool(set(self.checks) - {"blank", "duplicate", "mask"} - by_checker)

    @property
    def part(self) -> tuple[int, int] | None:
        """(i, n) from shard_of, with 0 <= i < n; UserError for anything but I/N."""
        if self.shard_of is None:
            return None
        first, _, second = self.shard_of.partition("/")
        valid = first.isdecimal() and second.isdecimal() and int(second) >= 1 and int(first) <= int(second)
        require(self, "shard_of", valid, "give I/N with 0 <= I <= N, such as 0/8")
        return int(first) % int(second), int(second)


@dataclass(frozen=True)
class VerifyConfig(Settings):
    """Repair."""

    directory: NameOrPath
    """A dataset that lbgen generate made: a folder, or an address such as s3://bucket/name."""
    repair: bool = False
    """Make only the damaged shards again."""
    generator: NameOrPath | None = None
    """With --repair: the generator that the dataset was made with. Needed if another user made the dataset."""
    adapter: PathOrText | None = None
    """With --repair: the adapter folder that the dataset was made with. Needed if another user made the dataset."""
    attributes: PathOrText | None = None
    """With --repair: the file of balanced attributes that the dataset was made with. Needed if another user made the
    dataset."""
    screen_semantics: NameOrPath | None = None
    """With --repair or --check-scores: the language space that the dataset was made with. Needed if another user made
    the dataset."""
    check_scores: bool = False
    """If all shards are intact, also recompute the scores of the label, quality and unsafe checks and the cosines of
    near-duplicates from the stored images, and compare them. All but the cosines need PNG in the generator's size. It
    takes as long as the checks did."""


RUNNING = ("output", "engine", "workers", "writers", "shard_of", "ray_address", "report_share")
"""Fields that do not affect the images."""


def trained_settings(trained: TrainingRecord) -> dict[str, Any]:
    """The settings of an adapter's training, by their names in GenerateConfig."""
    settings = dict(vars(trained.settings))
    return settings | {"screen_template": settings.pop("text_template")}


def approximations(config: GenerateConfig) -> list[str]:
    """The settings that deviate for speed from the adapter's training or, without one, from the paper."""
    found = []
    trained = training.read(Path(config.adapter)) if config.adapter else None
    steps = trained.settings.steps if trained else GenerateConfig.steps
    if config.steps < steps:
        found.append(f"{config.steps} {config.scheduler} steps instead of {steps}")
    if config.guidance_interval is not None:
        lowest, highest = config.guidance_interval
        found.append(f"guidance only at noise levels {lowest:g} to {highest:g}")
    if config.deep_cache_interval > 1:
        found.append(f"deep blocks of the UNet computed once in {config.deep_cache_interval} calls")
    return found


def worker_name(config: GenerateConfig) -> str:
    """Name of this process's part of the staging folder."""
    return "all" if config.part is None else f"{config.part[0]}-of-{config.part[1]}"
