"""How a config gets its values: the fields' defaults, then a YAML recipe, then the flags.

A recipe may build on another one. Its line `base: NAME` or `base: FILE` (relative to the recipe's folder) names the
recipe that supplies the values it does not set itself.
"""

import dataclasses
import difflib
import os
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from lbgen.configuration.values import convert, flag
from lbgen.configuration.yaml_lines import read_with_lines
from lbgen.errors import UserError

Config = TypeVar("Config")
RECIPES = Path(__file__).parent / "recipes"
"""The built-in recipes: VERB/NAME.yaml."""
BASE = "base"
"""The entry of a recipe that names the recipe it builds on."""


def resolve(config_class: type[Config], recipe: str | None, overrides: Mapping[str, Any]) -> Config:
    """Defaults, then the recipe (a built-in name or a YAML file), then the overrides (flags, by field name).

    Defaults derived from the given values (`Settings.inherited`) replace the defaults of the fields.
    """
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    if recipe is not None:
        _refuse_recipe_of_another(config_class, recipe, "--recipe")
        values, places = recipe_values(config_class, recipe_path(recipe, verb=getattr(config_class, "VERB", None)))
    values |= converted(config_class, overrides, flag)
    if inherited := getattr(config_class, "inherited", None):
        values = {**inherited(values), **values}
    try:
        return build(config_class, values, lambda name: f"{flag(name)} is missing; it has no default")
    except UserError as error:
        if error.field not in places or error.field in overrides:
            raise
        raise UserError(f"{places[error.field]}{str(error).removeprefix(flag(error.field))}") from None


class TakesRecipes:
    """Base class of configs whose defaults a recipe may replace."""

    VERB: ClassVar[str]
    """The verb of the command line to which the config and its built-in recipes belong."""

    @classmethod
    def from_recipe(cls, recipe: str | Path | None, **fields: Any) -> Self:
        """The config of a recipe (a built-in name or a YAML file), with these fields changed as flags would.

        None means no recipe: the defaults or, for generation with an `adapter`, the adapter's settings. Raises
        UserError for a recipe or a field that does not exist, and for a value that the field does not allow.

        >>> import lbgen
        >>> config = lbgen.AlignConfig.from_recipe("independent", output="runs/animals", vocabulary="animals.txt")
        """
        return resolve(cls, None if recipe is None else os.fspath(recipe), fields)


def _refuse_recipe_of_another(config_class: type, recipe: str, place: str) -> None:
    """Refuse a built-in recipe that is for another verb.  place: where it was named, for the message."""
    owner, verb = built_in_recipes().get(recipe), getattr(config_class, "VERB", None)
    if verb and owner not in (None, verb):
        own = ", ".join(built_in_recipes(verb)) or "none"
        raise UserError(f"{place} {recipe}: it belongs to lbgen {owner}; lbgen {verb} has {own}")


def recipe_values(
    config_class: type, path: Path, above: tuple[Path, ...] = ()
) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of a recipe, including its base recipes, and the place of each, for messages.

    above: the recipes that build on this one.
    """
    if path.resolve() in above:
        raise UserError(f"{above[-1]}, {BASE}: {path} builds on this recipe itself; remove one of the two")
    given, lines = read_with_lines(path)
    places = {name: f"{path}, line {lines[name]}: {name}" if name in lines else f"{path}, {name}" for name in given}
    base = given.pop(BASE, None)
    values = converted(config_class, given, places.__getitem__)
    if base is None:
        return values, places
    if not isinstance(base, str) or not base:
        raise UserError(f"{places[BASE]}: give the name of a built-in recipe or a file")
    _refuse_recipe_of_another(config_class, base, places[BASE])
    file = recipe_path(base, places[BASE], path.parent, getattr(config_class, "VERB", None))
    values_below, places_below = recipe_values(config_class, file, (*above, path.resolve()))
    return {**values_below, **values}, {**places_below, **places}


def recipe_path(recipe: str, place: str = "--recipe", folder: Path = Path(), verb: str | None = None) -> Path:
    """The file of a built-in recipe; any other name is the path of a file, relative to `folder`.

    place, verb: where the recipe was named and what for, for the message.
    """
    verbs = built_in_recipes()
    path = RECIPES / verbs[recipe] / f"{recipe}.yaml" if recipe in verbs else folder / os.path.expanduser(recipe)
    if not os.path.isfile(path):  # Path.is_file raises if a name is longer than the file system allows
        what = "no regular file" if os.path.exists(path) else "no such file"
        own = built_in_recipes(verb)
        known = f"nor one of the built-in recipes ({', '.join(own)})" if own else f"and lbgen {verb} has no recipes"
        close = difflib.get_close_matches(recipe, own, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"{place} {recipe}: {what}, {known}{hint}")
    return path


def built_in_recipes(verb: str | None = None) -> dict[str, str]:
    """Name of each built-in recipe -> the verb that it is for, sorted by name; those of one verb if it is given."""
    paths = sorted(RECIPES.glob(f"{verb or '*'}/*.yaml"), key=lambda path: path.stem)
    return {path.stem: path.parent.name for path in paths}


def converted(config_class: type, given: Mapping[str, Any], place: Callable[[str], str]) -> dict[str, Any]:
    """The given values, each converted to its field's type; in messages `place(name)` says where a value was given."""
    hints = typing.get_type_hints(config_class)
    names = [field.name for field in dataclasses.fields(config_class)]
    values = {}
    for name, value in given.items():
        if name in deleted_fields(config_class):
            raise UserError(f"{place(name)}: {DELETED}; remove it")
        if name not in names:
            raise UserError(f"{place(name)}: no such field{_suggestion(name, names)}")
        try:
            values[name] = convert(value, hints[name])
        except ValueError as error:
            raise UserError(f"{place(name)}: {error}") from None
    return values


DELETED = "this version of lbgen no longer has this field"


def deleted_fields(config_class: type) -> Mapping[str, Any]:
    """Fields of earlier versions that were deleted -> their default there."""
    return getattr(config_class, "DELETED", {})


def _suggestion(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name).replace("-", "_"), names, n=1)
    return f"; did you mean {close[0]}?" if close else "; remove it (--help lists the fields)"


def build(config_class: type[Config], values: dict[str, Any], missing_message: Callable[[str], str]) -> Config:
    """The config with these values and defaults for the others; UserError if a value is missing or out of range."""
    for field in dataclasses.fields(config_class):  # type: ignore[arg-type]
        if field.name not in values and is_required(field):
            raise UserError(missing_message(field.name))
    try:
        return config_class(**values)
    except ValueError as error:  # a range, checked by the dataclass's own __post_init__
        raise UserError(str(error), getattr(error, "field", None)) from None


def is_required(field: dataclasses.Field) -> bool:
    """Whether the field has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
