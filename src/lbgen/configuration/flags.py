"""The fields of a config dataclass as flags of the command line, in groups, with their help.

A field's help is the string literal on the line after it, and a group is the class that declares the field.
"""

import argparse
import ast
import dataclasses
import functools
import inspect
import shlex
import sys
import typing
from collections.abc import Container
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lbgen.configuration.completion import VALUES
from lbgen.configuration.recipes import is_required
from lbgen.configuration.values import OneOrMore, flag, shown, split_optional

MOST_USED = "most used"
"""Heading of the first group, to which lbgen.cli adds --recipe."""


class FieldHelp(NamedTuple):
    heading: str
    """Heading of the field's group."""
    text: str


def add_arguments(parser: argparse.ArgumentParser, config_class: type, without: Container[str] = ()) -> None:
    """Add one flag per field, or a positional argument for a field without a default.  without: fields left out.

    A field that its class lists in POSITIONAL is an optional positional argument.

    The parsed namespace holds only the arguments that were given. Values stay text here; `recipes.resolve` converts
    them, so that recipes and flags are checked by the same code.
    """
    hints, helps = typing.get_type_hints(config_class), field_help(config_class)
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    missing = [name for name in fields if name not in helps]
    assert not missing, f"{config_class.__name__}: no docstring after {missing}"
    most_used, positional = (getattr(config_class, name, ()) for name in ("MOST_USED", "POSITIONAL"))
    for name in [*most_used, *(name for name in fields if name not in most_used and name not in without)]:
        heading = MOST_USED if name in most_used else helps[name].heading
        text = helps[name].text.replace("%", "%%")
        options: dict[str, Any] = {"default": argparse.SUPPRESS, **_argparse_options(hints[name])}
        if is_required(fields[name]):
            choices = typing.get_args(hints[name]) if typing.get_origin(hints[name]) is Literal else None
            parser.add_argument(name, **options | {"metavar": name.upper(), "choices": choices, "help": text})
        elif name in positional:
            several = typing.get_origin(hints[name]) is tuple
            options |= (
                {"metavar": name.upper().removesuffix("S"), "nargs": "*"}
                if several
                else {"metavar": name.upper(), "nargs": "?"}
            )
            parser.add_argument(name, **options | {"help": text})
        else:
            options["help"] = f"{text} (default: {_shown_default(fields[name])})"
            added = group(parser, heading).add_argument(flag(name), dest=name, **options)
            setattr(added, VALUES, choices_of(hints[name]))


def group(parser: argparse.ArgumentParser, heading: str) -> argparse._ArgumentGroup:
    """The parser's group with this heading; created if missing."""
    return next((each for each in parser._action_groups if each.title == heading), None) or parser.add_argument_group(
        heading
    )


def field_help(config_class: type) -> dict[str, FieldHelp]:
    """Heading and text of every field, read from the source of the class and of its bases.

    The base class that declares a field gives its heading; a class that repeats the field may replace its text.
    """
    found: dict[str, FieldHelp] = {}
    for cls in reversed([cls for cls in config_class.__mro__ if dataclasses.is_dataclass(cls)]):
        node = _class_node(cls)
        heading = (ast.get_docstring(node) or "flags").splitlines()[0].rstrip(".").lower()
        for statement, following in zip(node.body, node.body[1:], strict=False):
            match statement, following:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    declared = found[name].heading if name in found else heading
                    found[name] = FieldHelp(declared, " ".join(text.split()))
    return found


def _class_node(cls: type) -> ast.ClassDef:
    """The class's definition in the source of its module."""
    return _class_nodes(cls.__module__)[cls.__name__]


@functools.cache
def _class_nodes(module: str) -> dict[str, ast.ClassDef]:
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def choices_of(hint: Any) -> list[str]:
    """The values of a field (or of each item of a tuple) if its type lists them; otherwise empty."""
    hint, _ = split_optional(hint)
    if typing.get_origin(hint) is tuple:
        hint = typing.get_args(hint)[0]
    return list(map(str, typing.get_args(hint))) if typing.get_origin(hint) is Literal else []


def _argparse_options(hint: Any) -> dict[str, Any]:
    """The options of argparse for a value of this type."""
    hint, _ = split_optional(hint)
    if hint == OneOrMore:
        return {"nargs": "+", "metavar": "TEXT"}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if origin is tuple:
        any_length = arguments[-1] is Ellipsis
        return {"nargs": "+" if any_length else len(arguments), "metavar": _metavar(arguments[0])}
    if origin is Literal:
        return {"metavar": "{" + ",".join(map(str, arguments)) + "}"}
    return {"metavar": _metavar(hint)}


def _metavar(hint: Any) -> str:
    return {int: "N", float: "X", Path: "PATH"}.get(hint, "TEXT")


def _shown_default(field: dataclasses.Field) -> str:
    """The default as typed in a shell; each of several values is quoted if necessary."""
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if isinstance(value, tuple):
        return shlex.join(map(shown, value)) or "empty"
    return shown(value)
