"""One progress bar for all workers: images, images per second, time left, rejected attempts."""

from __future__ import annotations

from types import TracebackType
from typing import NamedTuple

from tqdm import tqdm


class Progress(NamedTuple):
    """What one batch contributed."""

    finished: int
    """Images that are kept or dropped; negative when accepted images are rejected as near-duplicates."""
    rejected: int
    """Images that will be drawn again."""


class ProgressBar:
    def __init__(self, images: int, done: int) -> None:
        self._bar = tqdm(desc="generate", total=images, initial=done, unit="image", dynamic_ncols=True)
        self._rejected = 0

    def add(self, progress: Progress) -> None:
        self._rejected += progress.rejected
        if self._rejected:
            self._bar.set_postfix(rejected=self._rejected, refresh=False)
        self._bar.update(progress.finished)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.close()
