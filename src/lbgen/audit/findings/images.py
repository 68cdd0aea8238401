"""images.parquet, with one row per image, for a curator or a script."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lbgen.audit.measures import PROBES, MeasuredDataset
from lbgen.audit.workers.row_cache import ROWS_AT_ONCE
from lbgen.metrics.copies import originals, picture_hashes
from lbgen.metrics.near_duplicates import GRID
from lbgen.runs import atomic

# Thresholds chosen on photographs and emoji: python benchmarks/audit/image_flags.py, benchmarks/RESULTS.md.
TINY = 64
"""Length of the shorter side, in pixels, below which an image is tiny."""
DARK = 0.1
"""Mean brightness, in [0, 1], below which an image is dark."""
BLURRED = 0.3
"""Sharpness, in [0, 1], below which an image is blurred."""
ODD_ASPECT = 3.0
"""Ratio of the longer to the shorter side from which the aspect is odd."""
WRITTEN_AT_ONCE = 2**16
"""Number of images whose rows are written at a time; a million rows of Python objects would take a gigabyte."""
NONE = -1
"""Row number for "no image"."""

TEXT, REAL, FLAG, WHOLE = pa.string(), pa.float64(), pa.bool_(), pa.int64()
SCHEMA = pa.schema(
    [("dataset", TEXT), ("key", TEXT), ("category", TEXT), ("category_name", TEXT), ("split", TEXT), ("broken", TEXT)]
    + [("width", WHOLE), ("height", WHOLE), ("aspect", REAL), ("brightness", REAL), ("sharpness", REAL)]
    + [("tiny", FLAG), ("dark", FLAG), ("blurred", FLAG), ("odd_aspect", FLAG), ("quality", REAL)]
    + [("label_agreement", REAL), ("label_margin", REAL), ("nearest_category", TEXT), ("suspect_label", FLAG)]
    + [("duplicate_of", TEXT), ("duplicate_of_category", TEXT), ("duplicate_of_split", TEXT)]
    + [("copy_in_dataset", TEXT), ("copy_in_key", TEXT), ("copy_in_category", TEXT), ("copy_in_split", TEXT)]
    + [(f"told_by_{name}", FLAG) for name in PROBES]
)
"""Columns of images.parquet; docs/audit.md describes them. A broken file has only a key and the cause."""


@dataclass(frozen=True)
class ImageFindings:
    """Findings about the N images of a dataset; all arrays are (N,)."""

    width: NDArray[np.int64]
    height: NDArray[np.int64]
    brightness: NDArray
    sharpness: NDArray
    tiny: NDArray[np.bool_]
    dark: NDArray[np.bool_]
    blurred: NDArray[np.bool_]
    odd_aspect: NDArray[np.bool_]
    suspect_label: NDArray[np.bool_]
    duplicate_of: NDArray[np.int64]
    """Row of the earlier image that it duplicates, in the same dataset; NONE if it duplicates none."""
    copy_dataset: NDArray[np.int64]
    """Number of the first other dataset with a near-duplicate of the image; NONE if there is none."""
    copy_row: NDArray[np.int64]
    """Row of the near-duplicate in that dataset."""

    @property
    def aspect(self) -> NDArray[np.float64]:
        return self.width / self.height


def find_images(measured: list[MeasuredDataset]) -> list[ImageFindings]:
    copies = copies_across(measured)
    return [_findings(m, *copy) for m, copy in zip(measured, copies, strict=True)]


def _findings(m: MeasuredDataset, copy_dataset: NDArray[np.int64], copy_row: NDArray[np.int64]) -> ImageFindings:
    size = np.exp(m.observed.column("facts")[:, :2].astype(np.float64)).round().astype(np.int64)  # logs of both sides
    width, height = size[:, 0], size[:, 1]
    brightness, sharpness = m.observed.column("brightness"), m.observed.column("sharpness")
    return ImageFindings(
        width,
        height,
        brightness,
        sharpness,
        tiny=size.min(axis=1) < TINY,
        dark=brightness < DARK,
        blurred=sharpness < BLURRED,
        odd_aspect=size.max(axis=1) >= ODD_ASPECT * size.min(axis=1),
        suspect_label=m.ranks.first == 0,
        duplicate_of=np.where(m.duplicates.repeated, m.duplicates.original, NONE),
        copy_dataset=copy_dataset,
        copy_row=copy_row,
    )


def copies_across(measured: list[MeasuredDataset]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """For each dataset (N,) number of the first other dataset with a near-duplicate of the image, and its row there.

    All images of a group of near-duplicates get the copy of their original. NONE if there is none.
    """
    found = [(np.full(len(m.observed.label), NONE), np.full(len(m.observed.label), NONE)) for m in measured]
    if len(measured) < 2:
        return found

    # Group the distinct images of all datasets.
    distinct = [np.flatnonzero(~m.duplicates.repeated) for m in measured]
    dataset, row = np.repeat(np.arange(len(measured)), list(map(len, distinct))), np.concatenate(distinct)

    def pictures(places: NDArray[np.int64]) -> NDArray[np.uint8]:
        found = np.empty((len(places), 3 * GRID**2), np.uint8)
        for number, m in enumerate(measured):
            chosen = dataset[places] == number
            found[chosen] = m.observed.column("picture", row[places[chosen]])
        return found

    blocks = [np.arange(start, min(start + ROWS_AT_ONCE, len(row))) for start in range(0, len(row), ROWS_AT_ONCE)]
    hashes = [picture_hashes(pictures(block)) for block in blocks]
    upright, mirrored = (np.concatenate(parts) for parts in zip(*hashes, strict=True))
    group = originals(upright, mirrored, pictures)

    # Point every image at the first one of its group in another dataset.
    order = np.argsort(group, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        others = members[dataset[members] != dataset[members[0]]]
        for place in members.tolist() if len(others) else ():
            other = others[0] if dataset[place] == dataset[members[0]] else members[0]
            of_dataset, of_row = found[dataset[place]]
            of_dataset[row[place]], of_row[row[place]] = dataset[other], row[other]
    for m, (of_dataset, of_row) in zip(measured, found, strict=True):
        of_dataset[:], of_row[:] = of_dataset[m.duplicates.original], of_row[m.duplicates.original]
    return found


# ---- images.parquet ----


def write_images(measured: list[MeasuredDataset], findings: list[ImageFindings], path: Path) -> None:
    """Write the images of each dataset, followed by its broken files."""
    with (
        atomic.replacing(path) as temporary,
        temporary.open("wb") as stream,
        pq.ParquetWriter(stream, SCHEMA) as writer,
    ):
        for m, found in zip(measured, findings, strict=True):
            for start in range(0, len(m.observed.keys), WRITTEN_AT_ONCE):
                columns = _columns(m, found, measured, slice(start, start + WRITTEN_AT_ONCE))
                arrays = [pa.array(columns[field.name], field.type, from_pandas=True) for field in SCHEMA]
                writer.write_table(pa.table(arrays, schema=SCHEMA))
            writer.write_table(_broken(m))


def _columns(m: MeasuredDataset, found: ImageFindings, measured: list[MeasuredDataset], rows: slice) -> dict[str, Any]:
    """Name of a column -> its values for these images."""
    observed, ids = m.observed, [label.id for label in m.observed.labels]
    names, own = [label.name for label in observed.labels], found.duplicate_of[rows].tolist()
    copies = list(zip(found.copy_dataset[rows].tolist(), found.copy_row[rows].tolist(), strict=True))
    return {
        "dataset": [observed.name] * len(own),
        "key": observed.keys[rows],
        "category": [ids[label] for label in observed.label[rows]],
        "category_name": [names[label] for label in observed.label[rows]],
        "split": [observed.splits[split] for split in observed.split[rows]],
        "broken": [None] * len(own),
        **{name: getattr(found, name)[rows] for name in ("width", "height", "aspect", "brightness", "sharpness")},
        **{name: getattr(found, name)[rows] for name in ("tiny", "dark", "blurred", "odd_aspect", "suspect_label")},
        "quality": m.quality[rows],
        "label_agreement": m.ranks.first[rows],
        "label_margin": m.ranks.margin[rows],
        "nearest_category": [ids[label] for label in m.ranks.nearest[rows]],
        **_places("duplicate_of", [None if row < 0 else (m, row) for row in own]),
        **_places("copy_in", [None if row < 0 else (measured[number], row) for number, row in copies]),
        "copy_in_dataset": [None if number < 0 else measured[number].observed.name for number, _ in copies],
        **{
            f"told_by_{name}": [None if hit != hit else hit > 0 for hit in m.hits[name][rows].tolist()]
            for name in PROBES
        },
    }


def _places(prefix: str, images: list[tuple[MeasuredDataset, int] | None]) -> dict[str, list[str | None]]:
    """The columns that identify the other image of each row."""
    seen = [image and (image[0].observed, image[1]) for image in images]
    key = prefix if prefix == "duplicate_of" else f"{prefix}_key"
    return {
        key: [one and one[0].keys[one[1]] for one in seen],
        f"{prefix}_category": [one and one[0].labels[one[0].label[one[1]]].id for one in seen],
        f"{prefix}_split": [one and one[0].splits[one[0].split[one[1]]] for one in seen],
    }


def _broken(m: MeasuredDataset) -> pa.Table:
    rows = [{"dataset": m.observed.name, "key": key, "broken": why} for key, why in m.observed.broken.items()]
    return pa.Table.from_pylist(rows, SCHEMA)
