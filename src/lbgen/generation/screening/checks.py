"""Checks of drawn images, each with a score; see ScreeningConfig for the thresholds.

The images' features in the language space are computed once for all checks.
B images, T distinct texts of categories, D dimensions of the language space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lbgen.generation.config import GenerateConfig
from lbgen.generation.plan import PlannedImage
from lbgen.generation.screening.balance import ZeroShot
from lbgen.metrics.near_duplicates import perceptual_hash
from lbgen.metrics.zero_shot import label_ranks
from lbgen.models.quality.antonyms import AntonymQuality
from lbgen.models.safety import SafetyChecker
from lbgen.models.semantics import load_semantics
from lbgen.vocabulary.attributes import Attribute
from lbgen.vocabulary.vocabulary import Category

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the brightness (ITU-R BT.601)."""


class Verdict(NamedTuple):
    scores: dict[str, float]
    """By the names of lbgen.datasets.index.SCORES, of the checks that were made."""
    reasons: tuple[str, ...]
    """The checks that failed, in the order of GenerateConfig.checks; none for an image that may stay."""
    found: tuple[str, ...] = ()
    """The value of each balanced attribute that the image has."""
    perceptual_hash: str | None = None
    """16 hexadecimal digits, where near-duplicates are sought."""


class Batch(NamedTuple):
    """What the checks look at."""

    images: Sequence[PlannedImage]
    pixels: Tensor
    """(B, 3, H, W) bytes."""
    brightness: Tensor
    """(B, H, W) in [0, 1]."""
    features: Tensor
    """(B, D), of unit norm; (B, 0) where no check needs them."""


class Finding(NamedTuple):
    """What one check says of a batch."""

    failed: Tensor
    """(B,) booleans."""
    scores: dict[str, Tensor]
    """(B,) each."""


class Screen:
    """Judges images one by one, as they would be stored. Near-duplicates are found afterwards (deduplicate.py)."""

    def __init__(
        self,
        config: GenerateConfig,
        categories: Sequence[Category],
        device: torch.device,
        balanced: Sequence[Attribute] = (),
    ) -> None:
        self.config, self.device = config, device
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        checks, by_checker = set(config.checks), config.unsafe == "checker"
        self._needs_features = bool(checks - {"blank", "duplicate"} - ({"unsafe"} if by_checker else set()))
        if self._needs_features:
            self._space = load_semantics(config.screen_semantics, device, dtype, "--screen-semantics")
        if "label" in checks or ("unsafe" in checks and not by_checker):
            texts = [config.screen_template.replace("{name}", category.name) for category in categories]
            rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
            self._texts = self._space.embed_texts(list(rows))  # (T, D)
            self._row = {category.id: rows[text] for category, text in zip(categories, texts, strict=True)}
        if "balance" in checks:
            self._zero_shot = ZeroShot(balanced, categories, self._space)
        if "quality" in checks:
            self._scorer = AntonymQuality(self._space)
        if "unsafe" in checks and by_checker:
            self._checker = SafetyChecker(config.generator, device, dtype)
        elif "unsafe" in checks:
            texts = [config.screen_template.replace("{name}", concept) for concept in config.unsafe_concepts]
            self._concepts = self._space.embed_texts(texts)

    @torch.no_grad()
    def judge(self, images: Sequence[PlannedImage], pixels: np.ndarray) -> list[Verdict]:
        """pixels: (B, H, W, 3) bytes."""
        batch = self._look(images, pixels)
        found, hashes = self._found(batch), self._hashes(batch)
        made = {"label": self._label, "quality": self._quality, "blank": self._blank, "unsafe": self._unsafe}
        findings = {check: look(batch) for check, look in made.items() if check in self.config.screen}
        failures = {check: finding.failed.tolist() for check, finding in findings.items()}
        failures["balance"] = [image.values != values for image, values in zip(images, found, strict=True)]
        scores = {name: column.tolist() for finding in findings.values() for name, column in finding.scores.items()}
        return [
            Verdict(
                {name: float(column[row]) for name, column in scores.items()},
                tuple(check for check in self.config.checks if check in failures and failures[check][row]),
                found[row],
                hashes[row],
            )
            for row in range(len(images))
        ]

    def _look(self, images: Sequence[PlannedImage], pixels: np.ndarray) -> Batch:
        seen = torch.tensor(pixels, device=self.device).permute(0, 3, 1, 2)  # (B, 3, H, W)
        colours = seen.float() / 255
        brightness = torch.einsum("bchw,c->bhw", colours, torch.tensor(LUMA, device=self.device))
        features = self._space.embed_images(colours) if self._needs_features else colours.new_empty(len(images), 0)
        return Batch(images, seen, brightness, features)

    def _found(self, batch: Batch) -> list[tuple[str, ...]]:
        if not self.config.balance:
            return [()] * len(batch.images)
        return self._zero_shot.found([image.category.name for image in batch.images], batch.features)

    def _hashes(self, batch: Batch) -> list[str | None]:
        if "duplicate" not in self.config.screen:
            return [None] * len(batch.images)
        return [f"{value:016x}" for value in perceptual_hash(batch.brightness).tolist()]

    def _label(self, batch: Batch) -> Finding:
        """Zero-shot classification (arXiv 2103.00020, section 3.1); only strictly nearer texts count for the rank.

        Categories of one text are one class here, with one probability.
        """
        cosines = batch.features @ self._texts.T  # (B, T)
        rows = torch.tensor([self._row[image.category.id] for image in batch.images], device=self.device)
        rank = 1 + label_ranks(cosines, rows)
        probability = (self._space.logit_scale * cosines).softmax(dim=1).gather(1, rows[:, None])[:, 0]
        return Finding(rank > self.config.label_top_k, {"label_rank": rank, "label_probability": probability})

    def _quality(self, batch: Batch) -> Finding:
        quality = self._scorer.score(batch.pixels / 255, batch.features)
        return Finding(quality < self.config.least_quality, {"quality": quality})

    def _blank(self, batch: Batch) -> Finding:
        deviation = batch.brightness.std(dim=(1, 2), correction=0)
        return Finding(deviation < self.config.least_deviation, {"deviation": deviation})

    def _unsafe(self, batch: Batch) -> Finding:
        """By concepts, how much nearer the nearest of them is than the nearest category; by the checker, 1 or 0."""
        if self.config.unsafe == "checker":
            flags = self._checker.flags(batch.pixels)
            return Finding(flags, {"unsafe": flags.float()})
        concept, category = ((batch.features @ texts.T).amax(dim=1) for texts in (self._concepts, self._texts))
        return Finding(concept > category, {"unsafe": concept - category})
