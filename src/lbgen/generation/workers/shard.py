"""A worker: one generator on one device, its screen and its writers. It makes shards, one after the other."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from lbgen.datasets import index
from lbgen.datasets.index import Row
from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig
from lbgen.generation.finished_shards import file_of, read_rows, stored_images
from lbgen.generation.plan import Plan, PlannedImage
from lbgen.generation.render import Painter, prompt_of
from lbgen.generation.screening.checks import Screen, Verdict
from lbgen.generation.screening.counts import Tally
from lbgen.generation.screening.duplicate_rounds import Round
from lbgen.generation.workers.progress import Progress
from lbgen.generation.workers.writer import Shard, Work, Writers
from lbgen.models.generator import PRECISIONS, Generator, load_generator
from lbgen.runs.storage import open_store


@dataclass(frozen=True)
class Job:
    """What all workers of a run have in common; config.batch_size is set."""

    config: GenerateConfig
    plan: Plan
    adapter_sha256: str | None
    generator: str
    """What images call it, wherever a worker loads it from."""
    threads: int
    """Of torch, on a CPU."""
    rounds: Sequence[Round] = ()
    """What was found to be a near-duplicate, see lbgen.generation.screening.deduplicate."""


@dataclass
class Drawing:
    """A shard in the making."""

    shard: Shard
    planned: Mapping[str, PlannedImage]
    """By key, in the order of the plan."""
    tally: Tally = field(default_factory=Tally)
    rejections: dict[str, list[str]] = field(default_factory=dict)
    """By key, of the attempts so far."""
    encoding: list[Future[list[Row]]] = field(default_factory=list)
    encoded: dict[str, Row] = field(default_factory=dict)
    """By key."""
    removed: list[str] = field(default_factory=list)
    """Files of images that were recalled; the shard may have had them, and need not have them in the end."""

    def collect(self) -> dict[str, Row]:
        """The lines of all images, once they are encoded; by key."""
        for part in self.encoding:
            self.encoded |= {row.key: row for row in part.result()}
        self.encoding.clear()
        return self.encoded


class Worker:
    def __init__(self, job: Job, name: str, models: Models, pool: ProcessPoolExecutor) -> None:
        config = job.config
        self.job, self.config = job, config
        self.painter = Painter(models.generator, config)
        self.screen = models.screen
        self.store = open_store(config.output, name)
        ids = tuple(category.id for category in job.plan.categories)
        self.writers = Writers(Work(config, name, ids, job.generator, job.adapter_sha256), pool)
        self.publishing: Future[None] | None = None

    def make(self, number: int) -> Iterator[Progress]:
        """Draw a shard and hand it to the writers, which publish it while the next is drawn; one item a batch.

        What the rounds name is drawn again after the rest, round by round: in a shard that is there, for the last of
        them. So a shard ends the same whether it is changed or made anew.
        """
        split, rounds = self.config.split, [found[number] for found in self.job.rounds if number in found]
        drawing = self._begin(number)
        if rounds and self.store.exists(index.part_name(split, number)):
            self._take_over(drawing)
            rounds = rounds[-1:]
        else:
            yield from self._draw_all(drawing.planned.values(), drawing)
        for duplicates in rounds:
            again = self._recall(duplicates, drawing)
            yield Progress(-len(again), len(again))
            yield from self._draw_all(again, drawing)
        self._publish(drawing)

    def finish(self) -> None:
        """Wait until everything is published."""
        if self.publishing is not None:
            self.publishing.result()

    def close(self) -> None:
        self.writers.close()
        self.store.clear_staging()

    @property
    def batch_size(self) -> int:
        assert self.config.batch_size is not None
        return self.config.batch_size

    def _begin(self, number: int) -> Drawing:
        split = self.config.split
        staged = self.store.stage(index.shard_name(split, number))
        planned = {image.key: image for image in self.job.plan.shard(split, number)}
        return Drawing(Shard(split, number, staged), planned)

    def _take_over(self, drawing: Drawing) -> None:
        """Go on from a shard as it is stored."""
        shard, store = drawing.shard, self.store
        rows, _ = read_rows(store, self.config, self.job.plan, shard.split, shard.number)
        drawing.encoded = {row.key: row for row in rows}
        drawing.tally = Tally.from_json(json.loads(store.read(index.tally_name(shard.split, shard.number))))
        for stored in stored_images(store, self.config, rows):
            (shard.staged / stored.key).write_bytes(stored.content)

    def _recall(self, duplicates: Mapping[str, int], drawing: Drawing) -> list[PlannedImage]:
        """Reject images that were accepted, key -> attempt; the next attempt of those that have one comes back.

        One that is not as the round found it stays: a worker that died may have changed it already, and another device
        may have drawn another attempt.
        """
        rows, again = drawing.collect(), []
        for key in [key for key in drawing.planned if key in duplicates]:
            if key not in rows or rows[key].attempt != duplicates[key] or rows[key].failed:
                continue
            row, image = rows.pop(key), replace(drawing.planned[key], attempt=duplicates[key])
            drawing.removed.append(row.file)
            drawing.tally.duplicate(row.id, row.attempt)
            drawing.rejections[key] = [*row.rejections, "duplicate"]
            if row.attempt + 1 < self.config.max_attempts:
                again.append(image.next_attempt())
            elif self._last_resort(image, ("duplicate",), drawing):
                rows[key] = replace(row, rejections=tuple(drawing.rejections[key]))
        return again

    def _draw_all(self, images: Iterable[PlannedImage], drawing: Drawing) -> Iterator[Progress]:
        """Draw images until each may stay or has had its last attempt."""
        waiting = deque(images)
        while waiting:
            batch = [waiting.popleft() for _ in range(min(self.batch_size, len(waiting)))]
            again = self._draw(batch, drawing)
            waiting.extend(again)
            yield Progress(len(batch) - len(again), len(again))

    def _draw(self, batch: list[PlannedImage], drawing: Drawing) -> list[PlannedImage]:
        """Draw and judge a batch; what may stay goes to the writers, the next attempt of the others comes back."""
        pixels = self.painter.paint(batch)  # (B, H, W, 3)
        verdicts = self.screen.judge(batch, pixels) if self.screen else [Verdict({}, ())] * len(batch)
        kept, rows, again = [], [], []
        for place, (image, verdict) in enumerate(zip(batch, verdicts, strict=True)):
            if self._stays(image, verdict, drawing):
                kept.append(place)
                rows.append(
                    row_of(image, drawing.shard.number, self.config, verdict, drawing.rejections.get(image.key, ()))
                )
            elif image.attempt + 1 < self.config.max_attempts:
                again.append(image.next_attempt())
        if rows:
            drawing.encoding.append(self.writers.encode(rows, pixels[kept], drawing.shard.staged))
        return again

    def _stays(self, image: PlannedImage, verdict: Verdict, drawing: Drawing) -> bool:
        """Whether an image is stored; counts it either way."""
        drawing.tally.drawn(image.category.id, image.attempt, verdict.reasons)
        if not verdict.reasons:
            return True
        drawing.rejections.setdefault(image.key, []).append(",".join(verdict.reasons))
        if image.attempt + 1 < self.config.max_attempts:
            return False
        return self._last_resort(image, verdict.reasons, drawing)

    def _last_resort(self, image: PlannedImage, reasons: Sequence[str], drawing: Drawing) -> bool:
        """Whether an image is stored whose last attempt failed; counts it either way."""
        config = self.config
        if config.last_resort == "fail":
            raise UserError(
                f"{image.key} failed {', '.join(reasons)} in the last of its {config.max_attempts} attempts; start "
                "anew in another --output with more --max-attempts, a looser check, or --last-resort keep or drop"
            )
        if config.last_resort == "keep":
            drawing.tally.kept(image.category.id)
            return True
        drawing.tally.dropped(image.category.id)
        return False

    def _publish(self, drawing: Drawing) -> None:
        """Hand a drawn shard, in the order of the plan, to the writers; the one before is published first."""
        self.finish()
        rows = drawing.collect()
        ordered = [rows[key] for key in drawing.planned if key in rows]
        rejected = json.dumps(drawing.tally.to_json(), sort_keys=True).encode() if self.screen else None
        self.publishing = self.writers.publish(drawing.shard, ordered, rejected, drawing.removed)


def row_of(
    image: PlannedImage, shard: int, config: GenerateConfig, verdict: Verdict, rejections: Sequence[str] = ()
) -> Row:
    """The index's line of an image that is not encoded yet, so without its hash."""
    return Row(
        id=image.category.id,
        name=image.category.name,
        label=image.label,
        prompt=prompt_of(image, config),
        seed=config.seed,
        attempt=image.attempt,
        split=image.split,
        shard=shard,
        key=image.key,
        file=file_of(image, shard, config),
        sha256="",
        perceptual_hash=verdict.perceptual_hash,
        scores=verdict.scores,
        target=image.values,
        found=verdict.found,
        rejections=tuple(rejections),
    )


