"""The value of one field: converted from a flag's text or from YAML, and shown as a user would type it.

Field types may be str, int, float, bool, PathOrText, Literal[...], tuple[T, ...], tuple[T, T] and any of these
`| None`; or OneOrMore.
"""

import math
import numbers
import types
import typing
from pathlib import Path
from typing import Any, Literal

PathOrText = Path | str
"""A path, which Python code may give as text too; the field always holds a Path."""
OneOrMore = str | tuple[str, ...]
"""A text; or several as a list, on the command line and in YAML."""
EXPECTED = {
    str: "text (quote it)",
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    Path: "a path",
}


def convert(value: Any, hint: Any) -> Any:
    """Convert a flag's text, or a value from YAML or Python, to the type `hint`; ValueError names what was expected.

    Converting a value twice gives the same result.
    """
    if hint == OneOrMore:
        several = convert(value if isinstance(value, list | tuple) else [value], tuple[str, ...])
        return several[0] if len(several) == 1 else several
    hint, optional = split_optional(hint)
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
    any_length = arguments[-1] is Ellipsis
    if not isinstance(value, list | tuple) or not (any_length or len(value) == len(arguments)):
        raise ValueError(f"{_quoted(value)} is not a list of {'' if any_length else f'{len(arguments)} '}values")
    return tuple(convert(item, arguments[0]) for item in value)


def _convert_scalar(value: Any, hint: type) -> Any:
    """Parse text if a number is expected; never accept a number as text, nor a boolean as a number."""
    wrong = ValueError(f"{_quoted(value)} is not {EXPECTED[hint]}")
    if isinstance(value, str | Path) and "\0" in str(value):
        raise ValueError(f"{_quoted(value)} holds a NUL character; remove it")
    if hint is Path and isinstance(value, str | Path) and str(value):
        return Path(value)
    if hint is str and isinstance(value, Path):
        return str(value)
    if hint in (str, bool) and isinstance(value, hint):
        return value
    if hint is float and isinstance(value, numbers.Real | str) and not isinstance(value, bool):
        number = _parsed(float, value, wrong)
        if math.isfinite(number):
            return number
    if hint is int and isinstance(value, numbers.Integral | str) and not isinstance(value, bool):
        return _parsed(int, value, wrong)
    raise wrong


def _parsed(number_type: type, value: Any, wrong: ValueError) -> Any:
    try:
        return number_type(value)
    except (ValueError, OverflowError):
        raise wrong from None


def split_optional(hint: Any) -> tuple[Any, bool]:
    """`T | None` -> (T, True), anything else -> (hint, False); PathOrText counts as Path."""
    if hint == OneOrMore:
        return hint, False
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint, False
    inner = [argument for argument in typing.get_args(hint) if argument is not types.NoneType]
    if set(inner) == {Path, str}:
        inner = [Path]
    (one,) = inner
    return one, types.NoneType in typing.get_args(hint)


def plain(value: Any) -> Any:
    """The value in the form that YAML stores."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def shown(value: Any) -> str:
    """The value as a user would type it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return " ".join(map(shown, value)) or "empty"
    return str(value) or '""'


def _quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else shown(value)


def flag(name: str) -> str:
    """`max_steps` -> `--max-steps`."""
    return "--" + name.replace("_", "-")
