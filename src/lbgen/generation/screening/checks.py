"""Checks of rendered images, with scores; the thresholds are in ScreeningConfig.

The image features in the language space are computed once for all checks.
Shapes: B images, T distinct texts of categories, D dimensions of the language space.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lbgen.generation.config import GenerateConfig
from lbgen.generation.plan import PlannedImage
from lbgen.generation.screening.balance import ZeroShot
from lbgen.metrics.near_duplicates import GRID, LUMA, perceptual_hash
from lbgen.metrics.zero_shot import label_ranks
from lbgen.models.quality.antonyms import AntonymQuality
from lbgen.models.safety import SafetyChecker
from lbgen.models.semantics import SemanticSpace, load_semantics
from lbgen.vocabulary.attributes import Attribute
from lbgen.vocabulary.distinct import Confusion
from lbgen.vocabulary.vocabulary import Category


class Verdict(NamedTuple):
    """The result of all checks of one image."""

    scores: dict[str, float]
    """Name of a score in lbgen.datasets.index.SCORES -> its value, for the checks that were made."""
    reasons: tuple[str, ...]
    """The failed checks, in the order of GenerateConfig.checks; empty for an accepted image."""
    detected_values: tuple[str, ...] = ()
    """The value of each balanced attribute that the language space detects."""
    perceptual_hash: str | None = None
    """16 hexadecimal digits; None if the check for near-duplicates is off."""


class JudgedBatch(NamedTuple):
    """The input of the checks."""

    images: Sequence[PlannedImage]
    pixels: Tensor
    """(B, 3, H, W) bytes."""
    brightness: Tensor
    """(B, H, W) in [0, 1]."""
    features: Tensor
    """(B, D), of unit norm; (B, 0) if no check needs them."""


class CheckResult(NamedTuple):
    """The result of one check for a batch."""

    failed: Tensor
    """(B,) booleans."""
    scores: dict[str, Tensor]
    """Name -> (B,) scores."""


class Screen:
    """Judges each image independently. Near-duplicates are found once all shards exist (deduplicate.py)."""

    def __init__(
        self,
        config: GenerateConfig,
        categories: Sequence[Category],
        device: torch.device,
        balanced: Sequence[Attribute] = (),
    ) -> None:
        self.config, self.device = config, device
        self._dtype = torch.float16 if device.type == "cuda" else torch.float32
        checks, by_checker = set(config.checks), config.unsafe == "checker"
        if "label" in checks or ("unsafe" in checks and not by_checker):
            texts = [config.screen_template.replace("{name}", category.name) for category in categories]
            text_indices = {text: number for number, text in enumerate(dict.fromkeys(texts))}
            self._texts = self.space.embed_texts(list(text_indices))  # (T, D)
            self._text_index = {c.id: text_indices[text] for c, text in zip(categories, texts, strict=True)}
        if "balance" in checks:
            self._zero_shot = ZeroShot(balanced, categories, self.space)
        if "quality" in checks:
            self._scorer = AntonymQuality(self.space)
        if "unsafe" in checks and by_checker:
            self._checker = SafetyChecker(config.generator, device, self._dtype, config.revision, config.variant)
        elif "unsafe" in checks:
            texts = [config.screen_template.replace("{name}", concept) for concept in config.unsafe_concepts]
            self._concepts = self.space.embed_texts(texts)  # (concepts, D)

    @cached_property
    def space(self) -> SemanticSpace:
        """The language space, loaded on first use."""
        return load_semantics(self.config.screen_semantics, self.device, self._dtype, "--screen-semantics")

    @torch.no_grad()
    def confusions(self, categories: Sequence[Category]) -> list[Confusion]:
        """Categories that the label check cannot tell apart."""
        if "label" not in self.config.checks:
            return []
        return self.space.confusions(categories, self.config.screen_template)

    @torch.no_grad()
    def judge(self, images: Sequence[PlannedImage], pixels: np.ndarray, located: Sequence[bool] = ()) -> list[Verdict]:
        """The verdict on each image.

        pixels: (B, H, W, 3) bytes.  located: with --localize, whether each category of the image has a mask.
        """
        # Compute the inputs that the checks share, and run the configured checks.
        batch = self.batch_of(images, pixels)
        detected, hashes, results = self._detected_values(batch), self._hashes(batch), self.scored_checks(batch)
        failed: dict[str, list[bool]] = {name: result.failed.tolist() for name, result in results.items()}
        failed["balance"] = [image.target_values != values for image, values in zip(images, detected, strict=True)]
        failed["mask"] = [not found for found in located or [False] * len(images)]
        scores = {name: column.tolist() for result in results.values() for name, column in result.scores.items()}

        # Collect the verdict on each image.
        return [
            Verdict(
                {name: float(column[row]) for name, column in scores.items()},
                tuple(check for check in self.config.checks if check in failed and failed[check][row]),
                detected[row],
                hashes[row],
            )
            for row in range(len(images))
        ]

    def batch_of(self, images: Sequence[PlannedImage], pixels: np.ndarray) -> JudgedBatch:
        """The input of the checks.  pixels: (B, H, W, 3) bytes."""
        levels = torch.tensor(pixels, device=self.device).permute(0, 3, 1, 2)  # (B, 3, H, W)
        colours = levels.float() / 255
        brightness = torch.einsum("bchw,c->bhw", colours, torch.tensor(LUMA, device=self.device))
        features = (
            self.space.embed_images(colours) if self.config.compares_with_texts else colours.new_empty(len(images), 0)
        )
        return JudgedBatch(images, levels, brightness, features)

    @property
    def logit_scale(self) -> float:
        """The language space's factor for cosines before a softmax."""
        return self.space.logit_scale

    def scored_checks(self, batch: JudgedBatch) -> dict[str, CheckResult]:
        """Name -> result of each configured check that has a score and needs only one image."""
        checks = {"label": self._label, "quality": self._quality, "blank": self._blank, "unsafe": self._unsafe}
        return {name: check(batch) for name, check in checks.items() if name in self.config.screen}

    def label_cosines(self, batch: JudgedBatch) -> tuple[Tensor, Tensor]:
        """(B, T) cosines of the images and all texts, and (B,) the index of each image's own text."""
        own = torch.tensor([self._text_index[image.category.id] for image in batch.images], device=self.device)
        return batch.features @ self._texts.T, own

    def _detected_values(self, batch: JudgedBatch) -> list[tuple[str, ...]]:
        if not self.config.balance:
            return [()] * len(batch.images)
        return self._zero_shot.detect([image.category.name for image in batch.images], batch.features)

    def _hashes(self, batch: JudgedBatch) -> list[str | None]:
        if "duplicate" not in self.config.screen:
            return [None] * len(batch.images)
        grids = F.adaptive_avg_pool2d(batch.brightness[:, None], GRID)[:, 0]
        return [f"{value:016x}" for value in perceptual_hash(grids.cpu().numpy()).tolist()]

    def _label(self, batch: JudgedBatch) -> CheckResult:
        """Zero-shot classification (arXiv 2103.00020, section 3.1); only strictly nearer texts count for the rank.

        Categories that share a text are one class, with one probability.
        """
        cosines, own = self.label_cosines(batch)
        rank = 1 + label_ranks(cosines, own)
        probability = (self.space.logit_scale * cosines).softmax(dim=1).gather(1, own[:, None])[:, 0]
        failed = (rank > self.config.label_top_k) | (probability < self.config.least_label_probability)
        return CheckResult(failed, {"label_rank": rank, "label_probability": probability})

    def _quality(self, batch: JudgedBatch) -> CheckResult:
        quality = self._scorer.score(batch.pixels / 255, batch.features)
        return CheckResult(quality < self.config.least_quality, {"quality": quality})

    def _blank(self, batch: JudgedBatch) -> CheckResult:
        deviation = batch.brightness.std(dim=(1, 2), correction=0)
        return CheckResult(deviation < self.config.least_deviation, {"deviation": deviation})

    def _unsafe(self, batch: JudgedBatch) -> CheckResult:
        """Score: cosine of the nearest concept minus that of the nearest category; with the checker, 1 or 0."""
        if self.config.unsafe == "checker":
            flags = self._checker.flags(batch.pixels)
            return CheckResult(flags, {"unsafe": flags.float()})
        concept, category = ((batch.features @ texts.T).amax(dim=1) for texts in (self._concepts, self._texts))
        return CheckResult(concept > category, {"unsafe": concept - category})
