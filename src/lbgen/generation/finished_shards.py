"""What a finished shard holds, read back: its part of the index, compared with the plan, and its images.

A dataset may come from someone else, so nothing of its index is followed: every column that the plan determines is
derived from it and compared, file names above all.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence

from lbgen.datasets import index
from lbgen.datasets.index import SUFFIXES, Row
from lbgen.datasets.layout import Stored
from lbgen.datasets.layouts import LAYOUTS
from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig
from lbgen.generation.plan import Plan, PlannedImage
from lbgen.generation.screening.balance import prompt
from lbgen.runs.storage import Store

HASH = re.compile(r"[0-9a-f]{16}")
SHA256 = re.compile(r"[0-9a-f]{64}")


def read_rows(
    store: Store, config: GenerateConfig, plan: Plan, split: str, shard: int
) -> tuple[list[Row], dict[str, str]]:
    """A finished shard's rows and container hashes; UserError where they are damaged or not those of the plan."""
    name = index.part_name(split, shard)
    try:
        rows, containers = index.read_part(store, split, shard)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{store}/{name} cannot be read ({error}); {repair(store)}") from None
    fault = next(differences(config, plan, rows, containers, split, shard), None)
    if fault:
        raise UserError(f"{store}/{name} is not that of the plan: {fault}; {repair(store)}")
    return rows, containers


def repair(store: Store) -> str:
    return f"run lbgen verify {store} --repair, then start again"


def differences(
    config: GenerateConfig, plan: Plan, rows: Sequence[Row], containers: Mapping[str, str], split: str, shard: int
) -> Iterator[str]:
    """In what a shard's rows and containers differ from what the plan and the configuration determine."""
    planned = {image.key: image for image in plan.shard(split, shard)}
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
    """The first column of a row that differs from the plan."""
    expected = {
        "id": image.category.id,
        "name": image.category.name,
        "label": image.label,
        "split": image.split,
        "shard": shard,
        "seed": config.seed,
        "prompt": prompt(config, image.category.name, row.target),
        "file": file_of(image, shard, config),
    }
    if plan.balanced:  # unknown to a verify that lacks the file of attributes
        expected["target"] = image.values
    possible = {
        "attempt": 0 <= row.attempt < config.max_attempts and len(row.rejections) in (row.attempt, row.attempt + 1),
        "target": len(row.target) == len(config.balance),
        "found": len(row.found) == len(config.balance),
        "sha256": SHA256.fullmatch(row.sha256) is not None,
        "perceptual_hash": "duplicate" not in config.screen or HASH.fullmatch(row.perceptual_hash or "") is not None,
    }
    wrong = [name for name, value in expected.items() if getattr(row, name) != value]
    return next(iter([*wrong, *(name for name, holds in possible.items() if not holds)]), None)


def file_of(image: PlannedImage, shard: int, config: GenerateConfig) -> str:
    """The file of the dataset that holds an image."""
    layout, suffix = LAYOUTS[config.format], SUFFIXES[config.image_format]
    return layout.file(image.split, shard, image.category.id, image.key, suffix)


def stored_images(store: Store, config: GenerateConfig, rows: Sequence[Row]) -> Iterator[Stored]:
    """These images of one shard, in the order of its files; UserError where one is not what the index says."""
    wanted = {row.key: row.sha256 for row in rows}
    for row in {row.file: row for row in rows}.values():
        found = 0
        try:
            with store.fetched(row.file) as path:
                for stored in LAYOUTS[config.format].read(path, row):
                    if hashlib.sha256(stored.content).hexdigest() == wanted.get(stored.key):
                        found += 1
                        yield stored
        except UserError:
            raise
        except (FileNotFoundError, ValueError, KeyError, TypeError, tarfile.TarError):
            found = -1
        if found != sum(one.file == row.file for one in rows):
            raise UserError(f"{store}/{row.file} was changed; {repair(store)}")
