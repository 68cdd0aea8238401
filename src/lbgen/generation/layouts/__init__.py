"""The forms a dataset can have on disk, each in a file of its own."""

from lbgen.generation.layouts.imagefolder import ImageFolder
from lbgen.generation.layouts.layout import Layout
from lbgen.generation.layouts.parquet import Parquet
from lbgen.generation.layouts.webdataset import WebDataset

LAYOUTS: dict[str, Layout] = {"imagefolder": ImageFolder(), "webdataset": WebDataset(), "parquet": Parquet()}

__all__ = ["LAYOUTS", "Layout"]
