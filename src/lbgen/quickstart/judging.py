"""The quickstart's report: judge all sets of micro-world images, compare them, write the page."""

import json
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import lbgen
from lbgen.alignment.config import AlignConfig
from lbgen.datasets.index import read_index
from lbgen.metrics import measures
from lbgen.microworld.judge import Judge, load_judge
from lbgen.microworld.world import CATEGORIES, HOME, SCENES
from lbgen.models.quality.antonyms import QualityScorer, load_quality
from lbgen.models.semantics import load_semantics
from lbgen.quickstart.comparison import Judged, Line, compare
from lbgen.quickstart.page import Chart, Page, Strip, write_page
from lbgen.report import figures

IMAGES_SHOWN = 4
BATCH = 64

LOSSES = {
    "entire": ("Entire dataset", "How little the images pass for texts; their opponent learns too."),
    "individual": ("Individual image", "1 - cosine between an image and its own category's text."),
    "quality": ("Quality assurance", "1 - score / 5."),
    "base": ("Pull towards the base", "Mean squared distance to the base generator's image."),
    "independence": (
        "Independence",
        "How much the rest of an image tells of its category; 0: nothing.",
    ),
    "discriminator": ("Discriminator", "1.39 when it cannot tell images from texts, 0 when it always can."),
}
STATISTICS = {
    "diversity": ("Diversity in a category", "Vendi score; the guard watches this one."),
    "overall_diversity": ("Overall diversity", "Vendi score of all images together."),
    "label_agreement": ("Label agreement", "Share of images nearest to their own category's text."),
    "edge_density": ("Edge density", "Share of pixels with a clear brightness step."),
    "colour_entropy": ("Colour entropy", "Bits, of an image's colours."),
    "base_pixel_rms": ("Distance from the base", "Root mean square of pixels, 0 to 1."),
    "base_feature_cosine": ("Likeness to the base", "Cosine of features, same noise."),
    "quality": ("Quality", "Mean score, 1 to 5."),
}
LIMITS = (
    "The micro world is a toy: 12 drawn categories on 6 scenes, 64x64 pixels, models of a few million weights. A "
    "result here shows that the method and this code work, not that they work as well on photographs.",
    "Diverse prompts name the very attribute that the figures measure, and this generator knows its words. They do "
    "nothing about a bias that nobody thought of naming; alignment is told category names alone.",
    "This is one alignment with one seed. The intervals cover the draw of the images, not another alignment: "
    "docs/independence.md and docs/microworld.md have several seeds and settings, failures too.",
    "The judge is a small network as well. It never trains the generator, but it was trained on cleanly drawn images, "
    "and a blurred or half-drawn object can fool it.",
    "Less scene information does not by itself make a better training set. No backbone is trained here; "
    "docs/independence.md has some.",
)


class ImageSet(NamedTuple):
    images: Tensor
    """(N, 3, H, W) in [0, 1]."""
    judged: Judged


class Sets(NamedTuple):
    """Row by row of the same category, index and noise."""

    base: ImageSet
    aligned: ImageSet
    diverse_prompts: ImageSet


HOMES = torch.tensor([SCENES.index(HOME[name]) for name in CATEGORIES])
"""(12,) the home scene of each category."""


def judge_sets(folders: Sequence[Path], config: AlignConfig) -> list[ImageSet]:
    """Read and judge dataset folders made with the same seed."""
    judge = load_judge()
    quality = load_quality("antonyms", load_semantics(config.semantics, torch.device("cpu"), torch.float32))
    assert quality is not None
    indexes = [read_index(folder).to_pylist() for folder in folders]
    keys = {tuple(row["key"] for row in index) for index in indexes}
    assert len(keys) == 1
    labels = torch.tensor([CATEGORIES.index(row["name"]) for row in indexes[0]])
    sets = []
    for folder, index in zip(folders, indexes, strict=True):
        images = load_images(folder, [row["file"] for row in index])
        sets.append(ImageSet(images, judge_images(images, labels, judge, quality)))
    return sets


