"""The progress of all workers together: images, time left, rejected attempts."""

from __future__ import annotations

from typing import NamedTuple

from lbgen.runs import console


class WorkerProgress(NamedTuple):
    """The progress made by one batch."""

    finished: int
    """Number of images kept or dropped; negative if accepted images are rejected as near-duplicates."""
    rejected: int
    """Number of images that will be drawn again."""
    taken_over: int = 0
    """Of the finished images, those that an earlier run drew."""


class ProgressBar(console.Progress):
    def __init__(self, images: int, done: int) -> None:
        super().__init__("generate", images, "images", done=done)
        self._rejected = 0

    def add(self, progress: WorkerProgress) -> None:
        self._rejected += progress.rejected
        self.skip(progress.taken_over)
        self.advance(progress.finished - progress.taken_over, f"{self._rejected:,} rejected" if self._rejected else "")
