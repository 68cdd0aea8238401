"""What screening did: how many images of each category were rejected, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Count:
    """Of one category, or of all."""

    images: int = 0
    """Images drawn, however often each."""
    rejected: int = 0
    """Those whose first attempt was rejected."""
    kept: int = 0
    """Those that stayed although their last attempt failed too."""
    dropped: int = 0
    """Those that were left out because it did."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Check -> how many attempts it rejected, of all; an attempt may fail several."""

    @property
    def share(self) -> float:
        """Images whose first attempt was rejected, in [0, 1]."""
        return self.rejected / self.images if self.images else 0.0

    def add(self, other: Count) -> None:
        self.images += other.images
        self.rejected += other.rejected
        self.kept += other.kept
        self.dropped += other.dropped
        self.reasons.update(other.reasons)


@dataclass
class Tally:
    """By category id; categories of which nothing was drawn are not in it."""

    categories: dict[str, Count] = field(default_factory=dict)

    def drawn(self, category_id: str, attempt: int, reasons: Sequence[str]) -> None:
        """Count an attempt, the first being 0, and the checks that it failed."""
        count = self._of(category_id)
        count.images += attempt == 0
        count.rejected += attempt == 0 and bool(reasons)
        count.reasons.update(reasons)

    def duplicate(self, category_id: str, attempt: int) -> None:
        """Count an attempt that had been accepted, and turned out to be a near-duplicate of an earlier image."""
        count = self._of(category_id)
        count.rejected += attempt == 0
        count.reasons["duplicate"] += 1

    def kept(self, category_id: str) -> None:
        """Count an image that stays although its last attempt failed."""
        self._of(category_id).kept += 1

    def dropped(self, category_id: str) -> None:
        """Count an image that is left out because its last attempt failed."""
        self._of(category_id).dropped += 1

    def _of(self, category_id: str) -> Count:
        return self.categories.setdefault(category_id, Count())

    def total(self) -> Count:
        total = Count()
        for count in self.categories.values():
            total.add(count)
        return total

    def worst(self, report_share: float) -> dict[str, float]:
        """Category id -> share of first attempts rejected, where it exceeds `report_share`; the highest first."""
        shares = {category_id: count.share for category_id, count in self.categories.items()}
        above = {category_id: share for category_id, share in shares.items() if share > report_share}
        return dict(sorted(above.items(), key=lambda item: (-item[1], item[0])))

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Category id -> its numbers, zeros left out."""
        return {
            category_id: {name: value for name, value in vars(count).items() if value}
            for category_id, count in self.categories.items()
        }

    @classmethod
    def from_json(cls, content: dict[str, dict[str, Any]]) -> Tally:
        return cls(
            {
                category_id: Count(**numbers | {"reasons": Counter(numbers.get("reasons", {}))})
                for category_id, numbers in content.items()
            }
        )


def merged(tallies: Iterable[Tally]) -> Tally:
    """Of many shards together; takes them one at a time."""
    whole = Tally()
    for tally in tallies:
        for category_id, count in tally.categories.items():
            whole._of(category_id).add(count)
    return whole
