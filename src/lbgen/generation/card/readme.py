"""README.md of a dataset in the form of the Hugging Face Hub: a YAML header for programs, Markdown for people.

With this header, `datasets.load_dataset(DIR)` returns images and labels. In all layouts, labels are indices into
labels.json. Class names are the category ids, because ids are unique and are the folder names of an ImageFolder.
"""

import re
from typing import Any

import pyarrow as pa
import yaml

from lbgen.datasets.index import SCHEMAS
from lbgen.generation.card.merge import signed
from lbgen.generation.card.summary import DatasetSummary
from lbgen.report.page import render

DATA_FILES = {"imagefolder": "{split}/*/*.{suffix}", "webdataset": "{split}-*.tar", "parquet": "data/{split}-*.parquet"}
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
LONG_TABLE = 30
"""Tables with more lines than this are collapsed."""


def card(summary: DatasetSummary) -> str:
    """The content of README.md."""
    rejections = summary.rejections
    rejected = [(category, rejections[category.id]) for category in summary.categories if category.id in rejections]
    text = render(
        "card.md.jinja",
        {"as_text": as_text},
        dataset=summary,
        head=yaml.safe_dump(head(summary), sort_keys=False, width=10**9),  # ASCII, so nothing in it can end the header
        rejected=sorted(rejected, key=lambda pair: -sum(pair[1].values())),
        reasons=sorted({reason for counts in rejections.values() for reason in counts}),
        fence="`" * max(3, 1 + max(map(len, re.findall("`+", summary.config)), default=0)),
        long=LONG_TABLE,
    )
    return signed(text)


def as_text(text: str) -> str:
    """`text` escaped for Markdown and HTML: special characters become character references."""
    return re.sub(r"[\x00-\x1f!-&*+./:-@\[-`{-\x7f]", lambda sign: f"&#{ord(sign[0])};", text)


def head(summary: DatasetSummary) -> dict[str, Any]:
    """The fields of the YAML header."""
    pattern, features = DATA_FILES[summary.layout], _features(summary)
    paths = [
        {"split": split.name, "path": pattern.format(split=split.name, suffix=summary.suffix)}
        for split in summary.splits
    ]
    config = {"config_name": "default", "data_files": paths}
    # The imagefolder loader takes features from a config only, the other loaders from dataset_info only.
    in_config = summary.layout == "imagefolder"
    return {
        "pretty_name": summary.title,
        "task_categories": ["image-classification"]
        + (["object-detection", "image-segmentation"] if summary.localized else []),
        "size_categories": [next((name for size, name in SIZES if summary.images < size), "n>10M")],
        "tags": ["synthetic", "image", "text-to-image", "lbgen", summary.layout],
        "configs": [config | {"features": features} if in_config else config],
    } | ({} if in_config else {"dataset_info": {"features": features}})


def _features(summary: DatasetSummary) -> list[dict[str, Any]]:
    """The columns in the form in which `datasets` writes features in YAML."""
    ids = {str(label): category.id for label, category in enumerate(summary.categories)}
    label = {"class_label": {"names": ids}}
    if summary.layout != "webdataset":
        columns: list[dict[str, Any]] = [{"name": "image", "dtype": "image"}, {"name": "label", "dtype": label}]
        has_masks = summary.localized and summary.layout == "parquet"
        boxes: list[dict[str, Any]] = [
            {"name": "bbox", "list": {"list": "int64"}}, {"name": "categories", "list": label},
        ]  # fmt: skip
        masks: list[dict[str, Any]] = [{"name": "mask", "dtype": "image"}, {"name": "objects", "struct": boxes}]
        return columns + (masks if has_masks else [])
    schema = SCHEMAS[summary.columns]
    columns = [{"name": column.name, **_dtype(column.type)} for column in schema]
    return [
        {"name": summary.suffix, "dtype": "image"},  # names are the suffixes of the tar members
        {"name": "cls", "dtype": label},
        {"name": "json", "struct": columns},
        *([{"name": "mask.png", "dtype": "image"}] if summary.localized else []),
    ]


def _dtype(arrow: pa.DataType) -> dict[str, str]:
    names = {pa.string(): "string", pa.int64(): "int64", pa.float64(): "float64"}
    return {"list": names[arrow.value_type]} if pa.types.is_list(arrow) else {"dtype": names[arrow]}
