"""Comparing every image of a dataset with its index and its plan, and making damaged shards again."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lbgen.datasets import index
from lbgen.datasets.index import Row
from lbgen.datasets.layouts import LAYOUTS
from lbgen.errors import UserError, printable
from lbgen.generation import record as records
from lbgen.generation.card.sidecars import REMEDY, has_labels, sidecar_faults
from lbgen.generation.config import GenerateConfig, VerifyConfig
from lbgen.generation.inputs import identity_of
from lbgen.generation.plan import Plan
from lbgen.generation.record import Record
from lbgen.generation.run import make_missing
from lbgen.generation.screening.balance import balanced_attributes
from lbgen.generation.screening.counts import RejectionCounts
from lbgen.generation.screening.duplicate_rounds import read_duplicate_rounds
from lbgen.generation.shard_rows import differences
from lbgen.generation.strays import LABELS, planned_files, strays
from lbgen.generation.trust import with_trusted_inputs
from lbgen.runs import atomic, identity
from lbgen.runs.lock import locked
from lbgen.runs.storage import Store, open_store, storage_errors, without_scheme

NAMED_IMAGES = 3
"""Damaged images that are named in the line of a shard, at most."""
DAMAGE = (OSError, ValueError, KeyError, TypeError, tarfile.TarError)
"""Raised when a damaged file is read, also by pyarrow. Unreachable storage raises another error (lbgen.runs.remote)."""

ShardId = tuple[str, int]
"""Split and number."""


@dataclass(frozen=True)
class VerifyResult:
    shards: int
    """Number of shards that the plan has."""
    damaged: tuple[str, ...]
    """One line for each damaged shard, for each file that describes the dataset and is missing or wrong, and for each
    file that belongs to no shard."""


@dataclass(frozen=True)
class Damage:
    """What is wrong with a dataset, in one line each."""

    shards: dict[ShardId, str]
    sidecars: list[str]
    """Files that describe the dataset; looked at where the shards are whole."""
    strays: list[str]
    """Files that readers take, though they belong to no shard."""


def verify(directory: str | Path | VerifyConfig, repair: bool = False, **models: Any) -> VerifyResult:
    """Compare every image of a dataset, a folder or an fsspec address, with its index and plan; prints each fault.

    models: the other fields of VerifyConfig, as in `verify("data/animals", repair=True, generator="models/sd15")`.

    A repair makes the damaged shards again, and only those, and prints whether their images have the bytes that the
    index recorded; the faults that remain are returned. It uses the settings that determine images, but not the engine
    and workers of the original run. It loads the models that the record names only if this user made the dataset;
    otherwise `models` must name them.
    """
    asked = directory if isinstance(directory, VerifyConfig) else VerifyConfig(str(directory), repair, **models)
    directory = without_scheme(asked.directory)
    with storage_errors(directory):
        store = open_store(directory, "verify")
        record, config, plan = read_dataset(store, directory)

        # Compare, and repair.
        found = find_damage(store, config, plan)
        if asked.repair and (found.shards or found.sidecars or awaits_comparison(store, config)):
            inputs = {name: getattr(asked, name) for name in records.INPUT_FIELDS}
            if found.shards or awaits_comparison(store, config):
                config, plan = repair_shards(store, record, config, plan, list(found.shards), inputs)
            else:
                describe_again(store, record, config, plan, inputs)
            found = find_damage(store, config, plan)

        # Report.
        shards = sum(plan.shards(split) for split in plan.splits)
        if not found.shards and awaits_comparison(store, config):
            print(f"{directory} is not described yet; run its lbgen generate once more, without --shard-of")
        print(f"{shards - len(found.shards)} of {shards} shards of {directory} are whole")
        return VerifyResult(shards, (*found.shards.values(), *found.sidecars, *found.strays))


def read_dataset(store: Store, directory: str) -> tuple[Record, GenerateConfig, Plan]:
    """The record of a dataset, and the configuration and plan in it; raises UserError if there is no dataset."""
    record = records.read(store)
    if record is None:
        raise UserError(f"{directory}: no {records.RECORD} in it; give a folder that lbgen generate made")
    config = records.config_of(record, directory)
    return record, config, Plan(record.targets, config.seed, config.shard_size)


# ---- comparing ----


def awaits_comparison(store: Store, config: GenerateConfig) -> bool:
    """Whether near-duplicates are still to be searched before the dataset is described."""
    return "duplicate" in config.screen and not store.exists(records.COMPLETION_MARKER)


def find_damage(store: Store, config: GenerateConfig, plan: Plan) -> Damage:
    """Compare everything; prints each fault when it is found."""
    damaged: dict[ShardId, str] = {}
    known_files: set[str] = set()
    shards = [(split, shard) for split in plan.splits for shard in range(plan.shards(split))]
    with tqdm(shards, desc="verify", unit="shard", dynamic_ncols=True, disable=None) as progress_bar:
        for split, shard in progress_bar:
            files: set[str] = set()
            faults = list(shard_faults(store, config, plan, split, shard, files))
            known_files |= files or set(planned_files(config, plan, split, shard))
            if faults:
                damaged[split, shard] = f"{index.shard_name(split, shard)}: {'; '.join(faults)}"
                progress_bar.write(damaged[split, shard])
    for split in plan.splits:
        read_duplicate_rounds(store, replace(config, split=split), plan)  # refuses rounds that do not match the plan
    if not damaged and not awaits_comparison(store, config):
        sidecars = list(sidecar_faults(store, config, plan))
    else:
        sidecars = [] if has_labels(store, plan) else [f"{LABELS}: missing, or contradicts the plan; {REMEDY}"]
    found = [f"{printable(name)}: {what}" for name, what in strays(store, config, plan, known_files)]
    for line in [*sidecars, *found]:
        print(line)
    return Damage(damaged, sidecars, found)


def shard_faults(
    store: Store, config: GenerateConfig, plan: Plan, split: str, shard: int, files: set[str]
) -> Iterator[str]:
    """What is wrong with a shard; adds the files that its index names to `files`."""
    # The part of the index: readable, and as planned. Otherwise no file that it names is opened.
    part_name = index.part_name(split, shard)
    try:
        rows, containers = index.read_part(store, split, shard)
    except FileNotFoundError:
        yield "not made"
        return
    except UserError:
        raise
    except DAMAGE:
        yield f"{part_name} cannot be read"
        return
    if difference := next(differences(config, plan, rows, containers, split, shard), None):
        yield f"{part_name} is not that of the plan: {difference}"
        return
    files.update(row.file for row in rows)
    try:
        if len(rows) + dropped_images(store, split, shard) != plan.shard_images(split, shard):
            yield f"{part_name} lacks images"
    except UserError:
        raise
    except ValueError:
        yield f"{index.rejections_name(split, shard)} cannot be read"

    # The files: containers as a whole, then every image.
    yield from container_faults(store, containers)
    wrong = [row.key for row in damaged_images(store, config, rows)]
    if wrong:
        more = f" and {len(wrong) - NAMED_IMAGES} more" if len(wrong) > NAMED_IMAGES else ""
        named = ", ".join(wrong[:NAMED_IMAGES])
        yield f"{len(wrong)} of {len(rows)} images missing or changed ({named}{more})"


def container_faults(store: Store, containers: Mapping[str, str]) -> Iterator[str]:
    """The containers (name -> sha256) that are missing or changed."""
    for name, sha256 in containers.items():
        try:
            with store.fetched(name) as path:
                if atomic.sha256(path) != sha256:
                    yield f"{name} was changed"
        except OSError:
            yield f"{name} is missing"


def dropped_images(store: Store, split: str, shard: int) -> int:
    """Number of images that screening left out of a shard; raises ValueError if the counts cannot be read."""
    try:
        return RejectionCounts.from_bytes(store.read(index.rejections_name(split, shard))).total().dropped
    except FileNotFoundError:
        return 0


def damaged_images(store: Store, config: GenerateConfig, rows: Sequence[Row]) -> list[Row]:
    """The rows whose image is missing, or differs in bytes or label from the index."""
    layout = LAYOUTS[config.format]
    intact = set()
    expected = {row.key: row for row in rows}
    for row in {row.file: row for row in rows}.values():
        try:
            with store.fetched(row.file) as path:
                for stored in layout.read(path, row):
                    image = expected.get(stored.key)
                    same = image and hashlib.sha256(stored.content).hexdigest() == image.sha256
                    if image and same and stored.label in (None, image.label):
                        intact.add(stored.key)
        except UserError:
            raise
        except DAMAGE:
            continue
    return [row for row in rows if row.key not in intact]


# ---- repairing ----


def repair_shards(
    store: Store,
    record: Record,
    config: GenerateConfig,
    plan: Plan,
    damaged: Sequence[ShardId],
    inputs: Mapping[str, Any],
) -> tuple[GenerateConfig, Plan]:
    """Make the damaged shards again, and print how their images compare with those that the index recorded.

    inputs: models and files that the user names, by field.  Returns the configuration and plan that were used.
    """
    # Refuse everything that can be refused before a shard is removed.
    identity.ensure_versions(record.made_with.versions, config.output)
    config = with_trusted_inputs(config, inputs, store)
    identity_of(config).ensure_same(record.made_with, config.output)
    plan = replace(plan, balanced=balanced_attributes(config))

    # Make the shards again, and compare.
    recorded = {shard: image_hashes(store, *shard) for shard in damaged}
    make_again(config, plan, damaged)
    for shard, hashes in recorded.items():
        print(f"{index.shard_name(*shard)}: {comparison(hashes, image_hashes(store, *shard))}")
    return config, plan


def make_again(config: GenerateConfig, plan: Plan, damaged: Sequence[ShardId]) -> None:
    """Make these shards again. All are removed first, so that no damaged one counts as finished in the meantime."""
    with locked_store(config, plan) as (store, record):
        store.remove(records.COMPLETION_MARKER)
        for split, shard in damaged:
            store.remove(index.part_name(split, shard))
        for split in dict.fromkeys(split for split, _ in damaged) or plan.splits[:1]:
            make_missing(store, replace(config, split=split), plan, record)


def describe_again(store: Store, record: Record, config: GenerateConfig, plan: Plan, inputs: Mapping[str, Any]) -> None:
    """Write the files that describe a dataset, whose shards are all whole; loads no model.

    inputs: as above; only the attributes are read.
    """
    from lbgen.generation.card.describe import describe  # late: imports matplotlib

    described = plan
    if config.balance:
        config = with_trusted_inputs(config, inputs, store, ["attributes"])
        described = replace(plan, balanced=balanced_attributes(config))
        records.ensure_same_attributes(record, config, described.balanced)
    with locked_store(config, plan) as (locked_one, _):
        describe(locked_one, config, described)


@contextmanager
def locked_store(config: GenerateConfig, plan: Plan) -> Iterator[tuple[Store, Record]]:
    """The dataset's store to write to, under its lock, and its record; refuses a plan that changed meanwhile."""
    store = open_store(config.output)
    with locked(store.lock_file, config.output):
        record = records.read(store)
        if record is None or record.targets != plan.targets:
            raise UserError(f"{config.output}: another run changed its plan meanwhile; start again")
        yield store, record


def image_hashes(store: Store, split: str, shard: int) -> dict[str, str]:
    """Key -> sha256 of a shard's images; empty if its part of the index cannot be read."""
    try:
        return {row.key: row.sha256 for row in index.read_part(store, split, shard)[0]}
    except UserError:
        raise
    except DAMAGE:
        return {}


def comparison(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """How the hashes of a shard's images compare with those that were recorded before its repair, in a sentence."""
    if not before:
        return "made again; its part of the index was lost, so there was nothing to compare its images with"
    if differing := sum(after.get(key) != sha256 for key, sha256 in before.items()):
        return (
            f"made again; {differing} of {len(before)} images differ in bytes from those recorded before (another "
            "device or number of threads), and are recorded as they are now"
        )
    return "made again, to the bytes that were recorded"
