"""The audit in words: headline, verdict of each dataset, warnings, and the next step."""

import math
from typing import Any

from lbgen.audit.definitions import DEFINITIONS
from lbgen.audit.findings.significance import FALSE_DISCOVERIES, differences, probe_tests
from lbgen.audit.measures import CHANCE_FLOOR, AttributeFigures, MeasuredDataset
from lbgen.errors import printable
from lbgen.vocabulary.attributes import MEASURED

CUES = {
    "background": "the background",
    "border": "the border of an image",
    "thumbnail": "a tiny picture",
    "thumbnail_outside": "a tiny picture without the object",
    "color_histogram": "the colours",
    "color_histogram_outside": "the colours around the object",
    "patch_shuffle": "the texture",
    "patch_shuffle_outside": "the texture around the object",
    "file_facts": "the size and format of the files",
}
"""Probe -> its input, as the subject of a sentence."""
PLURAL = ("color_histogram", "color_histogram_outside", "file_facts")
"""Probes whose subject is plural."""
NAMES_LISTED, GROUPS_NAMED = 6, 3
"""Most names in a note, and most groups of names with their own note."""
NEAR_CHANCE = 0.1
"""Label agreement is near chance below this share of the way from chance to 1."""
BY_SHAPE = 0.2
"""Cramér's V up to which the objects' asymmetric shapes can explain the measured position."""
MANY_BROKEN = 0.01
"""Share of broken files from which repairing them is the first step."""

TITLES = {definition.key: definition for definition in DEFINITIONS}


def number(value: float, percent: bool) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:.1%}" if percent else f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"


def chance_text(m: MeasuredDataset) -> str:
    """ "chance 8.3%"; empty where no two categories could be probed."""
    return f"chance {number(m.chance, True)}" if math.isfinite(m.chance) else ""


# ---- headline ----


def headline(measured: list[MeasuredDataset]) -> str:
    """The most important significant finding: a single dataset's verdict, or a difference from the first dataset."""
    first, *others = measured
    if not any(m.explained for m in measured):
        return "Too few images per category to find shortcuts"
    if not others:
        return verdict(first)
    tests = differences(measured)
    found = [(m, key) for m in others for key, test in tests[m.observed.name].items() if test["significant"]]
    shortcuts = [(m, key) for m, key in found if key.startswith("probes.")]
    if shortcuts:
        m, key = max(shortcuts, key=lambda pair: _importance(first, *pair))
        return _apart(first, m, key, sum(other is m for other, _ in shortcuts) - 1)
    content = [(m, key) for m, key in found if TITLES[key].better != "neither"]
    if content:
        m, key = min(content, key=lambda pair: tests[pair[0].observed.name][pair[1]]["p_value"])
        value, reference = (number(each.figures[key].value, TITLES[key].percent) for each in (m, first))
        title, name = TITLES[key].title, m.observed.name
        return f"Shortcuts do not differ significantly; {title} does: {value} in {name}, {reference} in " + (
            first.observed.name
        )
    strongest = max(measured, key=lambda m: max((_above_chance(m, name) for name in shortcut_cues(m)), default=-1))
    return f"No significant difference between the datasets. {verdict(strongest)}"


def _importance(first: MeasuredDataset, m: MeasuredDataset, key: str) -> tuple[bool, float]:
    """Sort key of a difference: cues that do not see the object come first."""
    apart = abs(m.figures[key].value - first.figures[key].value)
    return key.removeprefix("probes.") in CHANCE_FLOOR, apart if math.isfinite(apart) else 0.0


def _apart(first: MeasuredDataset, m: MeasuredDataset, key: str, more: int) -> str:
    """A sentence on a probe that differs between the first dataset and another; the higher dataset is named first."""
    name = key.removeprefix("probes.")
    high, low = sorted((first, m), key=lambda each: -each.figures[key].value)
    is_floor = name in CHANCE_FLOOR
    chances = list(dict.fromkeys(filter(None, map(chance_text, (high, low)))))
    values = [number(each.figures[key].value, True) for each in (high, low)]
    chance = f" ({' or '.join(chances)})" if is_floor and chances else ""
    rest = f"; {more} more {'cue differs' if more == 1 else 'cues differ'}" if more else ""
    return (
        f"In {high.observed.name}, {CUES[name]} alone {_predicts(name)} {values[0]} of the labels, "
        f"in {low.observed.name} {values[1]}{chance}{rest}"
    )


def _predicts(name: str) -> str:
    return "predict" if name in PLURAL else "predicts"


