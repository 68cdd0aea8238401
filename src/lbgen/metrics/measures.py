"""Figures that say what a set of images is like. Pure functions, and no loss is made of them.

Shapes: B or N images, D feature channels, C categories, H and W pixels.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

COLOUR_LEVELS = 8
EDGE_THRESHOLD = 0.1


class Interval(NamedTuple):
    low: float
    high: float


def vendi_score(features: Tensor) -> float:
    """Effective number of different images (Friedman and Dieng, arXiv 2210.02410), cosine kernel.

    exp of the entropy of the eigenvalues of K/n: 1 for n equal rows, n for n orthogonal ones.
    features: (N, D), any norm but zero.
    """
    unit = torch.nn.functional.normalize(features.detach().double(), dim=-1)
    n, dimension = unit.shape
    gram = unit @ unit.T if n <= dimension else unit.T @ unit  # both have the same non-zero eigenvalues
    eigenvalues = torch.linalg.eigvalsh(gram / n).clamp_min(0)
    return math.exp(torch.special.entr(eigenvalues).sum().item())


def mean_category_vendi(features: Tensor, labels: Tensor) -> float:
    """Mean over the categories present of the Vendi score inside each.  features: (N, D), labels: (N,)."""
    scores = [vendi_score(features[labels == label]) for label in labels.unique()]
    return sum(scores) / len(scores)


def edge_density(images: Tensor) -> Tensor:
    """Share of an image's inner pixels where brightness changes by more than EDGE_THRESHOLD a pixel (Sobel).

    images: (B, 3, H, W) nominally in [0, 1].  Returns (B,) in [0, 1].
    """
    weights = images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    brightness = (images.clamp(0, 1) * weights).sum(dim=1, keepdim=True)  # (B, 1, H, W)
    sobel = images.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    slopes = torch.nn.functional.conv2d(brightness, torch.stack([sobel, sobel.T]).unsqueeze(1))  # (B, 2, H-2, W-2)
    return (slopes.norm(dim=1) > EDGE_THRESHOLD).float().mean(dim=(1, 2))


def colour_entropy(images: Tensor) -> Tensor:
    """Entropy in bits of each image's colours, every channel cut into COLOUR_LEVELS equal levels.

    images: (B, 3, H, W) nominally in [0, 1].  Returns (B,), 0 for one flat colour, at most 9 bits.
    """
    levels = (images.clamp(0, 1) * COLOUR_LEVELS).long().clamp_max(COLOUR_LEVELS - 1)
    red, green, blue = levels.flatten(2).unbind(dim=1)  # (B, H*W) each
    colours = (red * COLOUR_LEVELS + green) * COLOUR_LEVELS + blue
    counts = torch.stack([torch.bincount(row, minlength=COLOUR_LEVELS**3) for row in colours])
    return entropy_bits(counts)


def entropy_bits(counts: Tensor) -> Tensor:
    """Entropy of the distribution in each row of counts.  (..., K) -> (...)."""
    shares = counts.double() / counts.sum(dim=-1, keepdim=True)
    return torch.special.entr(shares).sum(dim=-1) / math.log(2)


def contingency_table(labels: Tensor, attributes: Tensor) -> Tensor:
    """How often each label meets each attribute.  Both (N,) integers from 0.  Returns (labels, attributes)."""
    rows, columns = int(labels.max()) + 1, int(attributes.max()) + 1
    return torch.bincount(labels * columns + attributes, minlength=rows * columns).view(rows, columns)


def mutual_information_bits(labels: Tensor, attributes: Tensor) -> float:
    """What an image's attribute says of its label, in bits: the plug-in estimate from the table of counts.

    Too high for few images (see `corrected_mutual_information_bits`).  Both (N,) integers from 0.
    """
    table = contingency_table(labels, attributes)
    entropies = entropy_bits(table.sum(1)) + entropy_bits(table.sum(0)) - entropy_bits(table.flatten())
    return max(0.0, entropies.item())


def corrected_mutual_information_bits(labels: Tensor, attributes: Tensor) -> float:
    """The plug-in estimate less its first-order bias (Miller 1955): each entropy gains (cells seen - 1) / 2n nats.

    May fall below 0 by chance when label and attribute are independent.
    """
    table = contingency_table(labels, attributes)
    cells = [int((counts > 0).sum()) for counts in (table.sum(1), table.sum(0), table)]
    bias_nats = (cells[2] - cells[0] - cells[1] + 1) / (2 * len(labels))
    return mutual_information_bits(labels, attributes) - bias_nats / math.log(2)


def expected_mutual_information_bits(table: Tensor) -> float:
    """Mean of the plug-in estimate over all shuffles of the labels (Vinh, Epps and Bailey, JMLR 2010, eq. 24a).

    table: (labels, attributes) counts.
    """
    total = int(table.sum())
    expected = 0.0
    for a, rows in zip(*(x.tolist() for x in table.sum(1).unique(return_counts=True)), strict=True):
        for b, columns in zip(*(x.tolist() for x in table.sum(0).unique(return_counts=True)), strict=True):
            n = torch.arange(max(1, a + b - total), min(a, b) + 1, dtype=torch.float64)  # images in a cell
            log_chance = _log_choose(b, n) + _log_choose(total - b, a - n) - _log_choose(total, torch.tensor(float(a)))
            information = n / total * torch.log2(total * n / (a * b))
            expected += rows * columns * (log_chance.exp() * information).sum().item()
    return expected


def _log_choose(n: int, k: Tensor) -> Tensor:
    """Natural logarithm of the binomial coefficient."""
    return math.lgamma(n + 1) - torch.lgamma(k.double() + 1) - torch.lgamma(n - k.double() + 1)


def adjusted_mutual_information(labels: Tensor, attributes: Tensor) -> float:
    """Information over the mean of both entropies, each less what chance gives, kept in [0, 1] (Vinh et al. 2010).

    0 by chance, however few the images; 1 for a renaming. 0 where nothing varies. Both (N,) integers from 0.
    """
    table = contingency_table(labels, attributes)
    by_chance = expected_mutual_information_bits(table)
    largest = (entropy_bits(table.sum(1)) + entropy_bits(table.sum(0))).item() / 2 - by_chance
    information = mutual_information_bits(labels, attributes) - by_chance
    return min(max(information / largest, 0.0), 1.0) if largest > 1e-9 else 0.0


def label_agreement(image_features: Tensor, text_features: Tensor, labels: Tensor) -> float:
    """Share of images whose nearest category text is their own label's.

    image_features: (N, D), text_features: (C, D), both unit norm; labels: (N,) in [0, C).
    """
    nearest = (image_features @ text_features.T).argmax(dim=-1)
    return (nearest == labels).double().mean().item()


def bootstrap_intervals(
    statistics: Callable[[Tensor], Tensor], strata: Tensor, *, seed: int = 0, draws: int = 1000
) -> list[Interval]:
    """95% intervals of K figures: percentiles over images redrawn with replacement inside each stratum.

    Moved by the bootstrap's own estimate of the bias: a redrawn set has repeated images, which alone raises information
    and lowers diversity (Efron and Tibshirani 1993, chapter 10).

    statistics: rows (N,), the indices drawn, to figures (K,). strata: (N,) integers.
    """
    rng = torch.Generator().manual_seed(seed)
    members = [torch.nonzero(strata == stratum).flatten() for stratum in strata.unique()]
    values = []
    for _ in range(draws):
        values.append(statistics(torch.cat([m[torch.randint(len(m), (len(m),), generator=rng)] for m in members])))
    drawn = torch.stack(values).double()  # (draws, K)
    centred = drawn - drawn.mean(dim=0) + statistics(torch.arange(len(strata)))
    ends = centred.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)  # (2, K)
    return [Interval(low, high) for low, high in ends.T.tolist()]
