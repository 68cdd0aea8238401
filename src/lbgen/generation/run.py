"""The generation stage: make the planned images that are missing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from lbgen.configuration.documentation import Documented
from lbgen.configuration.ranges import ensure_config
from lbgen.datasets import index
from lbgen.generation import record as records
from lbgen.generation import targets
from lbgen.generation.card.notes import asked_images, dropped_images, named
from lbgen.generation.card.sidecars import lacks_any
from lbgen.generation.config import GenerateConfig, worker_name
from lbgen.generation.inputs import ensure_loadable, with_absolute_paths
from lbgen.generation.integrity.trust import names_same_inputs, remember_record
from lbgen.generation.plan import Plan
from lbgen.generation.record import Record
from lbgen.generation.reports.lines import next_command
from lbgen.generation.screening import balance
from lbgen.generation.screening.duplicate_rounds import read_duplicate_rounds
from lbgen.generation.workers.journal import collect
from lbgen.runs.console import say
from lbgen.runs.lock import locked
from lbgen.runs.storage import Store, open_store, storage_errors
from lbgen.vocabulary.vocabulary import load_vocabulary


@dataclass(frozen=True)
class GenerateResult(Documented):
    """The dataset that a run made."""

    output: str
    """The dataset: a folder or an address, as the user gave it."""
    images: int
    """Number of images of the split in finished shards."""
    finished: bool
    """Whether all shards of the split are finished; one part of a run (--shard-of) may end before the others."""
    seconds: float
    """Wall time of this call."""
    next_command: str
    """The command that audits the dataset, or verifies one on object storage; empty if it is not finished."""


def generate(config: GenerateConfig) -> GenerateResult:
    """Make the dataset `config.output`, continue it, or grow it; lbgen.datasets.index describes its files.

    Images have `config.size` (H, W) pixels. Returns their number and the wall time in seconds. Raises UserError for
    mistakes of the user and Interrupted at a signal. Finished shards are kept in both cases.

    >>> import lbgen
    >>> config = lbgen.GenerateConfig(output="data/toy", vocabulary="microworld", generator="microworld")
    >>> result = lbgen.generate(config)
    >>> print(result.images, "images in", result.output)
    """
    ensure_config(config, GenerateConfig)
    config = with_absolute_paths(config)
    store = open_store(config.output, worker_name(config))
    with storage_errors(config.output):
        plan_dataset(config, store)  # refuses before anything is written, even the lock
        with locked(store.lock_file, config.output, config.part):
            plan, record = plan_dataset(config, store)
            if record and names_same_inputs(record.config, config):
                remember_record(store)
            return make_missing(store, config, plan, record)


def plan_dataset(config: GenerateConfig, store: Store) -> tuple[Plan, Record | None]:
    """The plan of the dataset after this run, and its current record; refuses a dataset of another configuration."""
    vocabulary = load_vocabulary(config.vocabulary, qualify=config.qualify_names)
    balanced = balance.balanced_attributes(config)
    records.ensure_output_fits(store, config)
    record = records.read(store)
    if record:
        records.ensure_continues(record, config, balanced)
    wanted = targets.target_of(vocabulary, config.images_per_category, config.split)
    earlier = record.targets if record else ()
    if record is None:  # an earlier version accepted other templates
        balance.ensure_prompts_read(config, balanced, vocabulary[0].name)
    asked_for = targets.extended(earlier, wanted, config.output)
    if config.qualify_names:
        targets.refuse_shared_names(earlier, wanted, config.output)
    plan = Plan(asked_for, config.seed, config.shard_size, balanced, config.compose)
    records.ensure_room(store, config, record, plan)
    return plan, record


def make_missing(store: Store, config: GenerateConfig, plan: Plan, record: Record | None) -> GenerateResult:
    """Draw the missing shards of this run's part; compare and describe the dataset if all parts are there."""
    started, split = time.monotonic(), config.split

    # Draw the missing shards; an earlier run may have drawn a part of them.
    done = index.finished_shards(store, split)
    missing = [shard for shard in range(plan.shards(split)) if shard not in done and in_part(shard, config)]
    collect(store, shards_to_draw(store, config, plan, missing), every=config.part is None)
    if missing:
        draw_missing(store, config, plan, record, missing)
        done = index.finished_shards(store, split)

    # When all shards exist, compare images for near-duplicates, then describe the dataset.
    if has_all_shards(store, plan) and lacks_any(store, config, plan):
        compare_and_describe(store, config, plan)
    store.clear_staging(every=config.part is None)

    # Report.
    dropped = dropped_images(store, config, plan, split)
    images = sum(plan.shard_images(split, shard) for shard in done) - sum(dropped.values())
    say(report(config, plan, images, dropped))
    finished = done >= set(range(plan.shards(split)))
    following = next_command(config) if finished else ""
    return GenerateResult(config.output, images, finished, time.monotonic() - started, following)


