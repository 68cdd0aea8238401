"""Drawing missing shards: check and record everything first, then let an engine run the workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from lbgen.datasets import index
from lbgen.generation import record as records
from lbgen.generation.config import GenerateConfig
from lbgen.generation.inputs import adapter_sha256, refuse_registered, without_folder
from lbgen.generation.integrity.trust import remember_record
from lbgen.generation.plan import Plan
from lbgen.generation.record import Record
from lbgen.generation.reports.lines import say_opening
from lbgen.generation.screening.duplicate_rounds import DuplicateRound
from lbgen.generation.workers.journal import kept_images
from lbgen.generation.workers.local import processes, this_process
from lbgen.generation.workers.preflight import PreflightResult, refuse_new_confusions
from lbgen.generation.workers.progress import ProgressBar
from lbgen.generation.workers.ray import ray_actors
from lbgen.generation.workers.shard import WorkerContext
from lbgen.models.loading import device_of
from lbgen.runs.console import device_name
from lbgen.runs.signals import noted_signals
from lbgen.runs.storage import Store

FINISHING = "the images that are being drawn"
"""What a run finishes before it ends after a signal, for messages."""


def draw_shards(
    store: Store,
    config: GenerateConfig,
    plan: Plan,
    record: Record | None,
    shards: Sequence[int],
    duplicate_rounds: Sequence[DuplicateRound],
) -> None:
    """Make these shards of the split; in an existing shard, the images in the last of `duplicate_rounds` are replaced.

    Nothing is written before the generator is loaded and agrees with the record.
    """
    adapter_sha256(config)  # refuses a folder without an adapter, before the generator is loaded
    if record:
        config = replace(config, batch_size=record.config["batch_size"])

    if not duplicate_rounds:  # otherwise images are drawn again in a run that has already printed this
        made = sum(plan.shard_images(config.split, shard) for shard in index.finished_shards(store, config.split))
        made += kept_images(store, {index.shard_name(config.split, shard) for shard in shards})
        device = "Ray's workers" if config.engine == "ray" else device_name(device_of(0))
        say_opening(config, plan, made, device)

    # Start the engine: it loads the generator, here or in an actor.
    count = min(config.workers or max(1, torch.cuda.device_count()), len(shards))
    engine = ray_actors if config.engine == "ray" else this_process if count == 1 else processes
    if engine is not this_process:
        refuse_registered(config)
    with engine(config, plan, count, record.made_with if record else None) as (preflight_result, draw):
        # Compare with the record, or write it.
        context = agreed_context(store, config, plan, preflight_result, duplicate_rounds)

        # Draw.
        total = plan.images(config.split)
        missing = set(shards) - index.finished_shards(store, config.split)
        missing_images = sum(plan.shard_images(config.split, shard) for shard in missing)
        with noted_signals(FINISHING) as signals, ProgressBar(total, total - missing_images) as progress_bar:
            draw(context, shards, progress_bar.add, signals)


def agreed_context(
    store: Store,
    config: GenerateConfig,
    plan: Plan,
    preflight_result: PreflightResult,
    duplicate_rounds: Sequence[DuplicateRound],
) -> WorkerContext:
    """The context of all workers, after comparing it with the dataset's record or writing a new record."""
    batch_size, made_with, confusions = preflight_result
    config = replace(config, batch_size=batch_size)
    record = records.read(store)  # again: another part of the run may have written it while this one was loading
    if record:
        records.ensure_same_config(record, config)
        made_with.ensure_same(record.made_with, config.output)
    refuse_new_confusions(confusions, config, record)
    store.remove(records.COMPLETION_MARKER)
    if record is None or record.targets != plan.targets:
        records.write(store, config, made_with, plan)
        remember_record(store)
    return WorkerContext(
        config,
        plan,
        made_with.hashes["adapter"],
        without_folder(config.generator),
        torch.get_num_threads(),
        duplicate_rounds,
    )
