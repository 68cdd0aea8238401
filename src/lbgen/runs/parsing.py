"""Reading stored JSON, which is untrusted input: its structure, numbers and size are checked against a type.

A type is written with Python's annotations, dataclasses and msgspec's `Meta` for bounds, for example
`dict[Name, Whole]`. JSON that nests deeper than Python's recursion limit is refused like malformed JSON.
"""

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from lbgen.errors import UserError
from lbgen.runs.atomic import LARGEST_FILE

T = TypeVar("T")

REMEDY = "restore the file or choose another --output"

Whole = Annotated[int, Meta(ge=0, lt=2**53)]
"""A count, an index or a size, small enough that a float represents it exactly."""
Seconds = Annotated[float, Meta(ge=0, le=1e12)]
Name = Annotated[str, Meta(max_length=512)]
"""A key, an id or a file's name."""
Text = Annotated[str, Meta(max_length=10_000)]


class Malformed(ValueError):
    """Content that is not of the requested type."""

    def __init__(self, problem: str, field: str = "") -> None:
        """field: the path of the value within the content, such as `[0].split`; empty for the whole content."""
        self.problem, self.field = problem, field
        super().__init__(f"{field}: {problem}" if field else problem)


def parse_json(content: str | bytes, kind: Any = Any, largest: int = LARGEST_FILE) -> Any:
    """The JSON value as the type `kind`; raises Malformed for any other type, and for more than `largest` bytes."""
    if len(content) > largest:
        raise Malformed(f"longer than {largest} bytes")
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as error:
        raise _malformed(error) from None
    except (msgspec.DecodeError, UnicodeError) as error:  # UnicodeError: half of a surrogate pair
        raise Malformed(f"not valid JSON ({error})") from None
    except RecursionError:
        raise Malformed("not valid JSON (nested too deeply)") from None


def read_json(content: str | bytes, kind: type[T], source: str, remedy: str = REMEDY) -> T:
    """`parse_json` for a file that lbgen wrote, called `source` in messages; raises UserError instead of Malformed."""
    try:
        return parse_json(content, kind)
    except Malformed as error:
        raise _user_error(error, source, remedy) from None


def checked(value: Any, kind: type[T], source: str, remedy: str = REMEDY) -> T:
    """A value from YAML or JSON as the type `kind`; raises UserError if it is of another type."""
    try:
        return msgspec.convert(value, type=kind)
    except msgspec.ValidationError as error:
        raise _user_error(_malformed(error), source, remedy) from None
    except RecursionError:
        raise UserError(f"{source}: nested too deeply; {remedy}") from None


def _malformed(error: msgspec.ValidationError) -> Malformed:
    """Splits msgspec's "Expected `int`, got `str` - at `$[0].split`" into the problem and the path."""
    problem, _, place = str(error).partition(" - at ")
    return Malformed(problem.replace("`", ""), place.strip("`").removeprefix("$").removeprefix("."))


def _user_error(error: Malformed, source: str, remedy: str) -> UserError:
    place = f"{source}, {error.field}" if error.field else source
    return UserError(f"{place}: {error.problem}; {remedy}")
