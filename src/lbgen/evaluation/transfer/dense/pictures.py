"""The pictures of a set as stored, neither rotated nor shrunk, because annotations refer to the stored pixels."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from lbgen.datasets.decode import FORMATS, LARGE
from lbgen.datasets.files.local import LARGEST_FILE
from lbgen.runs import atomic


class UnlabelledPictures(Sequence[tuple[Image.Image, int]]):
    """(picture in RGB, 0) of every row; raises ValueError or OSError for one that cannot be used."""

    def __init__(self, paths: Sequence[Path], fault: Callable[[int, tuple[int, int]], str]) -> None:
        """fault: from a row and its picture's (height, width), why it cannot be used; empty if it can."""
        self.paths, self.fault = paths, fault

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row):  # type: ignore[no-untyped-def]  # by number only
        picture = self.picture(row)
        if fault := self.fault(row, (picture.height, picture.width)):
            raise ValueError(fault)
        return picture, 0

    def picture(self, row: int) -> Image.Image:
        with opened(self.paths[row]) as picture:
            return picture.convert("RGB")


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """A picture in a known format with at most LARGE pixels, from a regular file; otherwise ValueError or OSError."""
    with Image.open(io.BytesIO(atomic.read_bounded(path, LARGEST_FILE)), formats=FORMATS) as picture:
        if picture.width * picture.height > LARGE:
            raise ValueError(f"{path.name} has {picture.width:,} x {picture.height:,} pixels, more than {LARGE:,}")
        yield picture
