"""The audit: read every dataset, measure it, compare it with the first, write the figures and the page."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from lbgen.audit import output
from lbgen.audit.attributes import ensure_short
from lbgen.audit.cache import RowCache
from lbgen.audit.config import AuditConfig
from lbgen.audit.content import DIVERSITY_IMAGES
from lbgen.audit.features import compared_features
from lbgen.audit.measures import Measured, compare, measure
from lbgen.audit.observe import Observed, Observer, cache_identity, canvas_side, observe
from lbgen.audit.output import AuditResult
from lbgen.datasets.open import open_source
from lbgen.datasets.records import Source
from lbgen.errors import UserError
from lbgen.metrics.intervals import Estimate
from lbgen.models.registry import ATTRIBUTES
from lbgen.models.semantics import load_semantics
from lbgen.runs import atomic
from lbgen.runs.lock import locked
from lbgen.vocabulary.attributes import Attribute, load_attributes

STEPS = 13
"""That `measure` tells of."""


def audit(directories: Sequence[str | Path], config: AuditConfig) -> AuditResult:
    """Measure labelled image datasets, side by side; the first is the one that the others are compared with."""
    config = replace(config, attributes=config.attributes or ATTRIBUTES.get(config.semantics))
    names = dataset_names(directories)
    sources = [open_source(Path(directory)) for directory in directories]
    attributes = load_attributes(config.attributes)
    atomic.ensure_writable(config.folder)
    atomic.refuse_links(config.folder, ["cache"])
    with locked(config.folder / "cache" / "lock", str(config.folder)):
        return _audited(sources, names, attributes, config)


def _audited(sources: list[Source], names: list[str], attributes: list[Attribute], config: AuditConfig) -> AuditResult:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    space = load_semantics(config.semantics, device)
    for attribute in attributes:
        ensure_short(attribute, "", space)
    observer = Observer(space, canvas_side(space))
    cache = RowCache(config.folder / "cache", cache_identity(config.semantics), observer.fields())
    seen = [
        observe(source, name, observer, cache, config.batch_size) for source, name in zip(sources, names, strict=True)
    ]
    images = diversity_images(seen)
    measured = []
    with tqdm(total=STEPS * len(seen), desc="measures", disable=None, unit=" steps") as progress:

        def step(what: str) -> None:
            progress.set_postfix_str(what)
            progress.update()

        for observed in seen:
            measured.append(measure(observed, space, attributes, config, images, step))
    space_name, comparisons = _compare(measured, sources, config)
    result = output.write(measured, comparisons, sources, config, images, space_name)
    print(f"The page: {result.page}; every figure: {result.measures}")
    return result


def dataset_names(directories: Sequence[str | Path]) -> list[str]:
    """The folders' names, with as many of their parents' as tell them apart."""
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
    return names


def diversity_images(seen: list[Observed]) -> int:
    """Images of a category that diversity is measured on: the same in all datasets, as many as most categories have."""
    return max(2, min(DIVERSITY_IMAGES, *(int(np.median(np.bincount(observed.label))) for observed in seen)))


def _compare(
    measured: list[Measured], sources: list[Source], config: AuditConfig
) -> tuple[str, dict[str, dict[str, Estimate]]]:
    """The feature space's name, and each dataset but the first against the first in it."""
    if len(measured) < 2:
        return "", {}
    space_name, features = compared_features(measured, sources, config)
    sets = [(f, m.observed.label[m.compared]) for f, m in zip(features, measured, strict=True)]
    found = {
        m.observed.name: compare(sets[0], other, config.seed) for m, other in zip(measured[1:], sets[1:], strict=True)
    }
    return space_name, found
