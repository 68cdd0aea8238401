"""Dividing images into train, val and test: published splits, drawn splits, few shots; no test image is in the others.

Draws depend on hashes of the images' keys and a fixed text, so they are the same on every machine and for every
backbone, and few shots are a subset of more shots.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lbgen.errors import UserError

Rows = NDArray[np.int64]
TRAIN, VAL, TEST = "train", "val", "test"
ANY = ""
"""The split of an image that is still to be divided."""
DRAWN_SHARE = 0.2
"""Share of a category's images that is drawn: for test in a set without splits, then for val from the rest."""
SHOTS_TO_CHOOSE = 4
"""Most val images per category for choosing among classifiers with k shots (CoOp, arXiv 2109.01134)."""


@dataclass(frozen=True)
class Division:
    """Row indices of a data set's images by their use."""

    label: Rows
    """(N,) category index of every image."""
    train: Rows
    val: Rows
    """Images on which the settings of a method are chosen."""
    test: Rows
    final: Rows
    """Images on which the tested classifier is fitted, with the chosen settings."""


class Left(NamedTuple):
    """Images that were left out for one reason."""

    reason: str
    rows: Rows


# ---- a set's splits ----


def divide(
    label: Rows, published: Sequence[str], keys: Sequence[str], content: Sequence[str]
) -> tuple[Division, list[Left]]:
    """The images by their use, and the images that are left out.

    label: (N,), -1 for an unreadable image.  published: the split of each image, or ANY.  keys: names that identify the
    images.  content: hash of each image's pixels; no test image may be in train or val.
    """
    split = np.array(published, dtype="<U5")
    readable = label >= 0
    left = [Left("unreadable", np.flatnonzero(~readable))]

    # Draw the splits that are not published.
    if TEST in split:
        left.append(Left("in none of the splits train, val and test", np.flatnonzero(readable & (split == ANY))))
    else:
        split = np.where(_drawn(label, readable & (split == ANY), keys, "test"), TEST, split)
        split[split == ANY] = TRAIN
    if VAL not in split:
        split = np.where(_drawn(label, readable & (split == TRAIN), keys, "val"), VAL, split)

    # Of images with the same pixels keep those in test, then those in train.
    rows = {name: np.flatnonzero(readable & (split == name)) for name in (TRAIN, VAL, TEST)}
    trained = rows[TRAIN]
    rows[TRAIN], twice = without_pixels_of(rows[TEST], rows[TRAIN], content)
    rows[VAL], also_twice = without_pixels_of(rows[TEST], rows[VAL], content)
    rows[VAL], trains_too = without_pixels_of(trained, rows[VAL], content)
    left += [
        Left("in train or val with the pixels of a test image", np.sort(np.concatenate([twice, also_twice]))),
        Left("in val with the pixels of a train image", trains_too),
    ]
    final = np.sort(np.concatenate([rows[TRAIN], rows[VAL]]))
    division = Division(label, rows[TRAIN], rows[VAL], rows[TEST], final)
    return division, [each for each in left if len(each.rows)]


def ensure_usable(division: Division, name: str, left: Iterable[Left]) -> None:
    """Refuse a set without images for some use, or with a test category that train lacks."""
    why = "".join(f"; {len(each.rows):,} {each.reason}" for each in left)
    for part in (TRAIN, VAL, TEST):
        if not len(getattr(division, part)):
            raise UserError(f"--datasets {name}: no image for {part}{why}; give a set with train and test images")
    unknown = set(division.label[division.test]) - set(division.label[division.train])
    if unknown:
        raise UserError(
            f"--datasets {name}: test categories without a train image: {len(unknown):,}{why}; give both parts the same"
        )


def without_pixels_of(known: Rows, rows: Rows, content: Sequence[str]) -> tuple[Rows, Rows]:
    """The remaining rows, and the rows whose pixels equal those of a row in `known`.  content: hash of the pixels."""
    hashes = {content[row] for row in known.tolist()}
    out = np.array([content[row] in hashes for row in rows.tolist()], dtype=bool)
    return rows[~out], rows[out]


def _drawn(label: Rows, among: NDArray[np.bool_], keys: Sequence[str], purpose: str) -> NDArray[np.bool_]:
    """(N,) whether an image is in the DRAWN_SHARE of its category; at least one if there are two or more."""
    drawn = np.zeros(len(label), dtype=bool)
    for members in _by_category(label, np.flatnonzero(among), keys, purpose):
        count = max(round(DRAWN_SHARE * len(members)), 1) if len(members) > 1 else 0
        drawn[members[:count]] = True
    return drawn


def _by_category(label: Rows, rows: Rows, keys: Sequence[str], purpose: str) -> list[Rows]:
    """The rows of each category, in an order that depends on their keys and the purpose."""
    rank = {row: sha256(f"{purpose} {keys[row]}".encode()).digest() for row in rows.tolist()}
    order = np.array(sorted(rank, key=lambda row: (label[row], rank[row])), dtype=np.int64)
    borders = np.flatnonzero(np.diff(label[order])) + 1
    return [part for part in np.split(order, borders) if len(part)]


# ---- few shots ----


class Shot(NamedTuple):
    """The images of each category: a share or a number of them."""

    text: str
    """The given text, "5%" or "10"."""

    @property
    def share(self) -> float | None:
        return float(self.text.removesuffix("%")) / 100 if self.text.endswith("%") else None

    @property
    def suffix(self) -> str:
        """Suffix of the method's name: `linear-5%` or `linear-10shot`."""
        return self.text if self.share is not None else f"{self.text}shot"


def few_shots(division: Division, shot: Shot, keys: Sequence[str], seed: int) -> Division:
    """The division with fewer images in all parts except test; every category keeps at least one.

    A share is drawn from train and from val, and the tested classifier is fitted on both. k shots are k images of
    train, on which alone it is fitted; settings are chosen on up to SHOTS_TO_CHOOSE images of val.
    """

    def taken(rows: Rows, number: int | None) -> Rows:
        parts = _by_category(division.label, rows, keys, f"shots {seed}")
        counts = [round(shot.share * len(part)) if shot.share else number for part in parts]
        return np.sort(np.concatenate([part[: max(count or 0, 1)] for part, count in zip(parts, counts, strict=True)]))

    number = None if shot.share else int(shot.text)
    train = taken(division.train, number)
    val = taken(division.val, number and min(number, SHOTS_TO_CHOOSE))
    final = np.sort(np.concatenate([train, val])) if shot.share else train
    return replace(division, train=train, val=val, final=final)


def smallest_category(division: Division) -> int:
    """Number of training images of the smallest category."""
    return min(Counter(division.label[division.train].tolist()).values())
