"""What a generation run can be told. The defaults are those of the paper."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lbgen.configuration.flags import require
from lbgen.datasets.index import is_split_name
from lbgen.errors import UserError
from lbgen.models.registry import Scheduler
from lbgen.runs.storage import without_scheme

CHECKS = ("label", "quality", "blank", "duplicate", "unsafe")
"""Those of --screen; --balance adds its own, "balance"."""
UNSAFE_CONCEPTS = ("nudity", "pornography", "gore", "a bloody injury", "a dead body", "a hate symbol")


@dataclass(frozen=True)
class ScreeningConfig:
    """Checks that every image must pass; one that fails is drawn again from the next attempt's noise."""

    screen: tuple[str, ...] = ()
    """Checks to make, of: label, quality, blank, duplicate, unsafe. An image that fails one is drawn again."""
    screen_semantics: str = "clip-vit-l-14"
    """The language space that checks images: microworld, clip-vit-l-14, siglip-base, a hub id or a folder."""
    screen_template: str = "photo of {name}"
    """The text that stands for a category in the label check."""
    label_top_k: int = 5
    """label: the image's own category must be among this many nearest ones of the vocabulary."""
    least_quality: float = 2.0
    """quality: the least score of the antonym-prompt scorer, 1 to 5."""
    least_deviation: float = 0.02
    """blank: the least standard deviation of the pixels' brightness, which lies in [0, 1]."""
    duplicate_bits: int = 4
    """duplicate: perceptual hashes of 64 bits that differ in no more than these, of one category. Two hashes nearly
    always differ in an even number. Images are compared when all shards are there; the later one is drawn again."""
    duplicate_cosine: float = 0.99
    """duplicate: features of the language space with at least this cosine, too."""
    unsafe: Literal["concepts", "checker"] = "concepts"
    """unsafe: judge by --unsafe-concepts in the language space, or by the checkpoint's own safety checker."""
    unsafe_concepts: tuple[str, ...] = UNSAFE_CONCEPTS
    """unsafe: each takes the place of {name} in --screen-template; an image nearer to one of these texts than to any
    category's is unsafe."""
    max_attempts: int = 4
    """How often an image may be drawn in all."""
    last_resort: Literal["keep", "drop", "fail"] = "keep"
    """What becomes of an image whose last attempt fails: kept and marked, left out, or the end of the run."""
    report_share: float = 0.5
    """Categories of whose images more than this share were rejected at first are named at the end."""

    def __post_init__(self) -> None:
        if unknown := set(self.screen) - set(CHECKS):
            raise UserError(f"--screen {min(unknown)}: no such check; choose of {', '.join(CHECKS)}")
        require(self, "screen_template", "{name}" in self.screen_template, 'write "{name}" where the name goes')
        require(self, "label_top_k", self.label_top_k >= 1, "give 1 or more")
        require(self, "least_quality", 1 <= self.least_quality <= 5, "give 1 to 5")
        require(self, "least_deviation", 0 <= self.least_deviation <= 0.5, "give 0 to 0.5")
        require(self, "duplicate_bits", 0 <= self.duplicate_bits <= 64, "give 0 to 64")
        require(self, "duplicate_cosine", -1 <= self.duplicate_cosine <= 1, "give -1 to 1")
        require(self, "unsafe_concepts", bool(self.unsafe_concepts), "name one or more")
        require(self, "max_attempts", self.max_attempts >= 1, "give 1 or more")
        require(self, "report_share", 0 <= self.report_share <= 1, "give a share in [0, 1]")


