"""Measuring one backbone on one data set, with every method and number of images, and storing the results."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lbgen.evaluation.transfer import stored
from lbgen.evaluation.transfer.config import ANSWERS, CACHE, TransferConfig
from lbgen.evaluation.transfer.methods.features import FeatureCache
from lbgen.evaluation.transfer.methods.finetune import FineTuning, Pair, fine_tune
from lbgen.evaluation.transfer.methods.probe import linear_probe
from lbgen.evaluation.transfer.scores import estimate, over_seeds, score
from lbgen.evaluation.transfer.sets import sources
from lbgen.evaluation.transfer.sets.folders import open_folder
from lbgen.evaluation.transfer.sets.scan import data_sha256, processes, scan
from lbgen.evaluation.transfer.sets.sources import DIGITS, PUBLISHED, Source
from lbgen.evaluation.transfer.sets.splits import (
    Division,
    Left,
    Shot,
    divide,
    ensure_usable,
    few_shots,
    smallest_category,
)
from lbgen.evaluation.transfer.stored import Result
from lbgen.metrics.intervals import Estimate
from lbgen.models.backbones.backbone import Backbone
from lbgen.runs import atomic
from lbgen.runs.console import say, warn
from lbgen.runs.identity import Identity, versions
from lbgen.runs.parsing import read_json

Predict = Callable[[Division, int], tuple[NDArray[np.int64], dict[str, float]]]
"""Function from a division and a seed to the predicted categories of the test images and the chosen settings."""


@dataclass(frozen=True)
class Prepared:
    """A data set, prepared for measurements."""

    name: str
    source: Source
    division: Division
    hashes: list[str]
    """Hash of the pixels of every image."""
    left: list[Left]
    sha256: str

    @property
    def facts(self) -> dict[str, Any]:
        """Facts about the set, for transfer.json."""
        sizes = {part: len(getattr(self.division, part)) for part in ("train", "val")}
        left = {each.reason: len(each.rows) for each in self.left}
        used = len(np.unique(self.division.label[self.division.test]))
        return {**sizes, "categories": used, "left_out": left, "data_sha256": self.sha256}


def prepare(name: str, given: str, config: TransferConfig) -> Prepared:
    """Open a set, hash its images and divide them; prints a line for each reason of leaving images out.

    name: for output.  given: a known name or a folder.
    """
    root, known = Path(config.data), sources.known_name(given)
    if known == DIGITS:
        source = sources.open_digits()
    elif known in PUBLISHED:
        source = sources.open_published(known, root)
    else:
        place = sources.place_of(given, root)
        assert place is not None
        source = open_folder(place)
    seen = scan(source, name, config.folder / CACHE, config.workers)
    division, left = divide(seen.label, source.split, source.keys, seen.hashes)
    for each in left:
        first = int(each.rows[0])
        fault = f": {seen.faults[first]}" if first in seen.faults else ""
        count = len(each.rows)
        warn(f"{name}: {count:,} image{'s' * (count > 1)} left out, {each.reason} ({source.keys[first]}{fault})")
    ensure_usable(division, name, left)
    rows = (division.train, division.val, division.test)
    return Prepared(name, source, division, seen.hashes, left, data_sha256(source, seen.hashes, rows, division.label))


class Measurer:
    """A backbone and the settings of its measurement."""

    def __init__(self, name: str, backbone: Backbone, config: TransferConfig) -> None:
        self.name, self.backbone, self.config = name, backbone, config
        self.workers = partial(processes, workers=config.workers)
        self.cache = FeatureCache(config.folder / CACHE, config.batch_size, self.workers)

    def results(self, dataset: Prepared) -> Iterator[Result]:
        """Results of every method on one set, first with all images; stored results are not computed again."""
        for method in self.config.method:
            predict = self._linear(dataset) if method == "linear" else self._fine_tuned(dataset)
            yield self._result(dataset, method, predict, None)
            for shot in map(Shot, self.config.shots):
                yield self._result(dataset, f"{method}-{shot.suffix}", predict, shot)

    def _result(self, dataset: Prepared, method: str, predict: Predict, shot: Shot | None) -> Result:
        """The stored result, or a new one, which is then stored."""
        name = stored.name_of(self.name, dataset.name, method)
        identity = Identity({"backbone": self.backbone.key, "data": dataset.sha256}, versions())
        if (found := stored.load_result(self.config.folder, name, identity)) is not None:
            return found

        # Predict, once or once per draw.
        divisions = [dataset.division] if shot is None else self._draws(dataset, shot)
        predictions, chosen = zip(
            *(predict(each, self.config.seed + k) for k, each in enumerate(divisions)), strict=True
        )

        # Value with interval.
        metric, label = dataset.source.metric, dataset.division.label[dataset.division.test]
        draws = [score(prediction, label, metric) for prediction in predictions]
        value = estimate(predictions[0], label, metric) if shot is None else over_seeds(draws)

        # Store the answers, then the result.
        result = self._as_result(dataset, method, value, divisions[0], list(chosen), draws, name, identity)
        stored.save_result(self.config.folder, result, _answers(dataset, predictions))
        return result

    def _draws(self, dataset: Prepared, shot: Shot) -> list[Division]:
        fewest = smallest_category(dataset.division)
        if shot.share is None and int(shot.text) > fewest:
            say(f"{dataset.name}: some categories have fewer than {shot.text} training images, {fewest} at least")
        seeds = range(self.config.seed, self.config.seed + self.config.seeds)
        return [few_shots(dataset.division, shot, dataset.source.keys, seed) for seed in seeds]

    def _as_result(
        self,
        dataset: Prepared,
        method: str,
        value: Estimate,
        division: Division,
        chosen: list[dict[str, float]],
        draws: list[float],
        name: str,
        identity: Identity,
    ) -> Result:
        plain = value.to_json()
        return Result(
            backbone=self.name,
            dataset=dataset.name,
            method=method,
            metric=dataset.source.metric,
            value=value.value,
            low=plain["low"],
            high=plain["high"],
            n_test=len(division.test),
            images={part: len(getattr(division, part)) for part in ("train", "val", "final")},
            chosen=chosen,
            draws=draws,
            answers=f"{ANSWERS}/{name}.parquet",
            identity=identity.to_plain(),
        )

    # ---- methods ----

    def _linear(self, dataset: Prepared) -> Predict:
        features: list[Tensor] = []

        def predict(division: Division, seed: int) -> tuple[NDArray[np.int64], dict[str, float]]:
            if not features:
                features.append(self._features(dataset))
            return linear_probe(features[0], division, dataset.source.metric)

        return predict

    def _features(self, dataset: Prepared) -> Tensor:
        """(N, D) on the device; on a CPU in double precision, which is affordable there."""
        whole = dataset.division
        rows = np.sort(np.concatenate([whole.final, whole.test]))
        found = self.cache.features(
            self.backbone, dataset.source.images, dataset.hashes, rows, f"{self.name}, {dataset.name}"
        )
        return found.double() if self.backbone.device.type == "cpu" else found.to(self.backbone.device)

    def _fine_tuned(self, dataset: Prepared) -> Predict:
        config = self.config
        pairs = tuple(Pair(rate, decay) for rate in config.learning_rates for decay in config.weight_decays)

        def predict(division: Division, seed: int) -> tuple[NDArray[np.int64], dict[str, float]]:
            name = f"{self.name}, {dataset.name}"
            setup = FineTuning(
                self.backbone, dataset.source.images, dataset.source.mirrored, pairs, config.epochs, config.batch_size,
                seed, self.workers, name,
            )  # fmt: skip
            journal = ValueJournal(self._journal(dataset, division, seed))
            return fine_tune(setup, division, dataset.source.metric, journal.known)

        return predict

    def _journal(self, dataset: Prepared, division: Division, seed: int) -> Path:
        """The file with the values of pairs, named by a hash of everything that determines them."""
        used = data_sha256(dataset.source, dataset.hashes, (division.train, division.val), division.label)
        return self.config.folder / CACHE / f"pairs-{self.backbone.key[:24]}-{used[:24]}-{seed}.json"


class ValueJournal:
    """The values on val that fine-tuning has computed, so that an interrupted run continues after the last one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def known(self, pair: Pair, compute: Callable[[], float]) -> float:
        """The stored value of a pair, or the computed value, which is then stored."""
        key = f"{pair.learning_rate!r} {pair.weight_decay!r}"
        values = (
            read_json(atomic.read_bytes(self.path), dict[str, float], str(self.path)) if self.path.is_file() else {}
        )
        if key not in values:
            values[key] = compute()
            atomic.write_text(self.path, json.dumps(values, indent=2) + "\n")
        return values[key]


def _answers(dataset: Prepared, predictions: tuple[NDArray[np.int64], ...]) -> "stored.pa.Table":
    names = np.array(dataset.source.categories)
    test = dataset.division.test
    return stored.answer_table(
        [dataset.hashes[row] for row in test.tolist()],
        [dataset.source.keys[row] for row in test.tolist()],
        names[dataset.division.label[test]].tolist(),
        [names[prediction].tolist() for prediction in predictions],
    )
