"""`lbgen recipes`: the recipes that come with lbgen, listed or shown."""

from dataclasses import dataclass
from typing import ClassVar

from lbgen.configuration.ranges import Settings
from lbgen.configuration.recipes import BASE, RECIPES, built_in_recipes, recipe_path
from lbgen.configuration.yaml_lines import read_yaml
from lbgen.runs import atomic
from lbgen.runs.console import result, table


@dataclass(frozen=True)
class RecipesConfig(Settings):
    """Recipes."""

    POSITIONAL: ClassVar = ("name",)

    name: str | None = None
    """Recipe whose file is printed, by name or path; without it all built-in recipes are listed."""


def recipes(name: str | RecipesConfig | None = None) -> None:
    """Print the built-in recipes, one per line with its verb and first sentence, or the file of one recipe.

    Raises UserError for a name that is neither a built-in recipe nor a file.

    >>> import lbgen
    >>> lbgen.recipes("paper")
    """
    asked = name if isinstance(name, RecipesConfig) else RecipesConfig(name)
    if asked.name is not None:
        path = recipe_path(asked.name)
        result(f"# {path}\n{atomic.read_bytes(path).decode('utf-8', 'replace')}")
        return
    print(table([(recipe, f"lbgen {verb:10}{summary(recipe)}") for recipe, verb in built_in_recipes().items()]))
    print("Show one with `lbgen recipes NAME`; use it with `lbgen VERB --recipe NAME`; build on it with `base: NAME`.")


def summary(recipe: str) -> str:
    """The first sentence of a built-in recipe's comment, and the recipe that it builds on."""
    path = RECIPES / built_in_recipes()[recipe] / f"{recipe}.yaml"
    comment: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    sentence = " ".join(comment).partition(". ")[0].rstrip(".:")
    base = read_yaml(path).get(BASE)
    return f"{sentence} (builds on {base})" if base else sentence
