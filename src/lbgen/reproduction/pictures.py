"""Pictures beside the page, as PNG: a radar chart for each architecture, accuracy by context, and the main figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Drawing

from lbgen.reproduction.config import Architecture
from lbgen.reproduction.figures import DENSE, LEANING, WORTH, Figure, dense, probed
from lbgen.reproduction.sets import SETS, SetName
from lbgen.reproduction.tables import TITLES, architectures_of, mean, sets_of
from lbgen.reproduction.units import BackboneRow
from lbgen.runs import atomic

COLOURS = dict(zip(SETS, matplotlib.colormaps["tab10"].colors, strict=True))  # type: ignore[attr-defined]
ON_RADAR: tuple[SetName, ...] = (
    "biased-renders", "base", "diverse-prompts", "paper", "independence", "independence-diverse-prompts",
    "balanced-renders",
)  # fmt: skip
SPOKES = ("in_domain", "never_home", "other_styles", "shape_bias", "context_2", "mixed_rand")
"""Spokes of the radar chart besides the linear probe's; on all of them, farther out is better."""
DOTS = ("never_home", "other_styles", "unseen", "digits", *DENSE, "shape_bias", "background_gap")


def write_pictures(rows: Sequence[BackboneRow], page: Path) -> dict[str, str]:
    """Write the pictures beside the page; returns kind of picture -> its Markdown."""
    drawings = {
        "radar": (radars(rows), "Radar chart of the main figures in percent"),
        "context": (contexts(rows), "Accuracy by number of uncommon attributes"),
        "figures": (dots(rows), "Main figures in percent with intervals over the seeds; open circles are the ViT"),
    }
    shown = {}
    for name, (drawing, text) in drawings.items():
        file = page.with_name(f"{page.stem}-{name}.png")
        FigureCanvasAgg(drawing)
        with atomic.replacing(file) as temporary:
            drawing.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
        shown[name] = f"![{text}]({file.name})\n\n*{text}.*"
    return shown


def radars(rows: Sequence[BackboneRow]) -> Drawing:
    """Radar charts in percent, from 0 in the centre to 100."""
    named = {figure.key: figure for figure in (*WORTH, *probed(rows), *LEANING)}
    figures = [named[key] for key in (*SPOKES[:3], *(each.key for each in probed(rows)), *SPOKES[3:])]
    angles = np.linspace(0, 2 * np.pi, len(figures), endpoint=False)
    drawing, architectures = Drawing(figsize=(11, 5.6), layout="constrained"), architectures_of(rows)
    for place, architecture in enumerate(architectures):
        axes = drawing.add_subplot(1, len(architectures), place + 1, projection="polar")
        for name in ON_RADAR:
            heights = [_percent(rows, name, architecture, figure) for figure in figures]
            if np.isfinite(heights).any():
                closed = [*heights, heights[0]]
                axes.plot([*angles, angles[0]], closed, color=COLOURS[name], label=SETS[name].title, linewidth=1.5)
        axes.set_title(TITLES[architecture], pad=30)
        axes.set_ylim(0, 100)
        axes.set_xticks(angles, [figure.title.replace(", ", ",\n") for figure in figures], fontsize=8)
        for label, angle in zip(axes.get_xticklabels(), angles, strict=True):
            label.set_horizontalalignment(_beside(angle))
        axes.set_yticks([25, 50, 75, 100], ["25", "50", "75", "100"], fontsize=7)
    drawing.legend(*drawing.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return drawing


def _beside(angle: float) -> Literal["left", "center", "right"]:
    """The alignment that keeps a label at this angle outside the circle."""
    if abs(np.cos(angle)) < 0.2:
        return "center"
    return "left" if np.cos(angle) > 0 else "right"


def contexts(rows: Sequence[BackboneRow]) -> Drawing:
    """Accuracy of every set by number of uncommon attributes."""
    drawing, architectures = Drawing(figsize=(11, 4), layout="constrained"), architectures_of(rows)
    for place, architecture in enumerate(architectures):
        axes = drawing.add_subplot(1, len(architectures), place + 1)
        for name in sets_of(rows):
            found = [mean(rows, name, architecture, f"context_{number}") for number in range(3)]
            heights = [100 * each.value if each else np.nan for each in found]
            axes.plot(range(3), heights, color=COLOURS[name], label=SETS[name].title, marker="o", markersize=3)
        axes.set(title=TITLES[architecture], ylabel="accuracy, %", xlabel="uncommon attributes", ylim=(0, 101))
        axes.set_xticks(range(3))
    drawing.legend(*drawing.axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return drawing


def dots(rows: Sequence[BackboneRow]) -> Drawing:
    """Main figures of every set with their intervals; open circles are the ViT."""
    figures = [figure for figure in (*WORTH, *probed(rows), *dense(rows), *LEANING) if figure.key in DOTS]
    drawing, names = Drawing(figsize=(11, 3.2 * -(-len(figures) // 3)), layout="constrained"), sets_of(rows)
    for place, figure in enumerate(figures):
        axes = drawing.add_subplot(-(-len(figures) // 3), 3, place + 1)
        for shift, architecture in enumerate(architectures_of(rows)):
            for height, name in enumerate(names):
                if each := mean(rows, name, architecture, figure.key):
                    y, colour = height + 0.25 * (shift - 0.5), COLOURS[name]
                    axes.plot([100 * each.low, 100 * each.high], [y, y], color=colour, linewidth=1.5)
                    filled = colour if architecture == "resnet" else "white"
                    axes.plot(100 * each.value, y, marker="o", markersize=4, color=colour, markerfacecolor=filled)
        lower = ", lower is better" if figure.better == "lower" else ""
        axes.set(title=f"{figure.title}{lower}", ylim=(len(names) - 0.5, -0.5))
        axes.set_yticks(range(len(names)), [SETS[name].title for name in names] if place % 3 == 0 else [])
        axes.grid(axis="x", linewidth=0.4)
    return drawing


def _percent(rows: Sequence[BackboneRow], name: SetName, architecture: Architecture, figure: Figure) -> float:
    each = mean(rows, name, architecture, figure.key)
    return 100 * each.value if each else np.nan
