"""One plain dataclass per stage: its fields are the flags, a YAML recipe their defaults, the resolved values a file.

A field's docstring is the string literal on the line after it; it becomes the flag's help. Field types may be str, int,
float, bool, Path, Literal[...], tuple[T, ...], tuple[T, T] and any of these `| None`.
"""

import argparse
import ast
import dataclasses
import difflib
import inspect
import math
import os
import re
import shlex
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from lbgen.errors import UserError
from lbgen.runs.atomic import write_text

Config = TypeVar("Config")
RECIPES = Path(__file__).parent / "recipes"
"""VERB/NAME.yaml."""


# ---- flags ----


def require(config: Any, name: str, holds: bool, remedy: str) -> None:
    """Refuse a field's value, naming its flag: for the checks in a config's `__post_init__`."""
    if not holds:
        raise UserError(f"--{name.replace('_', '-')} {getattr(config, name)}: {remedy}")


def add_arguments(parser: argparse.ArgumentParser, config_class: type) -> None:
    """Add one flag per field; only the flags that were given end up in the parsed namespace.

    Values stay text here (`resolve` converts them), so recipes and flags are checked by the same lines.
    """
    hints, texts = typing.get_type_hints(config_class), field_docstrings(config_class)
    for field in dataclasses.fields(config_class):
        text = f"{texts[field.name]} ({_shown_default(field)})".replace("%", "%%")
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text, "dest": field.name}
        parser.add_argument(flag(field.name), **options, **_argparse_options(hints[field.name]))


def flag(name: str) -> str:
    """`max_steps` -> `--max-steps`."""
    return "--" + name.replace("_", "-")


def field_docstrings(config_class: type) -> dict[str, str]:
    """The string literal after each annotated field, base classes first, read from the class's source."""
    texts: dict[str, str] = {}
    for cls in reversed([cls for cls in config_class.__mro__ if dataclasses.is_dataclass(cls)]):
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
        for statement, following in zip(body, body[1:], strict=False):
            match statement, following:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    texts[name] = " ".join(text.split())
    missing = [field.name for field in dataclasses.fields(config_class) if field.name not in texts]
    assert not missing, f"{config_class.__name__}: no docstring after {missing}"
    return texts


