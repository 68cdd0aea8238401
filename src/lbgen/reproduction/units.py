"""Units of work: an alignment, a set of images, a backbone with its figures, its detection and segmentation.

A unit is done if its marker exists.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast, get_args

from msgspec import Meta

from lbgen.errors import UserError
from lbgen.reproduction.config import (
    DENSE_FOLDER,
    DONE,
    ROWS,
    UNSEEN_FOLDER,
    Architecture,
    DenseMethod,
    ReproduceConfig,
)
from lbgen.reproduction.sets import SETS, SetName
from lbgen.runs import atomic
from lbgen.runs.console import Verbosity, showing
from lbgen.runs.parsing import Name, Seconds, Whole, read_json

Kind = Literal["unseen", "renders", "align", "images", "backbone", "detection", "segmentation"]
Figure = Annotated[float, Meta(ge=-1)]
"""A share, a difference or a ratio of two."""
DENSE: tuple[DenseMethod, ...] = get_args(DenseMethod)


class Unit(NamedTuple):
    kind: Kind
    seed: int = 0
    name: Name = ""
    """Name of the alignment's objective, of the set of images or backbones, or of the use of renders."""
    architecture: Name = ""

    @property
    def title(self) -> str:
        if self.kind == "unseen":
            return "renders of unseen categories"
        if self.kind == "renders":
            return f"renders for {self.name}"
        kind = {"align": "alignment", "backbone": ""}.get(self.kind, self.kind)
        return f"seed {self.seed}, {self.name}: {' '.join(filter(None, [self.architecture, kind]))}"

    @property
    def key(self) -> str:
        return "-".join([self.kind, str(self.seed), *filter(None, [self.name, self.architecture])])


@dataclass(frozen=True)
class BackboneRow:
    """Figures of one backbone; a line of rows.jsonl has all figures, a marker the figures of its unit."""

    set: SetName
    seed: Whole
    architecture: Architecture
    images: Whole
    values: dict[Name, Figure | None]


@dataclass(frozen=True)
class Done:
    """The record of a finished unit."""

    seconds: Seconds
    """Wall time of the attempt that finished it, in a process with one thread."""
    row: BackboneRow | None = None


def all_units(config: ReproduceConfig) -> list[Unit]:
    """All units, seed by seed; each comes after the units that it needs, and alignments, which take longest, first."""
    units = [Unit("unseen"), *(Unit("renders", name=method) for method in config.dense)]
    for seed in range(config.seeds):
        objectives = dict.fromkeys(objective for name in config.sets if (objective := SETS[name].objective))
        units += [Unit("align", seed, objective) for objective in objectives]
        units += [Unit("images", seed, name) for name in config.sets]
        kinds: tuple[Kind, ...] = ("backbone", *config.dense)
        units += [
            Unit(kind, seed, name, each) for kind in kinds for name in config.sets for each in config.architectures
        ]
    return units


def needs(unit: Unit) -> list[Unit]:
    """The units that must be done before this one."""
    if unit.kind == "images":
        objective = SETS[unit.name].objective  # type: ignore[index]
        return [Unit("align", unit.seed, objective)] if objective else []
    if unit.kind == "backbone":
        return [Unit("unseen"), Unit("images", unit.seed, unit.name)]
    if unit.kind in DENSE:
        return [Unit("renders", name=unit.kind), unit._replace(kind="backbone")]
    return []


# ---- markers ----


def marker(config: ReproduceConfig, unit: Unit) -> Path:
    return config.folder / DONE / f"{unit.key}.json"


def done(config: ReproduceConfig, unit: Unit) -> Done | None:
    path = marker(config, unit)
    if not path.is_file():
        return None
    found = read_json(atomic.read_bytes(path), Done, str(path))
    row = found.row
    recorded = Unit(unit.kind, row.seed, row.set, row.architecture) if row else None
    if recorded != (unit if unit.kind in ("backbone", *DENSE) else None) or (row and not row.values):
        raise UserError(f"{path}, row: it is not that of this unit; remove the file, and the unit is made again")
    return found


def run_unit(config: ReproduceConfig, unit: Unit) -> Done:
    """Do a unit, or the rest of it, and write its marker; the output of the stages is hidden."""
    began = time.monotonic()
    with showing(Verbosity.QUIET), redirect_stdout(io.StringIO()):
        row = _do(config, unit)
    finished = Done(round(time.monotonic() - began, 1), row)
    path = marker(config, unit)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(path, json.dumps(_plain(finished), indent=2) + "\n")
    return finished


def _do(config: ReproduceConfig, unit: Unit) -> BackboneRow | None:
    from lbgen.microworld.world import CATEGORIES  # late, like all imports of torch
    from lbgen.reproduction import held_out, making
    from lbgen.reproduction.dense.measuring import dense_values
    from lbgen.reproduction.dense.renders import write_renders
    from lbgen.reproduction.measuring import measured

    kind, seed, name, architecture = cast(Any, unit)
    if kind == "unseen":
        held_out.write_unseen(config.folder / UNSEEN_FOLDER, config.unseen_images)
    elif kind == "renders":
        write_renders(name, config.folder / DENSE_FOLDER / name, config.dense_images)
    elif kind == "align":
        making.align(config, name, seed)
    elif kind == "images":
        making.make_images(config, name, seed)
    else:
        run = making.pretrain_config(config, name, architecture, seed).folder
        transfer = making.seed_folder(config, seed) / "transfer" / run.name
        if kind == "backbone":
            making.pretrain(config, name, architecture, seed)
            values = measured(config, run, transfer)
        else:
            values = dense_values(config, kind, seed, run, transfer / kind)
        return BackboneRow(name, seed, architecture, config.images_per_category * len(CATEGORIES), values)
    return None


def _plain(finished: Done) -> dict[str, Any]:
    return {"seconds": finished.seconds, "row": vars(finished.row) if finished.row else None}


# ---- rows ----


def write_rows(config: ReproduceConfig, units: Iterable[Unit]) -> list[BackboneRow]:
    """Write the rows of all finished backbones, with the values of all their units, one JSON object per line."""
    by_backbone: dict[Unit, BackboneRow] = {}
    for unit in units:
        if (found := done(config, unit)) and (row := found.row):
            backbone = unit._replace(kind="backbone")
            known = by_backbone.get(backbone, row)
            by_backbone[backbone] = replace(known, values={**known.values, **row.values})
    rows = list(by_backbone.values())
    atomic.write_text(config.folder / ROWS, "".join(json.dumps(vars(row)) + "\n" for row in rows))
    return rows


def seconds_by_kind(config: ReproduceConfig, units: Sequence[Unit]) -> dict[str, tuple[int, float]]:
    """Kind -> number and seconds of its finished units."""
    found: dict[str, tuple[int, float]] = {}
    for unit in units:
        if each := done(config, unit):
            number, seconds = found.get(unit.kind, (0, 0.0))
            found[unit.kind] = number + 1, seconds + each.seconds
    return found
