"""Answers of a classifier, one row per image, as CSV files with a documented header."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from lbgen.errors import UserError
from lbgen.runs import atomic

LONGEST = 1024
"""Longest value in characters: in numpy, every value of a column takes the memory of the longest one."""


class Answers:
    """Named columns of text for N images."""

    def __init__(self, table: pa.Table, source: str) -> None:
        """source: the file, for messages."""
        self.table, self.source = table, source

    def __len__(self) -> int:
        return self.table.num_rows

    def numbered(self, column: str) -> tuple[NDArray[np.int64], list[str]]:
        """(N,) number of each row's value, and the distinct values in order of first appearance."""
        encoded = self.table[column].combine_chunks().dictionary_encode()
        if isinstance(encoded, pa.ChunkedArray):
            encoded = encoded.combine_chunks()
        return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary.to_pylist()

    def values(self, column: str) -> NDArray[np.str_]:
        """(N,) texts."""
        numbers, names = self.numbered(column)
        return np.array(names, dtype=np.str_)[numbers] if names else np.empty(0, np.str_)

    def among(self, column: str, known: Iterable[str], what: str) -> NDArray[np.str_]:
        """(N,) texts; UserError for a value that is not in `known`, which the message calls `what`."""
        numbers, names = self.numbered(column)
        allowed = set(known)
        for number, name in enumerate(names):
            if name not in allowed:
                row = int(np.argmax(numbers == number)) + 1
                raise UserError(f"{self.source}, row {row}, {column}: {name!r:.60} is not one of {what}; correct it")
        return self.values(column)

    def flags(self, column: str) -> NDArray[np.bool_]:
        """(N,) booleans from a column of 0 and 1."""
        return self.among(column, ("0", "1"), "0 and 1") == "1"


def write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    atomic.write_text(path, text.getvalue())


def read(path: Path, columns: Sequence[str], bare: Sequence[Sequence[str]] = ()) -> Answers:
    """The columns with these names, in any order; other columns are ignored.

    Blanks around unquoted names and values, such as after commas, are ignored.
    bare: possible columns, in order, of files without a header; their number determines which.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            first = [name.strip() for name in next(csv.reader(stream), [])]
        header = first if columns[0] in first else next((list(each) for each in bare if len(each) == len(first)), first)
        if missing := [column for column in columns if column not in header]:
            raise UserError(f"{path}: no column {missing[0]}; docs/bias.md lists those of every benchmark")
        if twice := [column for column in columns if header.count(column) > 1]:
            raise UserError(f"{path}: two columns {twice[0]}; leave one of them out")
        table = _read(path, header, header is first, columns)
        if long := [name for name in columns if (pc.max(pc.utf8_length(table[name])).as_py() or 0) > LONGEST]:
            raise UserError(f"{path}: a value of {long[0]} has more than {LONGEST:,} characters; correct it")
        return Answers(table, str(path))
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        cause = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: it is not a CSV file that can be read; give another ({cause})") from None


def _read(path: Path, header: list[str], has_header: bool, columns: Sequence[str]) -> Any:
    table = pyarrow.csv.read_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(column_names=header, skip_rows=int(has_header)),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string()),
            include_columns=list(columns),
            strings_can_be_null=False,
        ),
    )
    return pa.table({name: pc.utf8_trim_whitespace(table[name]) for name in columns})
