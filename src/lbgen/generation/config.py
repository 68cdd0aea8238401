"""What a generation run can be told. The defaults are those of the paper."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lbgen.config import require


@dataclass(frozen=True)
class GenerateConfig:
    output: Path = Path("runs/dataset")
    """Dataset folder: made if missing, continued if it holds an unfinished dataset of the same configuration."""

    # What is drawn, and by what
    vocabulary: str = "imagenet-1k"
    """The categories: imagenet-1k, microworld, a .txt, .csv or .json file, or an ImageFolder."""
    qualify_names: bool = True
    """Tell categories of the same name apart with a short qualifier (the paper does not)."""
    prompt_template: str = "{name}"
    """The generator's prompt for a category."""
    generator: str = "sd15"
    """Stable Diffusion 1.x or 2.x checkpoint: microworld, sd15, a hub id or a diffusers folder."""
    adapter: Path | None = None
    """The adapter folder of an alignment run, merged into the weights; none draws with the generator as it is."""
    images_per_category: int = 1300
    """Images of each category."""
    seed: int = 0
    """An image's noise is a function of this seed, its category's id and its index, and of nothing else."""

    # The trajectory
    scheduler: str = "pndm"
    """Sampler: ddpm, ddim, pndm or dpm++."""
    steps: int = 50
    """Denoising steps."""
    guidance_scale: float = 2.0
    """Classifier-free guidance scale; 1 samples without guidance."""
    guidance_rescale: float = 0.0
    """Rescale the guided prediction towards the unguided one's deviation (arXiv 2305.08891); 0 is off."""
    size: tuple[int, int] | None = None
    """Height and width in pixels; none is the size that the generator was made for."""

    # The files
    format: Literal["png", "jpeg", "webp"] = "png"
    """File format of the images; only png is lossless."""
    compression_quality: int = 95
    """Quality of jpeg and webp files, 1 to 100."""

    # Running
    batch_size: int = 32
    """Images drawn at once; a run that goes on draws the batches that are not in the folder as a whole. Part of the
    configuration: another size can change the last bits of an image."""
    images_per_shard: int = 1000
    """Images listed in one file of the index, which is written when all of them are there."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Precision of the weights and of the computation; fp16 needs a GPU."""

    def __post_init__(self) -> None:
        for name in ("images_per_category", "steps", "batch_size", "images_per_shard"):
            require(self, name, getattr(self, name) >= 1, "give 1 or more")
        require(self, "seed", 0 <= self.seed < 2**63, "give 0 or more, below 2**63")
        require(self, "prompt_template", "{name}" in self.prompt_template, 'write "{name}" where the name goes')
        require(self, "guidance_scale", self.guidance_scale >= 1, "give 1 (no guidance) or more")
        require(self, "guidance_rescale", 0 <= self.guidance_rescale <= 1, "give a number in [0, 1]")
        require(self, "size", self.size is None or min(self.size) >= 1, "give a height and a width in pixels")
        require(self, "compression_quality", 1 <= self.compression_quality <= 100, "give 1 to 100")
