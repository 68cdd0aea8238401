"""The pictures of the page: their selection, and their thumbnails from one pass over every dataset."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lbgen.audit.measures import MeasuredDataset
from lbgen.datasets.records import DatasetReader
from lbgen.report.thumbnails import thumbnail_uris

SAMPLES, MOST_SAMPLES = 4, 5000
"""Images per category, and the largest number of images on a page; pages with many categories show fewer."""
LARGE, SMALL, MANY = 96, 56, 1500
"""Sides of a thumbnail in pixels; the smaller one is for pages with more than MANY images."""


class Shown(NamedTuple):
    """An image on the page."""

    dataset: int
    row: int


class Gallery:
    """Groups of images that are shown together."""

    def __init__(self) -> None:
        self.groups: list[list[Shown]] = []

    def add(self, images: Iterable[tuple[int, int]]) -> int:
        """Add a group, and return its number."""
        self.groups.append([Shown(*image) for image in images])
        return len(self.groups) - 1

    def uris(self, measured: list[MeasuredDataset], readers: Sequence[DatasetReader]) -> list[list[str]]:
        """For each group the data URIs of its images, without images that can no longer be read."""
        side = LARGE if sum(map(len, self.groups)) <= MANY else SMALL
        found: dict[Shown, str] = {}
        for number, (m, reader) in enumerate(zip(measured, readers, strict=True)):
            chosen = {image for group in self.groups for image in group if image.dataset == number}
            thumbnails = thumbnail_uris(reader, {m.observed.keys[image.row] for image in chosen}, side)
            keys = {image: m.observed.keys[image.row] for image in chosen}
            found |= {image: thumbnails[key] for image, key in keys.items() if key in thumbnails}
        return [[found[image] for image in group if image in found] for group in self.groups]


def samples(measured: list[MeasuredDataset], gallery: Gallery) -> list[range]:
    """Add the first images of every category; returns the group numbers of each dataset, one per category."""
    total = sum(len(m.observed.labels) for m in measured)
    each = max(1, min(SAMPLES, MOST_SAMPLES // total))
    numbers = []
    for place, m in enumerate(measured):
        start = len(gallery.groups)
        for rows in _first_of_each(m.observed.label, len(m.observed.labels), each):
            gallery.add((place, row) for row in rows.tolist())
        numbers.append(range(start, len(gallery.groups)))
    return numbers


def _first_of_each(label: NDArray[np.int64], categories: int, each: int) -> list[NDArray[np.int64]]:
    order = np.argsort(label, kind="stable")
    starts = np.searchsorted(label[order], np.arange(categories + 1))
    return [order[start : min(start + each, end)] for start, end in zip(starts, starts[1:], strict=False)]