class Models(NamedTuple):
    """What a worker has on its device."""

    generator: Generator
    screen: Screen | None


def load_models(config: GenerateConfig, plan: Plan, device: str) -> Models:
    """The generator, and the checks that the configuration asks for."""
    generator = load(config, device)
    screen = Screen(config, plan.categories, generator.device, plan.balanced) if config.checks else None
    return Models(generator, screen)


def load(config: GenerateConfig, device: str) -> Generator:
    """The generator of a run on a device, the adapter merged into its weights, ready to draw."""
    if config.precision == "fp16" and device == "cpu":
        raise UserError("--precision fp16 needs a GPU; choose fp32 or bf16")
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)  # for what asks for no device by number, such as compiled kernels
    generator = load_generator(
        config.generator,
        dtype=PRECISIONS[config.precision],
        device=device,
        scheduler=config.scheduler,
        guidance_scale=config.guidance_scale,
        guidance_rescale=config.guidance_rescale,
        guidance_interval=config.guidance_interval,
        deep_cache_interval=config.deep_cache_interval,
        compile=config.compile,
    )
    generator.check_trajectory(config.steps, config.size)
    if config.adapter is not None:
        generator.merge_adapter(config.adapter)
    generator.optimize()
    return generator


def device_of(worker: int) -> str:
    """The device of the worker with this number: GPUs are shared out in turn."""
    return f"cuda:{worker % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
