"""What a run will make and cost, from its plan and a short calibration."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from lbgen.datasets import index
from lbgen.generation.config import GenerateConfig, approximations
from lbgen.generation.paths import at_absolute_paths, generator_name
from lbgen.generation.plan import Plan, PlannedImage
from lbgen.generation.render import Painter
from lbgen.generation.run import is_ours, planned
from lbgen.generation.screening.checks import Verdict
from lbgen.generation.workers.preflight import BATCH_SIZE, refuse_long_prompts
from lbgen.generation.workers.shard import device_of, load, row_of
from lbgen.generation.workers.writer import encoded
from lbgen.runs.storage import open_store, storage_errors

LONGEST = 60.0
"""Seconds that a batch of the calibration may take, by the time of a single image; else that image is the measure."""


@dataclass(frozen=True)
class Estimate:
    images: int
    """Images of the split when all is made."""
    images_missing: int
    """Images that this run would make."""
    shards: int
    shards_missing: int
    bytes_per_image: float | None
    """Of an image as it is stored, from the calibration; None where nothing is missing."""
    images_per_second: float | None
    """Of one worker on this machine's device, drawing only."""
    device: str

    @property
    def hours(self) -> float | None:
        """Device hours of what is missing, on devices like this one."""
        return self.images_missing / self.images_per_second / 3600 if self.images_per_second else None


def plan(config: GenerateConfig) -> Estimate:
    """Print and return what `generate(config)` would make, without making any of it.

    Draws one to two batches to measure speed and size. Raises what `generate` would raise.
    """
    config = at_absolute_paths(config)
    with storage_errors(config.output):
        store = open_store(config.output)
        whole, record = planned(config, store)
        done = index.finished_shards(store, config.split)
    shards = range(whole.shards(config.split))
    missing = [shard for shard in shards if shard not in done and is_ours(shard, config)]
    size = speed = None
    device = "this machine"
    if missing:
        batch_size = config.batch_size or (record.config["batch_size"] if record else None)
        size, speed, device = calibrate(replace(config, batch_size=batch_size), whole, missing[0])
    estimate = Estimate(
        images=whole.images(config.split),
        images_missing=sum(whole.shard_images(config.split, shard) for shard in missing),
        shards=len(shards),
        shards_missing=len(missing),
        bytes_per_image=size,
        images_per_second=speed,
        device=device,
    )
    print(text(estimate, config, whole))
    return estimate


def calibrate(config: GenerateConfig, plan: Plan, shard: int) -> tuple[float, float, str]:
    """Mean bytes of a stored image, images a second, and the device's name."""
    generator = load(config, device_of(0))
    refuse_long_prompts(generator, config, plan)
    painter, images = Painter(generator, config), plan.shard(config.split, shard)
    batch = images[: config.batch_size or BATCH_SIZE]
    first = batch if config.compile else batch[:1]  # compiled networks have one batch size
    painter.paint(first)  # the first call does more than the others
    seconds, sizes = timed(painter, first, config)
    if len(first) < len(batch) and seconds * len(batch) < LONGEST:
        seconds, sizes = timed(painter, batch, config)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return sum(sizes) / len(sizes), len(sizes) / seconds, name


def timed(painter: Painter, batch: Sequence[PlannedImage], config: GenerateConfig) -> tuple[float, list[int]]:
    """Seconds to draw a batch, and the bytes of its images as they would be stored."""
    began = time.perf_counter()
    pixels = painter.paint(batch)
    seconds = time.perf_counter() - began
    rows = [row_of(image, 0, config, Verdict({}, ())) for image in batch]
    return seconds, [
        len(encoded(image, row, config, generator_name(config.generator), None))
        for image, row in zip(pixels, rows, strict=True)
    ]


def text(estimate: Estimate, config: GenerateConfig, plan: Plan) -> str:
    """For people."""
    there = estimate.images - estimate.images_missing
    others = f"; {there:,} of them are made, or are other parts'" if there else ""
    first = plan.categories[0]
    lines = [
        ("first", f'category "{first.name}", id {first.id}'),
        ("images", f"{estimate.images:,} of {len(plan.categories):,} categories, split {config.split}{others}"),
        ("shards", f"{estimate.shards:,} of up to {config.shard_size:,} images, {config.format}"),
    ]
    if found := approximations(config):
        lines.append(("approx.", "; ".join(found)))
    if estimate.images_per_second is None or estimate.bytes_per_image is None:
        return "\n".join(f"{name:8}{value}" for name, value in [*lines, ("to make", "nothing")])
    lines += [
        ("to make", f"{counted(estimate.images_missing, 'image')} in {counted(estimate.shards_missing, 'shard')}"),
        ("speed", f"{estimate.images_per_second:.3g} images/s a worker, measured here ({estimate.device})"),
        ("time", f"{in_units(estimate.images_missing / estimate.images_per_second, TIMES)} of one such device"),
        (
            "disk",
            f"{in_units(estimate.bytes_per_image * estimate.images_missing, SIZES)}, {config.image_format}, "
            f"{in_units(estimate.bytes_per_image, SIZES)} an image",
        ),
    ]
    return "\n".join(f"{name:8}{value}" for name, value in lines)


TIMES = {"hours": 3600.0, "minutes": 60.0, "seconds": 1.0}
SIZES = {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3}


def in_units(value: float, units: Mapping[str, float]) -> str:
    """With three digits, in the largest unit of which there is one or more, else in the smallest."""
    name, size = next((pair for pair in units.items() if value >= pair[1]), list(units.items())[-1])
    number = value / size
    shown = f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
    return f"{shown} {name.removesuffix('s') if shown == '1' else name}"


def counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
