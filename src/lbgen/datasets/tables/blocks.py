"""Reading single rows of a table. Parquet gives only whole row groups, so those read last are cached."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

MOST_BYTES = 2**30
"""Most bytes of one row group in memory."""
KEPT_BYTES = 2**28
"""Most bytes of all cached row groups besides the last."""


class Block(NamedTuple):
    cells: Sequence[pa.Scalar]
    size: int
    """Bytes in memory; 0 if they are mapped from the file."""


class BlockCache:
    """Caches the image columns of the row groups (of Parquet) or batches (of Arrow) that were read last."""

    def __init__(self, batches: Callable[[Path, int], Iterator[pa.RecordBatch]]) -> None:
        """batches: gives the rows of a block in parts of one column, from the file and the block's number."""
        self.batches = batches
        self.kept: OrderedDict[tuple[Path, int], Block] = OrderedDict()

    def column(self, path: Path, number: int) -> Sequence[pa.Scalar]:
        """The cells of a block; raises ValueError for one that takes more than MOST_BYTES."""
        block = self.kept.pop((path, number), None) or self._read(path, number)
        self.kept[path, number] = block
        while len(self.kept) > 1 and sum(each.size for each in self.kept.values()) > KEPT_BYTES:
            self.kept.popitem(last=False)
        return block.cells

    def _read(self, path: Path, number: int) -> Block:
        if path.suffix == ".arrow":  # mapped into memory
            (batch,) = self.batches(path, number)
            return Block(batch.column(0), 0)
        cells: list[pa.Scalar] = []
        size = 0
        for batch in self.batches(path, number):
            size += batch.nbytes
            if size > MOST_BYTES:
                raise ValueError(f"its row group has more than the {MOST_BYTES:,} bytes that are read at once")
            cells += batch.column(0)
        return Block(cells, size)


def file_in(cell: pa.Scalar) -> tuple[bytes | None, str | None]:
    """Content and path stored in an image's cell."""
    value: Any = cell.as_py()
    return (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
