"""samples.png: a picture of some images of a dataset, for its card."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont, ImageOps

CATEGORIES, IMAGES = 8, 4
"""Largest number of columns and rows of the picture."""
CELL, GAP, HEADING, MARGIN = 128, 4, 22, 8
"""Side of a cell in pixels."""
FONT = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
Item = TypeVar("Item")


def evenly_spaced(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the items, evenly spaced from the first to the last."""
    if len(items) <= count:
        return list(items)
    return [items[step * (len(items) - 1) // (count - 1)] for step in range(count)]


def sample_grid(images: Sequence[Image.Image], labels: Sequence[str]) -> bytes:
    """A PNG with a column per label that shows its first 4 images; if there are more than 8 labels, 8 evenly spaced.

    images: of any size.  labels: the heading of each image's column. Labels may be in any script; characters that the
    font (DejaVu Sans) lacks, such as emoji, are left out.
    """
    columns: dict[str, list[Image.Image]] = {}
    for image, label in zip(images, labels, strict=True):
        columns.setdefault(label, []).append(image)
    chosen = evenly_spaced(list(columns), CATEGORIES)
    rows = min(IMAGES, max(len(columns[label]) for label in chosen))
    size = (2 * MARGIN + len(chosen) * (CELL + GAP) - GAP, 2 * MARGIN + HEADING + rows * (CELL + GAP) - GAP)
    picture = Image.new("RGB", size, "white")
    for column, label in enumerate(chosen):
        x = MARGIN + column * (CELL + GAP)
        picture.paste(_heading(label), (x, MARGIN))
        for row, image in enumerate(columns[label][:rows]):
            cell = ImageOps.pad(image.convert("RGB"), (CELL, CELL), Image.Resampling.LANCZOS, color="white")
            picture.paste(cell, (x, MARGIN + HEADING + row * (CELL + GAP)))
    stream = BytesIO()
    picture.save(stream, "png")
    return stream.getvalue()


def _heading(label: str) -> Image.Image:
    """A picture of a label as wide as a cell; a longer label is shortened."""
    available = FT2Font(str(FONT)).get_charmap()
    font = ImageFont.truetype(str(FONT), 13)
    text = "".join(character for character in label if ord(character) in available).strip()
    if font.getlength(text) > CELL:
        text = next(
            shown for end in range(len(text), -1, -1) if font.getlength(shown := text[:end].rstrip() + "…") <= CELL
        )
    heading = Image.new("RGB", (CELL, HEADING), "white")
    ImageDraw.Draw(heading).text((CELL // 2, HEADING // 2), text, fill="black", font=font, anchor="mm")
    return heading
