"""The stored results of a transfer: one result and one table of answers per backbone, data set and method.

A result is written after its answers, and ignored if these are lost. A later run reuses it if it was computed from the
same weights and images by the same versions.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Meta
from numpy.typing import NDArray

from lbgen.errors import UserError
from lbgen.evaluation.transfer.config import ANSWERS, RESULT_METHODS, RESULTS
from lbgen.evaluation.transfer.values import Limit, Metric, Share
from lbgen.runs import atomic
from lbgen.runs.identity import Identity
from lbgen.runs.parsing import Name, Whole, read_json

SCHEMA = pa.schema(
    [("image", pa.string()), ("key", pa.string()), ("label", pa.string()), ("prediction", pa.string())]
    + [("draw", pa.int32())]
)
"""Columns of a table of answers: SHA-256 of the image's pixels, its name in the set, its category, the answer and, for
few shots, the number of the draw."""
ORDER = ("draw", "image", "label", "key")
"""Columns by which answers are sorted, so that two backbones can be compared."""
HASHES = ("backbone", "data")
ResultMethod = Annotated[str, Meta(pattern=rf"^({'|'.join(RESULT_METHODS)})(-[0-9]*[.]?[0-9]+%|-[0-9]+shot)?$")]


@dataclass(frozen=True)
class Result:
    """One value and the data behind it."""

    backbone: Name
    dataset: Name
    method: ResultMethod
    metric: Metric
    value: Share
    low: Limit | None
    high: Limit | None
    """95% interval; None for a single draw."""
    n_test: Whole
    images: dict[Name, Whole]
    """Number of images by use: train, val, and final (those on which the final classifier was fitted)."""
    chosen: list[dict[Name, float]]
    """For every draw, the chosen settings and their value on val."""
    draws: list[Share]
    """The value of every draw."""
    answers: Name
    """File of the answers, relative to the folder of the transfer."""
    identity: dict[Name, Any] = field(default_factory=dict)
    figures: list[dict[Name, Share]] = field(default_factory=list)
    """For detection and segmentation, further values of every draw."""
    resampled: list[Share] = field(default_factory=list)
    """For a single draw of detection or segmentation: values on resampled test images, the same for all backbones."""


def name_of(backbone: str, dataset: str, method: str) -> str:
    """Name of the files of a result."""
    return sha256("\n".join([backbone, dataset, method]).encode()).hexdigest()[:16]


def load_result(folder: Path, name: str, identity: Identity) -> Result | None:
    """The result of this name; None if it or its answers are missing. UserError if it has another identity."""
    path = folder / RESULTS / f"{name}.json"
    if not path.is_file():
        return None
    result = _read(path)
    if not atomic.inside(folder, result.answers).is_file():
        return None
    recorded = Identity.from_plain(dict(result.identity), HASHES, f"{path}, identity")
    identity.ensure_same(recorded, f"{folder}, {result.method} of {result.backbone} on {result.dataset},")
    return result


def all_results(folder: Path) -> list[Result]:
    return [_read(path) for path in sorted((folder / RESULTS).glob("*.json"))]


def _read(path: Path) -> Result:
    result = read_json(atomic.read_bytes(path), Result, str(path))
    remedy = "remove it, and run lbgen transfer on that --output again"
    if name_of(result.backbone, result.dataset, result.method) != path.stem:
        raise UserError(f"{path}: the file's name is not that of its backbone, data set and method; {remedy}")
    low, high = (result.value if limit is None else limit for limit in (result.low, result.high))
    if not low <= result.value <= high:
        raise UserError(f"{path}, value: {result.value} lies outside of its interval, {low} to {high}; {remedy}")
    return result


def save_result(folder: Path, result: Result, answers: pa.Table) -> None:
    """Write the answers, then the result. Two results may share one table of answers."""
    for name in (RESULTS, ANSWERS):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with atomic.replacing(folder / result.answers) as temporary, temporary.open("wb") as stream:
        pq.write_table(answers, stream)
    path = folder / RESULTS / f"{name_of(result.backbone, result.dataset, result.method)}.json"
    atomic.write_text(path, json.dumps(asdict(result), indent=2, allow_nan=False) + "\n")


def answer_table(
    image: Sequence[str], key: Sequence[str], label: Sequence[str], predictions: Sequence[Sequence[str]]
) -> pa.Table:
    """The table of answers.  image, key, label: of the test images.  predictions: of each draw, for these images."""
    draws = len(predictions)
    return pa.table(
        {
            "image": list(image) * draws,
            "key": list(key) * draws,
            "label": list(label) * draws,
            "prediction": [answer for each in predictions for answer in each],
            "draw": np.repeat(np.arange(draws), len(image)),
        },
        schema=SCHEMA,
    )


@dataclass(frozen=True)
class StoredAnswers:
    """The answers of one backbone on the test images, sorted by the image's pixels and label."""

    image: tuple[str, ...]
    label: NDArray[np.str_]
    right: NDArray[np.bool_]
    """(draws, N)"""


def load_answers(path: Path) -> StoredAnswers:
    """A table that `save_result` wrote. Raises UserError for another file."""
    try:
        with path.open("rb") as stream:
            table = pq.read_table(stream, schema=SCHEMA).sort_by([(name, "ascending") for name in ORDER])
        draws = int(table["draw"].to_numpy().max()) + 1
        columns = {name: np.array(table[name].to_pylist(), dtype=str) for name in ("image", "label", "prediction")}
        right = (columns["label"] == columns["prediction"]).reshape(draws, -1)
        images = columns["image"].reshape(draws, -1)
        if (images != images[0]).any():
            raise ValueError("its draws are not of the same images")
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path}: {error}; remove it, and run lbgen transfer on that --output again") from None
    count = right.shape[1]
    return StoredAnswers(tuple(columns["image"][:count].tolist()), columns["label"][:count], right)
