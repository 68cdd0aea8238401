"""What a run shows of itself: a fixed set of images, statistics of them, and the guard.

Diversity, label agreement, the features' cosine and quality are judged by the semantics and the scorer that the losses
use, so they may be flattered by the training; edges, colours and the pixels' distance to the base model are not.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import trange

from lbgen.alignment.batches import derived_seed, stacked_noise
from lbgen.alignment.config import AlignConfig
from lbgen.metrics import measures
from lbgen.models.generator import Generator
from lbgen.models.quality.antonyms import QualityScorer
from lbgen.models.sampling import sample
from lbgen.models.semantics import SemanticSpace
from lbgen.runs import atomic
from lbgen.vocabulary.vocabulary import Vocabulary

IMAGES_PER_CATEGORY = 4
LEAST_EXCESS = 0.01
"""Of a Vendi score over 1. A base model with less has no diversity to lose."""


class Monitor:
    """Samples the evaluation set and measures it.  N = config.evaluation_images, in rows of one category each.

    Images are taken as they would be saved, as bytes (N, 3, H, W), for the base model and later alike.
    """

    def __init__(
        self,
        config: AlignConfig,
        vocabulary: Vocabulary,
        generator: Generator,
        semantics: SemanticSpace,
        quality: QualityScorer | None,
        autocast: Callable[[], AbstractContextManager],
    ) -> None:
        self.config, self.vocabulary = config, vocabulary
        self.generator, self.semantics, self.quality, self.autocast = generator, semantics, quality, autocast
        self.places = evaluation_places(config.evaluation_images, len(vocabulary))
        self.labels = torch.tensor([row for row, _ in self.places])
        with torch.no_grad():
            self.text_features = semantics.embed_texts(vocabulary.texts(config.text_template)).cpu()
        self.base = self._base_images()
        self.base_features, _ = self._features_and_scores(self.base)
        self.base_diversity = measures.mean_category_vendi(self.base_features, self.labels)

    def evaluate(self, step: int) -> dict[str, float]:
        """Write the sample grid and return the statistics of the adapter as it is; at step 0 that is the base model."""
        images = self.base if step == 0 else self.sample()
        write_grid(self.config.folder / "samples" / f"step-{step:06d}.png", images)
        features, scores = self._features_and_scores(images)
        difference = (images.float() - self.base.float()) / 255
        statistics = {
            "diversity": measures.mean_category_vendi(features, self.labels),
            "overall_diversity": measures.vendi_score(features),
            "label_agreement": measures.label_agreement(features, self.text_features, self.labels),
            "edge_density": measures.edge_density(images / 255).mean().item(),
            "colour_entropy": measures.colour_entropy(images / 255).mean().item(),
            "base_pixel_rms": difference.square().mean().sqrt().item(),
            "base_feature_cosine": (features * self.base_features).sum(dim=-1).mean().item(),
        }
        return statistics | ({"quality": scores.mean().item()} if scores is not None else {})

    @torch.no_grad()
    def sample(self) -> Tensor:
        """The evaluation images of the generator as it is."""
        prompts = self.vocabulary.texts(self.config.prompt_template)
        shape = self.generator.latent_shape(*self.generator.default_size)
        seed = derived_seed(self.config.seed, "evaluation")
        images = []
        for start in trange(0, len(self.places), self.config.batch_size, desc="evaluation", leave=False):
            rows, indices = zip(*self.places[start : start + self.config.batch_size], strict=True)
            noise, rngs = stacked_noise(
                seed, [self.vocabulary[row].id for row in rows], indices, [0] * len(rows), shape
            )
            noise = noise.to(self.generator.device)
            with self.autocast():
                conditioning = self.generator.encode([prompts[row] for row in rows])
                images.append(sample(self.generator, conditioning, noise, steps=self.config.steps, rngs=rngs).cpu())
        return (torch.cat(images).float().clamp(0, 1) * 255).round().to(torch.uint8)

    def _base_images(self) -> Tensor:
        """The base model's evaluation images, kept in the run folder."""
        path = self.config.folder / "samples" / "base.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with self.generator.adapter_enabled(False):
                images = self.sample()
            atomic.write_bytes(path, save({"images": images.contiguous()}))
        return load_file(path)["images"]

    @torch.no_grad()
    def _features_and_scores(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Unit features (N, D) and, where there is a scorer, scores (N,); on the CPU."""
        features, scores = [], []
        for chunk in images.split(self.config.batch_size):
            pixels = (chunk / 255).to(self.generator.device)
            with self.autocast():
                embedded = self.semantics.embed_images(pixels)
                features.append(embedded.cpu())
                if self.quality is not None:
                    scores.append(self.quality.score(pixels, embedded).float().cpu())
        return torch.cat(features), torch.cat(scores) if scores else None


def evaluation_places(images: int, categories: int) -> list[tuple[int, int]]:
    """(category, index within it) of each image: IMAGES_PER_CATEGORY of as many categories as that fills.

    The categories are spread evenly over the vocabulary; where it is small, further rounds have further indices.
    """
    rows = min(categories, -(-images // IMAGES_PER_CATEGORY))
    places = []
    for place in range(images):
        group, column = divmod(place, IMAGES_PER_CATEGORY)
        places.append((group % rows * categories // rows, group // rows * IMAGES_PER_CATEGORY + column))
    return places


def write_grid(path: Path, images: Tensor) -> None:
    """One row a category, IMAGES_PER_CATEGORY columns.  images: (N, 3, H, W) bytes."""
    n, channels, height, width = images.shape
    missing = -n % IMAGES_PER_CATEGORY
    padded = torch.cat([images, images.new_full((missing, channels, height, width), 255)])
    rows = padded.view(-1, IMAGES_PER_CATEGORY, channels, height, width)
    pixels = rows.permute(0, 3, 1, 4, 2).reshape(-1, IMAGES_PER_CATEGORY * width, channels)
    with atomic.replacing(path) as temporary:
        Image.fromarray(pixels.numpy()).save(temporary, format="PNG")


def diversity_share(diversity: float, base: float) -> float:
    """What is left of the base model's diversity, from two Vendi scores, which are 1 at the least: their excess."""
    return (diversity - 1) / (base - 1) if base - 1 >= LEAST_EXCESS else 1.0


def check_diversity(config: AlignConfig, step: int, share: float) -> str | None:
    """The guard: what to say when the images of a category have become alike.  share: of `diversity_share`."""
    if config.guard == "off" or share >= config.guard_diversity:
        return None
    message = (
        f"{config.folder}, step {step}: diversity (Vendi score less 1) fell to {share:.0%} of the base model's, "
        f"below --guard-diversity {config.guard_diversity}; lower the learning rates or raise --base-weight"
    )
    if config.guard == "stop":
        message += f", or go on from here with --guard warn; the last adapters are in {config.folder}/checkpoints"
    return message
