"""The forms a dataset can have on disk, each in a file of its own."""

from lbgen.datasets.image_folder import ImageFolder
from lbgen.datasets.layout import Layout
from lbgen.datasets.tables import Parquet
from lbgen.datasets.webdataset import WebDataset

LAYOUTS: dict[str, Layout] = {"imagefolder": ImageFolder(), "webdataset": WebDataset(), "parquet": Parquet()}

__all__ = ["LAYOUTS", "Layout"]
