"""Reading the quickstart's sets of micro-world images back, and predicting their content with the judge."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lbgen.alignment.config import AlignConfig
from lbgen.datasets.index import read_index
from lbgen.metrics.pixels import colour_entropy, edge_density
from lbgen.microworld.judge import Judge, load_judge
from lbgen.microworld.world import CATEGORIES, HOME, SCENES
from lbgen.models.quality import QualityScorer, load_quality
from lbgen.models.semantics import load_semantics
from lbgen.quickstart.comparison import Judged

BATCH = 64


class JudgedImages(NamedTuple):
    images: Tensor
    """(N, 3, H, W) in [0, 1]."""
    judged: Judged


class Sets(NamedTuple):
    """Row i of every set has the same category, index and noise."""

    base: JudgedImages
    aligned: JudgedImages
    diverse_prompts: JudgedImages


HOMES = torch.tensor([SCENES.index(HOME[name]) for name in CATEGORIES])
"""(12,) the home scene of each category."""


def judge_sets(folders: Sequence[Path], config: AlignConfig) -> list[JudgedImages]:
    """Read and judge dataset folders made with the same seed."""
    judge = load_judge()
    quality = load_quality("antonyms", load_semantics(config.spaces[0], torch.device("cpu"), torch.float32))
    assert quality is not None
    indexes = [read_index(folder).to_pylist() for folder in folders]
    keys = {tuple(row["key"] for row in index) for index in indexes}
    assert len(keys) == 1
    labels = torch.tensor([CATEGORIES.index(row["name"]) for row in indexes[0]])
    sets = []
    for folder, index in zip(folders, indexes, strict=True):
        images = load_images(folder, [row["file"] for row in index])
        sets.append(JudgedImages(images, judge_images(images, labels, judge, quality)))
    return sets


def load_images(directory: Path, image_files: Iterable[str]) -> Tensor:
    """(N, 3, H, W) in [0, 1], all of one size.  image_files: column `file` of the index, format imagefolder."""
    pixels = [np.asarray(Image.open(directory / file).convert("RGB")) for file in image_files]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def judge_images(images: Tensor, labels: Tensor, judge: Judge, quality: QualityScorer) -> Judged:
    """The judge's predictions.  images: (N, 3, H, W) in [0, 1], labels: (N,)."""
    parts = []
    for batch in images.split(BATCH):
        verdicts = judge.verdicts(batch)
        statistics = (quality.score(batch), edge_density(batch), colour_entropy(batch))
        parts.append((verdicts.category, verdicts.scene, verdicts.features, *statistics))
    return Judged(labels, *(torch.cat(column) for column in zip(*parts, strict=True)))