def shortcut_cues(m: MeasuredDataset) -> list[str]:
    """The probes with a significant association, most accurate first."""
    tests = probe_tests(m)
    found = [name for name in CHANCE_FLOOR if tests and tests[name]["significant"]]
    return sorted(found, key=lambda name: -m.figures[f"probes.{name}"].value)


def linked_attributes(m: MeasuredDataset) -> list[AttributeFigures]:
    """The attributes with a significant and trustworthy association, strongest first."""
    trusted = [a for a in m.attributes if a.reading.name in MEASURED or not language_warning(m)]
    found = [a for a in trusted if a.q_value < FALSE_DISCOVERIES and not _follows_from_shape(a)]
    return sorted(found, key=lambda a: -a.association.cramers_v.value)


def _follows_from_shape(a: AttributeFigures) -> bool:
    return a.reading.name == MEASURED[0] and a.association.cramers_v.value < BY_SHAPE


def _above_chance(m: MeasuredDataset, name: str) -> float:
    return m.figures[f"probes.{name}"].value - m.chance


def verdict(m: MeasuredDataset) -> str:
    """A sentence on the findings in one dataset."""
    name, tests, cues, attributes = m.observed.name, probe_tests(m), shortcut_cues(m), linked_attributes(m)
    if not tests:
        return f"Too few images per category to find shortcuts in {name}"
    if cues:
        told = m.figures[f"probes.{cues[0]}"]
        what = f"{number(told.value, True)} of the labels ({chance_text(m)}){_also_linked(cues[1:], attributes)}"
        if told.low > m.chance:
            return f"In {name}, {CUES[cues[0]]} alone {_predicts(cues[0])} {what}"
        verb = "depend" if cues[0] in PLURAL else "depends"
        return f"In {name}, {CUES[cues[0]]} {verb} on the label, but alone {_predicts(cues[0])} only {what}"
    if tests["together"]["significant"]:
        return f"In {name}, something besides the object predicts the label, but no single cue stands out"
    if attributes:
        return f"In {name}, no probe finds a shortcut, but {_with_strength(attributes[0])} is associated with the label"
    return f"No shortcut found in {name}: nothing besides the object is found to predict the label"


def _also_linked(cues: list[str], attributes: list[AttributeFigures]) -> str:
    """The number of further cues, and the strongest attribute."""
    found = [f"{len(cues)} more {'cue' if len(cues) == 1 else 'cues'}"] if cues else []
    found += [_with_strength(attributes[0])] if attributes else []
    if not found:
        return ""
    return f"; {' and '.join(found)} {'is' if len(found) == 1 and len(cues) < 2 else 'are'} associated with them"


def _with_strength(a: AttributeFigures) -> str:
    return f"{a.reading.name} (Cramér's V {number(a.association.cramers_v.value, False)})"


# ---- what to do next ----


def next_step(measured: list[MeasuredDataset]) -> str:
    """The first step: repair what makes other figures misleading, otherwise make the change with the most effect."""
    for step in (_of_language, _of_broken, _of_leaks, _of_shortcuts, _of_attributes, _of_labels):
        for m in measured:
            if found := step(m):
                return f"{found} ({m.observed.name})" if len(measured) > 1 else found
    return "Look at the images under “Images to check”, then compare with another dataset: lbgen audit FIRST SECOND"


def _of_language(m: MeasuredDataset) -> str:
    if not language_warning(m):
        return ""
    return "Choose another language space (--semantics), or give the categories readable names in labels.json"


def _of_broken(m: MeasuredDataset) -> str:
    broken = len(m.observed.broken)
    many = m.observed.broken_share > MANY_BROKEN
    files = "broken file that is" if broken == 1 else f"{broken:,} broken files that are"
    return f"Repair or remove the {files} listed below, and audit again" if many else ""


def _of_leaks(m: MeasuredDataset) -> str:
    leaks = int(m.duplicates.in_another_split.sum())
    return (
        f"Remove near-duplicates from one of the splits: {leaks:,} images have one in another split "
        "(images.parquet, columns split and duplicate_of_split)"
        if leaks
        else ""
    )


def _of_shortcuts(m: MeasuredDataset) -> str:
    cues = shortcut_cues(m)
    if not cues:
        return ""
    if cues[0] == "file_facts":
        return "Store the images of all categories in one size, format and quality, and audit again"
    look = "Look at “Categories that a cue predicts”"
    if not masks_given(m):
        return (
            f"{look}; give masks of the objects, or compare with a set without the shortcut, to exclude that visible "
            "parts of the object are the cause"
        )
    return f"{look}, and add images of these categories in which this cue varies as it does in the others"


def _of_attributes(m: MeasuredDataset) -> str:
    found = linked_attributes(m)
    if not found:
        return ""
    name = found[0].reading.name
    return f"Look at “Strongest shortcuts”, and add images of these categories with other values of {name}"


