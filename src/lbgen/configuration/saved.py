"""The resolved config in a run's output: written, read back, and compared before a run continues."""

import dataclasses
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from lbgen.configuration import values
from lbgen.configuration.recipes import DELETED, build, converted, deleted_fields
from lbgen.configuration.values import flag, shown
from lbgen.configuration.yaml_lines import read_yaml, yaml_text
from lbgen.errors import UserError
from lbgen.runs.atomic import write_text
from lbgen.runs.console import is_verbose, say

Config = TypeVar("Config")

CONFIG = "config.yaml"
"""The file of a run's configuration; its presence marks a folder as a run's."""


def save(config: Any, path: Path) -> None:
    """Write every resolved value, readable by `load` and by any YAML reader."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, yaml_text(plain(config)))


def plain(config: Any) -> dict[str, Any]:
    """Name of each field -> its value in the form that YAML stores."""
    return {field.name: values.plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def say_in_full(config: Any) -> None:
    """Print the versions of the libraries and every setting, with --verbose only."""
    if is_verbose():
        from lbgen.runs.identity import versions  # late: slow to import

        say(f"versions: {', '.join(versions())}\n{yaml_text(plain(config))}")


def load(config_class: type[Config], path: Path) -> Config:
    """The config that `save` wrote to `path`."""
    return from_values(config_class, read_yaml(path), str(path))


def from_values(config_class: type[Config], given: Mapping[str, Any], source: str) -> Config:
    """A config from the values of a YAML file, which messages call `source`."""
    found = converted(config_class, given, lambda name: f"{source}, {name}")
    return build(config_class, found, lambda name: f"{source}: {name} is missing")


def ensure_same(config: Any, path: Path, ignore: Iterable[str] = ("output",), remedy: str | None = None) -> None:
    """Refuse to continue a run if its config file at `path` differs from `config` in any field.

    remedy: the alternative to another --output, for fields without flags; by default the flag with the earlier value.
    """
    ensure_same_values(config, read_yaml(path), str(path.parent), ignore, remedy)


def ensure_same_values(
    config: Any, then: Mapping[str, Any], place: str, ignore: Iterable[str], remedy: str | None = None
) -> None:
    """`ensure_same` for values `then` that were already read; `place` is the output that was made with them.

    A field that was deleted since is accepted at its former default, a field that was added at the value that
    reproduces the earlier behaviour.
    """
    now, deleted = plain(config), deleted_fields(type(config))
    then = {**getattr(config, "ADDED", {}), **then}
    names = [*now, *(set(then) - set(now))]
    for name in sorted(names, key=lambda name: name in now and name in then):  # first the fields that one side lacks
        if name in ignore or (name in deleted and then[name] == deleted[name]):
            continue
        if name in deleted:
            raise UserError(
                f"{place} was made with {name} {shown(then[name])}, but {DELETED}; "
                "choose another --output, or continue there with the version that began it"
            )
        if name not in then or name not in now:
            knows = "no field" if name in now else "the field"
            raise UserError(
                f"{place} was made by another verb or version of lbgen, with {knows} {name}; choose another --output"
            )
        if then[name] != now[name]:
            raise UserError(
                f"{place} was made with {name} {shown(then[name])}, this run asks for {shown(now[name])}; "
                f"choose another --output or {remedy or _as_given(config, name, then[name])}"
            )


def _as_given(config: Any, name: str, value: Any) -> str:
    """How to set this value: `size`, [64, 64] -> `give --size 64 64`. A positional argument has no flag."""
    prefix = [] if name in getattr(config, "POSITIONAL", ()) else [flag(name)]
    if isinstance(value, bool):
        return f"give {flag(name) if value else flag(f'no-{name}')}"
    if value == []:
        return f"leave out {''.join(prefix) or f'the {name}'}"
    each = value if isinstance(value, list) else [value]
    return f"give {shlex.join([*prefix, *map(shown, each)])}"
