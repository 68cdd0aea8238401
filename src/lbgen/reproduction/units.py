"""Units of work: an alignment, a set of images, a backbone with its figures. Each is done when its marker exists."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lbgen.reproduction.config import DONE, ROWS, SEEDS, UNSEEN_FOLDER, Architecture, ReproduceConfig
from lbgen.reproduction.sets import SETS, SetName
from lbgen.runs import atomic
from lbgen.runs.console import Verbosity, showing
from lbgen.runs.parsing import Name, Seconds, Whole, read_json

Kind = Literal["unseen", "align", "images", "backbone"]


class Unit(NamedTuple):
    kind: Kind
    seed: int = 0
    name: Name = ""
    """Of the objective of an alignment, of the set of images and backbones."""
    architecture: Name = ""

    @property
    def title(self) -> str:
        if self.kind == "unseen":
            return "renders of unseen categories"
        what = {"align": "alignment", "images": "images", "backbone": self.architecture}[self.kind]
        return f"seed {self.seed}, {self.name}: {what}"

    @property
    def key(self) -> str:
        return "-".join([self.kind, str(self.seed), *filter(None, [self.name, self.architecture])])


@dataclass(frozen=True)
class Row:
    """All figures of one backbone: a line of rows.jsonl."""

    set: SetName
    seed: Whole
    architecture: Architecture
    images: Whole
    values: dict[Name, float | None]


@dataclass(frozen=True)
class Done:
    """What is noted of a unit that is done."""

    seconds: Seconds
    """Wall time of the attempt that ended it, in a process with one thread."""
    row: Row | None = None


def all_units(config: ReproduceConfig) -> list[Unit]:
    """In an order in which each comes after those that it needs, seed by seed; alignments, the longest, come first."""
    units = [Unit("unseen")]
    for seed in range(config.seeds):
        objectives = dict.fromkeys(objective for name in config.sets if (objective := SETS[name].objective))
        units += [Unit("align", seed, objective) for objective in objectives]
        units += [Unit("images", seed, name) for name in config.sets]
        units += [Unit("backbone", seed, name, each) for name in config.sets for each in config.architectures]
    return units


def needs(unit: Unit) -> list[Unit]:
    """The units that must be done before."""
    if unit.kind == "images":
        objective = SETS[unit.name].objective  # type: ignore[index]
        return [Unit("align", unit.seed, objective)] if objective else []
    return [Unit("unseen"), Unit("images", unit.seed, unit.name)] if unit.kind == "backbone" else []


# ---- markers ----


def marker(config: ReproduceConfig, unit: Unit) -> Path:
    return config.folder / DONE / f"{unit.key}.json"


def done(config: ReproduceConfig, unit: Unit) -> Done | None:
    path = marker(config, unit)
    return read_json(atomic.read_bytes(path), Done, str(path)) if path.is_file() else None


def run_unit(config: ReproduceConfig, unit: Unit) -> Done:
    """Do a unit, or what is left of it, and write its marker; what the stages say is not shown."""
    began = time.monotonic()
    with showing(Verbosity.QUIET), redirect_stdout(io.StringIO()):
        row = _do(config, unit)
    finished = Done(round(time.monotonic() - began, 1), row)
    path = marker(config, unit)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(path, json.dumps(_plain(finished), indent=2) + "\n")
    return finished


def _do(config: ReproduceConfig, unit: Unit) -> Row | None:
    from lbgen.microworld.world import CATEGORIES  # late, as what imports torch
    from lbgen.reproduction import held_out, making

    name: Any = unit.name
    architecture: Any = unit.architecture
    if unit.kind == "unseen":
        held_out.write_unseen(config.folder / UNSEEN_FOLDER, config.unseen_images)
    elif unit.kind == "align":
        making.align(config, name, unit.seed)
    elif unit.kind == "images":
        making.make_images(config, name, unit.seed)
    else:
        from lbgen.reproduction.measuring import measured

        run = making.pretrain(config, name, architecture, unit.seed)
        transfer = config.folder / SEEDS / str(unit.seed) / "transfer" / run.name
        images = config.images_per_category * len(CATEGORIES)
        return Row(name, unit.seed, architecture, images, measured(config, run, transfer))
    return None


def _plain(finished: Done) -> dict[str, Any]:
    return {"seconds": finished.seconds, "row": vars(finished.row) if finished.row else None}


# ---- rows ----


def write_rows(config: ReproduceConfig, units: Iterable[Unit]) -> list[Row]:
    """The rows of all backbones that are done, one JSON object a line."""
    rows = [found.row for unit in units if (found := done(config, unit)) and found.row]
    atomic.write_text(config.folder / ROWS, "".join(json.dumps(vars(row)) + "\n" for row in rows))
    return rows


def seconds_by_kind(config: ReproduceConfig, units: Sequence[Unit]) -> dict[str, tuple[int, float]]:
    """Number and seconds of the units that are done, by kind."""
    found: dict[str, tuple[int, float]] = {}
    for unit in units:
        if each := done(config, unit):
            number, seconds = found.get(unit.kind, (0, 0.0))
            found[unit.kind] = number + 1, seconds + each.seconds
    return found
