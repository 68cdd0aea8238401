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
from lbgen.configuration.yaml_lines import read_yaml
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
    if recipe is not None:
        _refuse_recipe_of_another(config_class, recipe)
        values |= recipe_values(config_class, recipe_path(recipe))
    values |= converted(config_class, overrides, flag)
    if inherited := getattr(config_class, "inherited", None):
        values = {**inherited(values), **values}
    return build(config_class, values, lambda name: f"{flag(name)} is missing; it has no default")


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


def _refuse_recipe_of_another(config_class: type, recipe: str) -> None:
    """Refuse a built-in recipe that is for another verb."""
    owners, verb = built_in_recipes(), getattr(config_class, "VERB", None)
    if verb and owners.get(recipe, verb) != verb:
        own = ", ".join(name for name, owner in owners.items() if owner == verb)
        raise UserError(f"--recipe {recipe}: it belongs to lbgen {owners[recipe]}; lbgen {verb} has {own or 'none'}")


def recipe_values(config_class: type, path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a recipe, including its base recipes.  above: the recipes that build on this one."""
    if path.resolve() in above:
        raise UserError(f"{above[-1]}, {BASE}: {path} builds on this recipe itself; remove one of the two")
    given = read_yaml(path)
    base = given.pop(BASE, None)
    values = converted(config_class, given, lambda name: f"{path}, {name}")
    if base is None:
        return values
    if not isinstance(base, str) or not base:
        raise UserError(f"{path}, {BASE}: give the name of a built-in recipe or a file")
    file = recipe_path(base, f"{path}, {BASE}", path.parent)
    return {**recipe_values(config_class, file, (*above, path.resolve())), **values}


def recipe_path(recipe: str, place: str = "--recipe", folder: Path = Path()) -> Path:
    """The file of a built-in recipe; any other name is the path of a file, relative to `folder`.

    place: where the recipe was named, for the message.
    """
    verbs = built_in_recipes()
    path = RECIPES / verbs[recipe] / f"{recipe}.yaml" if recipe in verbs else folder / os.path.expanduser(recipe)
    if not os.path.isfile(path):  # Path.is_file raises if a name is longer than the file system allows
        what = "no regular file" if os.path.exists(path) else "no such file"
        raise UserError(f"{place} {recipe}: {what}, nor one of the built-in recipes ({', '.join(verbs)})")
    return path


def built_in_recipes() -> dict[str, str]:
    """Name of each built-in recipe -> the verb that it is for, sorted by name."""
    return {path.stem: path.parent.name for path in sorted(RECIPES.glob("*/*.yaml"), key=lambda path: path.stem)}


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
        raise UserError(str(error)) from None


def is_required(field: dataclasses.Field) -> bool:
    """Whether the field has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