def _of_labels(m: MeasuredDataset) -> str:
    suspects = int((m.ranks.first == 0).sum())
    return (
        f"Check the {suspects:,} images that another category's name fits better (images.parquet, suspect_label)"
        if suspects
        else ""
    )


def masks_given(m: MeasuredDataset) -> bool:
    """Whether every image has a mask."""
    return bool(m.observed.column("mask_given").all())


# ---- warnings and notes ----


def language_warning(m: MeasuredDataset) -> str:
    """Warning that the language space does not suit the dataset; empty if it does."""
    categories, agreement = len(m.observed.labels), m.figures["label_agreement"]
    chance, unknown = 1 / categories, len(m.names.unknown)
    if 2 * unknown >= categories:
        known = f"{categories - unknown:,}" if unknown < categories else "none"
        cause = f"it knows {known} of the {categories:,} category names"
    elif agreement.low <= chance or agreement.value < chance + NEAR_CHANCE * (1 - chance):
        cause = f"label agreement, {number(agreement.value, True)}, is near chance, {number(chance, True)}"
    else:
        return ""
    place = "" if masks_given(m) else ", and the place where the object is hidden"
    return (
        f"The language space is out of its depth: {cause}. Do not trust label agreement, suspect labels, quality and "
        f"attributes{place}"
    )


def notes(m: MeasuredDataset) -> list[str]:
    """Notes needed to interpret the dataset's figures, one sentence each."""
    warning = language_warning(m)
    return [*sample_notes(m), *name_notes(m), *([warning] if warning else []), *probe_notes(m)]


def sample_notes(m: MeasuredDataset) -> list[str]:
    """If only a sample was measured: which figures hold for all images."""
    if m.observed.sample is None:
        return []
    return [
        f"Measured on a random {m.observed.sample.share:.3g} of the images. Shares, scores, associations and probes "
        "hold for all images within their intervals; the sizes of categories and splits, and their balance, are those "
        "of all images. Near-duplicates are looked for among the measured images alone: their figures are lower bounds"
    ]


def probe_notes(m: MeasuredDataset) -> list[str]:
    """The verdict of all probes together, and the cues that are more balanced over the categories than by chance."""
    tests = probe_tests(m)
    if not tests:
        return []
    together = tests.pop("together")
    p_value = "p < 0.001" if together["p_value"] < 0.001 else f"p = {together['p_value']:.3f}"
    p_value += ", one test of all probes that do not see the object"
    found = f"Nothing besides the object is found to predict the label ({p_value})"
    if together["significant"]:
        certain = masks_given(m) or shortcut_cues(m) == ["file_facts"]
        doubt = "" if certain else "; without masks this can be parts of the object that stay visible"
        found = f"Something besides the object predicts the label ({p_value}){doubt}"
    return [found, *_balance_notes(tests)]


def _balance_notes(tests: dict[str, dict[str, Any]]) -> list[str]:
    """Notes on cues that were balanced over the categories: removed before the probes, or not."""
    limit = FALSE_DISCOVERIES / 2 / len(tests)
    left_out = [name for name, test in tests.items() if test["balanced_directions"]]
    even = [n for n, test in tests.items() if test["p_more_even_than_chance"] < limit and n not in left_out]
    notes = []
    if left_out:
        notes.append(
            f"The categories are balanced over {_subjects(left_out)}, more evenly than by chance. What is balanced "
            "predicts no label; it is left out before the probe learns, because held-out images would read below chance"
        )
    if even:
        notes.append(
            f"The categories are more alike in {_subjects(even)} than independent draws would be: the probe then reads "
            "below chance, and a bias no larger than that gap stays hidden"
        )
    return notes


def _subjects(names: list[str]) -> str:
    return ", ".join(CUES[name] for name in names)


def name_notes(m: MeasuredDataset) -> list[str]:
    """Notes on names that the model does not know or cannot tell apart."""
    labels, found = m.observed.labels, []
    if 0 < len(m.names.unknown) < len(labels):  # if it knows none, the warning says so
        found.append(f"The model does not know {_listed([labels[c].name for c in m.names.unknown])}")
    for group in m.names.coinciding[:GROUPS_NAMED]:
        found.append(f"To the model, these names are one text: {_listed([labels[c].name for c in group])}")
    if len(m.names.coinciding) > GROUPS_NAMED:
        found.append(f"{len(m.names.coinciding) - GROUPS_NAMED} more groups of names are one text to the model")
    return found


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_LISTED} more" if len(names) > NAMES_LISTED else ""
    return ", ".join(printable(name) for name in names[:NAMES_LISTED]) + more
