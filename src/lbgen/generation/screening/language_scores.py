"""Recomputing scores of the language space from stored images and comparing them with the index.

The screen judged pixels that only a PNG of the generator's size still holds. Cosines of near-duplicates are always
computed from the stored images. All differences are expressed in cosines: for label and quality they are differences of
the probabilities' logits, divided by the space's scale. In 16 bits, as on a GPU, the cosines of all images differ
slightly; a manipulated score stands out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lbgen.datasets.index import Row
from lbgen.datasets.layout import Stored
from lbgen.errors import UserError
from lbgen.generation.config import Check, GenerateConfig
from lbgen.generation.inputs import weights_sha256
from lbgen.generation.integrity.shard_rows import read_rows, stored_images
from lbgen.generation.plan import Plan
from lbgen.generation.record import Record
from lbgen.generation.screening.checks import JudgedBatch, Screen
from lbgen.generation.screening.consistency import ROUNDING
from lbgen.generation.screening.recomputed import MOST_PIXELS
from lbgen.generation.screening.split_images import SplitImages, read_images
from lbgen.generation.workers.encode import UNREADABLE
from lbgen.metrics.near_duplicates import near_pairs
from lbgen.models.loading import device_of
from lbgen.models.registry import ensure_semantics
from lbgen.runs.console import tracked
from lbgen.runs.storage import Store

JUDGED_AT_ONCE = 32
"""Number of images in a batch; fewer if they are large."""
LONGEST_SIDE = 8
"""Largest ratio of the longer to the shorter side. The space resizes the shorter side, so a strip would fill memory."""
NEARLY_SURE = 1e-3
"""Probabilities are clipped to [this, 1 - this], because float32 has few digits left beyond these bounds."""
LEAST, TIMES_MEDIAN = 5e-5, 10.0
"""A score is wrong if its difference exceeds ROUNDING, or both LEAST and TIMES_MEDIAN times the median of its split."""

Numbers = NDArray[np.floating[Any]]


class WrongScore(NamedTuple):
    split: str
    shard: int
    what: str
    """Column and key, such as "quality of cup_00000"."""


def load_screen(config: GenerateConfig, checks: Sequence[Check], plan: Plan, record: Record) -> Screen:
    """A screen with only these checks.  config: with a language space that the user trusts.

    Raises UserError if it is not the language space in the record.
    """
    ensure_semantics(config.screen_semantics, "--screen-semantics")
    reduced = replace(config, screen=tuple(checks), balance=(), attributes=None)
    screen = Screen(reduced, plan.categories, torch.device(device_of(0)))
    if weights_sha256(config, "screen_semantics", record.made_with) != record.made_with.hashes["semantics"]:
        raise UserError(
            f"{config.output} was screened by another language space than --screen-semantics "
            f"{config.screen_semantics}; give the one it was screened with"
        )
    return screen


def wrong_scores(screen: Screen, store: Store, config: GenerateConfig, plan: Plan) -> Iterator[WrongScore]:
    """The images of an intact dataset that differ in size from the others, or whose recorded scores are wrong."""
    shards = [(split, shard) for split in plan.splits for shard in range(plan.shards(split))]
    places: dict[str, list[tuple[int, str]]] = {split: [] for split in plan.splits}
    differences: dict[str, dict[str, list[Numbers]]] = {split: {} for split in plan.splits}
    images = ImagesOfOneSize()
    for split, shard in tracked(shards, "scores", len(shards), "shards"):
        rows = {row.key: row for row in read_rows(store, config, plan, split, shard)[0]}
        planned = {image.key: image for image in plan.shard(split, shard)}
        for keys, pixels in images.batches(stored_images(store, config, list(rows.values()))):
            batch = screen.batch_of([planned[key] for key in keys], pixels)
            for column, values in _differences(screen, batch, [rows[key] for key in keys]).items():
                differences[split].setdefault(column, []).append(values)
            places[split] += [(shard, key) for key in keys]
        yield from (WrongScore(split, shard, fault) for fault in images.faults)
        images.faults.clear()
    for split, columns in differences.items():
        for column, parts in columns.items():
            values = np.concatenate(parts)
            most = min(ROUNDING, max(LEAST, TIMES_MEDIAN * float(np.median(values))))
            for number in np.flatnonzero(~(values <= most)):
                shard, key = places[split][number]
                yield WrongScore(split, shard, f"{column} of {key}")


def wrong_cosines(screen: Screen, store: Store, config: GenerateConfig, plan: Plan) -> Iterator[WrongScore]:
    """The images of a compared dataset whose recorded cosine does not match any pair with the recorded distance.

    An image may have several pairs with the same distance; which counts as nearest may depend on rounding.
    """
    for split in plan.splits:
        images = read_images(store, replace(config, split=split), plan)
        later, earlier = _recorded_pairs(images, config.duplicate_bits)
        features: dict[int, Tensor] = {}
        decoder = ImagesOfOneSize(config.image_format)
        for shard, numbers in images.by_shard(np.union1d(later, earlier)):
            rows = read_rows(store, config, plan, split, shard)[0]
            chosen = {rows[images.positions[number]].key: int(number) for number in numbers}
            for keys, pixels in decoder.batches(stored_images(store, config, [r for r in rows if r.key in chosen])):
                colours = torch.tensor(pixels, device=screen.device).permute(0, 3, 1, 2) / 255  # (B, 3, H, W)
                embedded = screen.space.embed_images(colours).cpu()
                features |= {chosen[key]: feature for key, feature in zip(keys, embedded, strict=True)}
            if not screen.config.compares_with_texts:  # otherwise `wrong_scores` has reported them
                yield from (WrongScore(split, shard, fault) for fault in decoder.faults)
            decoder.faults.clear()
        for shard, numbers in images.by_shard(np.unique(later)):
            rows = read_rows(store, config, plan, split, shard)[0]
            for number in numbers.tolist():
                row = rows[images.positions[number]]
                near = earlier[slice(*np.searchsorted(later, [number, number + 1]))].tolist()
                known = [features[each] for each in (number, *near) if each in features]
                if len(known) <= len(near):
                    continue  # an image is too large to be decoded, or was reported above
                cosines = torch.stack(known[1:]).double() @ known[0].double()
                if ((cosines - row.scores["duplicate_cosine"]).abs() > ROUNDING).all():
                    yield WrongScore(split, shard, f"duplicate_cosine of {row.key}")


def _recorded_pairs(images: SplitImages, most_bits: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(P,) later and earlier images of pairs with a recorded distance and cosine, in the order of the later image."""
    later, earlier = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for numbers in images.by_category():
        pairs = near_pairs(images.hashes[numbers], most_bits)
        second, first = numbers[pairs.later], numbers[pairs.earlier]
        recorded = images.has_cosine[second] & (images.bits[second] == pairs.bits) & ~images.failed[first]
        later.append(second[recorded])
        earlier.append(first[recorded])
    second, first = np.concatenate(later), np.concatenate(earlier)
    order = np.argsort(second, kind="stable")
    return second[order], first[order]


