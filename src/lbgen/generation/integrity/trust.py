"""Trust in a dataset's record: verify loads the models that it names only if this user made the dataset.

Otherwise the sender of a dataset could choose which models a repair or a comparison of scores downloads or reads. So
the user's state folder (XDG_STATE_HOME) stores the hash of every record that this user's flags wrote or agreed with.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from lbgen.configuration.values import plain
from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig
from lbgen.generation.inputs import INPUT_FIELDS, with_absolute_paths
from lbgen.generation.record import RECORD
from lbgen.runs.storage import Store


def remember_record(store: Store) -> None:
    """Note that this user's flags wrote or agreed with the current record of the dataset."""
    mark = _mark(store)
    with suppress(OSError):  # without a home folder, repairs ask for the models by flag
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def names_same_inputs(recorded: Mapping[str, Any], config: GenerateConfig) -> bool:
    """Whether a record names the same models and files as this run.

    A run may continue a dataset with copies at other locations; it then does not agree with the record's locations.
    """
    return all(recorded[name] == plain(getattr(config, name)) for name in INPUT_FIELDS)


def is_remembered(store: Store) -> bool:
    with suppress(OSError):
        return _mark(store).exists()
    return False


def _mark(store: Store) -> Path:
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return state / "lbgen" / "datasets" / hashlib.sha256(store.read(RECORD)).hexdigest()


def with_trusted_inputs(
    config: GenerateConfig, flags: Mapping[str, Any], store: Store, fields: Sequence[str] = INPUT_FIELDS
) -> GenerateConfig:
    """The configuration of a dataset that will be repaired or compared, with inputs that the user trusts.

    Inputs come from `flags` (None for a flag that was not given), and from the record if this user made the dataset.
    Inputs that come with lbgen are always trusted. Raises UserError for any other input, and for a missing one.

    fields: the fields whose inputs are loaded.
    """
    files = ("adapter", "attributes")
    given: dict[str, Any] = {
        name: Path(value) if name in files else value for name, value in flags.items() if value is not None
    }
    if not is_remembered(store):
        for name, value in loaded_inputs(config).items():
            if name in fields and name not in given:
                raise UserError(
                    f"{store}/{RECORD} names {name} {value}, but you did not make this dataset; to load it "
                    f"anyway, or another copy of it, give --{name.replace('_', '-')}"
                )
    trusted = with_absolute_paths(replace(config, **given))
    _ensure_inputs_exist(trusted, fields)
    return trusted


def loaded_inputs(config: GenerateConfig) -> dict[str, str]:
    """The inputs that a run would load, by field, except those that come with lbgen."""
    inputs = {name: getattr(config, name) for name in INPUT_FIELDS}
    if not config.checks:
        del inputs["screen_semantics"]
    return {name: str(value) for name, value in inputs.items() if value is not None and str(value) != "microworld"}


def _ensure_inputs_exist(config: GenerateConfig, fields: Sequence[str]) -> None:
    for name in fields:
        path = str(getattr(config, name))
        if path.startswith("/") and not os.path.exists(path):
            raise UserError(
                f"{config.output}/{RECORD}, {name}: {path} is not there; put it back, or say where it is now with "
                f"--{name.replace('_', '-')} (its content is compared, not its path)"
            )
