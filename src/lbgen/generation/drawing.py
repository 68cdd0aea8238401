"""Drawing the shards that are missing: everything is checked and recorded first, then an engine takes over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from lbgen.generation import record as records
from lbgen.generation.balance import longest_template
from lbgen.generation.bar import Bar
from lbgen.generation.batch_size import batch_that_fits
from lbgen.generation.config import GenerateConfig, approximations
from lbgen.generation.local_workers import draw_here, draw_in_processes
from lbgen.generation.paths import generator_name
from lbgen.generation.plan import Plan
from lbgen.generation.ray_workers import draw_with_ray
from lbgen.generation.record import Record
from lbgen.generation.worker import Job, Worker, device_of, load, load_screen
from lbgen.interrupts import noted_signals
from lbgen.models.generator import Generator
from lbgen.storage import Store
from lbgen.vocabulary import Vocabulary

FEW = 8
"""Images of a category in a shard, below which looking for duplicates among them finds little."""
BATCH_SIZE = 32
"""On a CPU, where none is asked for."""


def draw(store: Store, config: GenerateConfig, plan: Plan, record: Record | None, shards: Sequence[int]) -> None:
    """Make these shards of the split. Nothing is written before the generator is loaded and agrees with the record."""
    records.adapter_sha256(config)  # refuses a folder without one
    generator = load(config, device_of(0))
    refuse_long_prompts(generator, config, plan)
    screen = load_screen(config, plan, generator)
    config = replace(config, batch_size=batch_size(config, record, generator))
    made_with = records.made_with(config)
    record = records.read(store)  # again: another part of the run may have written it while this one was loading
    if record:
        records.check_config(record, config)
        records.check_made_with(record, made_with, config.output)
    if record is None or record.targets != plan.targets:
        records.write(store, config, made_with, plan)
    if "duplicate" in config.screen and config.shard_size < FEW * len(plan.categories):
        print(
            f"--screen duplicate compares the images of one shard, few of a category here; {FEW} times as many images"
        )
        print(f"in a shard as there are categories (--shard-size {FEW * len(plan.categories)}) find more")
    if found := approximations(config):
        print(f"approximated: {'; '.join(found)}")
    job = Job(config, plan, made_with.adapter_sha256, generator_name(config.generator), torch.get_num_threads())
    total = plan.images(config.split)
    missing = sum(plan.shard_images(config.split, shard) for shard in shards)
    with noted_signals() as signals, Bar(total, total - missing) as bar:
        if config.engine == "local" and workers(config) == 1:
            draw_here(Worker(job, store.staging.name, generator, screen), shards, bar.add, signals)
            return
        del generator, screen
        torch.cuda.empty_cache()
        if config.engine == "ray":
            draw_with_ray(job, shards, bar.add, signals)
        else:
            draw_in_processes(job, workers(config), shards, bar.add, signals)


def workers(config: GenerateConfig) -> int:
    return config.workers or max(1, torch.cuda.device_count())


def batch_size(config: GenerateConfig, record: Record | None, generator: Generator) -> int:
    if record:
        return record.config["batch_size"]
    if config.batch_size or generator.device.type == "cpu":
        return config.batch_size or BATCH_SIZE
    return batch_that_fits(generator, generator.latent_shape(*(config.size or generator.default_size)))


def refuse_long_prompts(generator: Generator, config: GenerateConfig, plan: Plan) -> None:
    template = longest_template(config, plan.balanced, generator.count_tokens)
    for target in plan.targets:
        vocabulary = Vocabulary(target.categories)
        vocabulary.check_tokens(generator.count_tokens, generator.token_limit, template)
