"""A dataset of lbgen, an ImageFolder, a WebDataset or a Hugging Face set on disk as a downstream data set."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from lbgen.datasets.decode import picture_of
from lbgen.datasets.open import open_dataset
from lbgen.datasets.records import DatasetReader, ImageRecord, no_labelled_image
from lbgen.evaluation.transfer.sets.sources import Source, fingerprint_of
from lbgen.evaluation.transfer.sets.splits import ANY, TEST, TRAIN, VAL

NAMES = {
    TRAIN: ("train", "training"),
    VAL: ("val", "valid", "validation", "dev"),
    TEST: ("test", "testing", "eval", "evaluation"),
}
"""Possible names of each split; a number may follow."""
SIDE = 512
"""Side in pixels for which a very large picture is shrunk first."""


class LabelledPictures(Sequence[tuple[Image.Image, int]]):
    """The images of a dataset with their labels; an image that cannot be read raises ValueError with the reason."""

    def __init__(self, reader: DatasetReader, records: Sequence[ImageRecord], labels: Sequence[int]) -> None:
        self.reader, self.records, self.labels = reader, records, labels

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, row):  # type: ignore[no-untyped-def]  # by number only
        record = self.records[row]
        if record.location is None:
            raise ValueError(record.fault)
        picture = picture_of(self.reader.read(record.location), SIDE)
        if isinstance(picture, str):
            raise ValueError(picture)
        return picture, self.labels[row]


def open_folder(folder: Path) -> Source:
    """The labelled images of a folder in any format that lbgen reads."""
    reader = open_dataset(folder)
    records = list(reader.records(wanted=()))
    ids = sorted({record.category for record in records if not record.fault})
    if not ids:
        broken = {record.key: record.fault for record in records}
        raise no_labelled_image(folder, broken, reader.skipped)
    index = {category: number for number, category in enumerate(ids)}
    return Source(
        LabelledPictures(reader, records, [index.get(record.category, -1) for record in records]),
        tuple(record.key for record in records),
        tuple(split_of(record.split) for record in records),
        tuple(ids),
        fingerprint=fingerprint_of({folder / record.location.file for record in records if record.location}),
    )


def split_of(name: str) -> str:
    """The split of a folder's name: `validation`, `Val` and `val2017` are val; ANY for other names."""
    plain = name.lower().rstrip("-_. 0123456789")
    return next((split for split, names in NAMES.items() if plain in names), ANY)
