"""README.md of a dataset, as the Hugging Face Hub reads it: a YAML head for programs, Markdown for people.

The head alone makes `datasets.load_dataset(DIR)` give images, and labels that are the same in all layouts: places in
labels.json. Class names are the category ids, since those are unique and are ImageFolder's folder names.
"""

import re
from typing import Any

import pyarrow as pa
import yaml

from lbgen.datasets.index import SCHEMA
from lbgen.generation.card.description import Description
from lbgen.report.page import render

DATA_FILES = {"imagefolder": "{split}/*/*.{suffix}", "webdataset": "{split}-*.tar", "parquet": "data/{split}-*.parquet"}
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
LONG = 30
"""A table of more lines is folded."""


def card(description: Description) -> str:
    """The whole of README.md."""
    rejections = description.rejections
    rejected = [(category, rejections[category.id]) for category in description.categories if category.id in rejections]
    return render(
        "card.md.jinja",
        {"as_text": as_text},
        dataset=description,
        head=yaml.safe_dump(_head(description), sort_keys=False, width=10**9),  # ASCII: nothing in it can end the head
        rejected=sorted(rejected, key=lambda pair: -sum(pair[1].values())),
        reasons=sorted({reason for counts in rejections.values() for reason in counts}),
        fence="`" * max(3, 1 + max(map(len, re.findall("`+", description.config)), default=0)),
        long=LONG,
    )


def as_text(text: str) -> str:
    """Markdown and HTML that show `text` and nothing else: the signs that mean something are character references."""
    return re.sub(r"[\x00-\x1f!-&*+./:-@\[-`{-\x7f]", lambda sign: f"&#{ord(sign[0])};", text)


def _head(description: Description) -> dict[str, Any]:
    pattern, features = DATA_FILES[description.layout], _features(description)
    paths = [
        {"split": split.name, "path": pattern.format(split=split.name, suffix=description.suffix)}
        for split in description.splits
    ]
    config = {"config_name": "default", "data_files": paths}
    # ImageFolder's loader sorts the ids, whatever dataset_info says; the other loaders take no features from a config.
    own = description.layout == "imagefolder"
    return {
        "pretty_name": description.title,
        "task_categories": ["image-classification"],
        "size_categories": [next((name for size, name in SIZES if description.images < size), "n>10M")],
        "tags": ["synthetic", "image", "text-to-image", "lbgen", description.layout],
        "configs": [config | {"features": features} if own else config],
    } | ({} if own else {"dataset_info": {"features": features}})


def _features(description: Description) -> list[dict[str, Any]]:
    """The columns, as `datasets` writes features in YAML."""
    ids = {str(label): category.id for label, category in enumerate(description.categories)}
    label = {"class_label": {"names": ids}}
    if description.layout != "webdataset":
        return [{"name": "image", "dtype": "image"}, {"name": "label", "dtype": label}]
    facts = [{"name": column.name, **_dtype(column.type)} for column in SCHEMA]  # columns have the members' suffixes
    return [
        {"name": description.suffix, "dtype": "image"},
        {"name": "cls", "dtype": label},
        {"name": "json", "struct": facts},
    ]


def _dtype(arrow: pa.DataType) -> dict[str, str]:
    names = {pa.string(): "string", pa.int64(): "int64", pa.float64(): "float64"}
    return {"list": names[arrow.value_type]} if pa.types.is_list(arrow) else {"dtype": names[arrow]}
