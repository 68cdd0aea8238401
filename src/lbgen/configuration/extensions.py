"""Extensions, which add to lbgen without changing it: loss terms, quality scorers, language spaces, generator families.

An extension has a name in a group. `register` adds an object in this process; an installed distribution adds one in
every process, by an entry point of the group `lbgen.GROUP`. An extension cannot replace a name of lbgen's own.
"""

import os
import sys
from collections.abc import Container, Iterable, Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Any, Literal, get_args

from lbgen.errors import UserError

Group = Literal["families", "semantics", "quality", "terms"]
REGISTERED: dict[str, dict[str, Any]] = {group: {} for group in get_args(Group)}
"""Group -> name -> the object that was registered in this process."""


def register(group: Group, name: str, extension: Any) -> None:
    """Add an extension in this process, under a name that a configuration can then use; see docs/extend.md.

    group: "terms", a function of a `Batch` of B images that returns a scalar; "quality", a scorer or a function that
    makes one for the run's language space; "semantics", a function of (device, dtype) that makes a language space;
    "families", a class of generators, by the `_class_name` in their model_index.json.

    A second call with the same name replaces the first. Other processes, such as `--workers 2`, do not see it: install
    an entry point for them. Raises UserError for a group that does not exist, and for an object that is not callable.

    >>> import lbgen
    >>> def darkness(batch: lbgen.Batch):
    ...     return batch.images.mean()  # images (B, 3, H, W), about 0 to 1
    >>> lbgen.register("terms", "darkness", darkness)
    >>> config = lbgen.AlignConfig(extra_terms=("darkness=0.1",))
    """
    if group not in REGISTERED:
        raise UserError(f"register: {group} is not a group of extensions; give one of {', '.join(REGISTERED)}")
    if not name or not (callable(extension) or (group == "quality" and hasattr(extension, "score"))):
        remedy = "give a name and a function or a class"
        if name and group == "quality":
            kind = type(extension).__name__
            remedy = f"a {kind} has no method `score`; give a scorer, or a function or a class that makes one"
        raise UserError(f"register: {name or 'an empty name'} in {group}: {remedy}")
    REGISTERED[group][name] = extension


def find(group: Group, name: str, own: Mapping[str, Any]) -> Any | None:
    """The object called `name`: lbgen's own entry in the table `own`, else the extension, else None."""
    if name in own or name in REGISTERED[group]:
        return own[name] if name in own else REGISTERED[group][name]
    point = _entry_point(group, name)
    if point is None:
        return None
    try:
        return point.load()
    except Exception as error:  # importing a third-party module may raise anything
        raise UserError(
            f'{_distribution(point)}, entry point "{name}" of lbgen.{group}: it cannot be loaded '
            f"({type(error).__name__}: {error}); repair that package or uninstall it"
        ) from error


def is_extension(group: Group, name: str, own: Container[str]) -> bool:
    """Whether an extension has this name; it is not loaded."""
    return name not in own and (name in REGISTERED[group] or _entry_point(group, name) is not None)


def names(group: Group, own: Iterable[str]) -> str:
    """All names of a group, lbgen's own first, for messages."""
    installed = {point.name for point in _installed(group)}
    return ", ".join(dict.fromkeys([*own, *sorted(installed | set(REGISTERED[group]))]))


def origin(group: Group, name: str, own: Container[str]) -> str | None:
    """Where an extension comes from, for records: "DISTRIBUTION VERSION", or the object that was registered.

    None for a name that is not an extension.
    """
    if name in own:
        return None
    if name in REGISTERED[group]:
        extension = REGISTERED[group][name]
        named = extension if hasattr(extension, "__qualname__") else type(extension)
        return f"registered {named.__module__}.{named.__qualname__}"
    point = _entry_point(group, name)
    return None if point is None else _distribution(point)


def _installed(group: Group) -> EntryPoints:
    """The entry points of every distribution; read again when a folder has changed, as on an installation."""
    return _entry_points(group, tuple((place, _changed(place or os.curdir)) for place in sys.path))


def _changed(folder: str) -> int:
    """Modification time of the folder; 0 if it does not exist."""
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=len(REGISTERED))
def _entry_points(group: Group, folders: tuple[tuple[str, int], ...]) -> EntryPoints:
    return entry_points(group=f"lbgen.{group}")


def _entry_point(group: Group, name: str) -> EntryPoint | None:
    """The entry point of this name; UserError if two distributions have it."""
    found = list({point.value: point for point in _installed(group).select(name=name)}.values())
    if len(found) > 1:
        who = " and ".join(sorted(map(_distribution, found)))
        raise UserError(f"{name}: {who} both define it in lbgen.{group}; uninstall one of them")
    return found[0] if found else None


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value
