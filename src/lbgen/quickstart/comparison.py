"""Measuring two sets of images with the same categories and seeds, and comparing them figure by figure."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lbgen.metrics.diversity import mean_category_vendi
from lbgen.metrics.information import bits, contingency_table, entropy, miller_madow_information
from lbgen.metrics.intervals import Interval, bootstrap_intervals

LARGEST_ACCURACY_LOSS = 0.03
LARGEST_RELATIVE_LOSS = 0.10
"""Largest acceptable losses: 3 points of label accuracy, a tenth of the diversity and of the scene entropy."""


class Judged(NamedTuple):
    """Predictions of a judge that no loss uses, for N images.  Row i of two sets has the same category and noise."""

    label: Tensor
    """(N,) the category in the prompt."""
    category: Tensor
    """(N,) the predicted category."""
    scene: Tensor
    """(N,) the predicted scene."""
    features: Tensor
    """(N, D) features of the judge."""
    quality: Tensor
    """(N,) in [1, 5]."""
    edge_density: Tensor
    """(N,) in [0, 1]."""
    colour_entropy: Tensor
    """(N,) bits."""

    def at(self, rows: Tensor) -> "Judged":
        return Judged(*(column[rows] for column in self))


@dataclass(frozen=True)
class FigureDefinition:
    """The definition of one figure, which is a line of the table."""

    key: str
    title: str
    better: Literal["lower", "higher", "neither"]
    percent: bool
    how: str
    measure: Callable[[Judged, Tensor], float]
    """Function of a judged set and the home scene (C,) of each category."""


def scene_information(judged: Judged, home: Tensor) -> float:
    """Mutual information of category and scene in bits, corrected for the number of images, clipped to its range."""
    table = contingency_table(judged.label.numpy(), judged.scene.numpy())
    information = float(bits(miller_madow_information(table)))
    return min(max(information, 0.0), math.log2(int(judged.scene.max()) + 1))


def scene_entropy(judged: Judged, home: Tensor) -> float:
    return float(bits(entropy(torch.bincount(judged.scene).numpy())))


FIGURES = (
    FigureDefinition(
        "category_scene_mutual_information_bits",
        "Scene information, bits",
        "lower",
        False,
        "Mutual information between the category in the prompt and the scene that the judge predicts: how well one "
        "predicts the other. Plug-in estimate with the Miller-Madow correction for the number of images.",
        scene_information,
    ),
    FigureDefinition(
        "home_scene_rate",
        "Home-scene rate",
        "lower",
        True,
        "Share of images on the home scene of their category, the scene of nine in ten images in the biased corpus.",
        lambda judged, home: (judged.scene == home[judged.label]).double().mean().item(),
    ),
    FigureDefinition(
        "label_accuracy",
        "Label accuracy",
        "higher",
        True,
        "Share of images for which the judge predicts the category in the prompt.",
        lambda judged, home: (judged.category == judged.label).double().mean().item(),
    ),
    FigureDefinition(
        "diversity",
        "Diversity within a category",
        "higher",
        False,
        "Vendi score of the judge's features (the effective number of different images), mean over the categories. "
        "Poor images raise it too: read it together with the label accuracy.",
        lambda judged, home: mean_category_vendi(judged.features, judged.label),
    ),
    FigureDefinition(
        "scene_entropy_bits",
        "Scenes in use, bits",
        "higher",
        False,
        "Entropy of the predicted scenes over all categories. If all images moved to one scene, the scene information "
        "would fall, and so would this.",
        scene_entropy,
    ),
    FigureDefinition(
        "quality",
        "Quality, 1 to 5",
        "higher",
        False,
        "Mean score of the quality scorer that an alignment may optimise too, so a high value proves little.",
        lambda judged, home: judged.quality.double().mean().item(),
    ),
    FigureDefinition(
        "edge_density",
        "Edge density",
        "neither",
        True,
        "Share of pixels on a clear edge of brightness, mean over the images. No loss uses it; a large change means "
        "that the images became flatter or noisier.",
        lambda judged, home: judged.edge_density.double().mean().item(),
    ),
    FigureDefinition(
        "colour_entropy",
        "Colour entropy, bits",
        "neither",
        False,
        "Entropy of an image's colour histogram with 512 bins, mean over the images. No loss uses it; a large change "
        "means that colours were lost or became noise.",
        lambda judged, home: judged.colour_entropy.double().mean().item(),
    ),
)


@dataclass(frozen=True)
class Line:
    """A figure of both sets with 95% intervals; for the change, the same images are resampled in both sets."""

    figure: FigureDefinition
    base: float
    after: float
    base_interval: Interval
    after_interval: Interval
    change_interval: Interval

    @property
    def change(self) -> float:
        return self.after - self.base

    @property
    def verdict(self) -> Literal["better", "worse", "moved", "no clear change"]:
        low, high = self.change_interval
        if low <= 0 <= high:
            return "no clear change"
        if self.figure.better == "neither":
            return "moved"
        return "better" if (high < 0) == (self.figure.better == "lower") else "worse"


def compare(base: Judged, after: Judged, home: Tensor, resamples: int = 500) -> list[Line]:
    """A line per figure.  home: (C,) the home scene of each category."""
    assert torch.equal(base.label, after.label)

    def both(rows: Tensor) -> Tensor:
        """(3 * figures,): the figures of the base, those of the other set, and the differences."""
        first, second = ([figure.measure(judged.at(rows), home) for figure in FIGURES] for judged in (base, after))
        return torch.tensor([first, second, [b - a for a, b in zip(first, second, strict=True)]]).flatten()

    count = len(FIGURES)
    values = both(torch.arange(len(base.label))).tolist()
    intervals = bootstrap_intervals(both, base.label, resamples=resamples)
    lines = []
    for i, figure in enumerate(FIGURES):
        first, second, change = (intervals[i + count * part] for part in range(3))
        if figure.percent:  # the bias correction may move an interval beyond [0, 1]
            first, second = (Interval(max(low, 0.0), min(high, 1.0)) for low, high in (first, second))
        lines.append(Line(figure, values[i], values[count + i], first, second, change))
    return lines


def headline(lines: list[Line]) -> str:
    """How alignment changed the bias, in one sentence."""
    line = _named(lines)["category_scene_mutual_information_bits"]
    if line.verdict == "better":
        return f"After alignment, a category says {-line.change / line.base:.0%} less about its background."
    if line.verdict == "worse":
        return f"After alignment, a category says {line.change:.2f} bits more about its background."
    return "Alignment did not clearly change what a category says about its background."


def price(lines: list[Line]) -> str:
    """What the alignment cost, in one sentence, compared with the largest acceptable losses."""
    named = _named(lines)
    accuracy, diversity, scenes = (named[key] for key in ("label_accuracy", "diversity", "scene_entropy_bits"))
    losses = []
    if accuracy.change < -LARGEST_ACCURACY_LOSS:
        losses.append(f"label accuracy fell by {-100 * accuracy.change:.1f} points (limit 3)")
    if diversity.change < -LARGEST_RELATIVE_LOSS * diversity.base:
        losses.append(f"diversity fell by {-diversity.change / diversity.base:.0%} (limit 10%)")
    if scenes.change < -LARGEST_RELATIVE_LOSS * scenes.base:
        losses.append(f"the variety of scenes fell by {-scenes.change / scenes.base:.0%} (limit 10%)")
    if losses:
        return f"It cost more than we allow: {', '.join(losses)}."
    return (
        f"Label accuracy went from {accuracy.base:.1%} to {accuracy.after:.1%} and diversity from "
        f"{diversity.base:.2f} to {diversity.after:.2f}, within what we allow (3 points and 10% less)."
    )


def _named(lines: list[Line]) -> dict[str, Line]:
    return {line.figure.key: line for line in lines}


def summary(aligned: list[Line], diverse: list[Line]) -> dict[str, dict[str, object]]:
    """The figures of all sets and their changes from the base, with intervals, as plain data for summary.json."""
    return {
        "base": _part(aligned, "base"),
        "aligned": _part(aligned, "after"),
        "change": _part(aligned, "change"),
        "diverse_prompts": _part(diverse, "after"),
        "diverse_prompts_change": _part(diverse, "change"),
    }


def _part(lines: list[Line], part: Literal["base", "after", "change"]) -> dict[str, object]:
    values: dict[str, object] = {line.figure.key: getattr(line, part) for line in lines}
    return values | {"intervals": {line.figure.key: list(getattr(line, f"{part}_interval")) for line in lines}}
