"""Attributes: what an image may show besides its object (scene, style, light), as texts for a language space.

A YAML file has one block per attribute: its `template`, with {value} and perhaps {name} in it, and its `values`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lbgen.configuration.yaml_lines import read_yaml
from lbgen.errors import UserError

DATA = Path(__file__).parent / "data"
BUILT_IN = DATA / "attributes.yaml"
"""Attributes of photographs in general."""
MICROWORLD = DATA / "microworld-attributes.yaml"
MEASURED = ("measured position", "measured colour")
"""Names reserved for the attributes that the audit measures without texts."""


@dataclass(frozen=True)
class Attribute:
    name: str
    template: str
    """Text that contains {value} and optionally {name}."""
    values: tuple[str, ...]
    source: str
    """The file and the name, for messages."""

    def texts(self, name: str) -> list[str]:
        """One text per value, for a category of this name; an image gets the value whose text is nearest to it."""
        return [self.template.replace("{name}", name).replace("{value}", value) for value in self.values]


def load_attributes(given: str | Path | None) -> list[Attribute]:
    """The attributes of a YAML file, of the micro world ("microworld"), or by default of photographs."""
    path = BUILT_IN if given is None else MICROWORLD if str(given) == "microworld" else Path(given)
    content = read_yaml(path)
    if not content:
        raise UserError(f"{path}: no attributes in it; write `name: {{template: ..., values: [...]}}` for each")
    return [_attribute(path, str(name), given) for name, given in content.items()]


def _attribute(path: Path, name: str, given: Any) -> Attribute:
    place = f"{path}, {name}"
    if name in MEASURED:
        raise UserError(f"{place}: this name belongs to a measure without texts; choose another")
    if not isinstance(given, dict) or set(given) != {"template", "values"}:
        raise UserError(f"{place}: give it a `template` and `values`, and nothing else")
    template, values = given["template"], given["values"]
    if not isinstance(template, str) or "{value}" not in template:
        raise UserError(f"{place}: template {template!r} has no {{value}}; write it where a value goes")
    if not isinstance(values, list) or len(values) < 2 or not all(isinstance(value, str) for value in values):
        raise UserError(f"{place}: values are not a list of two or more texts; quote numbers and true or false")
    if len(set(values)) < len(values):
        raise UserError(f"{place}: a value is listed twice; remove one")
    return Attribute(name, template, tuple(values), place)
