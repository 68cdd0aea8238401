"""Copies of pictures, against copies that were edited for the purpose and against loops."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from lbgen.metrics import copies, near_duplicates
from lbgen.metrics.near_duplicates import CELLS

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.audit.edited_pictures import EDITS, SETS, recompressed  # noqa: E402


def small(pictures: list[np.ndarray]) -> np.ndarray:
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    return (copies.small_picture(images) * 255).round().byte().numpy()


def duplicates(pictures: np.ndarray, split: np.ndarray) -> copies.Duplicates:
    return copies.duplicate_pictures([pictures[:7], pictures[7:]], lambda rows: pictures[rows], split)


@pytest.mark.parametrize("kind", SETS)
def test_edited_copies_are_found_and_other_pictures_are_not(kind: str) -> None:
    """40 pictures of one kind, then edited copies: only those that are pairs by construction are joined."""
    missed = {"textured": {"crop 2%"}}  # half of them, as the lowest frequencies show nothing: benchmarks/RESULTS.md
    originals = SETS[kind](40, 0)
    alone = duplicates(small(originals), np.zeros(40, int))
    assert alone.anywhere.sum() <= (4 if kind == "sparse" else 0)  # two small objects of a kind can be in one place
    for name, edit in EDITS.items():
        if name not in missed.get(kind, ()):
            copies = duplicates(small(originals + [edit(picture) for picture in originals]), np.arange(80) // 40)
            found = copies.original[40:] == np.arange(40)
            assert found.sum() >= 32 and copies.in_another_split.sum() >= 2 * found.sum(), name
            assert copies.repeated[:40].sum() == alone.repeated.sum()


def test_copies_have_one_original_whatever_is_compared_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three pictures, each several times, in a known order; splits of a copy and of its original."""
    first, second, third = small(SETS["photographs"](3, 1))
    pictures, split = np.stack([first, second, first, third, first, second]), np.array([0, 0, 0, 0, 1, 0])
    for cells in (1, 8, CELLS):
        monkeypatch.setattr(near_duplicates, "CELLS", cells)
        found = copies.duplicate_pictures([pictures], lambda rows: pictures[rows], split)
        assert found.original.tolist() == [0, 1, 0, 3, 0, 1]
        assert found.anywhere.tolist() == [True, True, True, False, True, True]
        assert found.in_another_split.tolist() == [True, False, True, False, True, False]
        assert found.repeated.tolist() == [False, False, True, False, True, True]


def test_faces_that_differ_by_their_mouths_are_different() -> None:
    """The part that differs is small, but not spread over the picture as what an edit changes."""
    drawn = [Image.new("RGB", (96, 96), "white") for _ in range(2)]
    for mouth, image in enumerate(drawn):
        pen = ImageDraw.Draw(image)
        pen.ellipse((8, 8, 88, 88), fill=(255, 205, 60), outline=(200, 140, 20))
        for left in (30, 58):
            pen.ellipse((left, 34, left + 8, 44), fill=(90, 50, 10))
        pen.arc((30, 50, 66, 72), *((20, 160), (200, 340))[mouth], fill=(90, 50, 10), width=4)
    faces = [np.array(image) for image in drawn]
    pictures = small([*faces, recompressed(faces[0])])
    found = copies.duplicate_pictures([pictures], lambda rows: pictures[rows], np.zeros(3, int))
    assert found.original.tolist() == [0, 1, 0]
