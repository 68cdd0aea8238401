"""Every sentence that the page can begin with, and every first thing to do, from figures that decide it."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lbgen.audit.definitions import DEFINITIONS
from lbgen.audit.findings.verdict import headline, next_step, probe_notes, verdict
from lbgen.audit.measures import CHANCE_FLOOR, PROBES, CueBalance
from lbgen.audit.page import warnings
from lbgen.datasets.records import Label
from lbgen.metrics.explained_variance import Explained
from lbgen.metrics.intervals import Estimate

CATEGORIES, ERROR = 10, 0.01


def estimate(value: float, error: float = ERROR) -> Estimate:
    return Estimate(value, value - 1.96 * error, value + 1.96 * error)


def cue(share: float) -> Explained:
    """Of 499 shuffles none, or where the share is 0 all, explain as much."""
    return Explained(share, 0.01, np.zeros(499))


def above_chance(p_value: float) -> float:
    """The accuracy whose one-sided test has this p-value; it is doubled, as the other test sees nothing."""
    low, high = 0.0, 10.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if math.erfc(middle / math.sqrt(2)) / 2 > p_value / 2 else (low, middle)
    return 1 / CATEGORIES + low * ERROR


def dataset(
    name: str = "ours",
    attribute: float | None = None,
    attribute_name: str = "scene",
    suspects: int = 0,
    leaks: int = 0,
    **values: Any,
) -> Any:
    """Of 20 images, all figures at a half and the probes at chance.  values: figures, or share_x of a cue."""
    label = np.arange(20) % CATEGORIES
    figures = {d.key: estimate(0.5) for d in DEFINITIONS if d.group != "comparison"}
    figures |= {f"probes.{probe}": estimate(1 / CATEGORIES) for probe in PROBES}
    explained = {probe: cue(0.0) for probe in PROBES}
    for key, value in values.items():
        if key.startswith("share_"):
            explained[key.removeprefix("share_")] = cue(value)
        else:
            figures[f"probes.{key}" if key in PROBES else key] = estimate(value)
    found = SimpleNamespace(q_value=0.001, reading=SimpleNamespace(name=attribute_name),
                            association=SimpleNamespace(cramers_v=estimate(attribute or 0)))  # fmt: skip
    return SimpleNamespace(
        observed=SimpleNamespace(
            sample=None, broken_share=0.0,
            name=name, labels=[Label(str(c), f"category {c}") for c in range(CATEGORIES)], label=label, broken={},
            keys=[f"{name} {row}" for row in range(20)], column=lambda column: np.ones(20),
        ),
        figures=figures,
        explained=explained,
        hits={probe: np.zeros(20, np.float32) for probe in PROBES},
        balance={probe: CueBalance(0.5, 0) for probe in CHANCE_FLOOR},
        probed=np.arange(20),
        chance=1 / CATEGORIES,
        attributes=[] if attribute is None else [found],
        duplicates=SimpleNamespace(in_another_split=np.arange(20) < leaks),
        ranks=SimpleNamespace(first=(np.arange(20) >= suspects) * 1.0),
        names=SimpleNamespace(unknown=[], coinciding=[]),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "No shortcut found in ours: nothing besides the object is found to predict the label"),
        ({"background": 0.4}, "In ours, the background alone predicts 40.0% of the labels (chance 10.0%)"),
        (
            {"background": 0.4, "file_facts": 0.3},
            "In ours, the background alone predicts 40.0% of the labels (chance 10.0%); 1 more cue is associated with "
            "them",
        ),
        (
            {"share_border": 0.3, "border": 0.11},
            "In ours, the border of an image depends on the label, but alone predicts only 11.0% of the labels "
            "(chance 10.0%)",
        ),
        (
            {"share_file_facts": 0.3, "file_facts": 0.11},
            "In ours, the size and format of the files depend on the label, but alone predict only 11.0% of the labels "
            "(chance 10.0%)",
        ),
        (
            {name: above_chance(0.0095 if name == "border" else 0.2) for name in CHANCE_FLOOR},
            "In ours, something besides the object predicts the label, but no single cue stands out",
        ),
        (
            {"background": 0.4, "attribute": 0.62},
            "In ours, the background alone predicts 40.0% of the labels (chance 10.0%); scene (Cramér's V 0.620) is "
            "associated with them",
        ),
        (
            {"background": 0.4, "border": 0.3, "attribute": 0.62},
            "In ours, the background alone predicts 40.0% of the labels (chance 10.0%); 1 more cue and scene "
            "(Cramér's V 0.620) are associated with them",
        ),
        (
            {"attribute": 0.14, "attribute_name": "measured position"},
            "No shortcut found in ours: nothing besides the object is found to predict the label",
        ),
        (
            {"attribute": 0.62, "label_agreement": 0.11},
            "No shortcut found in ours: nothing besides the object is found to predict the label",
        ),
        (
            {"attribute": 0.3, "attribute_name": "measured position"},
            "In ours, no probe finds a shortcut, but measured position (Cramér's V 0.300) is associated with the label",
        ),
        (
            {"attribute": 0.62},
            "In ours, no probe finds a shortcut, but scene (Cramér's V 0.620) is associated with the label",
        ),
    ],
)  # fmt: skip
def test_the_verdict_of_one_dataset(values, said):
    found = dataset(**values)
    assert verdict(found) == said and headline([found]) == said


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (
            {},
            {"border": 0.3, "thumbnail": 0.9},
            "In theirs, the border of an image alone predicts 30.0% of the labels, in ours 10.0% (chance 10.0%); 1 "
            "more cue differs",
        ),
        ({"border": 0.3}, {}, "In ours, the border of an image alone predicts 30.0% of the labels, in theirs 10.0%"),
        (
            {},
            {"label_agreement": 0.9},
            "Shortcuts do not differ significantly; Label agreement does: 90.0% in theirs, 50.0% in ours",
        ),
        ({}, {"edge_density": 0.9}, "No significant difference between the datasets. No shortcut found in ours"),
        (
            {"border": 0.3},
            {"border": 0.31},
            "No significant difference between the datasets. In theirs, the border of an image alone predicts 31.0%",
        ),
    ],
)  # fmt: skip
def test_the_headline_of_two_datasets(first, second, said):
    """A difference of shortcuts first, then one of which a direction is better, then what both have."""
    assert headline([dataset("ours", **first), dataset("theirs", **second)]).startswith(said)


def test_datasets_without_probes():
    found = dataset()
    found.explained = {}
    assert headline([found]) == "Too few images per category to find shortcuts"
    assert verdict(found) == "Too few images per category to find shortcuts in ours"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "Look at the images under “Images to check”"),
        ({"suspects": 3}, "Check the 3 images that another category's name fits better"),
        ({"suspects": 3, "attribute": 0.6}, "Look at “Strongest shortcuts”, and add images of these categories with"),
        ({"suspects": 3, "attribute": 0.6, "border": 0.3}, "Look at “Categories that a cue predicts”, and add images"),
        ({"border": 0.3, "leaks": 2}, "Remove near-duplicates from one of the splits: 2 images have one in another"),
    ],
)  # fmt: skip
def test_what_to_do_first(values, said):
    """Each comes before what stands above it."""
    assert next_step([dataset(**values)]).startswith(said)


def test_without_masks_visible_parts_of_the_object_are_excluded_first():
    found = dataset(border=0.3)
    found.observed.column = lambda column: np.zeros(20)
    assert "give masks of the objects" in next_step([found])


@pytest.mark.parametrize(("cue", "in_doubt"), [("border", True), ("file_facts", False)])
def test_parts_of_the_object_can_be_seen_around_it_but_not_in_the_facts_of_a_file(cue, in_doubt):
    found = dataset(**{cue: 0.3})
    found.observed.column = lambda column: np.zeros(20)
    assert ("parts of the object" in probe_notes(found)[0]) == in_doubt


def test_a_warning_that_concerns_two_datasets_is_said_once():
    ours, theirs = (dataset(name, label_agreement=0.11) for name in ("ours", "theirs"))
    ((names, text),) = warnings([ours, dataset("others"), theirs])
    assert names == "ours, theirs" and "label agreement, 11.0%, is near chance, 10.0%" in text
