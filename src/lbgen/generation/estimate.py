"""The work and cost of a run, from its plan and a short measurement."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lbgen.configuration.documentation import Documented
from lbgen.configuration.ranges import ensure_config
from lbgen.datasets import index
from lbgen.generation.config import GenerateConfig, approximations
from lbgen.generation.inputs import ensure_loadable, training_differences, with_absolute_paths, without_folder
from lbgen.generation.integrity.shard_rows import new_row
from lbgen.generation.plan import Plan, PlannedImage
from lbgen.generation.record import Record
from lbgen.generation.reports.lines import trajectory_lines
from lbgen.generation.run import in_part, plan_dataset
from lbgen.generation.workers.writer import image_file
from lbgen.models.checkpoints.known import UNKNOWN
from lbgen.models.checkpoints.suited import ensure_suited
from lbgen.models.registry import licence
from lbgen.runs.console import SIZES, TIMES, counted, device_name, in_units, table
from lbgen.runs.storage import open_store, storage_errors

if TYPE_CHECKING:
    from lbgen.generation.render import Renderer

LONGEST_BATCH = 60.0
"""Seconds. If a whole batch would take longer, extrapolated from one image, only that image is measured."""


@dataclass(frozen=True)
class PlanEstimate(Documented):
    """The work and cost of a generation run."""

    images: int
    """Images of the split when all shards are finished."""
    images_missing: int
    """Images that this run would make."""
    shards: int
    """Shards of the split."""
    shards_missing: int
    """Shards that this run would finish."""
    bytes_per_image: float | None
    """Mean size of a stored image, measured; None if nothing is missing."""
    images_per_second: float | None
    """Speed of one worker on this device, without screening; None if nothing is missing."""
    device: str
    """Name of the device that was measured."""

    @property
    def hours(self) -> float | None:
        """Device hours for the missing images, on devices like this one."""
        return self.images_missing / self.images_per_second / 3600 if self.images_per_second else None


def plan(config: GenerateConfig) -> PlanEstimate:
    """Print and return what `generate(config)` would make, without writing anything.

    Renders one or two batches to measure images per second and bytes per image. Raises UserError if `generate` would.

    >>> import lbgen
    >>> estimate = lbgen.plan(lbgen.GenerateConfig(vocabulary="microworld", generator="microworld"))
    >>> print(estimate.images_missing, "images,", estimate.hours, "hours")
    """
    ensure_config(config, GenerateConfig)
    config = with_absolute_paths(config)
    with storage_errors(config.output):
        store = open_store(config.output)
        dataset_plan, record = plan_dataset(config, store)
        done = index.finished_shards(store, config.split)
    shards = range(dataset_plan.shards(config.split))
    missing = [shard for shard in shards if shard not in done and in_part(shard, config)]
    estimate = PlanEstimate(
        images=dataset_plan.images(config.split),
        images_missing=sum(dataset_plan.shard_images(config.split, shard) for shard in missing),
        shards=len(shards),
        shards_missing=len(missing),
        bytes_per_image=None,
        images_per_second=None,
        device="this machine",
    )
    if missing and config.engine == "local":
        ensure_suited(config.generator, config.revision, config.scheduler, config.guidance_scale)
    print(planned(estimate, config, dataset_plan), flush=True)  # before weights are loaded, which may fail
    if missing:
        ensure_loadable(config)
        batch_size = config.batch_size or (record.config["batch_size"] if record else None)
        size, speed, device = measure(replace(config, batch_size=batch_size), dataset_plan, missing[0], record)
        estimate = replace(estimate, bytes_per_image=size, images_per_second=speed, device=device)
    print(cost(estimate, config))
    return estimate


def measure(config: GenerateConfig, plan: Plan, shard: int, record: Record | None) -> tuple[float, float, str]:
    """Mean bytes of a stored image, images per second, and the name of the device."""
    from lbgen.generation.render import Renderer  # late, like all imports that need torch: slow, not always needed
    from lbgen.generation.workers.loading import load_prepared_generator
    from lbgen.generation.workers.preflight import CPU_BATCH_SIZE, refuse_long_prompts, refuse_new_confusions
    from lbgen.models.loading import device_of

    generator = load_prepared_generator(config, device_of(0))
    refuse_long_prompts(generator, config, plan)
    refuse_new_confusions(generator.confusions(plan.categories, config.prompt_template), config, record)
    renderer, images = Renderer(generator, config), plan.shard(config.split, shard)
    batch = images[: config.batch_size or CPU_BATCH_SIZE]
    first = batch if config.compile else batch[:1]  # compiled networks have one batch size
    renderer.render(first)  # warm-up: the first call takes longer
    seconds, sizes = timed(renderer, first, config)
    if len(first) < len(batch) and seconds * len(batch) < LONGEST_BATCH:
        seconds, sizes = timed(renderer, batch, config)
    return sum(sizes) / len(sizes), len(sizes) / seconds, device_name(generator.device)


def timed(renderer: Renderer, batch: Sequence[PlannedImage], config: GenerateConfig) -> tuple[float, list[int]]:
    """Seconds to render a batch, and the size of each of its image files in bytes."""
    from lbgen.generation.workers.shard import UNCHECKED

    began = time.perf_counter()
    rendered = renderer.render(batch)
    seconds = time.perf_counter() - began
    rows = [new_row(image, 0, config, UNCHECKED) for image in batch]
    name, pairs = without_folder(config.generator), zip(rendered.pixels, rows, strict=True)
    return seconds, [len(image_file(image, row, config, name, None)) for image, row in pairs]


def planned(estimate: PlanEstimate, config: GenerateConfig, plan: Plan) -> str:
    """The lines of `lbgen plan` that need no model."""
    not_to_make = estimate.images - estimate.images_missing
    others = f"; {not_to_make:,} of them are made already or belong to other parts" if not_to_make else ""
    first = plan.categories[0]
    rows = [
        ("first", f'category "{first.name}", id {first.id}'),
        *trajectory_lines(config, plan),
        ("licence", str(licence(config.generator) or UNKNOWN)),
        ("images", f"{estimate.images:,} of {len(plan.categories):,} categories, split {config.split}{others}"),
        ("shards", f"{estimate.shards:,} of up to {config.shard_size:,} images, {config.format}"),
    ]
    if used := approximations(config):
        rows.append(("approx.", "; ".join(used)))
    if differences := training_differences(config, plan.categories):
        rows.append(("adapter", f"not as it was trained: {'; '.join(differences)}"))
    return table(rows)


def cost(estimate: PlanEstimate, config: GenerateConfig) -> str:
    """The lines of `lbgen plan` with measured values, in a column as wide as in the lines before."""
    if estimate.images_per_second is None or estimate.bytes_per_image is None:
        return table([("to make", "nothing")])
    rows = [
        ("to make", f"{counted(estimate.images_missing, 'image')} in {counted(estimate.shards_missing, 'shard')}"),
        ("speed", f"{estimate.images_per_second:.3g} images/s per worker, measured here ({estimate.device})"),
        ("time", f"{in_units(estimate.images_missing / estimate.images_per_second, TIMES)} of one such device"),
        (
            "disk",
            f"{in_units(estimate.bytes_per_image * estimate.images_missing, SIZES)}, {config.image_format}, "
            f"{in_units(estimate.bytes_per_image, SIZES)} per image",
        ),
    ]
    return table(rows)
