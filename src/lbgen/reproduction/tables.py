"""Markdown tables of the rows: means with intervals, paired tests over the seeds, and a summary in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lbgen.evaluation.transfer.scores import over_seeds
from lbgen.evaluation.transfer.tables import points
from lbgen.metrics.intervals import Estimate, benjamini_hochberg
from lbgen.metrics.paired_tests import paired_t_of
from lbgen.reproduction.config import Architecture
from lbgen.reproduction.figures import COMPARISONS, Figure, tested
from lbgen.reproduction.sets import SETS, SetName
from lbgen.reproduction.units import BackboneRow

SIGNIFICANT = 0.05
"""Largest adjusted p-value of a significant difference."""
TITLES: dict[Architecture, str] = {"resnet": "ResNet", "vit": "ViT"}


class TestedDifference(NamedTuple):
    """The difference of two sets in one figure, over the seeds that both have."""

    set: SetName
    reference: SetName
    architecture: Architecture
    figure: Figure
    seeds: int
    estimate: Estimate
    """Set minus reference, in shares, with Student's interval."""
    p_value: float
    q_value: float
    """Adjusted for all tests of the study (Benjamini and Hochberg). NaN, like p, with fewer than two seeds, or if the
    difference is the same for all seeds."""

    @property
    def verdict(self) -> str:
        if not self.q_value < SIGNIFICANT:
            return "no clear difference"
        return "better" if (self.estimate.value > 0) == (self.figure.better == "higher") else "worse"


def values(rows: Sequence[BackboneRow], name: SetName, architecture: Architecture, key: str) -> dict[int, float]:
    """Seed -> figure, if it is defined."""
    found = {row.seed: row.values.get(key) for row in rows if (row.set, row.architecture) == (name, architecture)}
    return {seed: value for seed, value in sorted(found.items()) if value is not None}


def sets_of(rows: Sequence[BackboneRow]) -> list[SetName]:
    return [name for name in SETS if any(row.set == name for row in rows)]


def architectures_of(rows: Sequence[BackboneRow]) -> list[Architecture]:
    return [each for each in TITLES if any(row.architecture == each for row in rows)]


# ---- means ----


def mean(rows: Sequence[BackboneRow], name: SetName, architecture: Architecture, key: str) -> Estimate | None:
    """Mean over the seeds, with Student's interval; None without values."""
    found = list(values(rows, name, architecture, key).values())
    return over_seeds(found, (-math.inf, math.inf)) if found else None


def means(rows: Sequence[BackboneRow], architecture: Architecture, figures: Sequence[Figure]) -> str:
    """A line per set: percent, and half the width of the interval."""
    lines = [[TITLES[architecture], "seeds", *(figure.title for figure in figures)]]
    for name in sets_of(rows):
        seeds = {row.seed for row in rows if (row.set, row.architecture) == (name, architecture)}
        if seeds:
            cells = [shown(mean(rows, name, architecture, figure.key)) for figure in figures]
            lines.append([SETS[name].title, str(len(seeds)), *cells])
    return markdown(lines)


