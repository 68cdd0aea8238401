"""Making a shard. A worker consists of one generator on one device, its screen and its writers."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Literal

from lbgen.datasets import index
from lbgen.datasets.index import Row
from lbgen.datasets.layout import mask_name
from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig
from lbgen.generation.integrity.shard_rows import new_row, read_counts, read_rows, stored_images
from lbgen.generation.plan import Plan, PlannedImage
from lbgen.generation.render import Renderer
from lbgen.generation.screening.checks import Verdict
from lbgen.generation.screening.counts import RejectionCounts
from lbgen.generation.screening.duplicate_rounds import DuplicateRound
from lbgen.generation.workers import journal
from lbgen.generation.workers.journal import DrawnImage, Journal
from lbgen.generation.workers.loading import Models
from lbgen.generation.workers.progress import WorkerProgress
from lbgen.generation.workers.writer import StagedShard, WriterContext, Writers
from lbgen.runs.storage import open_store

UNCHECKED = Verdict({}, ())
"""The verdict on an image without checks."""
Outcome = Literal["keep", "retry", "drop"]


@dataclass(frozen=True)
class WorkerContext:
    """The data that all workers of a run share; config.batch_size is set."""

    config: GenerateConfig
    plan: Plan
    adapter_sha256: str | None
    generator_name: str
    """The generator's name in image metadata, regardless of where a worker loads it from."""
    threads: int
    """Number of torch's threads on a CPU."""
    duplicate_rounds: Sequence[DuplicateRound] = ()
    """The near-duplicates found by comparing the whole split (lbgen.generation.screening.deduplicate)."""


@dataclass
class ShardInProgress:
    """The state of a shard until it is published."""

    staged: StagedShard
    journal: Journal
    planned: Mapping[str, PlannedImage]
    """Key -> image, in the order of the plan."""
    counts: RejectionCounts = field(default_factory=RejectionCounts)
    rejections: dict[str, list[str]] = field(default_factory=dict)
    """Key -> reasons of each rejected attempt."""
    encoding: list[Future[list[Row]]] = field(default_factory=list)
    """Batches that the writers are still encoding."""
    rows: dict[str, Row] = field(default_factory=dict)
    """Key -> row, for kept images that are encoded."""
    removed_files: list[str] = field(default_factory=list)
    """Files of near-duplicates, which the stored shard may contain and the new one may lack."""

    def encoded_rows(self) -> dict[str, Row]:
        """Key -> row of all kept images; waits until they are encoded."""
        for batch in self.encoding:
            self.rows |= {row.key: row for row in batch.result()}
        self.encoding.clear()
        return self.rows