def load_images(directory: Path, image_files: Iterable[str]) -> Tensor:
    """(N, 3, H, W) in [0, 1], all of one size; `image_files` as in the index of an imagefolder dataset."""
    pixels = [np.asarray(Image.open(directory / file).convert("RGB")) for file in image_files]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def judge_images(images: Tensor, labels: Tensor, judge: Judge, quality: QualityScorer) -> Judged:
    """images: (N, 3, H, W) in [0, 1], labels: (N,)."""
    parts = []
    for batch in images.split(BATCH):
        seen = judge.verdicts(batch)
        statistics = (quality.score(batch), measures.edge_density(batch), measures.colour_entropy(batch))
        parts.append((seen.category, seen.scene, seen.features, *statistics))
    return Judged(labels, *(torch.cat(column) for column in zip(*parts, strict=True)))


def write_report(
    sets: Sets, run: Path, config: AlignConfig, facts: list[tuple[str, str]], path: Path
) -> tuple[list[Line], list[Line]]:
    """Compare the sets and write the page; `run` is the alignment's folder.

    Returns the lines of the table: the aligned set's, and those of diverse prompts.
    """
    lines, diverse = (compare(sets.base.judged, other.judged, HOMES) for other in (sets.aligned, sets.diverse_prompts))
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers", "peft"))
    page = Page(
        title="lbgen quickstart: the micro world, before and after alignment",
        lines=lines,
        diverse=diverse,
        strips=strips(sets),
        maps=[
            scene_map("Base", sets.base.judged, figures.BASE),
            scene_map("Aligned", sets.aligned.judged, figures.ALIGNED),
            scene_map("Diverse prompts", sets.diverse_prompts.judged, figures.DIVERSE),
        ],
        losses=charts(run / "metrics.jsonl", shown_losses(config), smooth=max(3, config.max_steps // 10)),
        statistics=charts(run / "evaluations.jsonl", STATISTICS, smooth=1),
        limits=list(LIMITS),
        facts=[*facts, ("Versions", f"lbgen {lbgen.__version__}, {packages}")],
    )
    write_page(page, path)
    return lines, diverse


def shown_losses(config: AlignConfig) -> dict[str, tuple[str, str]]:
    """Those that train the adapter, and their opponents'; a run logs terms of no weight too."""
    idle = {"entire", "discriminator"} if config.entire_weight == 0 else set()
    return {key: texts for key, texts in LOSSES.items() if key not in idle}


def strips(sets: Sets) -> list[Strip]:
    """The first images of every category."""
    result = []
    for label, name in enumerate(CATEGORIES):
        rows = torch.nonzero(sets.base.judged.label == label).flatten()[:IMAGES_SHOWN]
        pictures = (figures.png_uri(figures.strip(each.images[rows])) for each in sets)
        result.append(Strip(name, f"home: {HOME[name]}", *pictures))
    return result


def scene_map(title: str, judged: Judged, colour: str) -> Chart:
    """Share of each category's images on each scene."""
    counts = torch.stack(
        [torch.bincount(judged.scene[judged.label == label], minlength=len(SCENES)) for label in range(len(CATEGORIES))]
    )
    shares = (counts / counts.sum(dim=1, keepdim=True)).numpy()
    note = f"{len(judged.label)} images, {counts[0].sum()} a category"
    return Chart(title, note, figures.share_map(shares, CATEGORIES, SCENES, HOMES.tolist(), colour))


def charts(path: Path, titles: dict[str, tuple[str, str]], smooth: int) -> list[Chart]:
    """A chart of every named number in a file of one JSON object a step; a step that was redone counts once."""
    steps = {line["step"]: line for line in map(json.loads, path.read_text().splitlines())}
    result = []
    for key, (title, note) in titles.items():
        seen = [step for step in sorted(steps) if steps[step].get(key) is not None]
        if seen:
            values = [steps[step][key] for step in seen]
            result.append(Chart(title, note, figures.curve(seen, values, smooth=smooth)))
    return result
