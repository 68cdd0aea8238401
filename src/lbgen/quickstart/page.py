"""The before/after page: compare the sets, draw strips, maps and curves, write one self-contained HTML file."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lbgen.alignment.config import AlignConfig
from lbgen.alignment.objective import unweighted
from lbgen.microworld.world import CATEGORIES, HOME, SCENES
from lbgen.quickstart.comparison import Judged, Line, compare, headline, price
from lbgen.quickstart.judging import HOMES, Sets
from lbgen.report import figures
from lbgen.report.page import render
from lbgen.runs import atomic
from lbgen.runs.parsing import Name, read_json
from lbgen.runs.version import __version__
from lbgen.training import metrics

IMAGES_SHOWN = 4
"""Number of images per category in each set."""

LOSSES = {
    "entire": ("Entire dataset", "Adversarial loss of the images; the discriminator learns too."),
    "individual": ("Individual image", "1 - cosine between an image and the text of its category."),
    "quality": ("Quality assurance", "1 - score / 5."),
    "base": ("Pull towards the base", "Mean squared distance to the base generator's image."),
    "independence": ("Independence", "Dependence of the rest of an image on its category; 0 is independent."),
    "discriminator": ("Discriminator", "1.39 when it cannot tell images from texts, 0 when it always can."),
}
"""Key in metrics.jsonl -> title and note."""
STATISTICS = {
    "diversity": ("Diversity in a category", "Vendi score; the guard against collapse checks this one."),
    "overall_diversity": ("Overall diversity", "Vendi score of all images together."),
    "label_agreement": ("Label agreement", "Share of images nearest to the text of their own category."),
    "edge_density": ("Edge density", "Share of pixels on a clear edge of brightness."),
    "colour_entropy": ("Colour entropy", "Of an image's colour histogram, in bits."),
    "base_pixel_rms": ("Distance from the base", "Root mean square difference of pixels, 0 to 1."),
    "base_feature_cosine": ("Similarity to the base", "Cosine of features, same noise."),
    "quality": ("Quality", "Mean score, 1 to 5."),
}
"""Key in evaluations.jsonl -> title and note."""
LIMITS = (
    "The micro world is a toy: 12 drawn categories on 6 scenes, 64x64 pixels, models of a few million weights. A "
    "result here shows that the method and this code work, but not that they work as well on photographs.",
    "Diverse prompts name the attribute that the figures measure, and this generator knows its words. They do not "
    "help against a bias that nobody thought of naming; alignment uses only category names.",
    "This is one alignment with one seed. The intervals cover the sampling of images, not other alignments: "
    "docs/independence.md and docs/microworld.md have several seeds and settings, including failures.",
    "The judge is a small network too. It never trains the generator, but it was trained on cleanly drawn images, "
    "and a blurred or half-drawn object can mislead it.",
    "Less scene information does not by itself make a better training set. No backbone is trained here; "
    "docs/independence.md has some.",
)


@dataclass(frozen=True)
class Strip:
    """Images of one category with the same noise in every set."""

    name: str
    note: str
    base: str
    """PNG data URI, like the next two."""
    aligned: str
    diverse: str


@dataclass(frozen=True)
class Chart:
    title: str
    note: str
    svg: str


@dataclass(frozen=True)
class Page:
    title: str
    lines: list[Line]
    """The figures of base and aligned."""
    diverse: list[Line]
    """The same figures of base and diverse prompts."""
    strips: list[Strip]
    maps: list[Chart]
    losses: list[Chart]
    statistics: list[Chart]
    limits: list[str]
    facts: list[tuple[str, str]]
    """Label and value of each fact about how the page was made."""


def write_report(
    sets: Sets, run: Path, config: AlignConfig, facts: list[tuple[str, str]], path: Path
) -> tuple[list[Line], list[Line]]:
    """Compare the sets and write the page.  run: folder of the alignment.

    Returns the lines of the table, for the aligned set and for diverse prompts.
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
        losses=charts(run / metrics.FILE, shown_losses(config), smooth=max(3, config.max_steps // 10)),
        statistics=charts(run / "evaluations.jsonl", STATISTICS, smooth=1),
        limits=list(LIMITS),
        facts=[*facts, ("Versions", f"lbgen {__version__}, {packages}")],
    )
    write_page(page, path)
    return lines, diverse


def shown_losses(config: AlignConfig) -> dict[str, tuple[str, str]]:
    """The losses that train the adapter or the discriminator; a run also logs losses of weight 0."""
    own = {key: texts for key, texts in LOSSES.items() if key not in unweighted(config.weights)}
    return own | {name: (name, f"Extra term, weight {weight:g}.") for name, weight in config.extra_weights.items()}


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
    note = f"{len(judged.label)} images, {counts[0].sum()} per category"
    return Chart(title, note, figures.share_map(shares, CATEGORIES, SCENES, HOMES.tolist(), colour))


def charts(path: Path, titles: dict[str, tuple[str, str]], smooth: int) -> list[Chart]:
    """A chart per entry of `titles`, from a file of JSON lines; the last line of a repeated step counts."""
    lines = [read_json(line, dict[Name, Any], str(path)) for line in path.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if isinstance(line.get("step"), int)]
    steps = {line["step"]: {key: value for key, value in line.items() if isinstance(value, float)} for line in lines}
    result = []
    for key, (title, note) in titles.items():
        logged = [step for step in sorted(steps) if key in steps[step]]
        if logged:
            values = [steps[step][key] for step in logged]
            result.append(Chart(title, note, figures.curve(logged, values, smooth=smooth)))
    return result


# ---- the page ----


def write_page(page: Page, path: Path) -> None:
    filters: dict[str, Callable[..., str]] = {"number": number, "change": change, "interval": interval}
    html = render("before_after.html", filters, page=page, headline=headline(page.lines), price=price(page.lines))
    atomic.write_text(path, html)


def number(value: float, line: Line) -> str:
    return f"{value:.1%}" if line.figure.percent else f"{value:.2f}"


def change(line: Line) -> str:
    shown = f"{100 * line.change:+.1f} pts" if line.figure.percent else f"{line.change:+.2f}"
    return _with_minus(shown)


def interval(ends: tuple[float, float], line: Line) -> str:
    scale, digits = (100, 1) if line.figure.percent else (1, 2)
    return " to ".join(_with_minus(f"{scale * end:.{digits}f}") for end in ends)


def _with_minus(shown: str) -> str:
    """The number with a minus sign instead of a hyphen, and without a sign before zero."""
    if not any(digit in shown for digit in "123456789"):
        shown = shown.lstrip("+-")
    return shown.replace("-", "\N{MINUS SIGN}")
