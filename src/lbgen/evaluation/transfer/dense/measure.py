"""Measuring a backbone on a set for detection or segmentation: one training per share and seed, and their mean."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Meta

from lbgen.evaluation.transfer import stored
from lbgen.evaluation.transfer.config import ANSWERS, DETECTION, TRAININGS, TransferConfig
from lbgen.evaluation.transfer.dense.average_precision import BOX, MASK
from lbgen.evaluation.transfer.dense.sets import DenseSet, fraction_of, set_sha256
from lbgen.evaluation.transfer.dense.training import DenseTraining, Evaluation, Task, train
from lbgen.evaluation.transfer.scores import over_seeds
from lbgen.evaluation.transfer.sets.scan import processes
from lbgen.evaluation.transfer.sets.splits import Rows
from lbgen.evaluation.transfer.stored import Result
from lbgen.evaluation.transfer.values import Share
from lbgen.metrics.intervals import Estimate, normal_interval
from lbgen.models.backbones.backbone import Backbone
from lbgen.runs import atomic
from lbgen.runs.console import Progress
from lbgen.runs.identity import Identity, versions
from lbgen.runs.parsing import Name, read_json

METHODS = {BOX: "detection", MASK: "detection_mask", "mIoU": "segmentation"}
"""Metric -> its method in transfer.json: one training gives a value for boxes and a value for masks."""


@dataclass(frozen=True)
class Trained:
    """The stored results of a training. This file is written last, so if it exists, all other files do too."""

    values: dict[Name, Share]
    figures: dict[Name, Annotated[float, Meta(ge=0, le=1)]]
    resampled: dict[Name, list[Share]]
    images: int
    """Number of training images."""
    identity: dict[Name, Any]


class DenseMeasurer:
    """A backbone and the settings of its measurement."""

    def __init__(self, name: str, backbone: Backbone, config: TransferConfig) -> None:
        self.name, self.backbone, self.config = name, backbone, config

    def results(self, dataset: DenseSet) -> Iterator[Result]:
        """Results for every share of the training images; stored results are not computed again."""
        assert self.config.image_size is not None
        task: Task
        if self.config.dense == DETECTION:
            from lbgen.evaluation.transfer.dense.detection import Detection  # late: segmentation needs no pycocotools

            task = Detection(self.backbone, dataset, self.config.image_size)
        else:
            from lbgen.evaluation.transfer.dense.segmentation import Segmentation

            task = Segmentation(self.backbone, dataset, self.config.image_size)
        for fraction in self.config.fraction:
            yield from self._results_of(dataset, task, fraction)

    def _results_of(self, dataset: DenseSet, task: Task, fraction: float) -> list[Result]:
        """One result per metric."""
        suffix = "" if fraction == 1 else f"-{100 * fraction:g}%"
        if known := self._known(dataset, task, suffix):
            return known
        seeds = range(self.config.seed, self.config.seed + self.config.seeds)
        name = stored.name_of(self.name, dataset.name, f"{self.config.dense}{suffix}")
        drawn = [fraction_of(dataset.train, dataset.keys, fraction, seed) for seed in seeds]
        trained = [self._trained(dataset, task, rows, seed, name) for rows, seed in zip(drawn, seeds, strict=True)]
        answers = joined([pq.read_table(self._files(name, seed)[1]) for seed in seeds])
        results = [self._result(dataset, metric, suffix, trained, name) for metric in task.metrics]
        for each in results:
            stored.save_result(self.config.folder, each, answers)
        return results

    def _known(self, dataset: DenseSet, task: Task, suffix: str) -> list[Result]:
        """The stored results, if all exist, with at least the requested number of seeds."""
        names = [stored.name_of(self.name, dataset.name, f"{METHODS[metric]}{suffix}") for metric in task.metrics]
        found = [stored.load_result(self.config.folder, name, self._identity(dataset)) for name in names]
        known = [each for each in found if each is not None and len(each.draws) >= self.config.seeds]
        return known if len(known) == len(names) else []

    def _result(self, dataset: DenseSet, metric: str, suffix: str, trained: list[Trained], name: str) -> Result:
        """name: of the answers' file."""
        draws = [each.values[metric] for each in trained]
        value = estimate(draws, trained[0].resampled[metric])
        plain = value.to_json()
        images = trained[0].images
        return Result(
            backbone=self.name,
            dataset=dataset.name,
            method=f"{METHODS[metric]}{suffix}",
            metric=metric,  # type: ignore[arg-type]
            value=value.value,
            low=plain["low"],
            high=plain["high"],
            n_test=len(dataset.test),
            images={"train": images, "val": 0, "final": images},
            chosen=[],
            draws=draws,
            answers=f"{ANSWERS}/{name}.parquet",
            identity=self._identity(dataset).to_plain(),
            figures=[each.figures for each in trained],
            resampled=trained[0].resampled[metric] if len(trained) == 1 else [],
        )

    # ---- one training ----

    def _trained(self, dataset: DenseSet, task: Task, rows: Rows, seed: int, name: str) -> Trained:
        """The stored training, or a new one, which is then stored."""
        file, table = self._files(name, seed)
        identity = self._identity(dataset)
        if file.is_file():
            found = read_json(atomic.read_bytes(file), Trained, str(file))
            recorded = Identity.from_plain(dict(found.identity), stored.HASHES, f"{file}, identity")
            identity.ensure_same(
                recorded, f"{self.config.folder}, {self.config.dense} of {self.name} on {dataset.name},"
            )
            return found

        # Train, then test once.
        config = self.config
        title = f"{self.name}, {dataset.name}, {len(rows):,} images, seed {seed}"
        setup = DenseTraining(
            task, rows, config.epochs, config.batch_size, config.learning_rates[0], config.weight_decays[0], seed,
            self.backbone.device, processes(len(rows), config.workers), title,
        )  # fmt: skip
        checkpoint = file.with_suffix(f".{self._training_sha256(dataset, rows)[:16]}.pt")
        model = train(setup, checkpoint)
        with Progress(f"{title}: testing", len(dataset.test), "images", leave=False) as progress:
            evaluation = task.evaluate(model, progress)
        return self._store(evaluation, len(rows), identity, file, table, checkpoint)

    def _store(
        self, evaluation: Evaluation, images: int, identity: Identity, file: Path, table: Path, checkpoint: Path
    ) -> Trained:
        """Write the answers, then the values, and remove the checkpoint."""
        trained = Trained(evaluation.values, evaluation.figures, evaluation.resampled, images, identity.to_plain())
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(table) as temporary, temporary.open("wb") as stream:
            pq.write_table(evaluation.answers, stream, compression="zstd")
        atomic.write_text(file, json.dumps(asdict(trained), indent=2, allow_nan=False) + "\n")
        checkpoint.unlink(missing_ok=True)
        return trained

    def _files(self, name: str, seed: int) -> tuple[Path, Path]:
        """The files of a training: its values and its answers."""
        base = self.config.folder / TRAININGS
        return base / f"{name}-{seed}.json", base / f"{name}-{seed}.parquet"

    def _identity(self, dataset: DenseSet) -> Identity:
        return Identity({"backbone": self.backbone.key, "data": dataset.sha256}, versions())

    def _training_sha256(self, dataset: DenseSet, rows: Rows) -> str:
        """Hash that names a checkpoint: everything that determines the training, besides the settings of the folder."""
        used = set_sha256(dataset.hashes, dataset.targets, dataset.categories, (rows,))
        return sha256("\n".join([self.backbone.key, used, *versions()]).encode()).hexdigest()


def joined(tables: list[pa.Table]) -> pa.Table:
    """The answers of several trainings in one table, with their numbers."""
    place = tables[0].schema.get_field_index("draw")
    numbered = [
        table.set_column(place, table.schema.field(place), pa.array([draw] * len(table), pa.int32()))
        for draw, table in enumerate(tables)
    ]
    return pa.concat_tables(numbered)


def estimate(draws: list[float], resampled: list[float]) -> Estimate:
    """Mean over trainings with Student's interval; for a single training, a bootstrap interval over test images."""
    if len(draws) > 1:
        return over_seeds(draws)
    return normal_interval(draws[0], np.array(resampled), (0, 1))
