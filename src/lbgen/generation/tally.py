"""Counts of rejected images by category and reason."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Tally:
    def count(self, category_id: str, attempt: int, reasons: Sequence[str], kept: bool, last: bool) -> None: ...

    def to_json(self) -> str:
        return "{}"

    @classmethod
    def from_json(cls, text: str) -> "Tally":
        return cls()

    @property
    def dropped(self) -> int:
        return 0
