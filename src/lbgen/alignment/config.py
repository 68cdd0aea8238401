"""The configuration of an alignment run. The defaults are the paper's, scaled to one process."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from lbgen.configuration.ranges import (
    Betas,
    Count,
    ImagesAtOnce,
    LearningRate,
    NamesOrPaths,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveShare,
    Range,
    Rank,
    Settings,
    Template,
    Weight,
    between,
    require,
)
from lbgen.configuration.recipes import TakesRecipes
from lbgen.configuration.settings import Categories, GeneratorWeights, Output, Precision, Trajectory
from lbgen.configuration.values import convert
from lbgen.models.checkpoints.suited import ATTENTION, suited_settings, suited_targets

TAKEN = (
    "loss",
    "entire",
    "individual",
    "quality",
    "base",
    "independence",
    "discriminator",
    "gradient_norms",
    "images_per_second",
    "step",
)
"""Names in metrics.jsonl that lbgen uses itself."""


def parsed_term(text: str) -> tuple[str, float]:
    """Name and weight of NAME=WEIGHT; ValueError for anything else."""
    name, _, number = text.partition("=")
    weight = convert(number, float)
    if not re.fullmatch(r"[a-z]\w*", name, re.ASCII) or name in TAKEN or weight < 0:
        raise ValueError(text)
    return name, weight


@dataclass(frozen=True)
class Texts(Categories):
    """Categories and texts."""

    text_template: Template = "photo of {name}"
    """The text with which images of a category are aligned, with {name} in place of the category's name."""


@dataclass(frozen=True)
class ModelNames(GeneratorWeights):
    """Models."""

    semantics: NamesOrPaths = "clip-vit-l-14"
    """Language space (CLIP, SigLIP, SigLIP 2, MetaCLIP 2 or AIMv2): microworld, clip-vit-l-14, siglip-base, a hub id, a
    folder, or open_clip:NAME/PRETRAINED. With several spaces, every term is the mean over them."""
    quality: str = "antonyms"
    """Quality scorer: antonyms (opposite prompts in the language space, as in CLIP-IQA), q-align (the paper's; 16 GB),
    q-align:DIR for a folder or a hub id of Q-Align or DeQA-Score, q-align-int8 and q-align-nf4 (also with :DIR) for
    these in 8 and in 4 bits, or none."""

    @property
    def spaces(self) -> tuple[str, ...]:
        """The language spaces, one or more."""
        return self.semantics if isinstance(self.semantics, tuple) else (self.semantics,)

    def __post_init__(self) -> None:
        if isinstance(self.semantics, list | tuple):
            spaces = tuple(self.semantics)  # a single space is stored as its name, as in earlier versions
            object.__setattr__(self, "semantics", spaces[0] if len(spaces) == 1 else spaces)
        super().__post_init__()
        require(self, "semantics", 0 < len(self.spaces) == len(set(self.spaces)), "name one or more, each once")


@dataclass(frozen=True)
class AlignDuration(Settings):
    """Duration, checkpoints and evaluations."""

    seed: NonNegativeInt = 0
    """Seed of all randomness. A random number depends on it, on the update and on the position in the global batch."""
    max_steps: Count = 100
    """Updates of the adapter, 1 or more. A finished run continues if it is started again with more."""
    batch_size: ImagesAtOnce = 4
    """Images per update in each process; the global batch is this times the number of processes."""
    checkpoint_every: Count = 25
    """Updates between checkpoints; the last two checkpoints are kept."""
    evaluate_every: NonNegativeInt = 25
    """Updates between evaluations; 0 evaluates only at the start and at the end."""
    evaluation_images: Annotated[int, between(2, 10**6)] | None = None
    """Number of images in the fixed evaluation set, four per category, 2 or more in all. Default: 32; in a short run a
    quarter of its training images, but at least 4. A resumed run keeps its number."""
    whole_passes: bool = False
    """Begin every pass over the categories with a new update. The last update of a pass is filled up with the first
    categories of the same pass, as in accelerate."""
    shared_noise: bool = False
    """Use the same noise in all processes: for the first image of each, for the second of each, and so on, like the
    released script, which sets the same seed in every process."""


@dataclass(frozen=True)
class Weights(Settings):
    """Objective."""

    entire_weight: Weight = 1.0
    """Weight of the entire-dataset alignment, the adversarial term L_en; 0 is off."""
    individual_weight: Weight = 1.0
    """Weight of the individual-image alignment L_in; 0 is off."""
    quality_weight: Weight = 0.1
    """Weight of the quality assurance L_q (lambda_1 in the paper); 0 is off."""
    base_weight: Weight = 0.0
    """Weight of the distance to the base model's image of the same noise, which limits drift; 0 is off. It doubles the
    sampling per update."""