@dataclass(frozen=True)
class GenerateConfig(ScreeningConfig):
    output: str = "data/lbgen"
    """Dataset folder, or an address such as s3://bucket/name (also gs, az, hf): made if missing, continued or grown if
    it holds a dataset of the same configuration."""

    # What is drawn, and by what
    vocabulary: str = "imagenet-1k"
    """The categories: imagenet-1k, microworld, a .txt, .csv or .json file, or an ImageFolder. A line of a .txt is a
    name ("night owl") or an id and a name: split by a TAB, or if the first word holds a digit or "_" ("n01 owl")."""
    qualify_names: bool = True
    """Tell categories of the same name apart with a short qualifier (the paper does not)."""
    prompt_template: str = "{name}"
    """The generator's prompt for a category."""
    balance: tuple[str, ...] = ()
    """Attributes, such as scene, whose values each category's images are to have equally often. An image is prompted
    for its value, and drawn again, like one that fails a check, where --screen-semantics sees another."""
    attributes: Path | None = None
    """YAML file of the attributes that --balance may name, each with a template and values; microworld, or none for
    lbgen's own, which are those of photographs."""
    balance_template: str = "{name}, {value}"
    """The prompt where something is balanced: {name} is what --prompt-template makes of the name, {value} the image's
    value, or several with commas between."""
    generator: str = "sd15"
    """Stable Diffusion 1.x or 2.x checkpoint: microworld, sd15, a hub id or a diffusers folder."""
    adapter: Path | None = None
    """The adapter folder of an alignment run, merged into the weights; none draws with the generator as it is."""
    images_per_category: int = 1300
    """Images of each category; more than a finished dataset has makes what is missing."""
    split: str = "train"
    """Name of the split; several may be made in one folder, and none repeats another's images."""
    seed: int = 0
    """An image's noise is a function of this seed, its split, category id and index, and of nothing else."""

    # The trajectory
    scheduler: Scheduler = "pndm"
    """Sampler."""
    steps: int = 50
    """Denoising steps."""
    guidance_scale: float = 2.0
    """Classifier-free guidance scale; 1 samples without guidance."""
    guidance_rescale: float = 0.0
    """Rescale the guided prediction towards the unguided one's deviation (arXiv 2305.08891); 0 is off."""
    guidance_interval: tuple[float, float] | None = None
    """Approximation: guidance only at noise levels (sigma) above the first number and up to the second, where it
    matters most (arXiv 2404.07724); elsewhere one network call does instead of two."""
    deep_cache_interval: int = 1
    """Approximation: compute the deep blocks of the UNet at every so-many-th call only and reuse what they gave
    (arXiv 2312.00858); 1 computes them always."""
    size: tuple[int, int] | None = None
    """Height and width in pixels; none is the size that the generator was made for."""

    # The files
    format: Literal["imagefolder", "webdataset", "parquet"] = "imagefolder"
    """Layout of the dataset: one file an image, tar shards, or Parquet shards for Hugging Face datasets."""
    shard_size: int = 1000
    """Images in a shard, the unit that is made as a whole or not at all."""
    image_format: Literal["png", "jpeg", "webp"] = "png"
    """File format of the images; only png is lossless."""
    compression_quality: int = 95
    """Quality of jpeg and webp files, 1 to 100."""
    stored_size: tuple[int, int] | None = None
    """Height and width in pixels that images are brought to before they are stored; none stores them as drawn."""

    # Running
    batch_size: int | None = None
    """Images drawn at once. Part of the configuration: another size can change the last bits of an image. none is what
    an earlier run used here, else 32 on a CPU and what fits the memory on a GPU."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Precision of the weights and of the computation; fp16 needs a GPU."""
    compile: bool = False
    """torch.compile the networks: minutes at the start, faster on a GPU."""
    engine: Literal["local", "ray"] = "local"
    """Who runs the workers: this process, or a Ray cluster."""
    workers: int | None = None
    """Processes that draw; none is one for each GPU, or one where there is none."""
    writers: int = 2
    """Processes of each worker that encode and write."""
    shard_of: str | None = None
    """I/N makes every N-th shard only, from the I-th on (counted from 0; N/N is 0/N): for job arrays."""
    ray_address: str | None = None
    """Address of the Ray cluster to join; none starts Ray on this machine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "output", without_scheme(str(self.output)))  # a Path is welcome
        for name in (
            "images_per_category",
            "steps",
            "deep_cache_interval",
            "shard_size",
            "batch_size",
            "workers",
            "writers",
        ):
            value = getattr(self, name)
            require(self, name, value is None or value >= 1, "give 1 or more")
        require(self, "seed", 0 <= self.seed < 2**63, "give 0 or more, below 2**63")
        require(self, "prompt_template", "{name}" in self.prompt_template, 'write "{name}" where the name goes')
        self._check_balance()
        require(self, "guidance_scale", self.guidance_scale >= 1, "give 1 (no guidance) or more")
        require(self, "guidance_rescale", 0 <= self.guidance_rescale <= 1, "give a number in [0, 1]")
        interval = self.guidance_interval
        require(
            self, "guidance_interval", interval is None or 0 <= interval[0] < interval[1], "give the lower number first"
        )
        require(self, "compression_quality", 1 <= self.compression_quality <= 100, "give 1 to 100")
        for name in ("size", "stored_size"):
            value = getattr(self, name)
            require(self, name, value is None or min(value) >= 1, "give a height and a width in pixels")
        require(self, "split", is_split_name(self.split), "give a word of letters, digits and _")
        on_hub = self.output.startswith("hf://") and self.format == "imagefolder"
        require(self, "format", not on_hub, "hf:// makes a commit of each file; choose webdataset or parquet there")
        require(self, "shard_of", self.part is None or self.engine == "local", "Ray shares the shards out itself")
        require(self, "ray_address", self.ray_address is None or self.engine == "ray", "add --engine ray")

    def _check_balance(self) -> None:
        names = tuple(name.strip() for given in self.balance for name in given.split(","))  # "scene,style" is welcome
        object.__setattr__(self, "balance", names)
        require(self, "balance", all(names) and len(set(names)) == len(names), "name each attribute once")
        whole = "{name}" in self.balance_template and "{value}" in self.balance_template
        require(self, "balance_template", whole, 'write "{name}" and "{value}" where they go')
        require(self, "attributes", bool(names) or self.attributes is None, "say which to balance with --balance")

    @property
    def checks(self) -> tuple[str, ...]:
        """All that an image must pass, in the order in which they are named."""
        return tuple(check for check in CHECKS if check in self.screen) + (("balance",) if self.balance else ())

    @property
    def part(self) -> tuple[int, int] | None:
        """(i, n) with 0 <= i < n of shard_of; UserError for anything but I/N."""
        if self.shard_of is None:
            return None
        first, _, second = self.shard_of.partition("/")
        fit = first.isdecimal() and second.isdecimal() and int(second) >= 1 and int(first) <= int(second)
        require(self, "shard_of", fit, "give I/N with 0 <= I <= N, such as 0/8")
        return int(first) % int(second), int(second)


RUNNING = ("output", "engine", "workers", "writers", "shard_of", "ray_address", "report_share")
"""Fields that have no part in what the images are."""


def approximations(config: GenerateConfig) -> list[str]:
    """What of the configuration trades likeness to the paper's trajectory for speed, each in a few words."""
    found = []
    if config.steps < GenerateConfig.steps:
        found.append(f"{config.steps} {config.scheduler} steps instead of {GenerateConfig.steps}")
    if config.guidance_interval is not None:
        lowest, highest = config.guidance_interval
        found.append(f"guidance only at noise levels {lowest:g} to {highest:g}")
    if config.deep_cache_interval > 1:
        found.append(f"deep blocks of the UNet computed once in {config.deep_cache_interval} calls")
    return found


def worker_name(config: GenerateConfig) -> str:
    """Of this process's part of the staging folder."""
    return "all" if config.part is None else f"{config.part[0]}-of-{config.part[1]}"
