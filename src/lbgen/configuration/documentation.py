"""The docstring of a config or a result for `help()`: the class's text and the text of every field, also inherited."""

import dataclasses
import inspect
import textwrap
import typing
from typing import Any

from lbgen.configuration.flags import field_help
from lbgen.configuration.recipes import is_required

WIDTH = 100


class Documentation:
    """Takes the place of a class's `__doc__`. The texts of the fields are read from the source on first use."""

    def __init__(self, summary: str | None) -> None:
        self.summary = summary

    def __get__(self, instance: object, owner: Any) -> str | None:
        made = "__match_args__" in vars(owner)  # set by `dataclass` after it has looked for a docstring
        return (
            f"{inspect.cleandoc(self.summary)}\n\n{described_fields(owner)}" if made and self.summary else self.summary
        )


class Documented:
    """Base class of dataclasses whose `help()` shows the text of every field."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        documentation: Any = Documentation(vars(cls).get("__doc__"))
        cls.__doc__ = documentation


def described_fields(config_class: Any) -> str:
    """Every field with its type, default and text, under the headings of `--help`."""
    hints, helps = typing.get_type_hints(config_class), field_help(config_class)
    lines, heading = [], ""
    is_summary = len({each.heading for each in helps.values()}) == 1
    for field in [field for field in dataclasses.fields(config_class) if field.name in helps]:
        if helps[field.name].heading != heading and not is_summary:
            heading = helps[field.name].heading
            lines += [f"{heading}:"]
        default = "" if is_required(field) else f" = {_default(field)!r}"
        lines += [f"  {field.name}: {inspect.formatannotation(hints[field.name])}{default}"]
        indent = " " * 6
        lines += textwrap.wrap(
            helps[field.name].text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
        )
    return "\n".join(lines)


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
