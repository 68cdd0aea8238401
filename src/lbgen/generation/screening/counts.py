"""Counts of rejected images per category and reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

from lbgen.runs.parsing import Whole, parse_json

ShortName = Annotated[str, msgspec.Meta(max_length=120, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$")]
"""A category's id or a reason, short enough to be printed."""


@dataclass
class CategoryCounts:
    """Counts of one category, or of all categories together. The field names are those of the JSON files."""

    images: int = 0
    """Images drawn; each counts once, regardless of its number of attempts."""
    rejected: int = 0
    """Images whose first attempt was rejected."""
    kept: int = 0
    """Images that were kept although their last attempt failed too."""
    dropped: int = 0
    """Images that were left out because their last attempt failed."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Check -> number of attempts that failed it; an attempt may fail several checks."""

    @property
    def rejected_share(self) -> float:
        """Share of the images whose first attempt was rejected, in [0, 1]."""
        return self.rejected / self.images if self.images else 0.0

    def add(self, other: CategoryCounts) -> None:
        self.images += other.images
        self.rejected += other.rejected
        self.kept += other.kept
        self.dropped += other.dropped
        self.reasons.update(other.reasons)


@dataclass
class RejectionCounts:
    """Counts by category id. A category without any drawn image has no entry."""

    categories: dict[str, CategoryCounts] = field(default_factory=dict)

    def add_attempt(self, category_id: str, attempt: int, reasons: Sequence[str]) -> None:
        """Count an attempt, numbered from 0, and the checks that it failed."""
        counts = self._of(category_id)
        counts.images += attempt == 0
        counts.rejected += attempt == 0 and bool(reasons)
        counts.reasons.update(reasons)

    def add_duplicate(self, category_id: str, attempt: int) -> None:
        """Count an attempt that was first accepted and later found to be a near-duplicate of an earlier image."""
        counts = self._of(category_id)
        counts.rejected += attempt == 0
        counts.reasons["duplicate"] += 1

    def add_kept(self, category_id: str) -> None:
        """Count an image that is kept although its last attempt failed."""
        self._of(category_id).kept += 1

    def add_dropped(self, category_id: str) -> None:
        """Count an image that is left out because its last attempt failed."""
        self._of(category_id).dropped += 1

    def _of(self, category_id: str) -> CategoryCounts:
        return self.categories.setdefault(category_id, CategoryCounts())

    def total(self) -> CategoryCounts:
        total = CategoryCounts()
        for counts in self.categories.values():
            total.add(counts)
        return total

    def above(self, share: float) -> dict[str, float]:
        """Category id -> rejected share, for categories where it exceeds `share`; highest first."""
        shares = {category_id: counts.rejected_share for category_id, counts in self.categories.items()}
        chosen = {category_id: rejected for category_id, rejected in shares.items() if rejected > share}
        return dict(sorted(chosen.items(), key=lambda item: (-item[1], item[0])))

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Category id -> its counts, without zeros."""
        return {
            category_id: {name: value for name, value in vars(counts).items() if value}
            for category_id, counts in self.categories.items()
        }

    def to_bytes(self) -> bytes:
        """The content of a shard's file in screening/."""
        return json.dumps(self.to_json(), sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> RejectionCounts:
        """The counts that `to_bytes` wrote; raises ValueError for any other content."""
        stored = parse_json(content, dict[ShortName, StoredCounts])
        return cls({category_id: counts.to_counts() for category_id, counts in stored.items()})


class StoredCounts(msgspec.Struct, forbid_unknown_fields=True):
    """The counts of a category in JSON, which omits zeros."""

    images: Whole = 0
    rejected: Whole = 0
    kept: Whole = 0
    dropped: Whole = 0
    reasons: dict[ShortName, Whole] = {}

    def to_counts(self) -> CategoryCounts:
        return CategoryCounts(self.images, self.rejected, self.kept, self.dropped, Counter(self.reasons))


def merged(shards: Iterable[RejectionCounts]) -> RejectionCounts:
    """The sum of the counts of many shards, which are read one at a time."""
    sums = RejectionCounts()
    for shard in shards:
        for category_id, counts in shard.categories.items():
            sums._of(category_id).add(counts)
    return sums
