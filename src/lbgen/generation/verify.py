"""Whether a dataset is whole, image by image, and making again what is not."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tqdm import tqdm

from lbgen import dataset, files
from lbgen.dataset import Row
from lbgen.errors import UserError
from lbgen.generation import record as records
from lbgen.generation.balance import balanced_attributes
from lbgen.generation.config import GenerateConfig
from lbgen.generation.layouts import LAYOUTS
from lbgen.generation.paths import check_places
from lbgen.generation.plan import Plan
from lbgen.generation.run import make, storage_errors
from lbgen.generation.tally import Tally
from lbgen.locking import locked
from lbgen.storage import LocalStore, Store, open_store, without_scheme

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


def verify(directory: str, repair: bool = False) -> VerifyResult:
    """Compare every image of a dataset, a folder or an fsspec address, with its index and its plan.

    repair: make the damaged shards again, and those alone, and say whether their images have the bytes that the index
    promised. Prints a line for each, and returns what is damaged still.
    """
    directory = without_scheme(str(directory))
    with storage_errors(directory):
        store = open_store(directory, "verify")
        record = records.read(store)
        if record is None:
            raise UserError(f"{directory}: no {records.RECORD} in it; give a folder that lbgen generate made")
        config = records.config_of(record, directory)
        plan = Plan(record.targets, config.seed, config.shard_size)
        damaged, strangers = check(store, config, plan)
        if damaged and repair:
            check_places(record, directory)
            records.check_made_with(record, records.made_with(config), directory)  # before a shard is given up
            plan = replace(plan, balanced=balanced_attributes(config))
            promised = {place: hashes(store, *place) for place in damaged}
            make_again(config, plan, list(damaged))
            for place, before in promised.items():
                print(f"{dataset.shard_name(*place)}: {comparison(before, hashes(store, *place))}")
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
                damaged[split, shard] = f"{dataset.shard_name(split, shard)}: {'; '.join(faults)}"
                bar.write(damaged[split, shard])
    strangers = list(files_of_no_shard(store, config, plan, known)) if not damaged else []
    for line in strangers:
        print(line)
    store.clear_staging()
    return damaged, strangers


def check_shard(
    store: Store, config: GenerateConfig, plan: Plan, split: str, shard: int, known: set[str]
) -> Iterator[str]:
    """What is wrong with a shard; the files that it should have go into `known`."""
    try:
        rows, containers = dataset.read_part(store, split, shard)
    except FileNotFoundError:
        yield "not made"
        return
    except DAMAGE:
        yield f"{dataset.part_name(split, shard)} cannot be read"
        return
    known.update(row.file for row in rows)
    yield from compare_with_plan(store, plan, rows, split, shard)
    for name, sha256 in containers.items():
        try:
            if files.sha256(store.fetch(name)) != sha256:
                yield f"{name} was changed"
        except OSError:
            yield f"{name} is missing"
    wrong = [row.key for row in damaged_images(store, config, rows)]
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        yield f"{len(wrong)} of {len(rows)} images missing or changed ({', '.join(wrong[:SHOWN])}{more})"
    if not isinstance(store, LocalStore):
        store.clear_staging()


def compare_with_plan(store: Store, plan: Plan, rows: Sequence[Row], split: str, shard: int) -> Iterator[str]:
    """A shard has the images of the plan, but for those that screening dropped."""
    planned = {image.key: (image.category.id, image.category.name, image.label) for image in plan.shard(split, shard)}
    if any(planned.get(row.key) != (row.id, row.name, row.label) for row in rows):
        yield f"{dataset.part_name(split, shard)} is not that of the plan"
    elif len({row.key for row in rows}) + dropped(store, split, shard) != len(planned):
        yield f"{dataset.part_name(split, shard)} lacks images"


def dropped(store: Store, split: str, shard: int) -> int:
    """Images that screening left out of a shard."""
    try:
        return Tally.from_json(json.loads(store.read(dataset.tally_name(split, shard)))).total().dropped
    except (FileNotFoundError, ValueError):
        return 0


def damaged_images(store: Store, config: GenerateConfig, rows: Sequence[Row]) -> list[Row]:
    """The rows whose image is missing, or has other bytes or another label than the index says."""
    layout = LAYOUTS[config.format]
    whole = set()
    wanted = {row.key: row for row in rows}
    for row in {row.file: row for row in rows}.values():
        try:
            for stored in layout.read(store.fetch(row.file), row):
                expected = wanted.get(stored.key)
                same = expected and hashlib.sha256(stored.content).hexdigest() == expected.sha256
                if same and stored.label in (None, wanted[stored.key].label):
                    whole.add(stored.key)
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
        return {row.key: row.sha256 for row in dataset.read_part(store, split, shard)[0]}
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
            store.remove(dataset.part_name(*place))
        for split in dict.fromkeys(split for split, _ in damaged):
            make(store, replace(config, split=split), plan, record)