def report(config: GenerateConfig, plan: Plan, images: int, dropped: Mapping[str, int]) -> str:
    """A line with the number of stored images.  dropped: category id -> number of images that screening left out."""
    asked = asked_images(plan, config.split)
    empty = [category_id for category_id, number in asked.items() if dropped.get(category_id, 0) >= number]
    text = f"{images} of {plan.images(config.split)} images of {len(asked) - len(empty)} categories in {config.output}"
    if dropped:
        text += f"; screening left out {sum(dropped.values())}"
    return text + (f", and with them all of {named(empty)}" if empty else "")


def draw_missing(store: Store, config: GenerateConfig, plan: Plan, record: Record | None, missing: list[int]) -> None:
    """Draw these shards; if that ends early, the finished batches stay for the next run (workers/journal.py)."""
    ensure_loadable(config)
    from lbgen.generation.workers.dispatch import draw_shards  # late: imports torch, not needed by a finished dataset

    draw_shards(store, config, plan, record, missing, read_duplicate_rounds(store, config, plan))


def shards_to_draw(store: Store, config: GenerateConfig, plan: Plan, missing: list[int]) -> set[str]:
    """Names of the shards that this run may draw: the missing ones, or all if near-duplicates may be drawn again."""
    if "duplicate" in config.screen and config.part is None and not store.exists(records.COMPLETION_MARKER):
        return {index.shard_name(split, shard) for split in plan.splits for shard in range(plan.shards(split))}
    return {index.shard_name(config.split, shard) for shard in missing}


def has_all_shards(store: Store, plan: Plan) -> bool:
    return all(index.finished_shards(store, split) >= set(range(plan.shards(split))) for split in plan.splits)


def compare_and_describe(store: Store, config: GenerateConfig, plan: Plan) -> None:
    """If all shards exist, draw near-duplicates again and write the files that describe the dataset.

    A dataset with the completion marker was already compared.
    """
    from lbgen.generation.card.describe import describe  # late: imports matplotlib

    if "duplicate" in config.screen and not store.exists(records.COMPLETION_MARKER):
        if config.part is not None:  # other parts may be using the shards that this one would change
            say("all shards are there; run once more without --shard-of, to compare images across them")
            return
        from lbgen.generation.screening.deduplicate import deduplicate  # late: imports torch

        for split in plan.splits:
            deduplicate(store, replace(config, split=split), plan, records.read(store))
    if config.format == "imagefolder":
        for split in plan.splits:  # a category's last image may have been dropped when it was drawn again
            for category_id in dropped_images(store, config, plan, split):
                store.remove_if_empty(f"{split}/{category_id}")
                if config.localize:
                    store.remove_if_empty(f"masks/{split}/{category_id}")
    describe(store, config, plan)
    store.clear_staging()


def in_part(shard: int, config: GenerateConfig) -> bool:
    """Whether a shard belongs to the part of the run in --shard-of; without the flag, every shard does."""
    return config.part is None or shard % config.part[1] == config.part[0]
