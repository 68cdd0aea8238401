"""The layouts that lbgen writes, by their names in --format."""

from lbgen.datasets.image_folder import ImageFolderLayout
from lbgen.datasets.layout import Layout
from lbgen.datasets.tables.hugging_face import ParquetLayout
from lbgen.datasets.webdataset import WebDatasetLayout

LAYOUTS: dict[str, Layout] = {
    "imagefolder": ImageFolderLayout(),
    "webdataset": WebDatasetLayout(),
    "parquet": ParquetLayout(),
}

__all__ = ["LAYOUTS", "Layout"]
