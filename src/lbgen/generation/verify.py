"""Whether a dataset is whole, image by image, and making again what is not."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lbgen.datasets import index
from lbgen.datasets.index import Row
from lbgen.datasets.layouts import LAYOUTS
from lbgen.errors import UserError
from lbgen.generation import record as records
from lbgen.generation.config import GenerateConfig, VerifyConfig
from lbgen.generation.finished_shards import differences
from lbgen.generation.paths import check_places, with_trusted_models
from lbgen.generation.plan import Plan
from lbgen.generation.run import make
from lbgen.generation.screening.balance import balanced_attributes
from lbgen.generation.screening.counts import Tally
from lbgen.generation.screening.duplicate_rounds import read_rounds
from lbgen.runs import atomic, identity
from lbgen.runs.lock import locked
from lbgen.runs.storage import Store, open_store, storage_errors, without_scheme

SHOWN = 3
"""Damaged images named on a shard's line."""
DAMAGE = (OSError, ValueError, KeyError, TypeError, tarfile.TarError)
"""What reading a damaged file raises; pyarrow's errors are among them. Storage that cannot be reached is no damage."""


@dataclass(frozen=True)
class VerifyResult:
    shards: int
    """Shards that the plan has."""
    damaged: tuple[str, ...]
    """One line for each damaged shard and for each file that belongs to none."""


def verify(directory: str | Path | VerifyConfig, **settings: Any) -> VerifyResult:
    """Compare every image of a dataset, a folder or an fsspec address, with its index and its plan; writes nothing.

    settings: the other fields of VerifyConfig, as in `verify("data/animals", repair=True)`.

    A repair makes the damaged shards again, and no others, prints for each whether its images have the bytes that the
    index promised, and returns what is still damaged. How the dataset was run (engine, workers) does not matter. The
    models are those that the dataset was made with. They are looked for where the record says only if this user made
    the dataset; otherwise where the settings say.
    """
    asked = directory if isinstance(directory, VerifyConfig) else VerifyConfig(str(directory), **settings)
    directory = without_scheme(asked.directory)
    with storage_errors(directory):
        store = open_store(directory, "verify")
        record = records.read(store)
        if record is None:
            raise UserError(f"{directory}: no {records.RECORD} in it; give a folder that lbgen generate made")
        config = records.config_of(record, directory)
        plan = Plan(record.targets, config.seed, config.shard_size)
        damaged, strangers = check(store, config, plan)
        if damaged and asked.repair:
            given = {name: getattr(asked, name) for name in records.PLACES}
            identity.ensure_versions(record.made_with["versions"], directory)
            config = with_trusted_models(config, given, store)
            check_places(config)
            records.check_made_with(record, records.made_with(config), directory)  # before a shard is given up
            plan = replace(plan, balanced=balanced_attributes(config))
            promised = {place: hashes(store, *place) for place in damaged}
            make_again(config, plan, list(damaged))
            for place, before in promised.items():
                print(f"{index.shard_name(*place)}: {comparison(before, hashes(store, *place))}")
            damaged, strangers = check(store, config, plan)
        shards = sum(plan.shards(split) for split in plan.splits)
        if not damaged and not store.exists(records.COMPLETE):
            print(f"{directory} is not described yet; run its lbgen generate once more, without --shard-of")
        print(f"{shards - len(damaged)} of {shards} shards of {directory} are whole")
        return VerifyResult(shards, (*damaged.values(), *strangers))


def check(store: Store, config: GenerateConfig, plan: Plan) -> tuple[dict[tuple[str, int], str], list[str]]:
    """The line of each damaged shard, and of each file that belongs to none; printed as they are found."""
    damaged: dict[tuple[str, int], str] = {}
    known: set[str] = set()
    shards = [(split, shard) for split in plan.splits for shard in range(plan.shards(split))]
    with tqdm(shards, desc="verify", unit="shard", dynamic_ncols=True, disable=None) as bar:
        for split, shard in bar:
            faults = list(check_shard(store, config, plan, split, shard, known))
            if faults:
                damaged[split, shard] = f"{index.shard_name(split, shard)}: {'; '.join(faults)}"
                bar.write(damaged[split, shard])
    for split in plan.splits:
        read_rounds(store, replace(config, split=split), plan)  # refuses what is not of the plan
    strangers = list(files_of_no_shard(store, config, plan, known)) if not damaged else []
    for line in strangers:
        print(line)
    return damaged, strangers


