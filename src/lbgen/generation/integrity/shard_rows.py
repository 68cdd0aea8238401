"""The rows of a shard in the index: created for planned images, and read back and compared with the plan.

A dataset may come from someone else, so its index is untrusted input. Every column that the plan determines, most
importantly the file name, is computed from the plan and compared.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lbgen.datasets import index
from lbgen.datasets.index import SUFFIXES, LocatedObject, Row
from lbgen.datasets.layout import Stored
from lbgen.datasets.layouts import LAYOUTS
from lbgen.datasets.tables import reading
from lbgen.datasets.tables.hugging_face import objects_of
from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig
from lbgen.generation.inputs import without_folder
from lbgen.generation.plan import Plan, PlannedImage
from lbgen.generation.screening.balance import prompt
from lbgen.generation.screening.consistency import DUPLICATE_SCORES, wrong_screening_column
from lbgen.generation.screening.counts import RejectionCounts
from lbgen.generation.workers.encode import UNREADABLE, box_of, decode_mask, image_metadata, read_metadata
from lbgen.runs.storage import Store

if TYPE_CHECKING:  # at run time it would import torch, which a finished dataset does not need
    from lbgen.generation.screening.checks import Verdict

DAMAGE = (*reading.DAMAGE, tarfile.TarError)
"""Raised when a damaged file is read, also by pyarrow. Unreachable storage raises another error (lbgen.runs.remote)."""
HASH = re.compile(r"[0-9a-f]{16}")
SHA256 = re.compile(r"[0-9a-f]{64}")


def new_row(
    image: PlannedImage, shard: int, config: GenerateConfig, verdict: Verdict, rejections: Sequence[str] = ()
) -> Row:
    """The row of an accepted image before encoding, hence without the hash of its file.

    rejections: the reasons of the rejected attempts at this image, one text per attempt.
    """
    return Row(
        **planned_columns(image, shard, config, image.target_values),
        attempt=image.attempt,
        key=image.key,
        sha256="",
        perceptual_hash=verdict.perceptual_hash,
        scores=verdict.scores,
        rejections=tuple(rejections),
        target=image.target_values,
        found=verdict.detected_values,
    )


def planned_columns(
    image: PlannedImage, shard: int, config: GenerateConfig, target_values: Sequence[str]
) -> dict[str, Any]:
    """The columns of an image that plan, configuration and target values determine."""
    return {
        "id": image.category.id,
        "name": image.category.name,
        "label": image.label,
        "split": image.split,
        "shard": shard,
        "seed": config.seed,
        "prompt": prompt(config, image.subject, target_values),
        "other_labels": tuple(other.label for other in image.others),
        "file": file_of(image, shard, config),
    }


def file_of(image: PlannedImage, shard: int, config: GenerateConfig) -> str:
    """The file of the dataset that contains an image."""
    layout, suffix = LAYOUTS[config.format], SUFFIXES[config.image_format]
    return layout.file(image.split, shard, image.category.id, image.key, suffix)


# ---- reading back ----


def read_rows(
    store: Store, config: GenerateConfig, plan: Plan, split: str, shard: int
) -> tuple[list[Row], dict[str, str]]:
    """The rows and container hashes of a finished shard.

    Raises UserError if they are damaged or do not match the plan.
    """
    name = index.part_name(split, shard)
    try:
        rows, containers = index.read_part(store, split, shard, plan.shard_images(split, shard))
    except UserError:
        raise
    except DAMAGE as error:
        raise UserError(f"{store}/{name} cannot be read ({error}); {repair_advice(store)}") from None
    difference = next(differences(config, plan, rows, containers, split, shard), None)
    if difference:
        raise UserError(f"{store}/{name} is not that of the plan: {difference}; {repair_advice(store)}")
    return rows, containers


def read_counts(store: Store, name: str) -> RejectionCounts:
    """The counts of a finished shard, from its file in screening/; raises UserError if they cannot be read."""
    try:
        return RejectionCounts.from_bytes(store.read(name))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{store}/{name!r:.80} cannot be read ({error}); {repair_advice(store)}") from None


def repair_advice(store: Store) -> str:
    return f"run lbgen verify {store} --repair, then start again"


def differences(
    config: GenerateConfig, plan: Plan, rows: Sequence[Row], containers: Mapping[str, str], split: str, shard: int
) -> Iterator[str]:
    """Differences between a shard's rows and containers and those determined by plan and configuration."""
    planned = {image.key: image for image in plan.shard(split, shard)}
    keys = {row.key for row in rows}
    if [key for key in planned if key in keys] != [row.key for row in rows if row.key in planned]:
        yield "the order of its rows"
    for row in rows:
        image = planned.pop(row.key, None)
        if image is None:
            yield f"{row.key!r:.80} is none of its images, or is there twice"
        elif column := wrong_column(row, image, shard, config, plan):
            yield f"{column} of {row.key}"
    expected = {row.file for row in rows} if LAYOUTS[config.format].container else set()
    if set(containers) != expected or not all(SHA256.fullmatch(sha256) for sha256 in containers.values()):
        yield "its list of files"


