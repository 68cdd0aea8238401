"""What someone changed in stored files (bytes, values of JSON, YAML, an index), and what lbgen may answer to it."""

import copy
import io
import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lbgen.errors import LONGEST_MESSAGE, UserError

INPUTS = int(os.environ.get("LBGEN_FUZZ", "2000"))
"""Changed inputs of each kind, always the same ones; `make fuzz` makes 50,000."""
SECONDS = 20
"""An input that takes longer is a hang."""

NUMBERS = [0, -1, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400, 1e308, 1e-320, float("nan"), float("inf"), 0.5]
TEXTS = [
    "", " ", "x", "../../x", "/etc/passwd", "~", "a\0b", "\x1b[2J", "\u202e", "é", "e\u0301", "\n", "con", "x" * 5000,
    "none", "null", "true", "1e5", "{name}", "{0.__class__}", "{name!r:>{9}}", "%s%n", "$HOME", "<script>", "\ud7ff",
]  # fmt: skip
VALUES = [None, True, False, [], {}, [[]], {"": None}, [{}], [None] * 3, {"x": {"x": {"x": []}}}, *NUMBERS, *TEXTS]
"""What stored files should not hold."""
PIECES = [b"\0", b"\xff", b"\xed\xa0\x80", b"\x1b[2J", b"{", b"[" * 1100, b"}", b"]", b'"', b"'", b":", b"-", b"\n",
          b"\t", b"!!int ''", b"!!timestamp abc", b"!!python/object:x {}", b"&a [*a]", b"<<: *a", b"1" * 5000, b"1e999",
          b"NaN", b"%YAML 9.9\n", b"---\n", b"\xef\xbb\xbf", b"\r", b",", b"#", b"\xe2\x80\xa8"]  # fmt: skip


class Hang(BaseException):
    """Not an Exception, so that no handler takes it for a fault of the input."""


def fuzz(use: Callable[[random.Random], None], share: float = 1.0) -> None:
    """Call `use` with the random state of each input. It may raise UserError with one short line, and nothing else."""

    def stop(signum: int, frame: Any) -> None:
        raise Hang(f"still running after {SECONDS} seconds")

    previous = signal.signal(signal.SIGALRM, stop)
    try:
        for number in range(round(share * INPUTS)):
            signal.alarm(SECONDS)
            try:
                use(random.Random(number))
            except UserError as error:
                message = str(error)
                assert message.isprintable() and 0 < len(message) <= LONGEST_MESSAGE + 5, f"input {number}: {message}"
            except BaseException as error:
                error.add_note(f"input {number}: debug with use(random.Random({number}))")
                raise
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


@contextmanager
def replaced(path: Path, content: bytes) -> Iterator[None]:
    """The file has this content within the context, and its own again afterwards."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def changed(content: Any, rng: random.Random) -> Any:
    """A copy of plain values with one to three of them replaced, removed, added or repeated."""
    content = copy.deepcopy(content)
    for _ in range(rng.randint(1, 3)):
        containers = list(_containers(content))
        if not containers or rng.random() < 0.02:
            return copy.deepcopy(rng.choice(VALUES))
        container = rng.choice(containers)
        keys = list(container) if isinstance(container, dict) else list(range(len(container)))
        action = rng.choice(["replace", "replace", "replace", "remove", "add"])
        value = copy.deepcopy(rng.choice(VALUES))
        if action == "add" and isinstance(container, dict):
            container[rng.choice(TEXTS)] = value
        elif action == "add":
            container.append(copy.deepcopy(rng.choice([*container, value])))
        elif keys and action == "remove":
            del container[rng.choice(keys)]
        elif keys:
            container[rng.choice(keys)] = value
    return content


def _containers(content: Any) -> Iterator[Any]:
    if isinstance(content, dict | list):
        yield content
        for item in content.values() if isinstance(content, dict) else content:
            yield from _containers(item)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The bytes with one to three places flipped, cut off, removed, repeated or filled with something else."""
    for _ in range(rng.randint(1, 3)):
        place = rng.randint(0, len(content))
        end = place + rng.choice([1, 2, 8, 100])
        action = rng.choice(["flip", "flip", "cut", "remove", "repeat", "insert", "insert", "fill"])
        if action == "flip" and place < len(content):
            content = content[:place] + bytes([content[place] ^ (1 << rng.randint(0, 7))]) + content[place + 1 :]
        elif action == "cut":
            content = content[:place]
        elif action == "remove":
            content = content[:place] + content[end:]
        elif action == "repeat":
            content = content[:end] + content[place:]
        elif action == "insert":
            content = content[:place] + rng.choice(PIECES) + content[place:]
        elif action == "fill":
            content = content[:place] + bytes(end - place) + content[end:]
    return content


def changed_json(content: bytes, rng: random.Random) -> bytes:
    """JSON, which is YAML too, with other values, or in one of three cases with other bytes."""
    if rng.random() < 1 / 3:
        return damaged(content, rng)
    return json.dumps(changed(json.loads(content), rng)).encode()


def changed_lines(content: bytes, rng: random.Random) -> bytes:
    """The same for lines of JSON."""
    if rng.random() < 1 / 3:
        return damaged(content, rng)
    lines = changed([json.loads(line) for line in content.splitlines()], rng)
    return "".join(f"{json.dumps(line)}\n" for line in (lines if isinstance(lines, list) else [lines])).encode()


def changed_file(path: Path, rng: random.Random) -> bytes:
    """Other content of a stored file, by its kind."""
    content = path.read_bytes()
    if path.suffix in (".json", ".yaml") and content[:1] in b"{[":
        return changed_json(content, rng)
    if path.suffix == ".jsonl":
        return changed_lines(content, rng)
    if path.parent.name == "index" and rng.random() < 2 / 3:
        return changed_index(content, rng)
    return damaged(content, rng)


def changed_index(content: bytes, rng: random.Random) -> bytes:
    """A part of an index with another value in some cell, of the column's type if that is possible."""
    table = pq.read_table(io.BytesIO(content))
    rows, column = table.to_pylist(), rng.choice(table.schema)
    rng.choice(rows)[column.name] = rng.choice(VALUES)
    try:
        table = pa.Table.from_pylist(rows, table.schema)
    except (pa.ArrowException, UnicodeError, OverflowError, TypeError):
        table = table.drop_columns([column.name])
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()