def check_shard(
    store: Store, config: GenerateConfig, plan: Plan, split: str, shard: int, known: set[str]
) -> Iterator[str]:
    """What is wrong with a shard; the files that it should have go into `known`."""
    try:
        rows, containers = index.read_part(store, split, shard)
    except FileNotFoundError:
        yield "not made"
        return
    except UserError:
        raise
    except DAMAGE:
        yield f"{index.part_name(split, shard)} cannot be read"
        return
    if fault := next(differences(config, plan, rows, containers, split, shard), None):
        yield f"{index.part_name(split, shard)} is not that of the plan: {fault}"
        return  # nothing that it names is looked for
    known.update(row.file for row in rows)
    if len(rows) + dropped(store, split, shard) != plan.shard_images(split, shard):
        yield f"{index.part_name(split, shard)} lacks images"
    for name, sha256 in containers.items():
        try:
            with store.fetched(name) as path:
                if atomic.sha256(path) != sha256:
                    yield f"{name} was changed"
        except OSError:
            yield f"{name} is missing"
    wrong = [row.key for row in damaged_images(store, config, rows)]
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        yield f"{len(wrong)} of {len(rows)} images missing or changed ({', '.join(wrong[:SHOWN])}{more})"


def dropped(store: Store, split: str, shard: int) -> int:
    """Images that screening left out of a shard."""
    try:
        return Tally.from_json(json.loads(store.read(index.tally_name(split, shard)))).total().dropped
    except (FileNotFoundError, ValueError):
        return 0


def damaged_images(store: Store, config: GenerateConfig, rows: Sequence[Row]) -> list[Row]:
    """The rows whose image is missing, or has other bytes or another label than the index says."""
    layout = LAYOUTS[config.format]
    whole = set()
    wanted = {row.key: row for row in rows}
    for row in {row.file: row for row in rows}.values():
        try:
            with store.fetched(row.file) as path:
                for stored in layout.read(path, row):
                    expected = wanted.get(stored.key)
                    same = expected and hashlib.sha256(stored.content).hexdigest() == expected.sha256
                    if same and stored.label in (None, wanted[stored.key].label):
                        whole.add(stored.key)
        except UserError:
            raise
        except DAMAGE:
            continue
    return [row for row in rows if row.key not in whole]


def files_of_no_shard(store: Store, config: GenerateConfig, plan: Plan, known: set[str]) -> Iterator[str]:
    """Images in the folders of an imagefolder dataset that readers would take for its own."""
    if config.format != "imagefolder":
        return
    for split in plan.splits:
        for folder in sorted(store.names(split)):
            for name in sorted(store.names(f"{split}/{folder}")):
                if (file := f"{split}/{folder}/{name}") not in known:
                    yield f"{file}: belongs to no shard; remove it"


def hashes(store: Store, split: str, shard: int) -> dict[str, str]:
    """Key -> sha256 of a shard's images, as far as its part of the index can be read."""
    try:
        return {row.key: row.sha256 for row in index.read_part(store, split, shard)[0]}
    except UserError:
        raise
    except DAMAGE:
        return {}


def comparison(before: dict[str, str], after: dict[str, str]) -> str:
    """What became of the images that the index had, for people."""
    if not before:
        return "made again; its part of the index was lost, so there was nothing to compare its images with"
    if others := sum(after.get(key) != sha256 for key, sha256 in before.items()):
        return (
            f"made again; {others} of {len(before)} images differ in bytes from those recorded before (another device "
            "or number of threads), and are recorded as they are now"
        )
    return "made again, to the bytes that were recorded"


def make_again(config: GenerateConfig, plan: Plan, damaged: Sequence[tuple[str, int]]) -> None:
    """Make these shards again. All are given up before the first is made: none is taken for a whole one meanwhile."""
    store = open_store(config.output)
    with locked(store.lock_file, config.output):
        record = records.read(store)
        if record is None or record.targets != plan.targets:
            raise UserError(f"{config.output}: another run changed its plan meanwhile; start again")
        store.remove(records.COMPLETE)
        for place in damaged:
            store.remove(index.part_name(*place))
        for split in dict.fromkeys(split for split, _ in damaged):
            make(store, replace(config, split=split), plan, record)
