"""Monitoring of a run: a fixed set of evaluation images, statistics of them, and the guard against collapse.

Diversity, label agreement, feature cosine and quality are measured with the same semantics and scorer as the losses, so
training may improve them more than it improves the images. Edges, colours and the pixel distance to the base model do
not have this bias.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor

from lbgen.alignment.config import AlignConfig
from lbgen.alignment.images import sample_images
from lbgen.metrics.diversity import mean_category_vendi, vendi_score
from lbgen.metrics.pixels import colour_entropy, edge_density
from lbgen.metrics.zero_shot import label_agreement
from lbgen.models.generator import Generator
from lbgen.models.quality import QualityScorer
from lbgen.models.semantics import SemanticSpace
from lbgen.runs import atomic, console
from lbgen.vocabulary.vocabulary import Vocabulary

IMAGES_PER_CATEGORY = 4
SMALLEST_DIVERSITY = 0.01
"""Least Vendi score minus 1 of a base model that the guard can judge; below it there is no diversity to lose."""


class Monitor:
    """Samples the evaluation images and measures them.  N = config.evaluation_images.

    Images are rounded to bytes (N, 3, H, W) as in a saved file, both for the base model and later.
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
        assert config.evaluation_images is not None
        self.images = evaluation_images(config.evaluation_images, len(vocabulary))
        self.labels = torch.tensor([category_index for category_index, _ in self.images])
        with torch.no_grad():
            self.text_features = semantics.embed_texts(vocabulary.texts(config.text_template)).cpu()
        self.base = self._base_images()
        self.base_features, _ = self._features_and_scores(self.base)
        self.base_diversity = mean_category_vendi(self.base_features, self.labels)

    def evaluate(self, step: int) -> dict[str, float]:
        """Write the sample grid and return statistics of the current adapter's images; step 0 is the base model."""
        images = self.base if step == 0 else self.sample()
        write_grid(self.grid_path(step), images)
        features, scores = self._features_and_scores(images)
        difference = (images.float() - self.base.float()) / 255
        statistics = {
            "diversity": mean_category_vendi(features, self.labels),
            "overall_diversity": vendi_score(features),
            "label_agreement": label_agreement(features, self.text_features, self.labels),
            "edge_density": edge_density(images / 255).mean().item(),
            "colour_entropy": colour_entropy(images / 255).mean().item(),
            "base_pixel_rms": difference.square().mean().sqrt().item(),
            "base_feature_cosine": (features * self.base_features).sum(dim=-1).mean().item(),
        }
        return statistics | ({"quality": scores.mean().item()} if scores is not None else {})

    def grid_path(self, step: int) -> Path:
        """The picture of an evaluation."""
        return self.config.folder / "samples" / f"step-{step:06d}.png"

    @torch.no_grad()
    def sample(self) -> Tensor:
        """Evaluation images with the current adapter, bytes (N, 3, H, W) on the CPU."""
        size, chunks = self.config.batch_size, []
        batches = [self.images[start : start + size] for start in range(0, len(self.images), size)]
        for batch in console.tracked(batches, "evaluation", len(batches), "batches", leave=False):
            category_indices, image_indices = zip(*batch, strict=True)
            attempts = [0] * len(category_indices)
            with self.autocast():
                images = sample_images(
                    self.config, self.vocabulary, self.generator,
                    category_indices, image_indices, attempts, purpose="evaluation",
                )  # fmt: skip
            chunks.append(images.cpu())
        return (torch.cat(chunks).float().clamp(0, 1) * 255).round().to(torch.uint8)

    def _base_images(self) -> Tensor:
        """The base model's evaluation images; made once and saved in the run folder."""
        path = self.config.folder / "samples" / "base.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with self.generator.adapter_enabled(False):
                images = self.sample()
            atomic.write_bytes(path, save({"images": images.contiguous()}))
        return load_file(path)["images"]

    @torch.no_grad()
    def _features_and_scores(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Unit features (N, D) and scores (N,) on the CPU; None for the scores without a scorer."""
        features, scores = [], []
        for chunk in images.split(self.config.batch_size):
            pixels = (chunk / 255).to(self.generator.device)
            with self.autocast():
                embedded = self.semantics.embed_images(pixels)
                features.append(embedded.cpu())
                if self.quality is not None:
                    scores.append(self.quality.score(pixels, embedded).float().cpu())
        return torch.cat(features), torch.cat(scores) if scores else None


def evaluation_images(count: int, categories: int) -> list[tuple[int, int]]:
    """Category index of each evaluation image, and its image index within the category.

    Each category has IMAGES_PER_CATEGORY images, and the categories are spread evenly over the vocabulary. A small
    vocabulary is used several times, with new image indices.
    """
    used = min(categories, -(-count // IMAGES_PER_CATEGORY))
    images = []
    for number in range(count):
        group, column = divmod(number, IMAGES_PER_CATEGORY)
        images.append((group % used * categories // used, group // used * IMAGES_PER_CATEGORY + column))
    return images


def write_grid(path: Path, images: Tensor) -> None:
    """Write a PNG with one row per category and IMAGES_PER_CATEGORY columns.  images: (N, 3, H, W) bytes."""
    n, channels, height, width = images.shape
    missing = -n % IMAGES_PER_CATEGORY
    padded = torch.cat([images, images.new_full((missing, channels, height, width), 255)])
    rows = padded.view(-1, IMAGES_PER_CATEGORY, channels, height, width)
    pixels = rows.permute(0, 3, 1, 4, 2).reshape(-1, IMAGES_PER_CATEGORY * width, channels)
    with atomic.replacing(path) as temporary:
        Image.fromarray(pixels.numpy()).save(temporary, format="PNG")


def diversity_share(diversity: float, base: float) -> float:
    """The remaining share of the base model's diversity, from mean Vendi scores, which are 1 without diversity."""
    return (diversity - 1) / (base - 1) if base - 1 >= SMALLEST_DIVERSITY else 1.0


def check_diversity(config: AlignConfig, step: int, share: float) -> str | None:
    """The guard's warning if a category's images have become too similar, else None.  share: from `diversity_share`."""
    if config.guard == "off" or share >= config.guard_diversity:
        return None
    message = (
        f"{config.folder}, step {step}: diversity (Vendi score less 1) fell to {share:.0%} of the base model's, "
        f"below --guard-diversity {config.guard_diversity}; lower the learning rates or raise --base-weight"
    )
    if config.guard == "stop":
        message += f", or go on from here with --guard warn; the last adapters are in {config.folder}/checkpoints"
    return message
