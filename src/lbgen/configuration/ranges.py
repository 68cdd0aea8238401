"""Types and ranges of config fields and of arguments of public functions, checked in one place.

In a field that may be a path, "~" becomes the home folder.
"""

import dataclasses
import functools
import os
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

from lbgen.configuration.documentation import Documented
from lbgen.configuration.values import OneOrMore, convert, flag, shown, split_optional
from lbgen.errors import UserError


class Range(NamedTuple):
    """The values that a field allows, and the remedy in the message for any other value."""

    contains: Callable[[Any], bool]
    remedy: str

    def __repr__(self) -> str:
        return f"Range({self.remedy!r})"  # as help() shows it


class MayBePath(NamedTuple):
    """Marks a text that may be a local path, besides a name or an address."""


NameOrPath = Annotated[str, MayBePath()]
NamesOrPaths = Annotated[OneOrMore, MayBePath()]


def between(least: int, most: int, more: str = "") -> Range:
    """Whole numbers in [least, most].  more: text added to the remedy."""
    return Range(lambda n: least <= n <= most, f"give {least} or more, {most:,} at most{more}")


Count = Annotated[int, between(1, 10**9)]
NonNegativeInt = Annotated[int, between(0, 10**9)]
ImagesAtOnce = Annotated[int, between(1, 2**20)]
"""Size of a batch."""
Repeats = Annotated[int, between(1, 10_000)]
"""Number of trainings, draws or seeds."""
Workers = Annotated[int, between(1, 2**16)]
"""Number of processes that share work; no more are started than the work has parts."""
Writers = Annotated[int, between(1, 1024)]
"""Number of threads of a process."""
Loaders = Annotated[int, between(0, 1024)]
"""Number of processes that load data. All of them are started, and ten thousand would overload a machine."""
NonNegative = Annotated[float, Range(lambda x: x >= 0, "give 0 or more")]
Positive = Annotated[float, Range(lambda x: x > 0, "give a number above 0")]
Weight = Annotated[float, Range(lambda x: x >= 0, "give 0 (off) or more")]
Share = Annotated[float, Range(lambda x: 0 <= x <= 1, "give a share in [0, 1]")]
PositiveShare = Annotated[float, Range(lambda x: 0 < x <= 1, "give a share in (0, 1]")]
Betas = Annotated[tuple[float, float], Range(lambda pair: all(0 <= b < 1 for b in pair), "give two numbers in [0, 1)")]
LearningRate = Annotated[float, Range(lambda x: 0 < x <= 1e6, "give a number above 0, 1e6 at most")]
Seed = Annotated[int, Range(lambda n: 0 <= n < 2**63, "give 0 or more, below 2**63")]
LARGEST_SIDE = 8192
"""Longest side of an image in pixels. WebP allows 16,383, and no generator makes larger images."""
Size = Annotated[
    tuple[int, int],
    Range(lambda size: min(size) >= 1 and max(size) <= LARGEST_SIDE, f"give two numbers from 1 to {LARGEST_SIDE}"),
]
Rank = Annotated[int, Range(lambda n: 1 <= n <= 4096, "give 1 to 4096")]
Template = Annotated[str, Range(lambda text: "{name}" in text, 'write "{name}" where the category\'s name goes')]


def require(config: Any, name: str, holds: bool, remedy: str) -> None:
    """Refuse a field's value with a message that names its flag; for the checks in a config's `__post_init__`."""
    if not holds:
        raise UserError(f"{flag(name)} {shown(getattr(config, name))}: {remedy}", name)


def ensure_config(config: Any, config_class: type) -> None:
    """Refuse anything but an instance of this class or of a subclass."""
    if not isinstance(config, config_class):
        raise UserError(f"config: give lbgen.{config_class.__name__}(...), not {type(config).__name__}")


def one_or_more(given: Any, what: str) -> list[str]:
    """One or several names or paths as texts; refuses anything else.  what: the noun for them in the message."""
    several = [given] if isinstance(given, str | os.PathLike) else given
    if not isinstance(several, Sequence) or not all(isinstance(one, str | os.PathLike) and str(one) for one in several):
        raise UserError(f"{shown(given):.80}: give {what}, by name or path, one or several")
    return [os.fspath(one) for one in several]


def expand_home(config: Any, name: str) -> None:
    """Replace "~" at the start of a field's path; a shell does so too, but not in --output=~/x."""
    value = getattr(config, name)
    several = value if isinstance(value, tuple) else (value,)
    expanded = tuple(path if path is None else type(path)(os.path.expanduser(path)) for path in several)
    for before, after in zip(several, expanded, strict=True):
        require(config, name, not str(after).startswith("~"), f"no such user; write ./{before} for that file itself")
    if expanded != several:
        object.__setattr__(config, name, expanded if isinstance(value, tuple) else expanded[0])


@dataclass(frozen=True)
class Settings(Documented):
    """Base class of all groups: converts every field to its type, like a flag or a recipe, and checks its range.

    A subclass makes its own checks after `super().__post_init__()`, when the values have their types.
    """

    MOST_USED: ClassVar[tuple[str, ...]] = ()
    """Fields shown first in the help."""
    DELETED: ClassVar[Mapping[str, Any]] = {}
    """Fields of earlier versions that were deleted -> their default there; a run with that value can continue."""
    ADDED: ClassVar[Mapping[str, Any]] = {}
    """Fields that earlier versions did not have -> the value that reproduces the earlier behaviour."""

    @classmethod
    def inherited(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Defaults derived from the given values, such as the settings of an adapter; none by default."""
        return {}

    def __post_init__(self) -> None:
        config_class: Any = type(self)
        for name, hint in _types(config_class).items():
            try:
                object.__setattr__(self, name, convert(getattr(self, name), hint))
            except ValueError as error:
                raise UserError(f"{flag(name)}: {error}") from None
        for name in _path_fields(config_class):
            value = getattr(self, name)
            require(self, name, "" not in (value if isinstance(value, tuple) else (value,)), "give a name or a path")
            expand_home(self, name)
        for name, allowed in _ranges(config_class).items():
            value = getattr(self, name)
            require(self, name, value is None or allowed.contains(value), allowed.remedy)


@functools.cache
def _types(config_class: type) -> dict[str, Any]:
    """Field -> its type."""
    hints = typing.get_type_hints(config_class)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_class)}


@functools.cache
def _ranges(config_class: type) -> dict[str, Range]:
    """The fields that have a range."""
    marks = {name: getattr(hint, "__metadata__", (None,))[0] for name, hint in _hints(config_class).items()}
    return {name: mark for name, mark in marks.items() if isinstance(mark, Range)}


@functools.cache
def _path_fields(config_class: type) -> list[str]:
    """The fields that may hold a path."""
    return [name for name, hint in _hints(config_class).items() if hint in (Path, NameOrPath, NamesOrPaths)]


def _hints(config_class: type) -> dict[str, Any]:
    """Field -> its type with its annotations, without `| None`."""
    hints = typing.get_type_hints(config_class, include_extras=True)
    return {field.name: split_optional(hints[field.name])[0] for field in dataclasses.fields(config_class)}
