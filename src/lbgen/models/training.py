"""training.json beside an adapter: the settings of its training, for runs that generate with it.

It is not part of the adapter's identity, which is the hash of its weights. The folder is untrusted, so the file is
checked like flags.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lbgen.configuration import saved
from lbgen.configuration.ranges import Template
from lbgen.configuration.recipes import build, converted
from lbgen.configuration.settings import Trajectory
from lbgen.errors import UserError
from lbgen.runs import atomic
from lbgen.runs.parsing import Name, Text, checked, read_json
from lbgen.vocabulary.vocabulary import Category

FILE = "training.json"
VERSION = 1
ADDED = {"true_cfg_scale": 1.0, "pipeline_instruction": False}
"""Settings that files of earlier versions lack -> the value that they imply."""
REMEDY = "restore the file, or remove it to generate with lbgen's own defaults"


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(Trajectory):
    """The settings that should be equal in a run that generates with the adapter."""

    qualify_names: bool
    prompt_template: Template
    text_template: Template


FIELDS = tuple(field.name for field in fields(TrainingSettings))


@dataclass(frozen=True)
class TrainingRecord:
    """The content of the file."""

    settings: TrainingSettings
    names: Mapping[str, str]
    """Category id -> name in prompts."""


def write(adapter: Path, config: Any, categories: Iterable[Category]) -> None:
    """Write the file into the adapter's folder.  config: has at least the fields of TrainingSettings."""
    values = {name: value for name, value in saved.plain(config).items() if name in FIELDS}
    content = {"version": VERSION, **values, "names": {category.id: category.name for category in categories}}
    atomic.write_text(adapter / FILE, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def read(adapter: Path) -> TrainingRecord | None:
    """Read the file that `write` wrote; None if there is none.  UserError for invalid content."""
    path = adapter / FILE
    if not os.path.lexists(path):
        return None
    content = read_json(atomic.read_bytes(path), dict[Name, Any], str(path), REMEDY)
    if content.get("version") != VERSION:
        raise UserError(f"{path}: not of version {VERSION}, which this lbgen reads; {REMEDY}")
    names = checked(content.get("names"), dict[Name, Text], f"{path}, names", REMEDY)
    given = {name: content[name] for name in FIELDS if name in content}
    given = {**ADDED, **given}
    try:
        values = converted(TrainingSettings, given, str)
        for name in FIELDS:
            if name not in values:
                raise UserError(f"{name}: it is missing")
        settings = build(TrainingSettings, values, str)
    except UserError as error:
        raise UserError(f"{path}, {error}; {REMEDY}") from None
    return TrainingRecord(settings, names)
