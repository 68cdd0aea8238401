"""What a dataset says of its making: dataset.yaml and plan.json, and whether a run may go on with them."""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lbgen.configuration import saved
from lbgen.configuration.values import convert
from lbgen.configuration.yaml_lines import parse_yaml, yaml_text
from lbgen.datasets import index
from lbgen.errors import UserError
from lbgen.generation import plan as plans
from lbgen.generation.card.sidecars import labels_json
from lbgen.generation.config import RUNNING, GenerateConfig
from lbgen.generation.plan import Plan, Target
from lbgen.generation.screening import balance
from lbgen.models import registry
from lbgen.runs import atomic, identity
from lbgen.runs.storage import Store, is_remote
from lbgen.vocabulary.attributes import Attribute

RECORD, PLAN, COMPLETE = "dataset.yaml", "plan.json", "croissant.json"
"""COMPLETE is written last of all: a dataset that has it is finished and described."""
ADAPTER = "pytorch_lora_weights.safetensors"
GROWS = ("vocabulary", "qualify_names", "images_per_category", "split")
"""Fields that the plan speaks for: a dataset may grow."""
PLACES = ("generator", "adapter", "attributes", "screen_semantics")
"""Fields that may name a folder or a file, whose content counts."""


@dataclass(frozen=True)
class MadeWith:
    """Hashes of what the configuration only names, and versions (see lbgen.runs.identity)."""

    generator_sha256: str | None
    adapter_sha256: str | None
    semantics_sha256: str | None
    """Of the space that screens, where there is screening."""
    attributes_sha256: str | None
    """Of the balanced attributes' templates and values."""
    versions: tuple[str, ...]


@dataclass(frozen=True)
class Record:
    """The two files of a dataset, read."""

    config: Mapping[str, Any]
    made_with: Mapping[str, Any]
    targets: tuple[Target, ...]


def read(store: Store) -> Record | None:
    """The record of the dataset in a store; None where there is no dataset."""
    targets = index.read_json(store, PLAN)
    if targets is None:
        return None
    content = parse_yaml(store.read(RECORD), f"{store}/{RECORD}") if store.exists(RECORD) else {}
    if "config" not in content or "made_with" not in content:
        raise UserError(f"{store}: has a {PLAN} and no whole {RECORD}; restore it or choose another --output")
    for part, kind in (("config", GenerateConfig), ("made_with", MadeWith)):
        check_shape(content[part], kind, f"{store}/{RECORD}, {part}")
    return Record(content["config"], content["made_with"], plans.from_json(targets, f"{store}/{PLAN}"))


def check_shape(values: Any, kind: type, place: str) -> None:
    """Refuse a part of dataset.yaml that does not hold the fields of a dataclass, each of its type."""
    if not isinstance(values, dict):
        raise UserError(f"{place}: not lines of `field: value`; restore the file or choose another --output")
    for name, hint in typing.get_type_hints(kind).items():
        try:
            if name in values:
                convert(values[name], hint)
            elif name in ("batch_size", *PLACES) or kind is MadeWith:
                raise ValueError("it is missing")
        except ValueError as error:
            raise UserError(f"{place}, {name}: {error}; restore the file or choose another --output") from None


def check_place(store: Store, config: GenerateConfig) -> None:
    """Refuse an output that cannot be written, or that holds something else than a dataset of ours."""
    if not is_remote(config.output):
        atomic.ensure_writable(Path(config.output))
    names = store.names()
    if RECORD in names:
        return
    if foreign := names & {"config.yaml", config.split, "data", "index", "README.md"}:
        found = min(foreign)
        raise UserError(f"--output {config.output}: {found} in it is not of lbgen generate; choose another --output")


def check_config(record: Record, config: GenerateConfig) -> None:
    """Refuse a dataset of another configuration, by the field that differs."""
    free = {*RUNNING, *GROWS, *PLACES} | ({"batch_size"} if config.batch_size is None else set())
    saved.ensure_same_values(config, record.config, config.output, free)


def check_made_with(record: Record, made_with: MadeWith, output: str) -> None:
    """Refuse to go on with other weights or versions: a dataset's images would be of two kinds."""
    saved.ensure_same_values(made_with, record.made_with, output, ("versions",), remedy="restore what it was made with")
    identity.ensure_versions(record.made_with["versions"], output)


def check_adapter(record: Record, config: GenerateConfig) -> None:
    """Refuse another adapter; the same one may have moved."""
    if adapter_sha256(config) != record.made_with["adapter_sha256"]:
        raise UserError(
            f"{config.output} was made with another adapter (adapter_sha256 {record.made_with['adapter_sha256']}); "
            "give --adapter the folder it was made with, or choose another --output"
        )


def check_attributes(record: Record, config: GenerateConfig, balanced: Sequence[Attribute]) -> None:
    """Refuse attributes of other texts; their file may have moved."""
    if balance.attributes_sha256(balanced) != record.made_with["attributes_sha256"]:
        raise UserError(
            f"{config.output} was made with other templates or values of {', '.join(config.balance)}; "
            "give --attributes the file it was made with, or choose another --output"
        )


def config_of(record: Record, output: str) -> GenerateConfig:
    """The configuration that a dataset was made with; how it was run is nobody's business but this run's."""
    values = {name: value for name, value in record.config.items() if name not in RUNNING}
    return saved.from_values(GenerateConfig, {**values, "output": output}, f"{output}/{RECORD}")


def made_with(config: GenerateConfig) -> MadeWith:
    """Hashes and versions of all that goes into a dataset; after loading, which may have brought weights."""
    semantics = registry.resolve(config.screen_semantics, registry.SEMANTICS)
    return MadeWith(
        generator_sha256=identity.weights_sha256(registry.resolve(config.generator, registry.GENERATORS)),
        adapter_sha256=adapter_sha256(config),
        semantics_sha256=identity.weights_sha256(semantics) if config.checks else None,
        attributes_sha256=balance.attributes_sha256(balance.balanced_attributes(config)),
        versions=identity.versions(),
    )


def adapter_sha256(config: GenerateConfig) -> str | None:
    if config.adapter is None:
        return None
    file = config.adapter / ADAPTER
    if not file.is_file():
        raise UserError(f"--adapter {config.adapter}: no {ADAPTER} in it; give an alignment run's adapter folder")
    return atomic.sha256(file)


def write(store: Store, config: GenerateConfig, made_with: MadeWith, plan: Plan) -> None:
    """Record a dataset, or its growth, before its first image."""
    store.write("labels.json", labels_json(plan.categories).encode())
    values = {name: value for name, value in saved.plain(config).items() if name not in RUNNING}
    text = yaml_text({"config": values, "made_with": saved.plain(made_with)})
    store.write(RECORD, text.encode())
    store.write(PLAN, (json.dumps(plans.to_json(plan.targets), ensure_ascii=False) + "\n").encode())  # now it counts