class ImagesOfOneSize:
    """Decodes images in batches. All must have the most frequent size among the first images.

    Images of more than MOST_PIXELS are left out.
    """

    def __init__(self, image_format: str = "png") -> None:
        self.formats = [image_format]
        self.size: tuple[int, int] | None = None
        """Width and height."""
        self.faults: list[str] = []
        """Images of another size, and images that cannot be decoded."""

    def batches(self, stored: Iterator[Stored]) -> Iterator[tuple[list[str], NDArray[np.uint8]]]:
        """Keys and pixels (B, H, W, 3)."""
        first = list(islice(stored, JUDGED_AT_ONCE))
        self.size = self.size or _usual_size(first, self.formats)
        decoded = self._decoded(chain(first, stored))
        for key, pixels in decoded:
            more = min(JUDGED_AT_ONCE, MOST_PIXELS // (pixels.size // 3)) - 1
            some = [(key, pixels), *islice(decoded, more)]
            yield [key for key, _ in some], np.stack([pixels for _, pixels in some])

    def _decoded(self, stored: Iterable[Stored]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        for each in stored:
            try:
                with Image.open(BytesIO(each.content), formats=self.formats) as image:
                    if image.size != self.size or max(image.size) > LONGEST_SIDE * min(image.size):
                        self.faults.append(f"size of {each.key}")
                    elif image.width * image.height <= MOST_PIXELS:
                        yield each.key, np.asarray(image.convert("RGB"))
            except UNREADABLE:
                self.faults.append(f"pixels of {each.key}")


def _usual_size(stored: Iterable[Stored], formats: list[str]) -> tuple[int, int] | None:
    """The most frequent width and height of these images."""
    sizes: Counter[tuple[int, int]] = Counter()
    for each in stored:
        with suppress(*UNREADABLE), Image.open(BytesIO(each.content), formats=formats) as image:
            sizes[image.size] += 1
    return sizes.most_common(1)[0][0] if sizes else None


@torch.no_grad()
def _differences(screen: Screen, batch: JudgedBatch, rows: Sequence[Row]) -> dict[str, Numbers]:
    """Column -> (B,) difference between each recorded score and the score of the pixels, in cosines."""
    checks = screen.scored_checks(batch).values()
    now = {name: _numbers(values) for result in checks for name, values in result.scores.items()}
    then = {name: np.array([row.scores[name] for row in rows]) for name in now}
    found: dict[str, Numbers] = {}
    for name in now:
        if name == "label_rank":
            cosines, own = screen.label_cosines(batch)
            found[name] = _rank_differences(_numbers(cosines), _numbers(own), then[name])
        elif name == "unsafe":
            found[name] = abs(now[name] - then[name])
        else:
            logits = (_logit((scores[name] - 1) / 4 if name == "quality" else scores[name]) for scores in (now, then))
            found[name] = abs(np.subtract(*logits)) / screen.logit_scale
    return found


def _numbers(values: Tensor) -> NDArray[np.float64]:
    return values.double().cpu().numpy()


def _logit(probabilities: Numbers) -> Numbers:
    inner = np.clip(probabilities, NEARLY_SURE, 1 - NEARLY_SURE)
    return np.log(inner / (1 - inner))


def _rank_differences(cosines: Numbers, own: Numbers, ranks: Numbers) -> Numbers:
    """(B,) distance of each own text's cosine from the interval in which it would have its recorded rank.

    cosines: (B, T) of all texts; own: (B,) the index of the own text; ranks: (B,), counted from 1.
    """
    images, places = np.arange(len(cosines)), own.astype(int)
    own_cosines = cosines[images, places]
    others = cosines.copy()
    others[images, places] = -np.inf
    nearest = np.sort(others)[:, ::-1]  # (B, T), the own text at the end
    bounds = np.pad(nearest, ((0, 0), (1, 1)), constant_values=(np.inf, np.inf))  # rank r lies between r - 1 and r
    number = np.clip(ranks, 1, cosines.shape[1] + 1).astype(int)
    return np.maximum(bounds[images, number] - own_cosines, own_cosines - bounds[images, number - 1]).clip(min=0)
