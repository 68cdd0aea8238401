"""Starting points for a curator, as texts: the worst images of every kind, and the categories that a cue predicts."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lbgen.audit.findings.images import BLURRED, DARK, ODD_ASPECT, TINY, ImageFindings
from lbgen.audit.findings.pictures import Gallery
from lbgen.audit.findings.verdict import CUES, language_warning, number, shortcut_cues
from lbgen.audit.measures import MeasuredDataset

CHECKED = 6
"""Number of images shown per kind."""
CUES_SHOWN, CATEGORIES_SHOWN = 4, 6


class Kind(NamedTuple):
    """A reason to look at images."""

    title: str
    why: str
    """How the images were found, and what may be wrong with them."""
    column: str
    """Column of images.parquet with which a script finds all of them."""


class Check(NamedTuple):
    kind: Kind
    rows: NDArray[np.int64]
    """The images, the worst first."""


DUPLICATES = Kind(
    "Near-duplicates",
    "Shown with the image that each repeats; those with another label first, then those in another split.",
    "duplicate_of",
)
COPIES = Kind(
    "Copies in another dataset",
    "Shown with the copy; those with another label first.",
    "copy_in_dataset, copy_in_key",
)
SUSPECTS = Kind(
    "Suspect labels",
    "Another category's name fits better than the image's own, by the most first: a wrong label, a second object, "
    "or an image that the language space misreads.",
    "suspect_label, label_margin, nearest_category",
)
TINIES = Kind("Tiny", f"The shorter side has fewer than {TINY} pixels.", "tiny")
DARKS = Kind("Dark", f"Mean brightness below {DARK:.0%} of white.", "dark")
BLURS = Kind("Blurred", f"Sharpness below {BLURRED}: blurring once more hardly changes the image.", "blurred")
ODD = Kind(
    "Odd aspect", f"One side is {ODD_ASPECT:.0f} or more times the other; models see the centre alone.", "odd_aspect"
)


def images_to_check(m: MeasuredDataset, found: ImageFindings, measured: list[MeasuredDataset]) -> list[Check]:
    """Every kind of which the dataset has images; no suspect labels if the language space does not suit the dataset."""
    label, split = m.observed.label, m.observed.split
    repeated, copied = np.flatnonzero(found.duplicate_of >= 0), np.flatnonzero(found.copy_dataset >= 0)
    of, sides = found.duplicate_of[repeated], np.stack([found.width, found.height])
    fits_badly = np.zeros_like(found.suspect_label) if language_warning(m) else found.suspect_label
    checks = (
        Check(DUPLICATES, repeated[np.lexsort((split[repeated] == split[of], label[repeated] == label[of]))]),
        Check(COPIES, copied[np.argsort(_same_label(m, found, measured, copied), kind="stable")]),
        Check(SUSPECTS, _worst(fits_badly, m.ranks.margin)),
        Check(TINIES, _worst(found.tiny, sides.min(axis=0))),
        Check(DARKS, _worst(found.dark, found.brightness)),
        Check(BLURS, _worst(found.blurred, found.sharpness)),
        Check(ODD, _worst(found.odd_aspect, sides.min(axis=0) / sides.max(axis=0))),
    )
    return [check for check in checks if len(check.rows)]


def _same_label(
    m: MeasuredDataset, found: ImageFindings, measured: list[MeasuredDataset], rows: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether the copy of each of these images has a label with the same id."""
    copies = zip(found.copy_dataset[rows].tolist(), found.copy_row[rows].tolist(), strict=True)
    others = [measured[number].observed for number, _ in copies]
    ids = [other.labels[other.label[row]].id for other, row in zip(others, found.copy_row[rows], strict=True)]
    own = [m.observed.labels[m.observed.label[row]].id for row in rows]
    return np.array([one == two for one, two in zip(own, ids, strict=True)], bool)


def _worst(flag: NDArray[np.bool_], value: NDArray) -> NDArray[np.int64]:
    """The flagged images, sorted by the value."""
    rows = np.flatnonzero(flag)
    return rows[np.argsort(value[rows], kind="stable")]


# ---- texts for the page ----


def check_texts(
    m: MeasuredDataset, found: ImageFindings, measured: list[MeasuredDataset], gallery: Gallery
) -> dict[str, Any]:
    """The checks of one dataset; adds their images to the gallery."""
    own = next(place for place, other in enumerate(measured) if other is m)
    kinds = []
    for kind, rows in images_to_check(m, found, measured):
        images = [_image_texts(kind, (own, row), found, measured, gallery) for row in rows[:CHECKED].tolist()]
        share = f"{len(rows):,} ({len(rows) / len(m.observed.keys):.1%} of the images)"
        kinds.append({"title": kind.title, "why": kind.why, "column": kind.column, "count": share, "images": images})
    return {"name": m.observed.name, "kinds": kinds}


def _image_texts(
    kind: Kind, image: tuple[int, int], found: ImageFindings, measured: list[MeasuredDataset], gallery: Gallery
) -> dict[str, Any]:
    place, row = image
    m, shown = measured[place], [image]
    if kind is DUPLICATES:
        shown.append((place, int(found.duplicate_of[row])))
        detail = f"repeats {_described(measured, shown[1])}"
    elif kind is COPIES:
        shown.append((int(found.copy_dataset[row]), int(found.copy_row[row])))
        other = measured[shown[1][0]].observed.name
        detail = f"as in {other}: {_described(measured, shown[1])}"
    elif kind is SUSPECTS:
        nearest = m.observed.labels[m.ranks.nearest[row]].name
        detail = f"rather {nearest}, by a cosine of {-m.ranks.margin[row]:.3f}"
    elif kind is DARKS:
        detail = f"brightness {found.brightness[row]:.1%}"
    elif kind is BLURS:
        detail = f"sharpness {found.sharpness[row]:.2f}"
    else:
        detail = f"{found.width[row]:,} x {found.height[row]:,} pixels"
    return {"key": _described(measured, image), "detail": detail, "number": gallery.add(shown)}


def _described(measured: list[MeasuredDataset], image: tuple[int, int]) -> str:
    """Key and category of an image."""
    observed = measured[image[0]].observed
    return f"{observed.keys[image[1]]} ({observed.labels[observed.label[image[1]]].name})"


def predicted_shares(m: MeasuredDataset, name: str) -> NDArray[np.float64]:
    """(C,) share of each category's held-out images that a probe classifies correctly; NaN if it is not probed."""
    hits, count = m.hits[name], len(m.observed.labels)
    used = np.isfinite(hits)
    probed = np.bincount(m.observed.label[used], minlength=count)
    told = np.bincount(m.observed.label[used], hits[used], count)
    return np.divide(told, probed, out=np.full(count, np.nan), where=probed > 0)


def cue_texts(m: MeasuredDataset) -> dict[str, Any]:
    """The significant cues of a dataset with the categories that each predicts best."""
    cues = []
    for name in shortcut_cues(m)[:CUES_SHOWN]:
        told = predicted_shares(m, name)
        best = np.argsort(np.nan_to_num(-told, nan=1.0), kind="stable")[:CATEGORIES_SHOWN]
        chosen = [row for row in best.tolist() if told[row] > m.chance]
        named = [f"{m.observed.labels[row].name} {number(told[row], True)}" for row in chosen]
        cues.append({"cue": CUES[name], "categories": ", ".join(named) or "none above chance"})
    return {"name": m.observed.name, "cues": cues}
