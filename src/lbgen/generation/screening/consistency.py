"""Consistency of the screening results recorded for an image and a shard, with each other and with the thresholds.

An index may come from someone else. Scores of the language space cannot be recomputed without it, but an image with
another score would have been rejected, kept or counted differently. recomputed.py compares the scores that need no
model, language_scores.py the scores of the language space.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from lbgen.datasets.index import Row
from lbgen.errors import UserError
from lbgen.generation.config import Check, GenerateConfig
from lbgen.generation.plan import Plan, PlannedImage
from lbgen.generation.screening.counts import CategoryCounts, RejectionCounts
from lbgen.generation.screening.duplicate_rounds import DuplicateRound
from lbgen.runs.console import warn

SCORES_OF = {
    "label": ("label_rank", "label_probability"),
    "quality": ("quality",),
    "blank": ("deviation",),
    "unsafe": ("unsafe",),
}
"""Check -> its scores. Scores of near-duplicates are added at the end, and not for all images. A dataset that grew on
another device may hold a cosine above the threshold, because growth changes no image."""
OF_THE_LANGUAGE_SPACE = ("label", "quality", "unsafe")
"""Checks that compare images with texts."""
DUPLICATE_SCORES = ("duplicate_bits", "duplicate_cosine")
RANGES = {
    "label_rank": (1, 2**53),
    "label_probability": (0, 1),
    "quality": (1, 5),
    "deviation": (0, 0.5),
    "unsafe": (-2, 2),
    "duplicate_bits": (0, 64),
    "duplicate_cosine": (-1, 1),
}
FLOAT32 = 1e-6
"""Tolerance at a bound for sums in single precision."""
ROUNDING = 2e-3
"""Tolerance, relative to max(1, value), for comparing scores with thresholds: on a GPU they have 16 bits."""


def wrong_screening_column(row: Row, config: GenerateConfig) -> str | None:
    """The first column of a row with a value that this configuration cannot produce; None if there is none."""
    return next(_wrong_columns(row, config), None)


def _wrong_columns(row: Row, config: GenerateConfig) -> Iterator[str]:
    # Reasons: only of configured checks; a failed last attempt is kept only if the configuration says so.
    checks = list(config.checks)
    entries = [entry.split(",") for entry in row.rejections]
    if not all(_is_entry(entry, checks) for entry in entries):
        yield "rejections"
    if row.failed and not (row.attempt == config.max_attempts - 1 and config.last_resort == "keep"):
        yield "rejections"

    # Scores: only of configured checks, and within their ranges.
    expected = {name for check in checks for name in SCORES_OF.get(check, ())}
    optional = set(DUPLICATE_SCORES) if "duplicate" in checks else set()
    yield from sorted((expected - row.scores.keys()) | (row.scores.keys() - expected - optional))
    for name, score in row.scores.items():
        lowest, highest = RANGES[name]
        tolerance = ROUNDING if name in ("unsafe", "duplicate_cosine") else FLOAT32
        if not lowest - tolerance <= score <= highest + tolerance:  # also NaN
            yield name
    rank, probability = row.scores.get("label_rank", 1), row.scores.get("label_probability", 0)
    if rank % 1 != 0 or rank * probability > 1 + ROUNDING:  # every nearer text is more probable
        yield "label_rank"

    # Scores and reasons: the stored attempt fails the checks that its last entry names, and no others.
    failed = set(entries[-1]) if row.failed else set()
    for check in checks:
        outcome = _fails(check, row, config)
        if outcome is not None and outcome != (check in failed):
            yield SCORES_OF[check][0] if check in SCORES_OF else "box" if check == "mask" else "found"


def _is_entry(entry: Sequence[str], checks: Sequence[str]) -> bool:
    """Whether these are the reasons of one attempt: some of the checks, in order; "duplicate" stands alone."""
    in_order = list(entry) == [check for check in checks if check in entry]
    return in_order and ("duplicate" not in entry or len(entry) == 1)


def _fails(check: str, row: Row, config: GenerateConfig) -> bool | None:
    """Whether the stored attempt fails a check according to its columns; None if they do not tell."""
    if check == "balance":
        return row.target != row.found
    if check == "mask":
        return any(each.box is None for each in row.objects)
    if check == "label" and row.scores.get("label_rank", 1) > config.label_top_k:
        return True
    score, threshold, sign = {
        "label": (row.scores.get("label_probability"), config.least_label_probability, -1),
        "quality": (row.scores.get("quality"), config.least_quality, -1),
        "blank": (row.scores.get("deviation"), config.least_deviation, -1),
        "unsafe": (row.scores.get("unsafe"), 0.5 if config.unsafe == "checker" else 0.0, 1),
    }.get(check, (None, 0.0, 1))
    exact = check == "label" and threshold == 0  # no probability is below 0
    if score is None or (not exact and abs(score - threshold) <= ROUNDING * max(1, abs(threshold))):
        return None
    return sign * (score - threshold) > 0


def scores_to_compare(config: GenerateConfig, plan: Plan) -> list[Check]:
    """The checks whose scores can be recomputed from the stored files with the language space.

    Raises UserError if there are none; warns about checks that are left out.
    """
    left_out = {check: why for check in config.screen if (why := _why_not_compared(check, config, plan))}
    able = [
        check for check in config.screen if check in (*OF_THE_LANGUAGE_SPACE, "duplicate") and check not in left_out
    ]
    reasons = [
        f"{' and '.join(check for check in left_out if left_out[check] == why)} cannot be compared: {why}"
        for why in dict.fromkeys(left_out.values())
    ]
    if not able:
        reason = f"scores of {'; of '.join(reasons)}" if reasons else "it has none"
        raise UserError(f"{config.output}: --check-scores compares scores of a language space; {reason}; leave it out")
    for reason in reasons:
        warn(f"{config.output}: scores of {reason}")
    return able


def _why_not_compared(check: Check, config: GenerateConfig, plan: Plan) -> str | None:
    """Why the scores of a check cannot be recomputed; None if they can, or if the check needs no language space."""
    if check not in OF_THE_LANGUAGE_SPACE:
        return None
    if check == "unsafe" and config.unsafe == "checker":
        return "a safety checker made them"
    if config.image_format != "png" or config.stored_size is not None:
        return "only PNG in the size of the generator holds the pixels that were judged"
    if check != "quality" and len(plan.targets[0].categories) < len(plan.categories):
        return "they depend on the categories, of which some were added later"
    return None


def pixels_were_judged(config: GenerateConfig) -> bool:
    """Whether scores depend only on pixels, and the files hold exactly the pixels that were judged."""
    return (
        config.image_format == "png" and config.stored_size is None and bool({"blank", "duplicate"} & {*config.screen})
    )


# ---- a shard ----


def counts_match(counts: RejectionCounts, rows: Iterable[Row], planned: Iterable[PlannedImage]) -> bool:
    """Whether the counts of a shard agree with its rows, except for the reasons of dropped images."""
    kept: dict[str, CategoryCounts] = {}
    for row in rows:
        category = kept.setdefault(row.id, CategoryCounts())
        category.images += 1
        category.rejected += bool(row.rejections)
        category.kept += row.failed
        category.reasons.update(reason for entry in row.rejections for reason in entry.split(","))
    images = Counter(image.category.id for image in planned)
    return counts.categories.keys() == images.keys() and all(
        _agree(counts.categories[category_id], kept.get(category_id, CategoryCounts()), number)
        for category_id, number in images.items()
    )


def _agree(counted: CategoryCounts, kept: CategoryCounts, planned: int) -> bool:
    """Whether counts and kept rows agree; every dropped image failed its first attempt."""
    dropped = planned - kept.images
    same = (counted.images, counted.dropped, counted.kept) == (planned, dropped, kept.kept)
    more = counted.reasons - kept.reasons
    return (
        same
        and counted.rejected == kept.rejected + dropped
        and not kept.reasons - counted.reasons
        and more.total() >= dropped
        and (dropped > 0 or not more)
    )


def unlisted_duplicate(rows: Iterable[Row], shard: int, rounds: Sequence[DuplicateRound]) -> str | None:
    """The key of an image that was rejected as a near-duplicate but is in no round; None if there is none."""
    listed = {item for found in rounds for item in found.get(shard, {}).items()}
    for row in rows:
        for attempt, entry in enumerate(row.rejections):
            if entry == "duplicate" and (row.key, attempt) not in listed:
                return row.key
    return None


def undrawn_duplicate(rows: Iterable[Row], shard: int, rounds: Sequence[DuplicateRound]) -> str | None:
    """The key of an image that is in a round but was neither drawn again nor kept as its last attempt; or None."""
    listed: dict[str, int] = {}
    for found in rounds:  # later rounds list later attempts
        listed |= found.get(shard, {})
    return next((row.key for row in rows if not row.failed and listed.get(row.key, -1) >= row.attempt), None)
