"""The page of the study: generated text is between marks, and everything else is left to its author."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from lbgen.reproduction import tables
from lbgen.reproduction.config import MARK, ReproduceConfig
from lbgen.reproduction.figures import LEANING, WORTH, Figure, dense, probed
from lbgen.reproduction.units import BackboneRow
from lbgen.runs import atomic
from lbgen.runs.console import counted

PLACE = re.compile(rf"({MARK}([a-z ]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
SECTIONS = (
    ("", ("reading",)),
    ("What the sets are worth", ("figures picture", "worth resnet", "worth vit", "radar picture")),
    ("What the backbones lean on", ("leaning resnet", "leaning vit", "context picture")),
    ("Differences and tests", ("details", "tests resnet", "tests vit")),
    ("How it was measured", ("definitions", "made", "cost")),
)
"""Heading and marks of each section, in the order of the page."""
INTRODUCTION = """# Study: what a backbone learned from each set is worth

"""
CONCLUSIONS = """The lists and tables are made by code from the rows of the run; conclusions go here.
"""
SETS_EXPLAINED = """
All sets have equally many images of the 12 categories of the [micro world](../microworld.md). *Biased renders* stand
for photographs: each category is on its home scene nine times in ten. *Base*, *diverse prompts*, *paper*, *released
code* and *independence* are made by the generator that learned from such renders: as it is; with prompts that name
each scene equally often; aligned on the paper's objective, on that of the authors' released code, and on the
[independence term](../independence.md). *Screened*: an image is drawn again, at most three times, unless the language
space gives its category a probability of 0.9. *Balanced renders* are the ceiling. Sets of a seed share their noise,
and those with the same objective share its adapter. Every backbone is trained on all images of its set for all
epochs. In this study nothing was chosen by a test result, except the shading of the images for shape bias:
[Reproduce](../reproduce.md) says how, and how to run this.
"""


def write_page(
    config: ReproduceConfig,
    rows: Sequence[BackboneRow],
    cost: Mapping[str, tuple[int, float]],
    pictures: Mapping[str, str],
    versions: Sequence[str],
) -> Path:
    """Write all generated parts anew, into the existing page or a new one."""
    path = config.page_path
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else skeleton()
    made = {**parts(config, rows, cost, versions), **{f"{name} picture": shown for name, shown in pictures.items()}}
    atomic.write_text(path, PLACE.sub(lambda found: f"{found[1]}\n{made.get(found[2], '')}\n\n{found[3]}", text))
    return path


def skeleton() -> str:
    """A page with all marks and nothing between them."""
    text = INTRODUCTION
    for heading, marks in SECTIONS:
        text += f"\n## {heading}\n\n" if heading else ""
        text += "\n".join(f"{MARK}{mark} -->\n<!-- end of table -->\n" for mark in marks)
        text += f"\n{CONCLUSIONS}" if not heading else ""
        text += SETS_EXPLAINED if heading.startswith("How") else ""
    return text


def parts(
    config: ReproduceConfig, rows: Sequence[BackboneRow], cost: Mapping[str, tuple[int, float]], versions: Sequence[str]
) -> dict[str, str]:
    """Name of a mark -> the text between the marks."""
    found, few, fine = tables.tests(rows), probed(rows), dense(rows)
    made = {
        "reading": tables.reading(rows, found),
        "details": tables.details(found),
        "definitions": definitions([*WORTH, *few, *fine, *LEANING]),
        "made": made_of(config, versions),
        "cost": cost_of(cost),
    }
    for each in tables.architectures_of(rows):
        made[f"worth {each}"] = "\n\n".join(tables.means(rows, each, some) for some in ([*WORTH, *few], fine) if some)
        made[f"leaning {each}"] = tables.means(rows, each, LEANING)
        parted = ([one for one in found if (one.figure in fine) == of_dense] for of_dense in (False, True))
        made[f"tests {each}"] = "\n\n".join(tables.differences(some, each) for some in parted if some)
    return made


def definitions(figures: Sequence[Figure]) -> str:
    return "\n".join(f"- *{figure.title}*: {figure.how}." for figure in figures)


def made_of(config: ReproduceConfig, versions: Sequence[str]) -> str:
    """The command, and an explanation of the intervals and tests."""
    command = ["lbgen", "reproduce", "--seeds", str(config.seeds), "--page", str(config.page_path)]
    return (
        f"`{shlex.join(command)}`: {config.images_per_category} images of each category in each set, "
        f"{config.test_images:,} renders in each test; {', '.join(versions)}.\n\n"
        "Values are percent: mean over the seeds, ± half of Student's 95% interval. Differences are in points; p is of "
        "a paired t-test over the seeds, q is p adjusted for all tests of this page (Benjamini and Hochberg), and bold "
        f"are those with q below {tables.SIGNIFICANT:g}. What is the same for every seed has no interval and no p."
    )


def cost_of(cost: Mapping[str, tuple[int, float]]) -> str:
    """The number and time of the units, by kind."""
    whole = sum(seconds for _, seconds in cost.values())
    named = {"unseen": "set of renders", "renders": "masked set", "align": "alignment", "images": "set"}
    each = ", ".join(
        f"{counted(number, named.get(kind, kind))} in {seconds / 60:.1f} minutes"
        for kind, (number, seconds) in cost.items()
    )
    return f"By the clock, of processes with one thread each: {each}; {whole / 3600:.2f} hours in all."
