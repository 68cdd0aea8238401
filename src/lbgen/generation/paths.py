"""Folders and files that a configuration names. A dataset's record holds where they are, not how they were typed."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from lbgen import provenance
from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig
from lbgen.generation.record import PLACES, RECORD, Record
from lbgen.models.registry import GENERATORS, SEMANTICS, resolve

MODELS = {"generator": ("generator_sha256", GENERATORS), "screen_semantics": ("semantics_sha256", SEMANTICS)}
"""Fields that name weights: a short name, a hub id or a folder; and their hash in dataset.yaml."""


def at_absolute_paths(config: GenerateConfig) -> GenerateConfig:
    """For workers and repairs, which run in other folders than this one. What is not there stays as it is."""
    changed: dict[str, Any] = {}
    for name, (_, table) in MODELS.items():
        value = getattr(config, name)
        if value not in table and os.path.isdir(value):
            changed[name] = os.path.abspath(value)
    if config.adapter is not None and config.adapter.is_dir():
        changed["adapter"] = config.adapter.absolute()
    if config.attributes not in (None, Path("microworld")) and os.path.isfile(config.attributes):
        changed["attributes"] = config.attributes.absolute()
    return replace(config, **changed)


def generator_name(generator: str) -> str:
    """What images call a generator: a folder by its own name, wherever it lies."""
    return generator.rpartition("/")[2] if generator.startswith("/") else generator


def check_models(record: Record, config: GenerateConfig) -> None:
    """Refuse other weights than a dataset was made with; the same ones may have moved."""
    for name, (hashed, table) in MODELS.items():
        now, then = getattr(config, name), record.config[name]
        if now == then or (name == "screen_semantics" and not config.checks):
            continue
        moved = generator_name(now) == generator_name(then) or name == "screen_semantics"
        if not moved or provenance.weights_sha256(resolve(now, table)) != record.made_with[hashed]:
            raise UserError(
                f"{config.output} was made with {name} {then}, this run asks for {now}, which is another; "
                f"choose another --output or give --{name.replace('_', '-')} {then}"
            )


def check_places(record: Record, output: str) -> None:
    """Refuse to repair a dataset whose record names a folder or a file that is not there any more."""
    for name in PLACES:
        place = str(record.config[name])
        if place.startswith("/") and not os.path.exists(place):
            raise UserError(
                f"{output}/{RECORD}, {name}: {place} is not there; put it back, or write into that line where it is "
                "now (its content is compared, not its path)"
            )
