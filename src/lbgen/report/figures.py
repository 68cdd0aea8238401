"""Figures inside a page: SVG in the page's own colours, light or dark, and strips of images as PNG."""

import base64
import io
import re
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

THEME = {
    "#010101": "ink",
    "#020202": "muted",
    "#030303": "line",
    "#040404": "base",
    "#050505": "aligned",
    "#060606": "card",
    "#070707": "diverse",
}
"""Placeholder colour in the drawing -> the CSS variable of the page that replaces it."""
INK, MUTED, LINE, BASE, ALIGNED, CARD, DIVERSE = THEME
SERIES = {f"#0a0a{number:02x}": f"series-{number}" for number in range(1, 9)}
"""Placeholder colours for up to eight series."""

STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def curve(steps: Sequence[float], values: Sequence[float], colour: str = ALIGNED, smooth: int = 1) -> str:
    """A small line chart over updates.  smooth > 1: width of a running mean, drawn bold over faint values."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas(2.7, 1.6)
        axes.set_ylim(*_limits(values))
        if smooth > 1:
            axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.35)
            values = _running_mean(values, smooth)
            axes.plot(steps, values, color=colour, linewidth=1.8)
        else:
            axes.plot(steps, values, color=colour, linewidth=1.8, marker="o", markersize=3.5)
        axes.plot(steps[-1:], values[-1:], color=colour, marker="o", markersize=4.5)
        axes.grid(axis="y", color=LINE, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.locator_params(axis="x", nbins=5, integer=True)
        axes.locator_params(axis="y", nbins=4)
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("update")
        return to_svg(figure)


def share_map(
    shares: np.ndarray, rows: Sequence[str], columns: Sequence[str], marked: Sequence[int], colour: str
) -> str:
    """A heat map of shares in [0, 1], rows sum to 1.  shares: (R, K); marked: the outlined column of each row."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas(3.6, 0.31 * len(rows) + 0.45)
        for (row, column), share in np.ndenumerate(shares):
            axes.add_patch(Rectangle((column + 0.03, row + 0.03), 0.94, 0.94, color=colour, alpha=share, linewidth=0))
            if share >= 0.005:
                shown, contrast = f"{100 * share:.0f}", CARD if share > 0.55 else INK
                axes.text(column + 0.5, row + 0.53, shown, color=contrast, ha="center", va="center", fontsize=7.5)
        for row, column in enumerate(marked):
            outline = Rectangle((column + 0.03, row + 0.03), 0.94, 0.94, fill=False, edgecolor=INK, linewidth=1.1)
            axes.add_patch(outline)
        _label_cells(axes, rows, columns)
        return to_svg(figure)


def radar(axes_names: Sequence[str], series: Sequence[Sequence[float]], low: float = 0.3) -> str:
    """A radar chart: one closed line for each of up to 8 series, one spoke for each of three or more axes.

    Each spoke has its own scale, from the smallest value of any series, at `low` of its length, to the largest; both
    are written at its end.  series: values in percent, in the order of the axes.
    """
    values = np.array(series)  # (S, A)
    smallest, largest = values.min(axis=0), values.max(axis=0)
    radius = low + (1 - low) * (values - smallest) / np.maximum(largest - smallest, 1e-9)
    angle = np.pi / 2 - 2 * np.pi * np.arange(len(axes_names)) / len(axes_names)
    spokes = np.stack([np.cos(angle), np.sin(angle)])  # (2, A)
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas(4.4, 3.6)
        axes.set(xlim=(-1.75, 1.75), ylim=(-1.35, 1.35), aspect="equal")
        axes.axis("off")
        for ring in (low, (1 + low) / 2, 1):
            axes.plot(*_closed(ring * spokes), color=LINE, linewidth=0.8)
        for place, name in enumerate(axes_names):
            x, y = spokes[:, place]
            axes.plot([0, x], [0, y], color=LINE, linewidth=0.8)
            side = "center" if abs(x) < 0.2 else "left" if x > 0 else "right"
            scale = f"{smallest[place]:.1f} \N{EN DASH} {largest[place]:.1f}"
            axes.text(1.08 * x, 1.14 * y + 0.05, name, color=INK, ha=side, va="center", fontsize=8, parse_math=False)
            axes.text(1.08 * x, 1.14 * y - 0.09, scale, color=MUTED, ha=side, va="center", fontsize=6.5)
        for colour, each in zip(SERIES, radius, strict=False):
            line = _closed(each * spokes)
            axes.plot(*line, color=colour, linewidth=1.6, marker="o", markersize=2.5)
            axes.fill(*line, color=colour, alpha=0.08, linewidth=0)
        return to_svg(figure)


def _closed(points: np.ndarray) -> np.ndarray:
    """(2, A) points, then the first one again."""
    return np.concatenate([points, points[:, :1]], axis=1)


def curves(places: Sequence[str], series: Sequence[Sequence[tuple[float, float, float]]]) -> str:
    """Up to 8 lines with intervals over named positions.  series: (value, low, high) per position, NaN for none."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas(2.9, 1.9)
        across = np.arange(len(places))
        for number, (colour, each) in enumerate(zip(SERIES, series, strict=False)):
            value, low, high = np.array(each).T
            shifted = across + 0.06 * (number - (len(series) - 1) / 2)
            axes.plot(shifted, value, color=colour, linewidth=1.6, marker="o", markersize=3)
            axes.vlines(shifted, low, high, color=colour, linewidth=1.1)
        axes.set_xticks(across, places)
        axes.grid(axis="y", color=LINE, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.locator_params(axis="y", nbins=4)
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        return to_svg(figure)


def _label_cells(axes: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns)
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, pad=2)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Size in inches; font sizes suit a chart that is shown about 1.3 times this large."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Axis limits with a margin; they span at least a fifth of the values, so that noise does not fill the chart."""
    low, high = min(values), max(values)
    span = max(high - low, 0.2 * max(abs(low), abs(high)), 1e-6)
    middle = (low + high) / 2
    return middle - 0.6 * span, middle + 0.6 * span


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    """Mean of each value and its width // 2 neighbours on both sides, fewer at the ends."""
    half = width // 2
    return [fmean(values[max(0, place - half) : place + half + 1]) for place in range(len(values))]


def to_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element for HTML, with theme colours replaced by CSS variables."""
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "lbgen"}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    svg = stream.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"|(<svg[^>]*?) height="[^"]*"', r"\1\2", svg, count=1)
    for drawn, variable in (THEME | SERIES).items():
        svg = svg.replace(drawn, f"var(--{variable})")
    return svg


def strip(images: Tensor, scale: int = 2, gap: int = 4) -> Image.Image:
    """Images side by side, enlarged `scale` times, `gap` transparent pixels apart.  images: (B, 3, H, W) in [0, 1]."""
    pixels = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    count, height, width, _ = pixels.shape
    sheet = Image.new("RGBA", (count * width * scale + (count - 1) * gap, height * scale))
    for position, image in enumerate(pixels):
        tile = Image.fromarray(image).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        sheet.paste(tile, (position * (width * scale + gap), 0))
    return sheet


def png_uri(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