def _argparse_options(hint: Any) -> dict[str, Any]:
    """How argparse takes a value of this type."""
    hint, _ = _split_optional(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if origin is tuple:
        several = arguments[-1] is Ellipsis
        return {"nargs": "+" if several else len(arguments), "metavar": _metavar(arguments[0])}
    if origin is Literal:
        return {"metavar": "{" + ",".join(map(str, arguments)) + "}"}
    return {"metavar": _metavar(hint)}


def _metavar(hint: Any) -> str:
    return {int: "N", float: "X", Path: "PATH"}.get(hint, "TEXT")


def _shown_default(field: dataclasses.Field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return "default: " + _shown(field.default_factory())
    return "required" if field.default is dataclasses.MISSING else "default: " + _shown(field.default)


def _shown(value: Any) -> str:
    """A value as one would type it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return " ".join(map(_shown, value)) if isinstance(value, tuple | list) else str(value)


# ---- resolving ----


def resolve(config_class: type[Config], recipe: str | None, overrides: Mapping[str, Any]) -> Config:
    """Defaults, then the recipe (a built-in name or a YAML file), then the overrides (flags, by field name)."""
    values: dict[str, Any] = {}
    if recipe is not None:
        path = recipe_path(recipe)
        values |= _checked(config_class, read_yaml(path), lambda name: f"{path}, {name}")
    values |= _checked(config_class, overrides, flag)
    return _build(config_class, values, lambda name: f"{flag(name)} is missing; it has no default")


def recipe_path(recipe: str) -> Path:
    """A built-in recipe's file, or else the path itself."""
    verbs = built_in_recipes()
    path = RECIPES / verbs[recipe] / f"{recipe}.yaml" if recipe in verbs else Path(recipe)
    if not os.path.isfile(path):  # Path.is_file raises where a name is longer than the file system takes
        raise UserError(f"--recipe {recipe}: no such file, nor one of the built-in recipes ({', '.join(verbs)})")
    return path


def built_in_recipes() -> dict[str, str]:
    """Name -> the verb that it is for; in order."""
    return {path.stem: path.parent.name for path in sorted(RECIPES.glob("*/*.yaml"), key=lambda path: path.stem)}


def _checked(config_class: type, given: Mapping[str, Any], place: Callable[[str], str]) -> dict[str, Any]:
    """The given values converted to their fields' types; `place(name)` says where a value stood."""
    hints = typing.get_type_hints(config_class)
    names = [field.name for field in dataclasses.fields(config_class)]
    values = {}
    for name, value in given.items():
        if name not in names:
            raise UserError(f"{place(name)}: no such field{_suggestion(name, names)}")
        try:
            values[name] = convert(value, hints[name])
        except ValueError as error:
            raise UserError(f"{place(name)}: {error}") from None
    return values


def _suggestion(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name).replace("-", "_"), names, n=1)
    return f"; did you mean {close[0]}?" if close else "; remove it (--help lists the fields)"


def _build(config_class: type[Config], values: dict[str, Any], missing_message: Callable[[str], str]) -> Config:
    for field in dataclasses.fields(config_class):  # type: ignore[arg-type]
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if field.name not in values and not has_default:
            raise UserError(missing_message(field.name))
    try:
        return config_class(**values)
    except ValueError as error:  # a range checked by the dataclass's own __post_init__
        raise UserError(str(error)) from None


def convert(value: Any, hint: Any) -> Any:
    """`value`, text from a flag or a value from YAML, as the type `hint`; ValueError says what was expected."""
    hint, optional = _split_optional(hint)
    if optional and (value is None or value == "none"):
        return None
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return _convert_tuple(value, arguments)
    if origin is Literal:
        matches = [choice for choice in arguments if value == choice or value == str(choice)]
        if not matches:
            raise ValueError(f"{_quoted(value)} is not one of {', '.join(map(str, arguments))}")
        return matches[0]
    return _convert_scalar(value, hint)


def _convert_tuple(value: Any, arguments: tuple) -> tuple:
    several = arguments[-1] is Ellipsis
    if not isinstance(value, list | tuple) or not (several or len(value) == len(arguments)):
        raise ValueError(f"{_quoted(value)} is not a list of {'' if several else f'{len(arguments)} '}values")
    return tuple(convert(item, arguments[0]) for item in value)


EXPECTED = {
    str: "text (quote it)",
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    Path: "a path",
}


def _convert_scalar(value: Any, hint: type) -> Any:
    """Text is parsed where a number is wanted; a number is never taken for text, nor a boolean for a number."""
    wrong = ValueError(f"{_quoted(value)} is not {EXPECTED[hint]}")
    if hint is Path and isinstance(value, str | Path) and str(value):
        return Path(value)
    if hint in (str, bool) and isinstance(value, hint):
        return value
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        number = _parsed(float, value, wrong)
        if math.isfinite(number):
            return number
    if hint is int and isinstance(value, int | str) and not isinstance(value, bool):
        return _parsed(int, value, wrong)
    raise wrong


def _parsed(number_type: type, value: Any, wrong: ValueError) -> Any:
    try:
        return number_type(value)
    except (ValueError, OverflowError):
        raise wrong from None


def _quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else _shown(value)


def _split_optional(hint: Any) -> tuple[Any, bool]:
    """`T | None` -> (T, True), anything else -> (hint, False)."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint, False
    (inner,) = [argument for argument in typing.get_args(hint) if argument is not types.NoneType]
    return inner, True


# ---- files ----


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: `1e-5` is a number, `off` and `no` are text (in YAML 1.1 it is the other way round)."""

    yaml_implicit_resolvers: dict = {}


class _Dumper(yaml.SafeDumper):
    """Quotes every text that either YAML version would read as something else."""


for _tag, _pattern, _first in [
    ("null", r"null|~|", ["n", "~", ""]),
    ("bool", r"true|false", list("tf")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
]:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of `field: value` lines."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    return parse_yaml(content, str(path))


def parse_yaml(content: bytes, source: str) -> dict[str, Any]:
    """`field: value` lines; `source` is what messages call them."""
    try:
        values = yaml.load(content.decode(), Loader=_Loader)
    except UnicodeDecodeError:
        raise UserError(f"{source}: not UTF-8 text; save it as UTF-8") from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{source}{place}: not valid YAML ({problem or type(error).__name__})") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{source}: expected lines of the form `field: value`")
    return values


def save(config: Any, path: Path) -> None:
    """Write every resolved value, readable by `load` and by any YAML reader."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, yaml_text(plain(config)))


def plain(config: Any) -> dict[str, Any]:
    """Every field's value, by name, as YAML holds it."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def yaml_text(values: Mapping[str, Any]) -> str:
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def load(config_class: type[Config], path: Path) -> Config:
    """The config that `save` wrote to `path`."""
    return from_values(config_class, read_yaml(path), str(path))


def from_values(config_class: type[Config], values: Mapping[str, Any], source: str) -> Config:
    """A config from values as YAML holds them; `source` is what messages call them."""
    checked = _checked(config_class, values, lambda name: f"{source}, {name}")
    return _build(config_class, checked, lambda name: f"{source}: {name} is missing")


def ensure_same(config: Any, path: Path, ignore: Iterable[str] = ("output",), remedy: str | None = None) -> None:
    """Refuse to go on in a folder whose config file, at `path`, holds another value than `config` in any field.

    remedy: what else than another --output helps, for fields without flags; by default the flag with the earlier value.
    """
    ensure_same_values(config, read_yaml(path), str(path.parent), ignore, remedy)


def ensure_same_values(
    config: Any, then: Mapping[str, Any], place: str, ignore: Iterable[str], remedy: str | None = None
) -> None:
    """The same for values that were read already; `place` is the output that was made with them."""
    now = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    for name in [*now, *(set(then) - set(now))]:
        if name in ignore:
            continue
        if name not in then or name not in now:
            knows = "no field" if name in now else "the field"
            raise UserError(f"{place} was made by a version of lbgen with {knows} {name}; choose another --output")
        if then[name] != _plain(now[name]):
            raise UserError(
                f"{place} was made with {name} {_shown(then[name])}, this run asks for {_shown(now[name])}; "
                f"choose another --output or {remedy or 'give ' + _as_flag(name, then[name])}"
            )


def _as_flag(name: str, value: Any) -> str:
    """`size`, [64, 64] -> `--size 64 64`."""
    if isinstance(value, bool):
        return flag(name) if value else flag(f"no-{name}")
    values = value if isinstance(value, list) else [value]
    return shlex.join([flag(name), *map(_shown, values)])
