"""`lbgen reproduce`: make the sets, train and measure the backbones, write rows, tables and pictures."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lbgen.configuration import saved
from lbgen.configuration.documentation import Documented
from lbgen.configuration.ranges import ensure_config
from lbgen.configuration.saved import CONFIG
from lbgen.errors import UserError
from lbgen.reproduction.config import FREE, LOCK, MARK, OF_DENSE, ROWS, WRITTEN, ReproduceConfig
from lbgen.reproduction.dense.measuring import missing_package
from lbgen.reproduction.making import ensure_stages
from lbgen.reproduction.spreading import run_units
from lbgen.reproduction.units import DENSE, Unit, all_units, done, marker, seconds_by_kind, write_rows
from lbgen.runs import atomic, outputs
from lbgen.runs.console import counted, say, table, warn
from lbgen.runs.lock import locked


@dataclass(frozen=True)
class ReproduceResult(Documented):
    """Where a reproduction wrote its page."""

    page: Path
    """reproduction.md."""
    rows: Path
    """rows.jsonl: one line per backbone, with all its figures."""


def reproduce(config: ReproduceConfig | None = None) -> ReproduceResult:
    """Do the unfinished units of work, and write `rows.jsonl` and the page with its pictures.

    Aligns the micro world's generator, makes sets of images of 64 x 64 pixels, trains backbones on them and evaluates
    the backbones, in hours on a CPU. Raises UserError for a mistake of the user, and Interrupted at a signal; the same
    call then continues.

    >>> import lbgen
    >>> result = lbgen.reproduce(lbgen.ReproduceConfig(output="runs/reproduction", seeds=1))
    >>> print(result.page)
    """
    config = ReproduceConfig() if config is None else config
    ensure_config(config, ReproduceConfig)
    ensure_can_begin(config)
    with locked(config.folder / LOCK, str(config.folder)):
        saved.save(config, config.folder / CONFIG)
        units = possible(config, all_units(config))
        workers = config.workers or os.cpu_count() or 1
        waiting = [unit for unit in units if done(config, unit) is None]
        known = len(units) - len(waiting)
        say_opening(config, len(units), known, workers)
        for count, (unit, found) in enumerate(run_units(config, waiting, workers), known + 1):
            say(f"{unit.title}: {found.seconds:.0f} s ({count} of {len(units)})")
        return write(config, units)


def ensure_can_begin(config: ReproduceConfig) -> None:
    """Make all checks that are possible before anything is written."""
    output = config.folder
    atomic.ensure_writable(output)
    atomic.refuse_links(output, WRITTEN)
    outputs.ensure_outside(output)
    record = output / CONFIG
    outputs.ensure_own(output, os.path.lexists(record), WRITTEN, "reproduce")
    if os.path.exists(record):
        begun = any(marker(config, Unit("renders", name=method)).is_file() for method in DENSE)
        saved.ensure_same(config, record, ignore=FREE if begun else (*FREE, *OF_DENSE))
    ensure_stages(config)
    folder = config.page_path.parent
    if config.page and not folder.is_dir():
        raise UserError(f"--page {config.page}: there is no folder {folder}; make it, or give another page")
    if os.path.isdir(config.page_path):
        raise UserError(f"--page {config.page_path}: it is a folder; name a Markdown file")
    if os.path.islink(config.page_path):
        raise UserError(f"--page {config.page_path}: it is a link, which would be replaced; name the file itself")
    if os.path.lexists(config.page_path) and MARK.encode() not in atomic.read_bytes(config.page_path):
        raise UserError(f"--page {config.page_path}: it has no markers for tables; name a page that does not exist yet")


def possible(config: ReproduceConfig, units: list[Unit]) -> list[Unit]:
    """The units that are done or can be done; warns about packages that other units need."""
    missing: dict[str, str] = {method: package for method in config.dense if (package := missing_package(method))}
    left = [unit for unit in units if unit.kind in missing and done(config, unit) is None]
    for method in dict.fromkeys(unit.kind for unit in left):
        warn(f"{method} is left out: it needs {missing[method]}; pip install 'lbgen[dense]' and start this again")
    return [unit for unit in units if unit not in left]


def say_opening(config: ReproduceConfig, units: int, known: int, workers: int) -> None:
    rows = [
        ("sets", f"{len(config.sets)}, {config.images_per_category} images of each category"),
        ("seeds", str(config.seeds)),
        ("backbones", f"{', '.join(config.architectures)}, on each set"),
        ("output", str(config.folder)),
        ("work", f"{counted(units, 'unit')}, {known} of them done; processes: {workers}"),
    ]
    say(table(rows))


def write(config: ReproduceConfig, units: list[Unit]) -> ReproduceResult:
    """Write rows, pictures and page from all finished units."""
    from lbgen.reproduction.page import write_page  # late: slow to import
    from lbgen.reproduction.pictures import write_pictures
    from lbgen.runs.identity import versions

    rows = write_rows(config, units)
    pictures = write_pictures(rows, config.page_path)
    page = write_page(config, rows, seconds_by_kind(config, units), pictures, versions())
    say(f"The page: {page}; every figure: {config.folder / ROWS}")
    return ReproduceResult(page, config.folder / ROWS)
