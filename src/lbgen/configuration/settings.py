"""Settings that stages share: small dataclasses that make up the stages' configs. Each is a group of flags in the help.

A field's help is the string literal on the line after it; a group's heading is the first line of its class's docstring.
A stage with another default or another help text declares the field again; the order of the fields does not change.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from lbgen.configuration.ranges import Count, NameOrPath, Range, Settings, Template, expand_home, require
from lbgen.runs.storage import without_scheme


@dataclass(frozen=True)
class Output(Settings):
    """Output."""

    output: str
    """Folder for everything that is made. From Python, a Path is accepted too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "output", bool(self.output), "name a folder")
        object.__setattr__(self, "output", without_scheme(self.output))
        expand_home(self, "output")

    @property
    def folder(self) -> Path:
        """The output as a path, for stages that write to a local folder."""
        return Path(self.output)


@dataclass(frozen=True)
class Categories(Settings):
    """Categories and texts."""

    vocabulary: NameOrPath = "imagenet-1k"
    """The categories: imagenet-1k, imagenet-1k-lbgen (with the names of lbGen's released code), microworld, a .txt,
    .csv, .tsv, .json or .jsonl file, or an ImageFolder. Each line of a .txt is a name ("night owl"), or an id and a
    name. A TAB separates the two; so does a space, if the first word has a digit or "_" in it ("n01 owl"). In a name,
    "_" stands for a space."""
    qualify_names: bool = True
    """Add a short qualifier to names that several categories share. The paper does not."""
    prompt_template: Template = "{name}"
    """The generator's prompt for a category, with {name} where the category's name goes."""


@dataclass(frozen=True)
class GeneratorName(Settings):
    """Models."""

    generator: NameOrPath = "sd15"
    """Text-to-image checkpoint of a family that lbgen reads (docs/models.md): a short name such as microworld, sd15,
    sdxl or sd35-medium, a hub id, a diffusers folder, or a single .safetensors file."""


@dataclass(frozen=True)
class GeneratorWeights(GeneratorName):
    """Models."""

    revision: str | None = None
    """Revision of a generator on the hub: a branch, a tag or a commit; none is the main branch."""
    variant: str | None = None
    """Variant of the generator's weights, as in its file names, such as fp16 or non_ema; for a single file with both
    kinds of weights, ema. none means the weights without a variant in their name."""


Scheduler = Literal["ddpm", "ddim", "pndm", "dpm++", "native"]
"""Samplers. Each family of generators accepts some of these names; all accept native, the checkpoint's own sampler."""


@dataclass(frozen=True)
class Trajectory(Settings):
    """Denoising trajectory."""

    scheduler: Scheduler = "ddpm"
    """Sampler; native is the checkpoint's own. Flow matching accepts native (its default) and dpm++. All samplers
    except pndm can sample a checkpoint with zero terminal SNR."""
    steps: Count = 50
    """Number of denoising steps, 1 or more."""
    guidance_scale: Annotated[float, Range(lambda x: x >= 1, "give 1 (no guidance) or more")] = 2.0
    """Guidance scale, 1 or more; 1 samples without guidance. Guidance is classifier-free, unless the network reads the
    scale as an input, like FLUX.1 dev (default 3.5). Generators distilled to need no guidance accept only 1."""
    true_cfg_scale: Annotated[float, Range(lambda x: x >= 1, "give 1 (off) or more")] = 1.0
    """Scale of classifier-free guidance for FLUX.1, whose network reads --guidance-scale (dev) or was distilled to
    need no guidance (schnell); 1 or more, 1 is off."""
    guidance_rescale: Annotated[float, Range(lambda x: 0 <= x <= 1, "give a number in [0, 1]")] = 0.0
    """Share by which the guided prediction is rescaled to the standard deviation of the conditional one, 0 to 1
    (arXiv 2305.08891); 0 is off."""
    pipeline_instruction: bool = False
    """Put the instruction of the generator's own pipeline before each prompt; Sana's asks a language model to embellish
    the prompt. Without it, prompts contain only their template."""

    @property
    def guidance(self) -> str:
        """The guidance settings in words."""
        true = f", true CFG scale {self.true_cfg_scale:g}" if self.true_cfg_scale > 1 else ""
        return f"guidance {self.guidance_scale:g}{true}"


@dataclass(frozen=True)
class LabelColumn(Settings):
    """Data."""

    label_column: str | None = None
    """Column of a table or of a list of images, or key of a WebDataset's .json, that holds the label. none means the
    column `label` or the only column that can hold labels, and the .cls of a WebDataset."""


@dataclass(frozen=True)
class EngineChoice(Settings):
    """Running."""

    engine: Literal["local", "ray"] = "local"
    """Where the workers run: on this machine, or on a Ray cluster."""
    ray_address: str | None = None
    """Address of the Ray cluster to join; none uses the address in RAY_ADDRESS, or starts Ray on this machine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "ray_address", self.ray_address is None or self.engine == "ray", "add --engine ray")


@dataclass(frozen=True)
class Precision(Settings):
    """Running."""

    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Precision of frozen weights and of the computation. An adapter is trained in fp32. fp16 needs a GPU."""
