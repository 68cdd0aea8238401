"""Files of `field: value` lines: YAML 1.2, read and written."""

import copy
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from lbgen.errors import UserError
from lbgen.runs import atomic

LARGEST_FILE = 2**20
"""Largest file that is read, in bytes; PyYAML reads about a megabyte per second."""
MOST_VALUES, DEEPEST = 100_000, 20
"""Limits on the number of values in a file after its aliases are expanded, and on the depth of nested lists."""
YAML_ERRORS = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError)
"""Exceptions of PyYAML, also for values that it cannot construct and for lists that are nested too deeply."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: `1e-5` is a number, `off` and `no` are text (in YAML 1.1, text and booleans)."""

    yaml_implicit_resolvers: dict = {}


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 would read as another type."""


for _tag, _pattern, _first in [
    ("null", r"null|~|", ["n", "~", ""]),
    ("bool", r"true|false", list("tf")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
]:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def read_yaml(path: Path) -> dict[str, Any]:
    """The values of a file, by field."""
    return read_with_lines(path)[0]


def read_with_lines(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The values of a file, by field, and the number of each field's line."""
    try:
        content = atomic.read_bytes(path, LARGEST_FILE)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a file that can be read") from None
    return parse_yaml(content, str(path)), _read(content)[1]


def parse_yaml(content: bytes, source: str) -> dict[str, Any]:
    """The values in a file's content, by field; messages call the file `source`."""
    if len(content) > LARGEST_FILE:
        raise UserError(f"{source}: larger than {LARGEST_FILE} bytes; shorten it")
    try:
        values = copy.deepcopy(_read(content)[0])
    except UnicodeDecodeError:
        raise UserError(f"{source}: not UTF-8 text; save it as UTF-8") from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{source}{place}: not valid YAML ({problem or type(error).__name__}); repair it") from None
    except YAML_ERRORS:
        raise UserError(f"{source}: not valid YAML (a value in it cannot be read); repair it") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{source}: expected lines of the form `field: value`; repair it")
    if _values_in(values, MOST_VALUES) > MOST_VALUES:
        raise UserError(f"{source}: more than {MOST_VALUES} values, or nested too deeply; shorten it")
    return {str(name): value for name, value in values.items()}


@lru_cache(maxsize=8)
def _read(content: bytes) -> tuple[Any, dict[str, int]]:
    """The content as PyYAML parses it, and the line number of each field; cached, because files are read many times."""
    loader = _Loader(content.decode())
    node = loader.get_single_node()
    values = None if node is None else loader.construct_document(node)
    names = [name for name, _ in node.value] if isinstance(node, yaml.MappingNode) else []
    return values, {name.value: name.start_mark.line + 1 for name in names if isinstance(name, yaml.ScalarNode)}


def _values_in(value: Any, most: int, depth: int = 0) -> int:
    """Number of values inside a value, itself included; an alias counts at each use. Stops above `most`."""
    items = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
    count = 1 if depth < DEEPEST else most + 1
    for item in items:
        if count > most:
            break
        count += _values_in(item, most - count, depth + 1)
    return count


def yaml_text(values: Mapping[str, Any]) -> str:
    """The values as YAML, in their order; any YAML reader reads them back."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False)
