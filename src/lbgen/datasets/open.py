"""Open a labelled image dataset of any common layout."""

from pathlib import Path

from lbgen.datasets.image_folder_reader import ImageFolder
from lbgen.datasets.listed import ListedFolder, metadata_files
from lbgen.datasets.records import Source, visible
from lbgen.datasets.tables_reader import Tables
from lbgen.datasets.webdataset_reader import WebDataset, holds_labels
from lbgen.errors import UserError


def open_source(folder: Path) -> Source:
    """The reader of whatever layout the folder has."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give an image folder, a WebDataset or a folder of parquet files")
    try:
        shards = visible(folder, ".tar")
        if shards and (holds_labels(shards[0]) or not any(ImageFolder(folder).files())):
            return WebDataset(folder, shards)
        if shards := visible(folder, ".parquet") or visible(folder, ".arrow"):
            return Tables(folder, shards)
        lists = metadata_files(folder)
        return ListedFolder(folder, lists) if lists else ImageFolder(folder)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror}; make it readable") from None
