"""The generation stage: make what the plan holds and the dataset does not."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from lbgen.datasets import index
from lbgen.generation import plan as plans
from lbgen.generation import record as records
from lbgen.generation.config import GenerateConfig, approximations, worker_name
from lbgen.generation.made_here import remember
from lbgen.generation.paths import at_absolute_paths, check_models
from lbgen.generation.plan import Plan
from lbgen.generation.record import Record
from lbgen.generation.screening import balance
from lbgen.generation.screening.duplicate_rounds import read_rounds
from lbgen.runs.lock import locked
from lbgen.runs.storage import Store, open_store, storage_errors
from lbgen.vocabulary.vocabulary import load_vocabulary


@dataclass(frozen=True)
class GenerateResult:
    output: str
    images: int
    """Images of the split that were made, those that screening dropped among them."""
    finished: bool
    """Whether the split is whole; one part of a run (--shard-of) may end before the others."""
    seconds: float
    """Wall time of this call."""


def generate(config: GenerateConfig) -> GenerateResult:
    """Make the dataset `config.output`, go on with it, or grow it; see lbgen.datasets.index for its layout.

    Raises UserError for what the user can mend, Interrupted at a signal; finished shards are kept either way.
    """
    config = at_absolute_paths(config)
    store = open_store(config.output, worker_name(config))
    with storage_errors(config.output):
        planned(config, store)  # what can be refused is refused before anything is written
        with locked(store.lock_file, config.output, config.part):
            plan, record = planned(config, store)
            if record:
                remember(store)
            return make(store, config, plan, record)


def planned(config: GenerateConfig, store: Store) -> tuple[Plan, Record | None]:
    """The plan of the dataset as it is to be, and what it says of itself; refuses one of another configuration."""
    vocabulary = load_vocabulary(config.vocabulary, qualify=config.qualify_names)
    balanced = balance.balanced_attributes(config)
    records.check_place(store, config)
    record = records.read(store)
    if record:
        records.check_config(record, config)
        check_models(record, config)
        records.check_adapter(record, config)
        records.check_attributes(record, config, balanced)
    wanted = plans.target_of(vocabulary, config.images_per_category, config.split)
    targets = plans.grown(record.targets if record else (), wanted, config.output)
    return Plan(targets, config.seed, config.shard_size, balanced), record


def make(store: Store, config: GenerateConfig, plan: Plan, record: Record | None) -> GenerateResult:
    """Draw the shards that are missing, of this run's part, and describe the dataset once all are there."""
    started, split = time.monotonic(), config.split
    store.clear_staging(every=config.part is None)
    done = index.finished_shards(store, split)
    missing = [shard for shard in range(plan.shards(split)) if shard not in done and is_ours(shard, config)]
    if missing:
        from lbgen.generation.workers.dispatch import draw  # brings torch, which a finished dataset does without

        if found := approximations(config):
            print(f"approximated: {'; '.join(found)}")
        try:
            draw(store, config, plan, record, missing, read_rounds(store, config, plan))
        finally:
            store.clear_staging(every=config.part is None)
        done = index.finished_shards(store, split)
    finished = done >= set(range(plan.shards(split)))
    whole = all(index.finished_shards(store, name) >= set(range(plan.shards(name))) for name in plan.splits)
    if whole and not store.exists(records.COMPLETE):
        complete(store, config, plan)
    images = sum(plan.shard_images(split, shard) for shard in done)
    print(f"{images} of {plan.images(split)} images of {len(plan.categories)} categories in {config.output}")
    return GenerateResult(config.output, images, finished, time.monotonic() - started)


def complete(store: Store, config: GenerateConfig, plan: Plan) -> None:
    """What is left to do when every shard is there."""
    from lbgen.generation.card.describe import describe

    if "duplicate" in config.screen:
        if config.part is not None:  # other parts may be at work on the shards that this one would change
            print("all shards are there; run once more without --shard-of, to compare images across them")
            return
        from lbgen.generation.screening.deduplicate import settle

        try:
            for split in plan.splits:
                settle(store, replace(config, split=split), plan, records.read(store))
        finally:
            store.clear_staging(every=True)
    describe(store, config, plan)
    store.clear_staging()


def is_ours(shard: int, config: GenerateConfig) -> bool:
    return config.part is None or shard % config.part[1] == config.part[0]
