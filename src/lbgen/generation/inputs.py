"""The models and files that a configuration names: locations, content hashes, and names in image metadata.

A dataset records absolute locations, and identifies each model and file by its content, because it may move.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lbgen.configuration import extensions
from lbgen.configuration.extensions import origin
from lbgen.configuration.values import shown
from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig, trained_settings
from lbgen.generation.screening import balance
from lbgen.models import training
from lbgen.models.checkpoints import forms
from lbgen.models.checkpoints.suited import ensure_suited
from lbgen.models.registry import (
    GENERATORS,
    OPEN_CLIP,
    SEMANTICS,
    adapter_file,
    ensure_generator,
    ensure_semantics,
    family_origin,
    generator_class,
    resolve,
    semantics_location,
)
from lbgen.runs import atomic, identity
from lbgen.runs.identity import Identity
from lbgen.runs.model_folder import SAFETY_CHECKER
from lbgen.vocabulary.tokens import on_one_line
from lbgen.vocabulary.vocabulary import Category

INPUT_FIELDS = ("generator", "adapter", "attributes", "screen_semantics")
"""Fields that may name a folder or a file, which is compared by its content, not by its location."""
MODEL_REGISTRIES = {"generator": GENERATORS, "screen_semantics": SEMANTICS}
"""Fields that name weights by a short name of the registry, a hub id or a folder."""
HASH_NAMES = {
    "generator": "generator",
    "adapter": "adapter",
    "screen_semantics": "semantics",
    "attributes": "attributes",
}
"""Field -> the name of its hash in the identity of a dataset."""


def with_absolute_paths(config: GenerateConfig) -> GenerateConfig:
    """The config with absolute paths, for workers and repairs in other working folders; missing files are unchanged."""
    changed: dict[str, Any] = {}
    for name, registry in MODEL_REGISTRIES.items():
        value = getattr(config, name)
        if value not in registry and os.path.exists(value):
            changed[name] = os.path.abspath(value)
    if os.path.isfile(weights := semantics_location(config.screen_semantics)):
        changed["screen_semantics"] = config.screen_semantics.removesuffix(weights) + os.path.abspath(weights)
    if config.adapter is not None and os.path.isdir(config.adapter):
        changed["adapter"] = Path(config.adapter).absolute()
    if config.attributes not in (None, Path("microworld")) and os.path.isfile(config.attributes):
        changed["attributes"] = Path(config.attributes).absolute()
    return replace(config, **changed)


def ensure_loadable(config: GenerateConfig) -> None:
    """Refuse models and files that do not exist or that lbgen cannot read; needs no torch.

    Ray's workers may have models that this machine does not have.
    """
    adapter_sha256(config)
    if config.engine == "local":
        ensure_generator(config.generator, config.revision, config.variant)
        ensure_suited(config.generator, config.revision, config.scheduler, config.guidance_scale)
        if config.compares_with_texts:
            ensure_semantics(config.screen_semantics, "--screen-semantics")


def without_folder(place: str) -> str:
    """Name of a model or a file in image metadata and cards: the last part of an absolute path, any other unchanged."""
    if place.startswith(OPEN_CLIP):
        architecture, slash, weights = place.partition("/")
        return architecture + slash + without_folder(weights)
    return place.rstrip("/").rpartition("/")[2] if place.startswith("/") else place


def without_folders(values: Mapping[str, Any]) -> dict[str, Any]:
    """A dataset's recorded configuration for its card, without local folders."""
    places = ("vocabulary", *INPUT_FIELDS)
    return {
        name: without_folder(value) if name in places and isinstance(value, str) else value
        for name, value in values.items()
    }


def identity_of(config: GenerateConfig, recorded: Identity | None) -> Identity:
    """Hashes of all inputs and the library versions. Models must be loaded first: that may download their weights.

    recorded: the stored identity to compare with; None for a new dataset.
    """
    hashes = {
        **generator_hashes(config, recorded),
        "adapter": adapter_sha256(config),
        "semantics": weights_sha256(config, "screen_semantics", recorded) if config.checks else None,
        "attributes": balance.attributes_sha256(balance.balanced_attributes(config)),
    }
    if family := family_origin(config.generator, config.revision):
        hashes["family"] = family
    return Identity(hashes, versions=identity.versions())


def refuse_registered(config: GenerateConfig) -> None:
    """Refuse extensions that are registered only in this process, if workers are other processes."""
    kind = generator_class(config.generator, config.revision)
    named = {"families": kind, "semantics": config.screen_semantics if config.checks else None}
    for group, name in named.items():
        if name in extensions.REGISTERED[group]:
            raise UserError(
                f"{name} was registered in {group} of this process, and workers are processes of their own; install it "
                f"as an entry point (docs/extend.md), or give --workers 1 and --engine local"
            )


def weights_sha256(config: GenerateConfig, field: str, recorded: Identity | None) -> str | None:
    """Hash of the model that a field of MODEL_REGISTRIES names, by the rule used in `recorded`, if any."""
    if field == "generator":
        return generator_hashes(config, recorded)["generator"]
    name = config.screen_semantics
    if extension := origin("semantics", name, SEMANTICS):
        return extension
    then = None if recorded is None else recorded.hashes[HASH_NAMES[field]]
    return identity.weights_sha256(semantics_location(name), then, without=_not_loaded(config))


def generator_hashes(config: GenerateConfig, recorded: Identity | None) -> dict[str, str | None]:
    """The hash of the generator's weights and, for a single file, of its configurations."""
    then = None if recorded is None else recorded.hashes[HASH_NAMES["generator"]]
    place = resolve(config.generator, GENERATORS)
    return forms.hashes(place, config.revision, config.variant, then, _not_loaded(config))


def _not_loaded(config: GenerateConfig) -> tuple[str, ...]:
    """Parts of the generator that this run does not load."""
    return () if "unsafe" in config.checks and config.unsafe == "checker" else SAFETY_CHECKER


def adapter_sha256(config: GenerateConfig) -> str | None:
    """Hash of the adapter's weights, None without an adapter; raises UserError if the folder holds none."""
    if config.adapter is None:
        return None
    return atomic.sha256(adapter_file(Path(config.adapter), f"--adapter {config.adapter}"))


def training_differences(config: GenerateConfig, categories: Sequence[Category]) -> list[str]:
    """Differences between this run's settings and names and those of the adapter's training, in a few words each."""
    trained = training.read(Path(config.adapter)) if config.adapter is not None else None
    if trained is None:
        return []
    found = [
        f"{name} {on_one_line(shown(getattr(config, name)))} (trained: {on_one_line(shown(then))})"
        for name, then in trained_settings(trained).items()
        if getattr(config, name) != then and (name != "screen_template" or config.checks)
    ]
    renamed = [category for category in categories if trained.names.get(category.id, category.name) != category.name]
    new = [category for category in categories if category.id not in trained.names]
    if renamed:
        name, then = (on_one_line(name) for name in (renamed[0].name, trained.names[renamed[0].id]))
        found.append(f'{counted_names(renamed)} another name, such as "{name}" (trained: "{then}")')
    if new:
        found.append(f'{counted_names(new)} no part in the training, such as "{on_one_line(new[0].name)}"')
    return found


def counted_names(categories: Sequence[Category]) -> str:
    return "1 category has" if len(categories) == 1 else f"{len(categories):,} categories have"
