"""The audit: read every dataset, measure it, compare it with the first, write the figures and the page.

Torch is imported only after all checks that do not need it.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lbgen.audit.config import IMAGES, MEASURES, PAGE, WRITTEN, AuditConfig
from lbgen.configuration import extensions, saved
from lbgen.configuration.ranges import ensure_config, one_or_more
from lbgen.datasets.open import open_dataset
from lbgen.datasets.records import DatasetReader, no_labelled_image, valid_text
from lbgen.errors import UserError
from lbgen.models.registry import ATTRIBUTES, ensure_semantics
from lbgen.runs import atomic, outputs
from lbgen.runs.console import SIZES, Progress, device_name, in_units, say, table
from lbgen.runs.lock import locked
from lbgen.runs.model_folder import refuse_unreadable
from lbgen.runs.parsing import parse_json
from lbgen.runs.processes.ray import import_ray
from lbgen.vocabulary.attributes import Attribute, load_attributes

if TYPE_CHECKING:
    from lbgen.audit.measures import MeasuredDataset
    from lbgen.audit.observe import Observed
    from lbgen.audit.output import AuditResult
    from lbgen.models.semantics import SemanticSpace


def audit(directories: str | Path | Sequence[str | Path], config: AuditConfig | None = None) -> AuditResult:
    """Measure labelled image datasets side by side; the first is the reference of comparisons.

    directories: one dataset folder or several: image folders, WebDatasets, tables. Images may have any size.

    Writes report.html, measures.json and images.parquet to `config.output`, and returns their paths. Raises UserError
    for a folder without labelled images, for a folder that is given twice, and for an unsuitable setting.

    >>> import lbgen
    >>> result = lbgen.audit("data/toy", lbgen.AuditConfig(output="audits/toy", semantics="microworld"))
    >>> compared = lbgen.audit(["data/toy", "data/other"])
    """
    config = AuditConfig() if config is None else config
    ensure_config(config, AuditConfig)
    config = replace(config, attributes=config.attributes or ATTRIBUTES.get(config.semantics))
    folders = [Path(os.path.expanduser(directory)) for directory in one_or_more(directories, "datasets")]
    names = dataset_names(folders)
    readers = [open_dataset(folder, config.label_column) for folder in folders]
    if config.label_column is not None and not any(reader.has_columns for reader in readers):
        raise UserError(
            f"--label-column {config.label_column}: {readers[0].folder} is an image folder, whose folders are the "
            "labels; drop the flag"
        )
    for reader in readers:
        if next(reader.records(wanted=()), None) is None:
            raise no_labelled_image(reader.folder, {}, reader.skipped)
    atomic.ensure_writable(config.folder)
    atomic.refuse_links(config.folder, ["cache"])
    atomic.refuse_folders(config.folder, WRITTEN)
    outputs.ensure_outside(config.folder, folders)
    outputs.ensure_own(config.folder, is_of_audit(config.folder), WRITTEN, "audit")
    attributes = load_attributes(config.attributes)
    ensure_semantics(config.semantics)
    ensure_workers(config)
    if config.features is not None:
        refuse_unreadable("features", config.features, "config.json")
    with locked(config.folder / "cache" / "lock", str(config.folder)):
        return _audited(readers, names, attributes, config)


def ensure_workers(config: AuditConfig) -> None:
    """Refuse Ray if it is not installed, and workers for a language space that only this process knows."""
    if config.engine == "ray":
        import_ray()
    elsewhere = config.engine == "ray" or (config.workers or 1) > 1
    if elsewhere and config.semantics in extensions.REGISTERED["semantics"]:
        raise UserError(
            f"{config.semantics} was registered in semantics of this process, and workers are processes of their own; "
            "install it as an entry point (docs/extend.md), or give --workers 1 and --engine local"
        )


def is_of_audit(folder: Path) -> bool:
    """Whether a folder was written by an audit, even if that was interrupted or its cache was removed."""
    if (folder / "cache/lock").exists() or any(folder.glob("cache/seen-*.rows")):
        return True
    try:
        content = parse_json(atomic.read_bytes(folder / MEASURES))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"datasets", "definitions", "made_with"} <= content.keys()


def _audited(
    readers: list[DatasetReader], names: list[str], attributes: list[Attribute], config: AuditConfig
) -> AuditResult:
    import torch  # late, like all imports that need it

    from lbgen.audit import output
    from lbgen.audit.attributes import ensure_short
    from lbgen.audit.comparison import compare_with_first
    from lbgen.audit.findings.images import find_images, write_images
    from lbgen.audit.page import write_page
    from lbgen.models.semantics import load_semantics

    say_opening(readers, names, config, device_name("cuda" if torch.cuda.is_available() else "cpu"))

    # Load the semantic space, and refuse attributes that it cannot read.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    space = load_semantics(config.semantics, device)
    for attribute in attributes:
        ensure_short(attribute, "", space)

    # Read every dataset once, measure and compare.
    observed = _observed(readers, names, space, config)
    diversity = diversity_images(observed)
    measured = _measured(observed, space, attributes, config, diversity)
    compared_in, comparisons = compare_with_first(measured, readers, config)

    # Write the figures and the page.
    content = output.measures_content(measured, compared_in, comparisons, config, diversity)
    measures = output.write_measures(content, measured, comparisons, config.folder)
    images = find_images(measured)
    write_images(measured, images, config.folder / IMAGES)
    page = config.folder / PAGE
    write_page(measured, readers, content, images, page)
    say(f"The page: {page}; every figure: {measures}; every image: {config.folder / IMAGES}")
    for one in observed:
        if one.broken or one.skipped:
            skipped = sum(left_out.count for left_out in one.skipped.values())
            say(f"{one.name}: {len(one.broken):,} broken and {skipped:,} skipped; both files say why")
    return output.AuditResult(page, measures, next_step(readers, config))


def say_opening(readers: Sequence[DatasetReader], names: Sequence[str], config: AuditConfig, device: str) -> None:
    """Print what the audit will read, and with which models."""
    folders = [(f"dataset {name}", str(reader.folder)) for name, reader in zip(names, readers, strict=True)]
    rows = [
        *folders,
        ("language space", config.semantics),
        ("attributes", str(config.attributes or "the built-in list")),
        ("output", str(config.folder)),
        ("device", device),
    ]
    say(table(rows))
    saved.say_in_full(config)
    if known := sum(path.stat().st_size for path in (config.folder / "cache").glob("seen-*.rows")):
        say(f"going on with the cache ({in_units(known, SIZES)}): images that are in it are not measured again")


def next_step(readers: Sequence[DatasetReader], config: AuditConfig) -> str:
    """The next step: look at the page; for a single dataset, also compare it with another one."""
    look = f"open {config.folder / PAGE} in a browser"
    if len(readers) > 1:
        return look
    compare = ["lbgen", "audit", str(readers[0].folder), "ANOTHER", "--semantics", config.semantics]
    return f"{look}; to compare with another dataset: {shlex.join([*compare, '--output', str(config.folder)])}"


def _observed(
    readers: list[DatasetReader], names: list[str], space: SemanticSpace, config: AuditConfig
) -> list[Observed]:
    """What is known of every image, from the cache where it is there."""
    from lbgen.audit.observe import cache_identity, observe
    from lbgen.audit.workers.observer import Observer, canvas_side
    from lbgen.audit.workers.pool import workers_of
    from lbgen.audit.workers.row_cache import RowCache

    observer = Observer(space, canvas_side(space))
    cache = RowCache(config.folder / "cache", cache_identity(config.semantics), observer.fields())
    with workers_of(config, observer) as workers:
        return [
            observe(reader, name, workers, cache, config.batch_size, config.sample, config.seed)
            for reader, name in zip(readers, names, strict=True)
        ]


def _measured(
    observed: list[Observed],
    space: SemanticSpace,
    attributes: list[Attribute],
    config: AuditConfig,
    diversity_images: int,
) -> list[MeasuredDataset]:
    from lbgen.audit.measures import PROGRESS_STEPS, measure

    with Progress("measures", PROGRESS_STEPS * len(observed), "steps") as progress:

        def step(what: str) -> None:
            progress.advance(note=what)

        return [measure(each, space, attributes, config, diversity_images, step) for each in observed]


def dataset_names(directories: Sequence[Path]) -> list[str]:
    """The folders' names, with as many parents as make them distinct."""
    if not directories:
        raise UserError("no dataset folder is given; name one or more")
    parts = [Path(os.path.abspath(directory)).parts for directory in directories]
    if len(set(parts)) < len(parts):
        twice = next(Path(*path) for path in parts if parts.count(path) > 1)
        raise UserError(f"{twice}: given twice; name every dataset folder once")
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-length:]).lstrip("/") for path in parts]
        if len(set(names)) == len(names):
            break
    return [valid_text(name) for name in names]


def diversity_images(observed: list[Observed]) -> int:
    """Images per category for diversity: the smallest of the datasets' median category sizes, from 2 to the maximum.

    All datasets use the same number, because diversity grows with it.
    """
    from lbgen.audit.content import DIVERSITY_IMAGES

    return max(2, min(DIVERSITY_IMAGES, *(int(np.median(np.bincount(each.label))) for each in observed)))
