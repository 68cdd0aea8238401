"""Drawing the shards that are missing: everything is checked and recorded first, then an engine takes over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from lbgen.datasets import index
from lbgen.generation import record as records
from lbgen.generation.config import GenerateConfig
from lbgen.generation.made_here import remember
from lbgen.generation.paths import generator_name
from lbgen.generation.plan import Plan
from lbgen.generation.record import Record
from lbgen.generation.screening.duplicate_rounds import Round
from lbgen.generation.workers.local import processes, this_process
from lbgen.generation.workers.preflight import Checked
from lbgen.generation.workers.progress import Bar
from lbgen.generation.workers.ray import ray_actors
from lbgen.generation.workers.shard import Job
from lbgen.runs.signals import noted_signals
from lbgen.runs.storage import Store


def draw(
    store: Store,
    config: GenerateConfig,
    plan: Plan,
    record: Record | None,
    shards: Sequence[int],
    rounds: Sequence[Round],
) -> None:
    """Make these shards of the split, or change those that are there as the last of `rounds` says.

    Nothing is written before the generator is loaded and agrees with the record.
    """
    records.adapter_sha256(config)  # refuses a folder without one
    if record:
        config = replace(config, batch_size=record.config["batch_size"])
    count = min(config.workers or max(1, torch.cuda.device_count()), len(shards))
    engine = ray_actors if config.engine == "ray" else this_process if count == 1 else processes
    with engine(config, plan, count) as (checked, draw_shards):
        job = agreed(store, config, plan, checked, rounds)
        total = plan.images(config.split)
        missing = set(shards) - index.finished_shards(store, config.split)
        images = sum(plan.shard_images(config.split, shard) for shard in missing)
        with noted_signals() as signals, Bar(total, total - images) as bar:
            draw_shards(job, shards, bar.add, signals)


def agreed(store: Store, config: GenerateConfig, plan: Plan, checked: Checked, rounds: Sequence[Round]) -> Job:
    """What all workers are to know, once the dataset's record agrees with it or is written."""
    config = replace(config, batch_size=checked.batch_size)
    record = records.read(store)  # again: another part of the run may have written it while this one was loading
    if record:
        records.check_config(record, config)
        records.check_made_with(record, checked.made_with, config.output)
    store.remove(records.COMPLETE)
    if record is None or record.targets != plan.targets:
        records.write(store, config, checked.made_with, plan)
        remember(store)
    adapter_sha256 = checked.made_with.adapter_sha256
    return Job(config, plan, adapter_sha256, generator_name(config.generator), torch.get_num_threads(), rounds)
