"""The picture of a dataset's card: read back pixel by pixel."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from lbgen.generation.card.samples import CELL, GAP, HEADING, MARGIN, evenly_spaced, sample_grid


def flat(colour, size=(16, 16)):
    return Image.new("RGB", size, colour)


def cell_centres(picture):
    """(rows, columns, 3) colours at the middle of each cell."""
    pixels = np.asarray(picture)
    ys = range(MARGIN + HEADING + CELL // 2, pixels.shape[0], CELL + GAP)
    xs = range(MARGIN + CELL // 2, pixels.shape[1], CELL + GAP)
    return pixels[np.ix_(ys, xs)]


def test_a_column_for_each_of_8_categories_spread_over_all():
    images = [flat((category, index, 9)) for index in range(5) for category in range(15)]
    picture = Image.open(BytesIO(sample_grid(images, [f"c{n}" for _ in range(5) for n in range(15)])))
    wanted = [[[category, index, 9] for category in range(0, 15, 2)] for index in range(4)]
    assert cell_centres(picture).tolist() == wanted


def test_fewer_images_and_other_shapes_leave_white():
    images = [flat("red", (40, 10)), flat("lime"), flat("blue")]
    picture = Image.open(BytesIO(sample_grid(images, ["a", "b", "b"])))
    assert cell_centres(picture).tolist() == [[[255, 0, 0], [0, 255, 0]], [[255, 255, 255], [0, 0, 255]]]
    assert picture.getpixel((MARGIN + CELL // 2, MARGIN + HEADING + 10)) == (255, 255, 255)  # above the wide one


@pytest.mark.parametrize("label", ("", "🦊", "狐", "قطّة", "a\u2028b", "x" * 500, "W" * 500, "<b>"))
def test_any_label_fits_over_its_column(label):
    picture = np.asarray(Image.open(BytesIO(sample_grid([flat("red"), flat("red")], [label, "other"]))))
    assert (picture[:, MARGIN + CELL : MARGIN + CELL + GAP] == 255).all()
    written = (picture[MARGIN : MARGIN + HEADING, MARGIN : MARGIN + CELL] < 128).any()
    assert written == (label not in ("", "🦊", "狐"))


def test_long_labels_end_in_an_ellipsis():
    """Against the label that was shortened by hand."""
    long, *shortened = (
        sample_grid([flat("red")], [label]) for label in ("W" * 500, *("W" * n + "…" for n in range(10)))
    )
    assert long in shortened


@pytest.mark.parametrize("count", (0, 1, 7, 8, 9, 1000))
def test_spread_takes_the_first_the_last_and_no_item_twice(count):
    chosen = evenly_spaced(range(count), 8)
    assert chosen == sorted(set(chosen)) and len(chosen) == min(8, count)
    assert count == 0 or (chosen[0], chosen[-1]) == (0, count - 1)
