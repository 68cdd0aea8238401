"""The cache of observations: a file of fixed-size rows, found by their keys, which survives an interruption."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lbgen.audit.workers.observer import DIGEST

ROWS_AT_ONCE = 4096
"""Number of rows of the cache that are read at a time."""


class RowCache:
    """Rows of a fixed dtype, found by their keys; one writer at a time (run.py holds the lock).

    A partly written row of a killed run is dropped when the file is opened again.
    """

    def __init__(self, folder: Path, identity: str, fields: list[tuple[str, Any, tuple[int, ...]]]) -> None:
        """identity: everything, besides the key, that determines a row; each identity has its own file."""
        self.dtype = np.dtype([("key", np.uint8, (DIGEST,)), *fields])
        name = hashlib.sha256(f"{identity}\n{self.dtype.descr}".encode()).hexdigest()[:16]
        self.path = folder / f"seen-{name}.rows"
        folder.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        whole = self.path.stat().st_size // self.dtype.itemsize
        with self.path.open("r+b") as stream:
            stream.truncate(whole * self.dtype.itemsize)
        self.row_of: dict[bytes, int] = {}
        for start in range(0, whole, ROWS_AT_ONCE):
            keys = self.read("key", np.arange(start, min(start + ROWS_AT_ONCE, whole)))
            self.row_of |= {key.tobytes(): row for row, key in enumerate(keys, start)}

    def append(self, keys: list[bytes], columns: dict[str, NDArray]) -> None:
        """Add the rows whose keys are new, each key once.  columns: name -> (len(keys), ...)."""
        first = {key: row for row, key in reversed(list(enumerate(keys))) if key not in self.row_of}
        chosen = sorted(first.values())
        rows = np.zeros(len(chosen), self.dtype)
        for name, values in columns.items():
            rows[name] = values[chosen]
        rows["key"] = np.frombuffer(b"".join(keys[row] for row in chosen), np.uint8).reshape(-1, DIGEST)
        with self.path.open("ab") as stream:
            begin = stream.tell() // self.dtype.itemsize
            stream.write(rows.tobytes())
        self.row_of |= {keys[row]: place for place, row in enumerate(chosen, begin)}

    def read(self, name: str, rows: NDArray[np.int64]) -> NDArray:
        """One column of these rows, (len(rows), ...).

        Each part is read through its own memory map, because pages of an open map count as this process's memory.
        """
        found = np.empty((len(rows), *self.dtype[name].shape), self.dtype[name].base)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = rows[start : start + ROWS_AT_ONCE]
            found[start : start + len(part)] = np.memmap(self.path, dtype=self.dtype, mode="r")[name][part]
        return found