def shown(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    half = (estimate.high - estimate.low) / 2
    return f"{100 * estimate.value:.1f}" + (f" ± {100 * half:.1f}" if math.isfinite(half) else "")


# ---- tests ----


def tests(rows: Sequence[BackboneRow]) -> list[TestedDifference]:
    """Tests of every comparison, architecture and tested figure for which both sets share a seed."""
    found = []
    for name, reference in COMPARISONS:
        for architecture in architectures_of(rows):
            for figure in tested(rows):
                ours, theirs = (values(rows, each, architecture, figure.key) for each in (name, reference))
                if common := sorted(ours.keys() & theirs.keys()):
                    gains = np.array([ours[seed] - theirs[seed] for seed in common])
                    estimate, p_value, *_ = paired_t_of(gains)
                    found.append(
                        TestedDifference(
                            name, reference, architecture, figure, len(common), estimate, p_value, math.nan
                        )
                    )
    judged = [place for place, each in enumerate(found) if math.isfinite(each.p_value)]
    adjusted = benjamini_hochberg(np.array([found[place].p_value for place in judged]))
    for place, q_value in zip(judged, adjusted, strict=True):
        found[place] = found[place]._replace(q_value=float(q_value))
    return found


def differences(found: Sequence[TestedDifference], architecture: Architecture) -> str:
    """A line per comparison: difference in points, p and q."""
    own = [each for each in found if each.architecture == architecture]
    figures = list(dict.fromkeys(each.figure for each in own))
    lines = [[TITLES[architecture], "minus", *(figure.title for figure in figures)]]
    for name, reference in dict.fromkeys((each.set, each.reference) for each in own):
        cells = {each.figure: difference(each) for each in own if (each.set, each.reference) == (name, reference)}
        lines.append([SETS[name].title, SETS[reference].title, *(cells.get(figure, "") for figure in figures)])
    return markdown(lines)


def difference(each: TestedDifference) -> str:
    """The difference in points, in bold if it is significant."""
    text = points(each.estimate.value)
    if not math.isfinite(each.p_value):
        return text
    text = f"**{text}**" if each.q_value < SIGNIFICANT else text
    return f"{text} (p {each.p_value:.2g}, q {each.q_value:.2g})"


# ---- summary in words ----


VERDICTS = ("better", "worse", "no clear difference")
OUTCOMES = {
    (True, False): "Better in some figures and worse in none",
    (True, True): "Better in some and worse in others",
    (False, True): "Worse in some and better in none",
    (False, False): "No clear difference in any figure",
}
"""(any figure better, any figure worse) -> text."""


def reading(rows: Sequence[BackboneRow], found: Sequence[TestedDifference]) -> str:
    """A summary of the tests in words, the main figure of every set, and the counts behind the words."""
    by_pair = {}
    for pair in COMPARISONS:
        own = [each.verdict for each in found if (each.set, each.reference) == pair and math.isfinite(each.p_value)]
        if own:
            by_pair[pair] = {verdict: own.count(verdict) for verdict in VERDICTS}
    if not by_pair:
        return "\n\n".join(["One seed, so no test.", *headline(rows)])
    lines = [["set", "against", "figures", *VERDICTS]]
    for (name, reference), counts in by_pair.items():
        numbers = [sum(counts.values()), *counts.values()]
        lines.append([SETS[name].title, SETS[reference].title, *map(str, numbers)])
    return "\n\n".join([in_words(by_pair), *headline(rows), markdown(lines)])


def in_words(by_pair: Mapping[tuple[SetName, SetName], Mapping[str, int]]) -> str:
    """The comparisons, grouped by result."""
    sentences = ["What a backbone learned from a set, compared with another set in paired tests over the seeds."]
    for (better, worse), outcome in OUTCOMES.items():
        pairs = [
            f"*{SETS[name].title}* against *{SETS[reference].title}*"
            for (name, reference), counts in by_pair.items()
            if (counts["better"] > 0, counts["worse"] > 0) == (better, worse)
        ]
        if pairs:
            sentences.append(f"{outcome}: {'; '.join(pairs)}.")
    return " ".join(sentences)


def details(found: Sequence[TestedDifference]) -> str:
    """A line per comparison with the figures in which a set is better and worse, and by how many points."""
    return "\n".join(f"- {line}" for pair in COMPARISONS if (line := comparison(found, *pair)))


def headline(rows: Sequence[BackboneRow], key: str = "never_home") -> list[str]:
    """For each architecture, the accuracy on scenes that are never home, sorted from the lowest set to the highest."""
    lines = []
    for architecture in architectures_of(rows):
        estimates = {name: mean(rows, name, architecture, key) for name in sets_of(rows)}
        known = {name: each.value for name, each in estimates.items() if each}
        ranked = ", ".join(
            f"{SETS[name].title} {100 * known[name]:.1f}" for name in sorted(known, key=known.__getitem__)
        )
        lines.append(f"{TITLES[architecture]}, accuracy (%) on scenes that are never home: {ranked}.")
    return lines


def comparison(found: Sequence[TestedDifference], name: SetName, reference: SetName) -> str:
    """The number and names of figures in which a set is better and worse than another one."""
    own = [each for each in found if (each.set, each.reference) == (name, reference)]
    if not own:
        return ""
    title = f"*{SETS[name].title}* against *{SETS[reference].title}*"
    own = [each for each in own if math.isfinite(each.p_value)]
    if not own:
        return f"{title}: one seed, so no test."
    parts = []
    for verdict in VERDICTS[:2]:
        of_it = [each for each in own if each.verdict == verdict]
        figures = dict.fromkeys(each.figure for each in of_it)
        named = ", ".join(f"{figure.title} ({_points(of_it, figure)})" for figure in figures)
        parts.append(f"{verdict} in {len(of_it)}" + (f": {named}" if named else ""))
    return f"{title}, of {len(own)} figures {'; '.join(parts)}."


def _points(found: Sequence[TestedDifference], figure: Figure) -> str:
    return ", ".join(
        f"{TITLES[each.architecture]} {points(each.estimate.value)}" for each in found if each.figure == figure
    )


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first line has the titles."""
    titles, *rest = lines
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *rest))
