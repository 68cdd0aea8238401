"""Open a labelled image dataset of any format.

image folder   DIR/<category>/*.jpg or DIR/<split>/<category>/*.jpg
listed images  DIR/metadata.csv or .jsonl, or one in each split's folder, with `file_name` and `label`
WebDataset     DIR/*.tar or DIR/<any>/*.tar: an image and a `.cls` or `.json` per sample; `_info.json` names the splits
tables         DIR/*.parquet or DIR/<any>/*.parquet, or the .arrow files of `save_to_disk`
"""

import os
from pathlib import Path

from lbgen.datasets.files.local import LocalFiles
from lbgen.datasets.files.remote import Address, RemoteFiles
from lbgen.datasets.image_folder import ImageFolderReader
from lbgen.datasets.listed import ListedReader, metadata_files
from lbgen.datasets.records import DatasetReader, find_shards
from lbgen.datasets.tables.hugging_face import TableReader
from lbgen.datasets.webdataset import WebDatasetReader, holds_labels
from lbgen.errors import UserError
from lbgen.runs.storage import is_remote, without_scheme


def open_dataset(folder: Path, label_column: str | None = None) -> DatasetReader:
    """The reader for the folder's format, which is detected from its files.  label_column: see DatasetReader.

    folder: a local folder, or an Address on object storage.
    """
    storage = RemoteFiles(folder) if isinstance(folder, Address) else LocalFiles()
    with storage.errors():
        reader = _reader(storage.folder if isinstance(storage, RemoteFiles) else folder, storage)
    reader.source, reader.storage, reader.label_column = folder, storage, label_column
    return reader


def dataset_place(given: str | Path) -> Path:
    """The user's text as a local folder or an Address on object storage."""
    text = without_scheme(str(given))
    return Address(text) if is_remote(text) else Path(os.path.expanduser(text))


def _reader(folder: Path, storage: LocalFiles) -> DatasetReader:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give an image folder, a WebDataset or a folder of parquet files")
    try:
        os.scandir(folder).close()
        shards = find_shards(folder, ".tar")
        if shards:
            with storage.whole(shards[0]) as first:
                has_labels = holds_labels(first)
            if has_labels or not any(ImageFolderReader(folder).files()):
                return WebDatasetReader(folder, shards)
        if shards := find_shards(folder, ".parquet") or find_shards(folder, ".arrow"):
            if shards[0].suffix == ".arrow" and isinstance(storage, RemoteFiles):
                raise UserError(
                    f"{folder}: .arrow files are read from local folders only; copy it here, or use Parquet"
                )
            return TableReader(folder, shards)
        lists = metadata_files(folder)
        return ListedReader(folder, lists) if lists else ImageFolderReader(folder)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror}; make it readable") from None
