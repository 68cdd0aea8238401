"""A dataset's record: dataset.yaml (configuration, identity) and plan.json (targets); which runs may continue it."""

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
from lbgen.errors import UserError, printable
from lbgen.generation import inputs, targets
from lbgen.generation.card.json_files import labels_json
from lbgen.generation.config import RUNNING, GenerateConfig
from lbgen.generation.inputs import HASH_NAMES, INPUT_FIELDS, MODEL_REGISTRIES
from lbgen.generation.integrity import strays
from lbgen.generation.plan import Plan
from lbgen.generation.screening import balance
from lbgen.generation.targets import StoredTarget, Target
from lbgen.runs import atomic, outputs
from lbgen.runs.identity import Identity
from lbgen.runs.parsing import REMEDY
from lbgen.runs.storage import Store, is_remote
from lbgen.vocabulary.attributes import Attribute

RECORD, PLAN = outputs.DATASET_RECORD
COMPLETION_MARKER = strays.CROISSANT
"""The file that is written last: a dataset with it is complete and described."""
GROWTH_FIELDS = ("vocabulary", "qualify_names", "images_per_category", "split")
"""Fields that may change, because a dataset may grow; the plan compares them."""


@dataclass(frozen=True)
class Record:
    """The content of the two files."""

    config: Mapping[str, Any]
    made_with: Identity
    targets: tuple[Target, ...]


# ---- reading and writing ----


def read(store: Store) -> Record | None:
    """The record of the dataset in a store; None if it holds no dataset."""
    stored = index.read_stored(store, PLAN, list[StoredTarget])
    if stored is None:
        return None
    content = parse_yaml(store.read(RECORD), f"{store}/{RECORD}") if store.exists(RECORD) else {}
    if "config" not in content or "made_with" not in content:
        raise UserError(f"{store}: {RECORD} is missing or incomplete; restore it or choose another --output")
    ensure_config_shape(content["config"], f"{store}/{RECORD}, config")
    made_with = Identity.from_plain(content["made_with"], HASH_NAMES.values(), f"{store}/{RECORD}, made_with")
    return Record(content["config"], made_with, targets.from_json(stored, f"{store}/{PLAN}"))


def ensure_config_shape(values: Any, source: str) -> None:
    """Refuse a recorded configuration whose values do not have the types of their fields."""
    if not isinstance(values, dict):
        raise UserError(f"{source}: not lines of `field: value`; {REMEDY}")
    for name, hint in typing.get_type_hints(GenerateConfig).items():
        if name in values:
            try:
                convert(values[name], hint)
            except ValueError as error:
                raise UserError(f"{source}, {name}: {error}; {REMEDY}") from None
        elif name in ("batch_size", *INPUT_FIELDS):
            raise UserError(f"{source}, {name}: it is missing; {REMEDY}")


def config_of(record: Record, output: str) -> GenerateConfig:
    """The configuration that a dataset was made with, except for the fields in RUNNING."""
    values = {name: value for name, value in record.config.items() if name not in RUNNING}
    try:
        return saved.from_values(GenerateConfig, {**values, "output": output}, f"{output}/{RECORD}")
    except UserError as error:
        if RECORD in str(error):
            raise
        raise UserError(f"{output}/{RECORD}: {error}; {REMEDY}") from None


def write(store: Store, config: GenerateConfig, made_with: Identity, plan: Plan) -> None:
    """Record a new dataset, or its growth, before its first image; plan.json, written last, makes the record valid.

    dataset.yaml is written first: it marks the folder as lbgen's.
    """
    values = {name: value for name, value in saved.plain(config).items() if name not in RUNNING}
    store.write(RECORD, yaml_text({"config": values, "made_with": made_with.to_plain()}).encode())
    store.write(strays.LABELS, labels_json(plan.categories).encode())
    store.write(PLAN, (json.dumps(targets.to_json(plan.targets), ensure_ascii=False) + "\n").encode())


