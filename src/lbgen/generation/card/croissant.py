"""croissant.json: the dataset in MLCommons' Croissant 1.1 vocabulary (https://docs.mlcommons.org/croissant).

Record sets: one per split (image, label, split), "image-index" with all columns of the index, and "label-names". Split
names contain no hyphen, so they never equal the other names. "tar-labels" exists for tar shards if category ids contain
a dot or a percent sign, which are escaped in the file names of a tar but not in the index.

Limits of mlcroissant 1.1.1: it does not read the WebP files of an ImageFolder; its cache of unpacked tar shards uses
only their relative name, so a second dataset with tar shards needs its own CROISSANT_CACHE.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from lbgen.datasets.index import SCHEMAS
from lbgen.datasets.webdataset import escaped
from lbgen.generation.card.json_files import labels_json
from lbgen.generation.card.summary import DatasetSummary, ShardFile, SplitSummary

TERMS = (
    "arrayShape", "citeAs", "column", "containedIn", "equivalentProperty", "extract", "field", "fileProperty",
    "fileObject", "fileSet", "format", "includes", "isArray", "isLiveDataset", "jsonPath", "key", "md5", "parentField",
    "path", "recordSet", "references", "regex", "repeated", "replace", "samplingRate", "separator", "source",
    "subField", "transform",
)  # fmt: skip
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "sc": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "name": {"@container": "@language"},
    "description": {"@container": "@language"},
} | {term: f"cr:{term}" for term in TERMS}
MIME = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}
TAR, PARQUET, JSON = "application/x-tar", "application/x-parquet", "application/json"
TYPES = {pa.string(): "sc:Text", pa.int64(): "cr:Int64", pa.float64(): "cr:Float64"}


def croissant(summary: DatasetSummary) -> str:
    """The JSON-LD text. It has the SHA-256 of shards and of labels.json; the index has the hashes of single images."""
    labels = labels_json(summary.categories).encode()
    distribution = [
        _file_object("labels.json", JSON, hashlib.sha256(labels).hexdigest()),
        _file_set("index-files", PARQUET, "index/*.parquet"),
    ]
    schema = SCHEMAS[summary.columns]
    record_sets = [_labels(), _index(schema)] + ([_tar_labels(summary)] if _has_escaped_names(summary) else [])
    for split in summary.splits:
        distribution += _files(split, summary)
        record_sets.append(_images(split, summary))
    content = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": summary.title,
        "description": f"{summary.images} synthetic images of {summary.stored_categories} categories, drawn by a "
        "text-to-image model from the categories' names.",
        "keywords": ["synthetic", "image classification", "text-to-image", "lbgen"],
        "rai:dataCollection": "Generated; no photograph is in it. Each image's prompt and seed are in the index.",
        "rai:dataLimitations": "A label is what the generator was asked for, not what somebody saw in the image.",
        "distribution": distribution,
        "recordSet": record_sets,
    }
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def _files(split: SplitSummary, summary: DatasetSummary) -> list[dict]:
    """The file sets of a split: images and, unless these contain the labels, the split's part of the index."""
    images, mime = f"{split.name}-images", MIME[summary.suffix]
    if summary.layout == "parquet":
        return [_file_set(images, PARQUET, f"data/{split.name}-*.parquet")]
    index = _file_set(f"{split.name}-index", PARQUET, f"index/{split.name}-*.parquet")
    if summary.layout == "imagefolder":
        return [_file_set(images, mime, f"{split.name}/*/*.{summary.suffix}"), index]
    shards = [_file_object(file.name, TAR, file.sha256) for file in split.files]
    return [*shards, _file_set(images, mime, f"*.{summary.suffix}", split.files), index]