class Worker:
    """Makes shards one after the other; a shard is published while the next one is drawn."""

    def __init__(self, context: WorkerContext, name: str, models: Models) -> None:
        """name: the worker's own subfolder of the staging folder."""
        self.context, self.config = context, context.config
        self.renderer = Renderer(models.generator, self.config)
        self.screen = models.screen
        self.store = open_store(self.config.output, name)
        category_ids = tuple(category.id for category in context.plan.categories)
        writer_context = WriterContext(self.config, name, category_ids, context.generator_name, context.adapter_sha256)
        self.writers = Writers(writer_context)
        self.publishing: Future[None] | None = None

    def make_shard(self, number: int) -> Iterator[WorkerProgress]:
        """Draw a shard, or change a stored one, and queue it for publishing; yields once per batch.

        A new shard goes through all duplicate rounds, a stored one only through the last. Both have the same result.
        """
        # Plan: the images of the shard, and its near-duplicates in each round.
        split, name = self.config.split, index.shard_name(self.config.split, number)
        earlier = journal.claim(self.store, name)  # batches that an earlier run drew
        staged = StagedShard(split, number, self.store.stage(name))
        planned = {image.key: image for image in self.context.plan.shard(split, number)}
        shard = ShardInProgress(staged, Journal(staged.folder, earlier), planned)
        rounds = [duplicates[number] for duplicates in self.context.duplicate_rounds if number in duplicates]

        # Take over a stored shard, or draw all images.
        if rounds and self.store.exists(index.part_name(split, number)):
            self._take_over(shard)
            rounds = rounds[-1:]
        else:
            yield from self._draw(shard.planned.values(), shard)

        # Reject the near-duplicates of each round, and draw them again.
        for duplicates in rounds:
            again = self._reject_duplicates(duplicates, shard)
            yield WorkerProgress(finished=-len(again), rejected=len(again))
            yield from self._draw(again, shard)

        # Publish: first the files, then the counts of rejections, last the part of the index (writer.publish_shard).
        self._publish(shard)

    def _draw(self, images: Iterable[PlannedImage], shard: ShardInProgress) -> Iterator[WorkerProgress]:
        """Draw images batch by batch until each is kept or dropped."""
        waiting = deque(images)
        self.renderer.prepare(waiting)
        while waiting:
            batch = [waiting.popleft() for _ in range(min(self.batch_size, len(waiting)))]

            # Render and judge, unless an earlier run has done so.
            rendered, drawn = None, shard.journal.take(batch)
            taken_over = drawn is not None
            if drawn is None:
                rendered = self.renderer.render(batch)
                located = [None not in each.boxes for each in rendered.found or ()]
                judged = self.screen.judge(batch, rendered.pixels, located) if self.screen else None
                verdicts = judged or [UNCHECKED] * len(batch)
            else:
                verdicts = [verdict_of(image) for image in drawn]
            outcomes = [self._outcome(image, v.reasons, shard) for image, v in zip(batch, verdicts, strict=True)]

            # Keep: the writers encode while the next batch is drawn.
            kept = [position for position, outcome in enumerate(outcomes) if outcome == "keep"]
            rows = [self._row(batch[position], verdicts[position], shard) for position in kept]
            if rendered is None:
                stored = {image.key: image for image in drawn or ()}
                shard.rows |= {row.key: with_hashes(row, stored[row.key]) for row in rows}
            else:
                drawn = [drawn_image(image, verdict) for image, verdict in zip(batch, verdicts, strict=True)]
                shard.encoding.append(self.writers.encode(rows, rendered.rows(kept), shard.journal.path(), drawn))

            # Draw again: the next attempt of a rejected image has other noise.
            again = [i.next_attempt() for i, outcome in zip(batch, outcomes, strict=True) if outcome == "retry"]
            waiting.extend(again)
            finished = len(batch) - len(again)
            yield WorkerProgress(finished, rejected=len(again), taken_over=finished if taken_over else 0)

    def finish(self) -> None:
        """Wait until the last shard is published."""
        if self.publishing is not None:
            self.publishing.result()

    def clear(self) -> None:
        """Remove this worker's unfinished files."""
        self.store.clear_staging()

    def close(self) -> None:
        """Wait for queued work; the finished batches of an unfinished shard stay for the next run."""
        self.writers.close()

    @property
    def batch_size(self) -> int:
        assert self.config.batch_size is not None
        return self.config.batch_size

    # ---- the parts of make_shard ----

    def _take_over(self, shard: ShardInProgress) -> None:
        """Copy the rows, counts and image files of the stored shard."""
        split, number = shard.staged.split, shard.staged.number
        rows, _ = read_rows(self.store, self.config, self.context.plan, split, number)
        shard.rows = {row.key: row for row in rows}
        shard.counts = read_counts(self.store, index.rejections_name(split, number))
        for stored in stored_images(self.store, self.config, rows):
            (shard.staged.folder / stored.key).write_bytes(stored.content)
            if stored.mask is not None:
                (shard.staged.folder / mask_name(stored.key)).write_bytes(stored.mask)

    def _reject_duplicates(self, duplicates: Mapping[str, int], shard: ShardInProgress) -> list[PlannedImage]:
        """Reject accepted attempts (key -> attempt), and return the next attempts of these images.

        An image with another attempt is not changed: a worker that died may have changed it already, and on another
        device another attempt may have been accepted.
        """
        rows, again = shard.encoded_rows(), []
        for key in [key for key in shard.planned if key in duplicates]:
            if key not in rows or rows[key].attempt != duplicates[key] or rows[key].failed:
                continue
            row = rows.pop(key)
            shard.removed_files += [row.file, *([index.mask_file(row.file)] if self.config.localize else [])]
            shard.counts.add_duplicate(row.id, row.attempt)
            shard.rejections[key] = [*row.rejections, "duplicate"]
            image = replace(shard.planned[key], attempt=row.attempt)
            outcome = self._outcome_of_rejected(image, ("duplicate",), shard)
            if outcome == "retry":
                again.append(image.next_attempt())
            elif outcome == "keep":
                rows[key] = replace(row, rejections=tuple(shard.rejections[key]))
        return again

    def _outcome(self, image: PlannedImage, reasons: Sequence[str], shard: ShardInProgress) -> Outcome:
        """Count an attempt, and decide the outcome for the image; `reasons` are the checks that it failed."""
        shard.counts.add_attempt(image.category.id, image.attempt, reasons)
        if not reasons:
            return "keep"
        shard.rejections.setdefault(image.key, []).append(",".join(reasons))
        return self._outcome_of_rejected(image, reasons, shard)

    def _outcome_of_rejected(self, image: PlannedImage, reasons: Sequence[str], shard: ShardInProgress) -> Outcome:
        """The outcome for a rejected image: another attempt or, after the last one, --last-resort."""
        config = self.config
        if image.attempt + 1 < config.max_attempts:
            return "retry"
        if config.last_resort == "fail":
            raise UserError(
                f"{image.key} failed {', '.join(reasons)} in the last of its {config.max_attempts} attempts; start "
                "anew in another --output with more --max-attempts, a looser check, or --last-resort keep or drop"
            )
        if config.last_resort == "keep":
            shard.counts.add_kept(image.category.id)
            return "keep"
        shard.counts.add_dropped(image.category.id)
        return "drop"

    def _row(self, image: PlannedImage, verdict: Verdict, shard: ShardInProgress) -> Row:
        return new_row(image, shard.staged.number, self.config, verdict, shard.rejections.get(image.key, ()))

    def _publish(self, shard: ShardInProgress) -> None:
        """Queue a shard for publishing, in the order of the plan, after the previous shard is published."""
        self.finish()
        rows = shard.encoded_rows()
        ordered = [rows[key] for key in shard.planned if key in rows]
        counts = shard.counts.to_bytes() if self.screen else None
        self.publishing = self.writers.publish(shard.staged, ordered, counts, shard.removed_files)


# ---- conversion to and from the journal's entries ----


def drawn_image(image: PlannedImage, verdict: Verdict) -> DrawnImage:
    scores, reasons, found, perceptual_hash = verdict
    return DrawnImage(image.key, image.attempt, list(reasons), scores, list(found), perceptual_hash)


def verdict_of(drawn: DrawnImage) -> Verdict:
    return Verdict(drawn.scores, tuple(drawn.reasons), tuple(drawn.found), drawn.perceptual_hash)


def with_hashes(row: Row, drawn: DrawnImage) -> Row:
    """The row with the hash of its file and, if any, the mask's columns."""
    if drawn.sha256 is None:  # not written by a run of this configuration
        raise UserError(f"the staging folder is inconsistent at {row.key}; remove .staging and start again")
    return replace(
        row,
        sha256=drawn.sha256,
        mask_sha256=drawn.mask_sha256,
        mask_score=drawn.mask_score,
        box=None if drawn.box is None else tuple(drawn.box),
        other_scores=tuple(drawn.other_scores),
        other_boxes=tuple(drawn.other_boxes),
    )