@dataclass(frozen=True)
class IndependenceSettings(Settings):
    """Independence term."""

    independence_weight: Weight = 0.0
    """Weight of the independence of "the rest" from the category; 0 is off. The rest is everything that an image shows
    besides its category (docs/independence.md)."""
    independence_bank: Annotated[int, between(16, 10**7)] = 512
    """Number of images of the base generator that show how the rest varies, 16 or more. They are made once, with at
    least 8 per category."""
    independence_memory: Annotated[int, between(2, 10**6, ": an update is compared with the one before")] = 16
    """Number of updates, including the current one, whose images are remembered for comparison, 2 or more. Fewer
    categories need fewer updates."""
    independence_marginal: Weight = 1.0
    """Weight of all images of the previous update, relative to the remembered images of the category; 0 is off."""
    independence_span: PositiveShare = 0.9
    """Share of the category texts' variance, in (0, 1], whose directions are removed from the rest. 1 removes all
    directions of the texts, which must be fewer than the channels."""
    independence_variance: PositiveShare = 0.9
    """Share of the base generator's variance within categories, in (0, 1], that the directions of the rest explain."""
    independence_thumbnail: Annotated[int, Range(lambda n: 0 <= n <= 16, "give 0 (off) to 16")] = 3
    """Side in pixels, 0 to 16, of a thumbnail whose colours also belong to the rest; 0 is off."""


@dataclass(frozen=True)
class Objective(IndependenceSettings, Weights):
    """Objective."""

    normalize_features: bool = True
    """Give the discriminator features of unit norm. The released script does not."""
    extra_terms: tuple[str, ...] = ()
    """Additional terms, each as NAME=WEIGHT, from installed extensions or passed from Python (docs/extend.md). A term
    of weight 0 is only logged."""

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            weights = dict(map(parsed_term, self.extra_terms))
        except ValueError:
            weights = {}
        remedy = f"give NAME=WEIGHT, weights of 0 or more, each name once and none of {', '.join(TAKEN)}"
        require(self, "extra_terms", len(weights) == len(self.extra_terms), remedy)
        ordered = tuple(f"{name}={weight}" for name, weight in sorted(weights.items()))
        object.__setattr__(self, "extra_terms", ordered)

    @property
    def extra_weights(self) -> dict[str, float]:
        """Name -> weight of the extra terms, sorted by name."""
        return dict(map(parsed_term, self.extra_terms))


@dataclass(frozen=True)
class Adapter(Settings):
    """Adapter."""

    rank: Rank = 128
    """Rank of the LoRA adapter, 1 to 4096."""
    alpha: Positive = 128.0
    """Scale of the LoRA adapter: its update is multiplied by alpha / rank."""
    use_rslora: bool = False
    """Multiply the update by alpha / sqrt(rank) instead: rank-stabilised LoRA (arXiv 2312.03732)."""
    lora_targets: Annotated[tuple[str, ...], Range(lambda names: len(names) > 0, "name at least one module")] = (
        ATTENTION
    )
    """Suffixes of the network's modules that get an adapter; for FLUX.2 klein also to_qkv_mlp_proj."""
    text_encoder_lora: bool = False
    """Also adapt the text encoder's attention."""

    @property
    def lora_alpha(self) -> float:
        """The alpha for which alpha / rank is the factor of the update."""
        return self.alpha * self.rank**0.5 if self.use_rslora else self.alpha


@dataclass(frozen=True)
class Gradient(Settings):
    """Gradient through the trajectory."""

    differentiated_steps: int = 5
    """Number of denoising steps that keep their gradient (K in the paper), 1 to --steps."""
    detach_input: bool = False
    """Detach the network's input at the differentiated steps (DRTune, arXiv 2405.00760). This needs less memory and
    makes training more stable."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass instead of keeping them. This needs less memory and more time."""
    merged_sampler: bool = True
    """Run the steps without gradient on a copy of the network with the adapter merged. This is faster and needs a
    little more memory."""
    compile: bool = False
    """Compile the network for the steps without gradient with torch.compile. This takes minutes at the start; steps are
    then faster on a GPU."""
    latent_precision: Literal["fp32", "network"] = "fp32"
    """Precision of the latents, of guidance and of the scheduler's steps: fp32, or the network's (--precision), as in
    the released script."""


@dataclass(frozen=True)
class AlignOptimiser(Settings):
    """Optimiser of the adapter."""

    learning_rate: LearningRate = 2e-5
    """Learning rate of the adapter (AdamW), constant."""
    adam_betas: Betas = (0.9, 0.999)
    """AdamW betas of the adapter, in [0, 1)."""
    weight_decay: NonNegative = 1e-2
    """AdamW weight decay of the adapter and of the discriminator."""
    max_grad_norm: Positive = 0.1
    """The adapter's gradient is clipped to this norm."""
    ema_decay: Annotated[float, Range(lambda x: 0 <= x < 1, "give 0 (off) or a number below 1")] = 0.0
    """Decay per update, in [0, 1), of the moving average of the adapter that is evaluated and saved; 0 uses the adapter
    itself."""


