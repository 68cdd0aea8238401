"""The pictures of a set as they lie on disk, never turned or shrunk: what is known of their pixels holds for these."""

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image


class Pictures(Sequence[tuple[Image.Image, int]]):
    """(picture in RGB, 0) of every row; raises ValueError or OSError for one that cannot be used."""

    def __init__(self, paths: Sequence[Path], fault: Callable[[int, tuple[int, int]], str]) -> None:
        """fault: of a row and its picture's height and width, why it cannot be used; empty where it can."""
        self.paths, self.fault = paths, fault

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row):  # type: ignore[no-untyped-def]  # by number only
        picture = self.picture(row)
        if fault := self.fault(row, (picture.height, picture.width)):
            raise ValueError(fault)
        return picture, 0

    def picture(self, row: int) -> Image.Image:
        with Image.open(self.paths[row]) as picture:
            return picture.convert("RGB")
