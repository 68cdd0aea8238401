"""Folders and files that a configuration names. A dataset's record holds where they are, not how they were typed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig
from lbgen.generation.made_here import is_made_here
from lbgen.generation.record import PLACES, RECORD, Record
from lbgen.models.registry import GENERATORS, SEMANTICS, resolve
from lbgen.runs import identity
from lbgen.runs.storage import Store

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
        if not moved or identity.weights_sha256(resolve(now, table)) != record.made_with[hashed]:
            raise UserError(
                f"{config.output} was made with {name} {then}, this run asks for {now}, which is another; "
                f"choose another --output or give --{name.replace('_', '-')} {then}"
            )


def with_trusted_models(config: GenerateConfig, given: Mapping[str, Any], store: Store) -> GenerateConfig:
    """The configuration of a dataset that is to be repaired, its models where the user says that they are.

    given: the values of the flags, None where there is none. The dataset's own record counts for what comes with lbgen,
    and where this user made it; all else in it is the choice of whoever made it.
    """
    files = ("adapter", "attributes")
    given = {name: Path(value) if name in files else value for name, value in given.items() if value is not None}
    if not is_made_here(store):
        for name, value in used_places(config).items():
            if name not in given:
                raise UserError(
                    f"{store}/{RECORD} names {name} {value}, and you have not made this dataset: to load it all the "
                    f"same, or another copy of it, give --{name.replace('_', '-')}"
                )
    return at_absolute_paths(replace(config, **given))


def used_places(config: GenerateConfig) -> dict[str, str]:
    """The fields that name models or files which a run would load, without those that come with lbgen."""
    used = {name: getattr(config, name) for name in PLACES}
    if not config.checks:
        del used["screen_semantics"]
    return {name: str(value) for name, value in used.items() if value is not None and str(value) != "microworld"}


def check_places(config: GenerateConfig) -> None:
    """Refuse to repair a dataset whose models or files are not there any more."""
    for name in PLACES:
        place = str(getattr(config, name))
        if place.startswith("/") and not os.path.exists(place):
            raise UserError(
                f"{config.output}/{RECORD}, {name}: {place} is not there; put it back, or say where it is now with "
                f"--{name.replace('_', '-')} (its content is compared, not its path)"
            )
