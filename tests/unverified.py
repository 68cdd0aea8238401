"""What verify cannot find in a changed dataset, and why; every other change is one that it has to find."""

import io
import json
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any

import pyarrow.parquet as pq
import yaml

from lbgen.generation.config import GenerateConfig

DRAWN = "how the images were drawn: nothing else in a dataset tells it, and a repair says that its bytes differ"
THRESHOLD = "a threshold so near the recorded one that no stored score lies between them"
GROWTH = "what the last run asked for; plan.json tells what is there"
NOT_USED = "a setting of what this dataset does without"
MADE_WITH = "weights and libraries: a repair compares them with its own"
SCORE = "a score that passes the same checks: --check-scores computes it again"
FOR_PEOPLE = "for people, who may write their own"

EXCEPTIONS = {
    r"dataset.yaml.config.(batch_size|scheduler|steps|guidance_.*|deep_cache_interval|precision|compile|size).*": DRAWN,
    r"dataset.yaml.config.(true_cfg_scale|pipeline_instruction).*": DRAWN,
    r"dataset.yaml.config.(label_top_k|least_.*|duplicate_.*|max_attempts|screen_.*)": THRESHOLD,
    r"dataset.yaml.config.(vocabulary|qualify_names|images_per_category|split).*": GROWTH,
    r"dataset.yaml.config.(balance|unsafe|compression_quality|screen removed|last_resort removed).*": NOT_USED,
    r"dataset.yaml.config.[a-z_]+ removed, the default": "it counts as the default",
    r"dataset.yaml.config.(revision|variant)": MADE_WITH,
    r"dataset.yaml.config.(generator|adapter) in another folder": "where the weights lay; their name is in the images",
    r"dataset.yaml.made_with.*": MADE_WITH,
    r"index.(quality|label_probability|unsafe|duplicate_cosine)": SCORE,
    r"README.md.(pretty_name|size_categories|task_categories|tags).*": FOR_PEOPLE,
    r"croissant.json.(name|description|keywords|rai:.*)": FOR_PEOPLE,
    r"croissant.json.(?!@context|distribution|recordSet).* added": FOR_PEOPLE,
    r"(plan.json.\d+|dataset.yaml)\.(?!config).* added": "an entry that nothing reads",
    r"samples.png other": FOR_PEOPLE,
}
"""Name of a change -> why verify cannot find it."""


def is_listed(change: str) -> bool:
    return any(re.match(pattern, change) for pattern in EXCEPTIONS)


def removed(place: str, value: Any) -> str:
    """The name of the change that removes this value: of a setting, whether it was the default."""
    name = place.removeprefix("dataset.yaml.config.")
    default = next((each.default for each in fields(GenerateConfig) if each.name == name and name != place), MISSING)
    return f"{place} removed" + (", the default" if (default, type(default)) == (value, type(value)) else "")


def differences(name: str, before: bytes, after: bytes) -> Iterator[str]:
    """Names of the changes between two contents of a file, by what a reader gets; the file's own where none can."""
    try:
        if name.startswith("index/"):
            yield from _of_tables(*(pq.read_table(io.BytesIO(content)) for content in (before, after)))
        elif name.endswith(".json"):
            yield from _of_values(json.loads(before), json.loads(after), name)
        elif name.endswith(".yaml"):
            yield from _of_values(yaml.safe_load(before), yaml.safe_load(after), name)
        elif before != after:
            yield name
    except Exception:  # the reader's own, of any kind
        yield f"{name}: cannot be read"


def _of_values(before: Any, after: Any, place: str) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(key for key in after if key not in before)]:
            inner = f"{place}.{key}"
            if key not in before:
                yield f"{inner} added"
            elif key not in after:
                yield removed(inner, before[key])
            else:
                yield from _of_values(before[key], after[key], inner)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, pair in enumerate(zip(before, after, strict=True)):
            yield from _of_values(*pair, f"{place}.{number}")
    elif type(before) is not type(after) or before != after:
        moved = place.startswith("dataset.yaml.config.") and isinstance(after, str) and isinstance(before, str)
        is_same = moved and "/" in after and after.rpartition("/")[2] == before.rpartition("/")[2]
        yield f"{place} in another folder" if is_same else place


def _of_tables(before: Any, after: Any) -> Iterator[str]:
    for name in {*before.column_names, *after.column_names}:
        if name not in before.column_names or name not in after.column_names:
            yield f"index.{name} {'added' if name in after.column_names else 'removed'}"
        elif before[name].to_pylist() != after[name].to_pylist():
            yield f"index.{name}"