# ---- checks before a dataset is continued ----


def ensure_output_fits(store: Store, config: GenerateConfig) -> None:
    """Refuse an output that cannot be written, or that holds something other than a dataset of lbgen generate."""
    if not is_remote(config.output):
        atomic.ensure_writable(Path(config.output))
    names = store.names()
    if PLAN in names:
        return  # `read` refuses an invalid record
    if not is_remote(config.output):
        outputs.ensure_outside(Path(config.output), within=False)
    foreign = strays.foreign_names(store, config)
    begun = RECORD in names and _is_record(store)  # a run was stopped before it had a plan
    others = [name for name in foreign if name not in (RECORD, strays.LABELS)] if begun else foreign
    if not others or PLAN in store.names():  # another part of the run has recorded it meanwhile
        return
    if begun:
        raise UserError(
            f"{store}: has a {RECORD} and {printable(others[0])}, but no {PLAN}; restore it or choose another --output"
        )
    outputs.refuse(config.output, others[0], "generate")


def _is_record(store: Store) -> bool:
    try:
        content = parse_yaml(store.read(RECORD), RECORD)
    except (UserError, OSError):
        return False
    return {"config", "made_with"} <= content.keys()


def ensure_room(store: Store, config: GenerateConfig, record: Record | None, plan: Plan) -> None:
    """Refuse growth that would overwrite files; this dataset's own files were recorded before they were written."""
    if record is None or record.targets == plan.targets:
        return
    earlier = Plan(record.targets, plan.seed, plan.shard_size)
    found = strays.existing_files(store, config, plan, config.split, earlier)
    file = next(found, None)
    if file and (now := read(store)) and now.targets == record.targets:  # no other part of the run has recorded it
        outputs.refuse(config.output, file, "generate")


def ensure_continues(record: Record, config: GenerateConfig, balanced: Sequence[Attribute]) -> None:
    """Refuse a configuration that differs from the dataset's; needs no model and no torch."""
    ensure_same_config(record, config)
    _ensure_same_models(record, config)
    _ensure_same_adapter(record, config)
    ensure_same_attributes(record, config, balanced)


def ensure_same_config(record: Record, config: GenerateConfig) -> None:
    """Refuse another value in any field, except for fields about running, growth and the location of inputs."""
    free = {*RUNNING, *GROWTH_FIELDS, *INPUT_FIELDS} | ({"batch_size"} if config.batch_size is None else set())
    saved.ensure_same_values(config, record.config, config.output, free)


def _ensure_same_models(record: Record, config: GenerateConfig) -> None:
    """Refuse models with other weights; the same weights may have moved."""
    for name in MODEL_REGISTRIES:
        now, then = getattr(config, name), record.config[name]
        if now == then or (name == "screen_semantics" and not config.checks):
            continue
        same_name = inputs.without_folder(now) == inputs.without_folder(then) or name == "screen_semantics"
        recorded = record.made_with.hashes[HASH_NAMES[name]]
        if not same_name or inputs.weights_sha256(config, name, record.made_with) != recorded:
            raise UserError(
                f"{config.output} was made with {name} {then}, this run asks for {now}, which is another; "
                f"choose another --output or give --{name.replace('_', '-')} {then}"
            )


def _ensure_same_adapter(record: Record, config: GenerateConfig) -> None:
    then = record.made_with.hashes["adapter"]
    if inputs.adapter_sha256(config) != then:
        raise UserError(
            f"{config.output} was made with another adapter (adapter_sha256 {then}); "
            "give --adapter the folder it was made with, or choose another --output"
        )


def ensure_same_attributes(record: Record, config: GenerateConfig, balanced: Sequence[Attribute]) -> None:
    if balance.attributes_sha256(balanced) != record.made_with.hashes["attributes"]:
        raise UserError(
            f"{config.output} was made with other templates or values of {', '.join(config.balance)}; "
            "give --attributes the file it was made with, or choose another --output"
        )
