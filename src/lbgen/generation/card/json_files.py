"""labels.json, which names the labels, and _info.json, which describes tar shards for timm."""

import json
from collections.abc import Iterable

from lbgen.generation.card.summary import SplitSummary
from lbgen.vocabulary.vocabulary import Category


def labels_json(categories: Iterable[Category]) -> str:
    """A list of {"id", "name"}, one per line; a label is an index into it, counted from 0."""
    lines = (json.dumps({"id": category.id, "name": category.name}, ensure_ascii=False) for category in categories)
    return "[\n" + ",\n".join(lines) + "\n]\n"


def info_json(splits: Iterable[SplitSummary]) -> str:
    """_info.json, which timm's WebDataset reader looks for in the folder (timm/data/readers/reader_wds.py)."""
    content = {
        split.name: {
            "name": split.name,
            "num_samples": split.images,
            "filenames": [file.name for file in split.files],
            "shard_lengths": [file.images for file in split.files],
        }
        for split in splits
    }
    return json.dumps({"splits": content}, indent=1) + "\n"
