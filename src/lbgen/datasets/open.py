"""Open a labelled image dataset, whatever its format.

image folder   DIR/<category>/*.jpg or DIR/<split>/<category>/*.jpg
listed images  DIR/metadata.csv or .jsonl, or one in each split's folder, with `file_name` and `label`
WebDataset     DIR/*.tar or DIR/<any>/*.tar: an image and a `.cls` or `.json` per sample; `_info.json` names the splits
tables         DIR/*.parquet or DIR/<any>/*.parquet, or the .arrow files of `save_to_disk`
"""

import os
from pathlib import Path

from lbgen.datasets.image_folder import ImageFolderReader
from lbgen.datasets.listed import ListedReader, metadata_files
from lbgen.datasets.records import DatasetReader, find_shards
from lbgen.datasets.tables import TableReader
from lbgen.datasets.webdataset import WebDatasetReader, holds_labels
from lbgen.errors import UserError


def open_dataset(folder: Path, label_column: str | None = None) -> DatasetReader:
    """The reader of the folder's format, found by its files.  label_column: see DatasetReader."""
    reader = _reader(folder)
    reader.label_column = label_column
    return reader


def _reader(folder: Path) -> DatasetReader:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give an image folder, a WebDataset or a folder of parquet files")
    try:
        os.scandir(folder).close()
        shards = find_shards(folder, ".tar")
        if shards and (holds_labels(shards[0]) or not any(ImageFolderReader(folder).files())):
            return WebDatasetReader(folder, shards)
        if shards := find_shards(folder, ".parquet") or find_shards(folder, ".arrow"):
            return TableReader(folder, shards)
        lists = metadata_files(folder)
        return ListedReader(folder, lists) if lists else ImageFolderReader(folder)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror}; make it readable") from None
