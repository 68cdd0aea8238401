"""Scores of the language space, computed again from stored images and compared with the index.

Only PNG in the size of the generator holds the pixels that were judged. Differences are measured in cosines: of the
unsafe check directly, of label and quality by the logits of their probabilities, divided by the space's scale. Another
device rounds cosines to 16 bits, which moves all images of a shard; a score that was changed stands out among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lbgen.datasets.index import Row
from lbgen.errors import UserError
from lbgen.generation.config import Check, GenerateConfig
from lbgen.generation.inputs import weights_sha256
from lbgen.generation.plan import Plan
from lbgen.generation.record import Record
from lbgen.generation.screening.checks import JudgedBatch, Screen
from lbgen.generation.screening.consistency import ROUNDING
from lbgen.generation.screening.recomputed import MOST_PIXELS
from lbgen.generation.shard_rows import read_rows, stored_images
from lbgen.models.loading import device_of
from lbgen.models.registry import ensure_semantics
from lbgen.runs.storage import Store

JUDGED_AT_ONCE = 32
"""Images."""
NEARLY_SURE = 1e-5
"""Probabilities below this are alike, and so are those above 1 minus this."""
LEAST, TIMES_MEDIAN = 5e-5, 10.0
"""A cosine is wrong if it differs by more than this many times the median of its shard, and by more than LEAST; or by
more than ROUNDING."""


def make_screen(config: GenerateConfig, plan: Plan, record: Record) -> Screen:
    """The checks whose scores can be computed again.  config: with a language space that the user trusts.

    Raises UserError where there are none, or the language space is not that of the record.
    """
    grew = len({target.categories for target in plan.targets}) > 1
    checks = [check for check in _by_texts(config) if check == "quality" or not grew]
    if not checks:
        reason = "its scores depend on the categories, which were added later" if grew else "no check of it has any"
        raise UserError(
            f"{config.output}: --check-scores compares scores of a language space, and {reason}; leave it out"
        )
    if config.image_format != "png" or config.stored_size is not None:
        raise UserError(
            f"{config.output}: --check-scores needs the pixels that were judged, and only PNG in the size of the "
            "generator holds them; leave it out"
        )
    config = replace(config, screen=tuple(checks), balance=(), attributes=None)
    ensure_semantics(config.screen_semantics, "--screen-semantics")
    screen = Screen(config, plan.categories, torch.device(device_of(0)))
    if weights_sha256(config, "screen_semantics", record.made_with) != record.made_with.hashes["semantics"]:
        raise UserError(
            f"{config.output} was screened by another language space than --screen-semantics "
            f"{config.screen_semantics}; give that one"
        )
    return screen


def _by_texts(config: GenerateConfig) -> list[Check]:
    """The checks that compare images with texts in the language space."""
    by_checker = {"unsafe"} if config.unsafe == "checker" else set()
    return [check for check in config.screen if check in {"label", "quality", "unsafe"} - by_checker]


def wrong_scores(
    screen: Screen, store: Store, config: GenerateConfig, plan: Plan, split: str, shard: int
) -> Iterator[str]:
    """Column and key, as "quality of cup_00000", of each image of a whole shard whose recorded score is wrong."""
    rows = {row.key: row for row in read_rows(store, config, plan, split, shard)[0]}
    images = {image.key: image for image in plan.shard(split, shard)}
    stored = stored_images(store, config, list(rows.values()))
    keys: list[str] = []
    differences: dict[str, list[NDArray[np.floating[Any]]]] = {}
    while some := list(islice(stored, JUDGED_AT_ONCE)):
        pixels = [_pixels(each.content) for each in some]
        shapes = [own.shape for own in pixels]
        if odd := [each.key for each, shape in zip(some, shapes, strict=True) if shape != shapes[0] or 0 in shape]:
            yield from (f"size of {key}" for key in odd)
            return
        batch = screen.batch_of([images[each.key] for each in some], np.stack(pixels))
        keys += [each.key for each in some]
        for column, values in _differences(screen, batch, [rows[each.key] for each in some]).items():
            differences.setdefault(column, []).append(values)
    for column, parts in differences.items():
        values = np.concatenate(parts)
        most = min(ROUNDING, max(LEAST, TIMES_MEDIAN * float(np.median(values))))
        yield from (f"{column} of {keys[number]}" for number in np.flatnonzero(~(values <= most)))


def _pixels(content: bytes) -> NDArray[np.uint8]:
    """(H, W, 3); of an image that is too large to decode, (0, 0, 3)."""
    with Image.open(BytesIO(content), formats=["PNG"]) as image:
        small = image.width * image.height <= MOST_PIXELS
        return np.asarray(image.convert("RGB")) if small else np.zeros((0, 0, 3), np.uint8)


@torch.no_grad()
def _differences(screen: Screen, batch: JudgedBatch, rows: Sequence[Row]) -> dict[str, NDArray[np.floating[Any]]]:
    """Column -> (B,) how far each recorded score is from that of the pixels, in cosines."""
    now = {
        name: _numbers(values) for result in screen.results(batch).values() for name, values in result.scores.items()
    }
    then = {name: np.array([row.scores[name] for row in rows]) for name in now}
    found: dict[str, NDArray[np.floating[Any]]] = {}
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


def _logit(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    inner = np.clip(probabilities, NEARLY_SURE, 1 - NEARLY_SURE)
    return np.log(inner / (1 - inner))


def _rank_differences(
    cosines: NDArray[np.float64], own: NDArray[np.float64], ranks: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(B,) how far the cosine of each image's own text is from those between which it would have its recorded rank.

    cosines: (B, T) of all texts; own: (B,) the index of the own text; ranks: (B,), counted from 1.
    """
    images, places = np.arange(len(cosines)), own.astype(int)
    own_cosines = cosines[images, places]
    others = cosines.copy()
    others[images, places] = -np.inf
    nearest = np.sort(others)[:, ::-1]  # (B, T), the own text at the end
    bounds = np.pad(nearest, ((0, 0), (1, 1)), constant_values=(np.inf, np.inf))  # rank r lies between r - 1 and r
    number = np.minimum(ranks.astype(int), cosines.shape[1] + 1)
    return np.maximum(bounds[images, number] - own_cosines, own_cosines - bounds[images, number - 1]).clip(min=0)