def _images(split: SplitSummary, summary: DatasetSummary) -> dict:
    images, index = f"{split.name}-images", f"{split.name}-index"
    if summary.layout == "parquet":
        fields = [
            _field(split.name, "image", "sc:ImageObject", _source(images, {"column": "image"}, {"jsonPath": "bytes"})),
            _field(split.name, "label", "cr:Int64", _source(images, {"column": "label"})),
        ]
    elif _has_escaped_names(summary):
        fields = _fields_by_tar_labels(split.name, images)
    else:
        # Joined with the index by the path of the image or, for tar shards, by its name without the suffix.
        packed = summary.layout == "webdataset"
        column, property, regex = ("key", "filename", r"(.+?)(?:\.\w+)?$") if packed else ("file", "fullpath", "(.+)")
        name = _source(images, {"fileProperty": property}, {"regex": regex})
        fields = [
            _field(split.name, "image", "sc:ImageObject", _source(images, {"fileProperty": "content"})),
            _field(split.name, column, "sc:Text", name) | {"references": _source(index, {"column": column})},
            _field(split.name, "label", "cr:Int64", _source(index, {"column": "label"})),
        ]
    fields.append(_field(split.name, "split", "sc:Text") | {"value": split.name})
    return _record_set(split.name, fields)


def _has_escaped_names(summary: DatasetSummary) -> bool:
    return summary.layout == "webdataset" and any(escaped(each.id) != each.id for each in summary.categories)


def _tar_labels(summary: DatasetSummary) -> dict:
    """Record set: the escaped form of each category's id in file names, and its label."""
    fields = [_field("tar-labels", "id", "sc:Text"), _field("tar-labels", "label", "cr:Int64")]
    rows = [
        {"tar-labels/id": escaped(category.id), "tar-labels/label": label}
        for label, category in enumerate(summary.categories)
    ]
    return _record_set("tar-labels", fields) | {"key": {"@id": "tar-labels/id"}, "data": rows}


def _fields_by_tar_labels(split: str, images: str) -> list[dict]:
    """Fields joined with "tar-labels" by the file's name without the image's number.

    mlcroissant changes the joined column in place, so the key comes from another column, and the regular expression
    does not change its own result.
    """
    name = _source(images, {"fileProperty": "filename"}, {"regex": r"(.+?)(?:_\d+\.\w+)?$"})
    key = _source(images, {"fileProperty": "fullpath"}, {"regex": r"(?:.*/)?(.+?)(?:\.\w+)?$"})
    return [
        _field(split, "image", "sc:ImageObject", _source(images, {"fileProperty": "content"})),
        _field(split, "key", "sc:Text", key),
        _field(split, "category", "sc:Text", name) | {"references": {"field": {"@id": "tar-labels/id"}}},
        _field(split, "label", "cr:Int64", {"field": {"@id": "tar-labels/label"}}),
    ]


def _index(schema: pa.Schema) -> dict:
    fields = []
    for column in schema:
        repeated = pa.types.is_list(column.type)
        data_type = TYPES[column.type.value_type if repeated else column.type]
        field = _field("image-index", column.name, data_type, _source("index-files", {"column": column.name}))
        fields.append(field | ({"isArray": True, "arrayShape": "-1"} if repeated else {}))
    return _record_set("image-index", fields)


def _labels() -> dict:
    """Record set of the categories, in label order from 0."""
    source = {"fileObject": {"@id": "labels.json"}}
    fields = [
        _field("label-names", name, "sc:Text", source | {"extract": {"jsonPath": f"$[*].{name}"}})
        for name in ("id", "name")
    ]
    return _record_set("label-names", fields)


# ---- nodes of the vocabulary ----


def _file_object(name: str, mime: str, sha256: str) -> dict:
    content = {"name": name, "contentUrl": name, "encodingFormat": mime, "sha256": sha256}
    return {"@type": "cr:FileObject", "@id": name} | content


def _file_set(name: str, mime: str, includes: str, archives: Sequence[ShardFile] = ()) -> dict:
    node = {"@type": "cr:FileSet", "@id": name, "name": name, "encodingFormat": mime, "includes": includes}
    return node | ({"containedIn": [{"@id": archive.name} for archive in archives]} if archives else {})


def _record_set(name: str, fields: list[dict]) -> dict:
    return {"@type": "cr:RecordSet", "@id": name, "name": name, "field": fields}


def _field(record_set: str, name: str, data_type: str, source: dict | None = None) -> dict:
    node = {"@type": "cr:Field", "@id": f"{record_set}/{name}", "name": name, "dataType": data_type}
    return node | ({"source": source} if source else {})


def _source(file_set: str, extract: dict, transform: dict | None = None) -> dict:
    source: dict[str, Any] = {"fileSet": {"@id": file_set}, "extract": extract}
    return source | ({"transform": transform} if transform else {})
