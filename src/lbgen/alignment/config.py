"""What an alignment run can be told. The defaults are those of the paper, at the size of one process."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lbgen.configuration.flags import require
from lbgen.models.registry import Scheduler


@dataclass(frozen=True)
class AlignConfig:
    output: Path = Path("runs/align")
    """Run folder: made if missing, resumed if it holds a run of the same configuration."""

    # What is aligned, and with what
    vocabulary: str = "imagenet-1k"
    """The categories: imagenet-1k, microworld, a .txt, .csv or .json file, or an ImageFolder. A line of a .txt is a
    name ("night owl") or an id and a name: split by a TAB, or if the first word holds a digit or "_" ("n01 owl")."""
    qualify_names: bool = True
    """Tell categories of the same name apart with a short qualifier (the paper does not)."""
    prompt_template: str = "{name}"
    """The generator's prompt for a category."""
    text_template: str = "photo of {name}"
    """The text that an image of a category is aligned with."""
    generator: str = "sd15"
    """Stable Diffusion 1.x or 2.x checkpoint: microworld, sd15, a hub id or a folder."""
    semantics: str = "clip-vit-l-14"
    """The language space (CLIP or SigLIP): microworld, clip-vit-l-14, siglip-base, a hub id or a folder."""
    quality: str = "antonyms"
    """Quality scorer: antonyms (CLIP-IQA style prompts on the semantics) or none."""

    # How long, and with what randomness
    seed: int = 0
    """Every random draw is a function of this seed, the step and the position in the global batch."""
    max_steps: int = 100
    """Updates of the adapter; a finished run goes on when started again with more."""
    batch_size: int = 4
    """Images per process per update; the global batch is this times the number of processes."""
    checkpoint_every: int = 25
    """Updates between checkpoints; the last two are kept."""
    evaluate_every: int = 25
    """Updates between evaluations; 0 evaluates at the start and at the end only."""
    evaluation_images: int = 32
    """Images of the fixed evaluation set, four a category."""

    # The objective
    entire_weight: float = 1.0
    """Weight of the entire-dataset alignment, the adversarial term L_en."""
    individual_weight: float = 1.0
    """Weight of the individual-image alignment L_in."""
    quality_weight: float = 0.1
    """Weight of the quality assurance L_q (lambda_1 in the paper)."""
    base_weight: float = 0.0
    """Weight of a pull towards the base model's image of the same noise, against drift; costs one more sampling."""
    independence_weight: float = 0.0
    """Weight of the independence of "the rest", all that an image shows besides its category (docs/independence.md)."""
    independence_agreement: float = 0.0
    """Share of the bank's label agreement to hold: below it, over some 500 images, the weight falls; 0: no floor."""
    independence_form: Literal["adversarial", "kernel"] = "kernel"
    """How the rest and the category are kept apart: by an opponent that sees both, or by a kernel, without one."""
    independence_bank: int = 512
    """Images of the base generator, which show how the rest varies; made once, 16 at a time, at least 8 a category."""
    independence_memory: int = 16
    """The last updates, the newest included, whose images are remembered and compared with; few categories want few."""
    independence_marginal: float = 1.0
    """Kernel form: how much all images of the update before count beside the remembered ones of one category."""
    independence_span: float = 0.9
    """The rest leaves out the texts' directions up to this share of their variance; 1: all, if fewer than channels."""
    independence_variance: float = 0.9
    """The rest has as many directions as hold this share of the base generator's variance inside categories."""
    independence_thumbnail: int = 3
    """Pixels a side of a thumbnail whose colours belong to the rest, beside directions of the feature; 0: none."""
    independence_learning_rate: float = 2e-3
    """Adversarial form: learning rate of the opponent; a slow one lags behind the generator, and scenes are lost."""
    independence_r1: float = 1.0
    """Adversarial form: twice the weight of the opponent's squared slope at the bank's images, against swings (R1)."""
    independence_hidden: int = 64
    """Adversarial form: hidden units of the opponent."""
    normalize_features: bool = True
    """Give the discriminator features of unit norm; the released script does not."""

    # The adapter
    rank: int = 128
    """Rank of the LoRA adapter."""
    alpha: float = 128.0
    """Scale of the LoRA adapter: its update is multiplied by alpha / rank."""
    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """The UNet's modules that get an adapter, by the end of their names."""
    text_encoder_lora: bool = False
    """Adapt the text encoder's attention too."""

    # The trajectory
    scheduler: Scheduler = "ddpm"
    """Sampler."""
    steps: int = 50
    """Denoising steps."""
    guidance_scale: float = 2.0
    """Classifier-free guidance scale; 1 samples without guidance."""
    guidance_rescale: float = 0.0
    """Rescale the guided prediction towards the unguided one's deviation (arXiv 2305.08891); 0 is off."""
    differentiated_steps: int = 5
    """How many of the denoising steps keep their gradient (K in the paper)."""
    detach_input: bool = False
    """Detach the network's input at the differentiated steps (DRTune, arXiv 2405.00760): less memory, steadier."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass instead of keeping them: less memory, more time."""
    merged_sampler: bool = True
    """Run the steps without gradient through a copy of the UNet with the adapter merged: faster, some more memory."""
    compile: bool = False
    """torch.compile the network of the steps without gradient: minutes at the start, faster steps on a GPU."""

    # The optimisers
    learning_rate: float = 2e-5
    """Learning rate of the adapter (AdamW, constant)."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    """AdamW betas of the adapter."""
    weight_decay: float = 1e-2
    """AdamW weight decay, of the adapter, the discriminator and the independence term's opponent."""
    max_grad_norm: float = 0.1
    """The adapter's gradient is clipped to this norm."""
    ema_decay: float = 0.0
    """Decay of the average of the adapter's past that is evaluated and saved; 0: the adapter as it is."""
    discriminator_learning_rate: float = 1e-5
    """Keep it weak: a strong discriminator collapses the generator (docs/microworld.md)."""
    discriminator_betas: tuple[float, float] = (0.0, 0.999)
    """AdamW betas of the discriminator and of the independence term's opponent."""
    discriminator_max_grad_norm: float = 1.0
    """The discriminator's gradient is clipped to this norm, and that of the independence term's opponent."""
    discriminator_warmup_steps: int = 0
    """Updates of the discriminator (and the independence term's state) before the adapter's first; not in max_steps."""
    discriminator_hidden: int = 512
    """Hidden units of the discriminator."""
    discriminator_texts: Literal["others", "released-code"] = "others"
    """The discriminator's "real" texts: any category but the image's own, or always the first batch_size categories."""
    discriminator_template: str = "photo of {name}"
    """Template of the discriminator's texts; the released script uses the bare name."""

    # Running
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Precision of the frozen weights and of the computation; the adapter is always fp32. fp16 needs a GPU."""
    guard: Literal["warn", "stop", "off"] = "warn"
    """What to do when the diversity of the evaluation images collapses."""
    guard_diversity: float = 0.7
    """Collapse: V - 1 falls below this share of the base model's; V: mean Vendi score in a category, 1 at the least."""
    logger: Literal["tensorboard", "wandb", "trackio", "none"] = "tensorboard"
    """Where losses and evaluations are logged, beside metrics.jsonl and evaluations.jsonl."""

    def __post_init__(self) -> None:
        counts = ("max_steps", "batch_size", "checkpoint_every", "rank", "steps", "discriminator_hidden")
        for name in (*counts, "independence_hidden"):
            require(self, name, getattr(self, name) >= 1, "give 1 or more")
        remedy = "give 2 or more: an update is compared with the one before"
        require(self, "independence_memory", self.independence_memory >= 2, remedy)
        for name in ("seed", "evaluate_every", "discriminator_warmup_steps", "guidance_rescale", "weight_decay"):
            require(self, name, getattr(self, name) >= 0, "give 0 or more")
        weights = ("entire_weight", "individual_weight", "quality_weight", "base_weight", "independence_weight")
        for name in (*weights, "independence_marginal", "independence_thumbnail", "independence_r1"):
            require(self, name, getattr(self, name) >= 0, "give 0 (off) or more")
        rates = ("learning_rate", "discriminator_learning_rate", "independence_learning_rate")
        for name in ("alpha", "max_grad_norm", *rates):
            require(self, name, getattr(self, name) > 0, "give a number above 0")
        for name in ("adam_betas", "discriminator_betas"):
            require(self, name, all(0 <= beta < 1 for beta in getattr(self, name)), "give two numbers in [0, 1)")
        for name in ("prompt_template", "text_template", "discriminator_template"):
            require(self, name, "{name}" in getattr(self, name), 'write "{name}" where the category\'s name goes')
        require(self, "discriminator_max_grad_norm", self.discriminator_max_grad_norm > 0, "give a number above 0")
        require(self, "guidance_scale", self.guidance_scale >= 1, "give 1 (no guidance) or more")
        require(self, "guidance_rescale", self.guidance_rescale <= 1, "give a number in [0, 1]")
        require(self, "independence_agreement", 0 <= self.independence_agreement <= 1, "give a share in [0, 1]")
        require(self, "ema_decay", 0 <= self.ema_decay < 1, "give 0 (off) or a number below 1")
        require(
            self, "independence_thumbnail", self.independence_thumbnail <= 16, "give 16 or less: colours, no detail"
        )
        require(self, "independence_bank", self.independence_bank >= 16, "give 16 or more")
        for name in ("independence_span", "independence_variance"):
            require(self, name, 0 < getattr(self, name) <= 1, "give a share in (0, 1]")
        require(self, "guard_diversity", 0 < self.guard_diversity <= 1, "give a share in (0, 1]")
        require(self, "evaluation_images", self.evaluation_images >= 2, "give 2 or more")
        require(self, "lora_targets", len(self.lora_targets) > 0, "name at least one module")
        within = 1 <= self.differentiated_steps <= self.steps
        require(self, "differentiated_steps", within, f"give 1 to {self.steps} (--steps)")
        total = self.entire_weight + self.individual_weight + self.independence_weight
        total += self.quality_weight if self.quality != "none" else 0
        remedy = (
            "nothing would be trained: raise it, --individual-weight, --independence-weight, or --quality-weight with "
            "a --quality scorer"
        )
        require(self, "entire_weight", total > 0, remedy)
