"""The figures of a backbone, by their names in rows.jsonl, and the comparisons of sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from lbgen.reproduction.sets import SetName
from lbgen.reproduction.units import BackboneRow


class Figure(NamedTuple):
    key: str
    title: str
    better: Literal["higher", "lower", "neither"]
    how: str


WORTH = (
    Figure("in_domain", "in domain", "higher", "accuracy on held-out biased renders, which stand for photographs"),
    Figure("balanced", "balanced", "higher", "accuracy on photographs whose scene says nothing of the category"),
    Figure("never_home", "never home", "higher", "accuracy on photographs that are never on the category's home scene"),
    Figure("other_styles", "other styles", "higher", "accuracy on sketches, inverted pictures and posters"),
)
"""Accuracies of the pre-trained backbone."""
LEANING = (
    Figure("shape_bias", "shape bias", "higher",
           "shape decisions / (shape + texture decisions), objects with the surface of another category's home scene"),
    Figure("context_0", "0 uncommon", "higher", "accuracy with neither scene nor style uncommon for the category"),
    Figure("context_1", "1 uncommon", "higher", "with one of the two uncommon"),
    Figure("context_2", "2 uncommon", "higher", "with both uncommon"),
    Figure("context_relative", "2 uncommon / 0", "higher", "the last divided by the first"),
    Figure("mixed_same", "mixed same", "higher", "accuracy on cut out objects on a background of their category"),
    Figure("mixed_rand", "mixed rand", "higher", "the same objects on a background of a random category"),
    Figure("background_gap", "background gap", "lower", "mixed same minus mixed rand; small also where both are low"),
)  # fmt: skip
COUNTS = ("shape_decisions", "texture_decisions")
"""Figures that are in the rows, as shares of the test, but not on the page."""
UNTESTED = {"balanced", "context_0", "context_1", "context_relative", "mixed_same", "mixed_rand"}
"""Figures that are shown but not tested, because each has about the same meaning as another one."""

COMPARISONS: tuple[tuple[SetName, SetName], ...] = (
    ("diverse-prompts", "base"),
    ("paper", "base"),
    ("released-code", "base"),
    ("independence", "base"),
    ("independence", "paper"),
    ("independence", "diverse-prompts"),
    ("independence-diverse-prompts", "diverse-prompts"),
    ("independence-diverse-prompts", "independence"),
    ("base-screened", "base"),
    ("independence-screened", "independence"),
    ("base", "biased-renders"),
    ("balanced-renders", "independence-diverse-prompts"),
)
"""(set, reference that it is compared with)."""


DENSE = {
    "detection_ap": ("detection", "average precision of boxes (IoU 0.50 to 0.95), Mask R-CNN"),
    "segmentation_miou": ("segmentation", "mean IoU, Semantic FPN"),
}
"""Key of a figure from all training images -> title and description."""


def dense(rows: Sequence[BackboneRow]) -> list[Figure]:
    """The figures of detection and segmentation in the rows, each from all images and from shares."""
    keys = {key for row in rows for key in row.values}
    return [_dense(base, key) for base in DENSE for key in sorted(keys, key=_share) if key.startswith(base)]


def _share(key: str) -> float:
    """Minus the share at the end of a figure's name, for sorting from the largest share."""
    return -float(key.rpartition("_")[2].removesuffix("%")) if key.endswith("%") else -100.0


def _dense(base: str, key: str) -> Figure:
    title, how = DENSE[base]
    share = key.removeprefix(base).lstrip("_")
    images = f"{share} of the training renders" if share else "all training renders"
    return Figure(key, f"{title}, {share}" if share else title, "higher", f"{how} fine-tuned on {images}")


def probed(rows: Sequence[BackboneRow]) -> list[Figure]:
    """The figures of the linear probe in the rows: on the unseen categories, then on other data sets."""
    others = {*COUNTS, *(figure.key for figure in (*WORTH, *dense(rows), *LEANING))}
    keys = {key for row in rows for key in row.values} - others
    return [_probe(key) for key in sorted(keys, key=lambda key: (not key.startswith("unseen"), key))]


def _probe(key: str) -> Figure:
    if not key.startswith("unseen"):
        return Figure(key, key, "higher", f"linear probe on {key}, from all training images")
    shots = key.partition("_")[2]  # "", "5shot" or "5%"
    if not shots:
        return Figure(key, "unseen categories", "higher", "linear probe on unseen categories, from all training images")
    few = f"{shots.removesuffix('shot')} images of each" if shots.endswith("shot") else f"{shots} of the images"
    title = f"unseen categories, {shots.replace('shot', ' shots')}"
    return Figure(key, title, "higher", f"linear probe on unseen categories, from {few}")


def tested(rows: Sequence[BackboneRow]) -> list[Figure]:
    return [figure for figure in (*WORTH, *probed(rows), *dense(rows), *LEANING) if figure.key not in UNTESTED]
