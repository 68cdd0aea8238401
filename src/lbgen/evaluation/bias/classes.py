"""ImageNet's classes, the class lists of the benchmarks, and a backbone's outputs in ImageNet's order.

The lists are in data/, by WordNet id. Sources, on github.com unless stated otherwise: cue_conflict.json
rgeirhos/texture-vs-shape, focus.json priyathamkat/focus, imagenet9.json MadryLab/backgrounds_challenge, imagenet_r.txt
hendrycks/imagenet-r, imagenet_a.txt hendrycks/natural-adv-examples, objectnet.json objectnet.dev, alexnet.json (error
rates) arXiv 1903.12261.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lbgen.errors import UserError
from lbgen.runs import atomic
from lbgen.runs.parsing import read_json
from lbgen.vocabulary.vocabulary import imagenet_entries

if TYPE_CHECKING:
    from torch import Tensor

DATA = Path(__file__).parent / "data"
SHOWN = 3
"""Most classes that a message names."""

T = TypeVar("T")


@cache
def imagenet_ids() -> tuple[str, ...]:
    """The 1,000 WordNet ids in the order of every classifier's outputs, which is alphabetical."""
    return tuple(str(entry.id) for entry in imagenet_entries(qualify=True))


@cache
def positions() -> dict[str, int]:
    """WordNet id -> output."""
    return {name: position for position, name in enumerate(imagenet_ids())}


def listed(file: str) -> tuple[str, ...]:
    """The ids of a list in data/, one per line."""
    return tuple(atomic.read_bytes(DATA / file).decode().split())


def table(file: str, kind: type[T]) -> T:
    """The content of a JSON file in data/."""
    return read_json(atomic.read_bytes(DATA / file), kind, file)


def top1(logits: Tensor, choices: Sequence[str] | None = None) -> list[tuple[str, ...]]:
    """For each image the class with the largest logit, as an answer with one column.

    logits: (B, 1000) in ImageNet's order.  choices: the ids to choose from, by default all.
    """
    ids = imagenet_ids() if choices is None else choices
    chosen = logits[:, [positions()[id] for id in ids]]  # (B, choices)
    return [(ids[place],) for place in chosen.argmax(dim=-1).tolist()]


def outputs_of_imagenet(backbone: str, class_names: Sequence[str] | None, outputs: int) -> list[int]:
    """The index of the backbone's output for each ImageNet class; UserError if classes are missing.

    backbone: its name, for the message.  outputs: its number of outputs.
    """
    if class_names is None:
        raise UserError(
            f"backbone {backbone}: the names of its {outputs:,} classes are not known, and these benchmarks need all "
            "of ImageNet's 1,000; give a classifier of ImageNet, or label_names in its config.json"
        )
    places = {name: place for place, name in enumerate(class_names)}
    missing = [name for name in imagenet_ids() if name not in places]
    if missing:
        shown = ", ".join(missing[:SHOWN]) + (f" and {len(missing) - SHOWN:,} more" if len(missing) > SHOWN else "")
        raise UserError(
            f"backbone {backbone}: {len(missing):,} of ImageNet's 1,000 classes, which these benchmarks need, are not "
            f"among its {outputs:,} ({shown}); give a classifier of ImageNet"
        )
    return [places[name] for name in imagenet_ids()]