def wrong_column(row: Row, image: PlannedImage, shard: int, config: GenerateConfig, plan: Plan) -> str | None:
    """The first column of a row that does not match the plan; None if all match."""
    expected = planned_columns(image, shard, config, row.target)
    if plan.balanced:  # without the attributes file, verify does not know the target values
        expected["target"] = image.target_values
    valid = {
        "attempt": 0 <= row.attempt < config.max_attempts and len(row.rejections) in (row.attempt, row.attempt + 1),
        "target": len(row.target) == len(config.balance),
        "found": len(row.found) == len(config.balance),
        "sha256": SHA256.fullmatch(row.sha256) is not None,
        "perceptual_hash": _is_hash(row.perceptual_hash, "duplicate" in config.screen),
        **_mask_columns(row, config.localize),
    }
    wrong = [name for name, value in expected.items() if getattr(row, name) != value]
    wrong += [name for name, is_valid in valid.items() if not is_valid]
    return next(iter(wrong), None) or wrong_screening_column(row, config)


def _is_hash(text: str | None, is_made: bool) -> bool:
    """Whether the text is a hash if hashes are made, and None if they are not."""
    return HASH.fullmatch(text or "") is not None if is_made else text is None


def _mask_columns(row: Row, localized: bool) -> dict[str, bool]:
    """Column of a mask -> whether its value is plausible; the mask itself is compared when it is read."""
    others = len(row.other_labels)
    whole = len(row.other_scores) == others and len(row.other_boxes) == 4 * others
    if not localized:
        return {"other_scores": whole} | {name: getattr(row, name) is None for name in index.MASK_COLUMNS}
    objects = row.objects if whole else []
    return {
        "other_scores": whole and all(map(_is_score, objects[1:])),
        "mask_sha256": SHA256.fullmatch(row.mask_sha256 or "") is not None,
        "mask_score": row.mask_score is not None and all(map(_is_score, objects[:1])),
        "box": row.box is None or len(row.box) == 4,
    }


def _is_score(found: LocatedObject) -> bool:
    """Whether the score of a mask is plausible; an empty mask has 0."""
    return 0 <= found.score <= 1 and (found.box is not None or found.score == 0)


def stored_images(store: Store, config: GenerateConfig, rows: Sequence[Row]) -> Iterator[Stored]:
    """The images of these rows of one shard, in the order of its files; raises UserError if a hash differs."""
    expected = {row.key: (row.sha256, row.mask_sha256) for row in rows}
    for row in {row.file: row for row in rows}.values():
        matches, cause = 0, ""
        try:
            with store.fetched(row.file) as path:
                for stored in LAYOUTS[config.format].read(path, row):
                    stored = with_mask(stored, store, config, row)
                    mask_sha256 = None if stored.mask is None else hashlib.sha256(stored.mask).hexdigest()
                    if (hashlib.sha256(stored.content).hexdigest(), mask_sha256) == expected.get(stored.key):
                        matches += 1
                        yield stored
        except UserError:
            raise
        except FileNotFoundError:
            cause = "is missing"
        except DAMAGE as error:
            cause = f"cannot be read ({error})"
        if cause or matches != sum(one.file == row.file for one in rows):
            raise UserError(f"{store}/{row.file} {cause or 'was changed'}; {repair_advice(store)}")


def with_mask(stored: Stored, store: Store, config: GenerateConfig, row: Row) -> Stored:
    """The image with its mask, if that is a file of its own; raises OSError if it cannot be read."""
    if not config.localize or LAYOUTS[config.format].container:
        return stored
    return stored._replace(mask=store.read(index.mask_file(row.file)))


def is_of_row(stored: Stored, row: Row, config: GenerateConfig, adapter_sha256: str | None) -> bool:
    """Whether a stored image agrees with its row in bytes, label and the metadata about its generation."""
    if hashlib.sha256(stored.content).hexdigest() != row.sha256 or stored.label not in (None, row.label):
        return False
    if stored.suffix not in (None, SUFFIXES[config.image_format]):
        return False
    if stored.row is not None and not _is_row(stored.row, row):
        return False
    if not _is_mask_of(stored, row, config):
        return False
    expected = image_metadata(row, without_folder(config.generator), adapter_sha256)
    try:
        found, size = read_metadata(stored.content, config.image_format)
    except UNREADABLE:
        return False
    return found == asdict(expected) and size == tuple(config.stored_size or config.size or size)


def _is_mask_of(stored: Stored, row: Row, config: GenerateConfig) -> bool:
    """Whether the mask agrees with the row and its box, and has the size of the image."""
    if row.mask_sha256 is None or stored.mask is None:
        return row.mask_sha256 is None and stored.mask is None
    if hashlib.sha256(stored.mask).hexdigest() != row.mask_sha256:
        return False
    if stored.objects is not None and stored.objects != objects_of(row):
        return False
    try:
        _, size = read_metadata(stored.content, config.image_format)
        mask, objects = decode_mask(stored.mask, size), row.objects
        boxes = [(each.number, each.box) for each in objects]
        return mask.max() <= len(objects) and boxes == [(number, box_of(mask == number)) for number, _ in boxes]
    except UNREADABLE:
        return False


def _is_row(content: Any, row: Row) -> bool:
    """Whether the row beside an image equals the index row, except for scores that are added once all shards exist."""
    now = row.to_plain()
    if not isinstance(content, dict) or content.keys() != now.keys():
        return False
    for name in DUPLICATE_SCORES:
        then = content[name]
        if then is not None and (type(then) is not float or not -1 <= then <= 64):
            return False
    absent = dict.fromkeys(DUPLICATE_SCORES)
    return _text(content | absent) == _text(now | absent)


def _text(row: dict[str, Any]) -> str:
    """A row as a text for comparison, in which 1 and 1.0 differ."""
    return json.dumps(row, sort_keys=True)