@dataclass(frozen=True)
class DiscriminatorSettings(Settings):
    """Discriminator."""

    discriminator_learning_rate: LearningRate = 1e-5
    """Learning rate of the discriminator (AdamW). Keep it weak: a strong discriminator collapses the generator
    (docs/microworld.md)."""
    discriminator_betas: Betas = (0.0, 0.999)
    """AdamW betas of the discriminator, in [0, 1)."""
    discriminator_max_grad_norm: NonNegative = 1.0
    """The discriminator's gradient is clipped to this norm; 0 does not clip it."""
    discriminator_warmup_steps: NonNegativeInt = 0
    """Updates of the discriminator, and of the independence term's memory, before the adapter's first update. They do
    not count towards --max-steps."""
    discriminator_hidden: Count = 512
    """Number of hidden units of the discriminator."""
    discriminator_texts: Literal["others", "released-code"] = "others"
    """The discriminator's "real" texts: texts of random categories other than the image's own (others), or always the
    texts of the first batch_size categories (released-code)."""
    discriminator_template: Template = "photo of {name}"
    """Template of the discriminator's texts. The released script uses the bare name."""
    discriminator_activation: Literal["relu", "leaky-relu"] = "relu"
    """Activation of the discriminator's hidden units. leaky-relu has slope 0.2 below 0, like the released script."""
    discriminator_loss_weight: Positive = 1.0
    """Factor on the discriminator's loss. The released script averages over texts and images, which gives half of the
    paper's sum."""
    discriminator_warmup_batch: NonNegativeInt = 0
    """Images per update of the warm-up in each process; 0 means --batch-size."""
    update_first: Literal["discriminator", "adapter"] = "discriminator"
    """Which of the two each update trains first. The released script trains the adapter first."""


@dataclass(frozen=True)
class AlignRunning(Precision):
    """Running."""

    guard: Literal["warn", "stop", "off"] = "warn"
    """What to do if the diversity of the evaluation images collapses."""
    guard_diversity: PositiveShare = 0.7
    """Diversity counts as collapsed if V - 1 is below this share, in (0, 1], of the base model's V - 1. V is the mean
    Vendi score of the categories, 1 or more."""
    logger: Literal["tensorboard", "wandb", "trackio", "none"] = "tensorboard"
    """Where losses and evaluations are logged, besides metrics.jsonl and evaluations.jsonl."""


@dataclass(frozen=True)
class AlignConfig(  # dataclasses put the fields of the last base first
    AlignRunning,
    DiscriminatorSettings,
    AlignOptimiser,
    Gradient,
    Trajectory,
    Adapter,
    Objective,
    AlignDuration,
    ModelNames,
    Texts,
    Output,
    TakesRecipes,
):
    """The configuration of an alignment run."""

    VERB: ClassVar = "align"
    MOST_USED: ClassVar = ("vocabulary", "generator", "output", "max_steps", "batch_size")
    DELETED: ClassVar = {
        "independence_form": "kernel",
        "independence_agreement": 0.0,
        "independence_learning_rate": 2e-3,
        "independence_r1": 1.0,
        "independence_hidden": 64,
    }
    ADDED: ClassVar = {
        "extra_terms": [],
        "use_rslora": False,
        "true_cfg_scale": 1.0,
        "pipeline_instruction": False,
        "whole_passes": False,
        "shared_noise": False,
        "latent_precision": "fp32",
        "discriminator_activation": "relu",
        "discriminator_loss_weight": 1.0,
        "discriminator_warmup_batch": 0,
        "update_first": "discriminator",
        "revision": None,
        "variant": None,
    }

    @classmethod
    def inherited(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The defaults that suit the generator."""
        where = given.get("generator", cls.generator), given.get("revision")
        return {**suited_settings(*where), **suited_targets(*where)}

    output: str = "runs/align"
    """Run folder, created if missing; a run with the same configuration in it is resumed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within = 1 <= self.differentiated_steps <= self.steps
        require(self, "differentiated_steps", within, f"give 1 to {self.steps} (--steps)")
        total = sum(self.weights.values()) - self.base_weight
        remedy = (
            "nothing would be trained: raise it, --individual-weight, --independence-weight, --extra-terms, or "
            "--quality-weight with a --quality scorer"
        )
        require(self, "entire_weight", total > 0, remedy)
        equal = self.discriminator_warmup_batch == 0 or self.independence_weight == 0
        require(self, "discriminator_warmup_batch", equal, "give 0: the independence term needs batches of one size")

    @property
    def weights(self) -> dict[str, float]:
        """Term -> its weight in the objective, 0 if it is off."""
        own = {
            "entire": self.entire_weight,
            "individual": self.individual_weight,
            "quality": self.quality_weight if self.quality != "none" else 0.0,
            "independence": self.independence_weight,
            "base": self.base_weight,
        }
        return own | self.extra_weights

    @property
    def warmup_batch(self) -> int:
        """Images per update of the warm-up in each process."""
        return self.discriminator_warmup_batch or self.batch_size
