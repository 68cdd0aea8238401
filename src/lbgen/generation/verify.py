"""Comparing every image of a dataset with its index and its plan, and making damaged shards again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbgen.configuration.documentation import Documented
from lbgen.datasets import index
from lbgen.errors import UserError, printable
from lbgen.generation import record as records
from lbgen.generation.card.sidecars import REMEDY, has_labels, sidecar_faults
from lbgen.generation.config import GenerateConfig, VerifyConfig
from lbgen.generation.inputs import identity_of
from lbgen.generation.integrity.damage import awaits_comparison, expected_of, shard_faults
from lbgen.generation.integrity.shard_rows import DAMAGE, read_rows
from lbgen.generation.integrity.strays import LABELS, KnownFiles, strays
from lbgen.generation.integrity.trust import with_trusted_inputs
from lbgen.generation.plan import Plan
from lbgen.generation.record import Record
from lbgen.generation.run import make_missing
from lbgen.generation.screening.balance import balanced_attributes
from lbgen.generation.screening.consistency import scores_to_compare
from lbgen.runs import identity
from lbgen.runs.console import result, tracked
from lbgen.runs.lock import locked
from lbgen.runs.storage import Store, open_store, storage_errors, without_scheme

if TYPE_CHECKING:  # at run time it would import torch, which a comparison of files does not need
    from lbgen.generation.screening.checks import Screen

ShardId = tuple[str, int]
"""Split and number of a shard."""


@dataclass(frozen=True)
class VerifyResult(Documented):
    """The result of comparing a dataset."""

    shards: int
    """Number of shards in the plan."""
    damaged: tuple[str, ...]
    """One line for each damaged shard, for each file that describes the dataset and is missing or wrong, and for each
    file that belongs to no shard."""


@dataclass(frozen=True)
class Damage:
    """The faults of a dataset, one line each."""

    shards: dict[ShardId, str]
    sidecars: list[str]
    """Faults of the files that describe the dataset; they are compared only if the shards are intact."""
    strays: list[str]
    """Files that readers would read although they belong to no shard."""


def verify(directory: str | Path | VerifyConfig, repair: bool = False, **settings: Any) -> VerifyResult:
    """Compare every image of a dataset, a folder or an fsspec address, with its index and plan; prints each fault.

    settings: the other fields of VerifyConfig, as in `verify("data/animals", repair=True, generator="models/sd15")` and
    `verify("data/animals", check_scores=True)`.

    A repair makes only the damaged shards again, and prints whether their images have the bytes that the index
    recorded; the remaining faults are returned. It uses the recorded settings that determine images, but not the engine
    and workers of the original run. It loads the models that the record names only if this user made the dataset;
    otherwise `settings` must name them. Raises UserError for a folder without a dataset, and for a repair or a
    comparison that cannot be made; damage raises no error.

    >>> import lbgen
    >>> result = lbgen.verify("data/toy")
    >>> assert not result.damaged, result.damaged
    """
    asked = directory if isinstance(directory, VerifyConfig) else VerifyConfig(str(directory), repair, **settings)
    directory = without_scheme(asked.directory)
    with storage_errors(directory):
        store = open_store(directory, "verify")
        record, config, plan = read_dataset(store, directory)

        # Compare, and repair.
        adapter_sha256 = record.made_with.hashes["adapter"]
        inputs = {name: getattr(asked, name) for name in records.INPUT_FIELDS}
        screen = screen_for_scores(store, record, config, plan, inputs) if asked.check_scores else None
        found = find_damage(store, config, plan, adapter_sha256, screen)
        if asked.repair and (found.shards or found.sidecars or awaits_comparison(store, config)):
            if found.shards or awaits_comparison(store, config):
                config, plan = repair_shards(store, record, config, plan, list(found.shards), inputs)
            else:
                describe_again(store, record, config, plan, inputs)
            found = find_damage(store, config, plan, adapter_sha256, screen)

        # Report.
        shards = sum(plan.shards(split) for split in plan.splits)
        if not found.shards and awaits_comparison(store, config):
            result(f"{directory} is not described yet; run its lbgen generate once more, without --shard-of")
        result(f"{shards - len(found.shards)} of {shards} shards of {directory} are whole")
        return VerifyResult(shards, (*found.shards.values(), *found.sidecars, *found.strays))


def read_dataset(store: Store, directory: str) -> tuple[Record, GenerateConfig, Plan]:
    """The record of a dataset with its configuration and plan; raises UserError if there is no dataset."""
    record = records.read(store)
    if record is None:
        raise UserError(f"{directory}: no {records.RECORD} in it; give a folder that lbgen generate made")
    config = records.config_of(record, directory)
    try:
        return record, config, Plan(record.targets, config.seed, config.shard_size, compose=config.compose)
    except UserError as error:
        raise UserError(f"{directory}/{records.RECORD}: {error}; restore the file") from None


# ---- comparing ----


def find_damage(
    store: Store, config: GenerateConfig, plan: Plan, adapter_sha256: str | None, screen: Screen | None = None
) -> Damage:
    """Compare everything; prints each fault when it is found.

    adapter_sha256: from the dataset's record.  screen: recomputes scores; None skips that.  Raises UserError for rounds
    of near-duplicates that do not match the plan.
    """
    expected = expected_of(store, config, plan, adapter_sha256)
    damaged: dict[ShardId, str] = {}
    known_files = KnownFiles(config, plan)
    shards = [(split, shard) for split in plan.splits for shard in range(plan.shards(split))]
    for split, shard in tracked(shards, "verify", len(shards), "shards"):
        files: set[str] = set()
        faults = list(shard_faults(expected, split, shard, files))
        known_files.add_shard(split, shard, files)
        if faults:
            damaged[split, shard] = f"{index.shard_name(split, shard)}: {'; '.join(faults)}"
            result(damaged[split, shard])
    if "duplicate" in config.screen and not damaged and not expected.awaits_comparison:
        damaged |= distance_faults(store, config, plan)
    if screen and damaged:
        result("scores are compared when all shards are whole")
    elif screen:
        damaged |= score_faults(screen, store, config, plan, compared=not expected.awaits_comparison)
    if not damaged and not expected.awaits_comparison:
        sidecars = list(sidecar_faults(store, config, plan))
    else:
        sidecars = [] if has_labels(store, plan) else [f"{LABELS}: missing, or contradicts the plan; {REMEDY}"]
    found = [f"{printable(name)}: {what}" for name, what in strays(store, config, plan, known_files)]
    for line in [*sidecars, *found]:
        result(line)
    return Damage(damaged, sidecars, found)


def distance_faults(store: Store, config: GenerateConfig, plan: Plan) -> dict[ShardId, str]:
    """Compare the distances to near-duplicates with the hashes of each split; prints a line for each wrong shard."""
    from lbgen.generation.screening.recomputed import wrong_duplicate_columns  # late: imports torch

    found: dict[ShardId, str] = {}
    for split in plan.splits:
        for shard, position, column in wrong_duplicate_columns(store, config, plan, split):
            if (split, shard) not in found:
                key = read_rows(store, config, plan, split, shard)[0][position].key
                found[split, shard] = (
                    f"{index.shard_name(split, shard)}: {index.part_name(split, shard)} contradicts its hashes: "
                    f"{column} of {key}"
                )
                result(found[split, shard])
    return found


def screen_for_scores(
    store: Store, record: Record, config: GenerateConfig, plan: Plan, inputs: Mapping[str, Any]
) -> Screen:
    """A screen for recomputing scores; loads only a language space that the user trusts.

    inputs: see `repair_shards`.
    """
    checks = scores_to_compare(config, plan)
    config = with_trusted_inputs(config, inputs, store, ["screen_semantics"])
    from lbgen.generation.screening.language_scores import load_screen  # late: imports torch

    return load_screen(config, checks, plan, record)


def score_faults(
    screen: Screen, store: Store, config: GenerateConfig, plan: Plan, compared: bool
) -> dict[ShardId, str]:
    """Compare the recorded scores of all images with those of their pixels; prints a line for each wrong shard.

    compared: whether the search for near-duplicates was made.
    """
    from lbgen.generation.screening.language_scores import wrong_cosines, wrong_scores

    wrong: dict[ShardId, list[str]] = {}
    of_one_image = screen.config.compares_with_texts
    scores = wrong_scores(screen, store, config, plan) if of_one_image else ()
    with_cosines = "duplicate" in screen.config.screen
    cosines = wrong_cosines(screen, store, config, plan) if compared and with_cosines else ()
    if with_cosines and not compared:
        result("cosines of near-duplicates are compared when the dataset is described")
    for split, shard, what in chain(scores, cosines):
        wrong.setdefault((split, shard), []).append(what)
    found = {}
    for shard_id, faults in sorted(wrong.items()):
        more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        found[shard_id] = (
            f"{index.shard_name(*shard_id)}: {index.part_name(*shard_id)} contradicts its images: {faults[0]}{more}"
        )
        result(found[shard_id])
    return found


# ---- repairing ----


def repair_shards(
    store: Store,
    record: Record,
    config: GenerateConfig,
    plan: Plan,
    damaged: Sequence[ShardId],
    inputs: Mapping[str, Any],
) -> tuple[GenerateConfig, Plan]:
    """Make the damaged shards again, and print how their images compare with the recorded ones.

    inputs: field -> model or file that the user named.  Returns the configuration and plan that were used.
    """
    # Make all checks before a shard is removed.
    identity.ensure_versions(record.made_with.versions, config.output)
    config = with_trusted_inputs(config, inputs, store)
    identity_of(config, record.made_with).ensure_same(record.made_with, config.output)
    plan = replace(plan, balanced=balanced_attributes(config))

    # Make the shards again, and compare.
    recorded = {shard: image_hashes(store, plan, *shard) for shard in damaged}
    make_again(config, plan, damaged)
    for shard, hashes in recorded.items():
        result(f"{index.shard_name(*shard)}: {comparison(hashes, image_hashes(store, plan, *shard))}")
    return config, plan


def make_again(config: GenerateConfig, plan: Plan, damaged: Sequence[ShardId]) -> None:
    """Make these shards again. All are removed first, so that no damaged shard counts as finished in the meantime."""
    with locked_store(config, plan) as (store, record):
        store.clear_staging(every=True)
        store.remove(records.COMPLETION_MARKER)
        for split, shard in damaged:
            store.remove(index.part_name(split, shard))
        for split in dict.fromkeys(split for split, _ in damaged) or plan.splits[:1]:
            make_missing(store, replace(config, split=split), plan, record)


def describe_again(store: Store, record: Record, config: GenerateConfig, plan: Plan, inputs: Mapping[str, Any]) -> None:
    """Write the files that describe a dataset with intact shards; loads no model.

    inputs: see `repair_shards`; only the attributes are read.
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
    """The dataset's locked store, and its record; refuses a plan that was changed in the meantime."""
    store = open_store(config.output)
    with locked(store.lock_file, config.output):
        record = records.read(store)
        if record is None or record.targets != plan.targets:
            raise UserError(f"{config.output}: another run changed its plan meanwhile; start again")
        yield store, record


def image_hashes(store: Store, plan: Plan, split: str, shard: int) -> dict[str, str]:
    """Key -> SHA-256 of a shard's images; empty if its part of the index cannot be read."""
    try:
        rows, _ = index.read_part(store, split, shard, plan.shard_images(split, shard))
        return {row.key: row.sha256 for row in rows}
    except UserError:
        raise
    except DAMAGE:
        return {}


def comparison(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """A sentence that compares the hashes of a shard's images before and after its repair."""
    if not before:
        return "made again; its part of the index was lost, so there was nothing to compare its images with"
    if differing := sum(after.get(key) != sha256 for key, sha256 in before.items()):
        return (
            f"made again; {differing} of {len(before)} images differ in bytes from those recorded before (another "
            "device or number of threads), and are recorded as they are now"
        )
    return "made again, to the bytes that were recorded"
