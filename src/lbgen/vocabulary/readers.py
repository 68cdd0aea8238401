"""Reading category lists: what each kind of file looks like, and the line that a category was read from.

text          One category per line, as `name` or `id name`; UTF-8; blank lines and lines that begin with # are skipped.
              A TAB, where there is one, stands between id and name. Without TABs, the file has ids if at least half
              of its lines begin with a word that looks like one (n01440764, cat_01: it holds a digit or "_") and go
              on with a name; then every line must. Otherwise each line is a name, and its id is made from it:
              `polar bear` is never split.
.csv          A header line with the columns `name` and, if wanted, `id`.
.json         ["name", ...], [{"id": ..., "name": ...}, ...] or {"id": "name", ...}.
ImageFolder   One sub-folder per category, there or in `train/`. Its name is the id and, with spaces for "_", the name.

A bare ImageNet id in any of them gets its usual name (vocabulary.py).
"""

import csv
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from lbgen.errors import UserError
from lbgen.vocabulary.ids import fault, reserved


class Entry(NamedTuple):
    """One category as it was written."""

    id: str | None
    """None where only a name was given."""
    name: str
    source: str


def read_entries(path: Path) -> list[Entry]:
    """The categories of a file or an ImageFolder, in its order."""
    if path.is_dir():
        return folder_entries(path)
    reader = {".csv": csv_entries, ".json": json_entries}.get(path.suffix.lower(), text_entries)
    return reader(_read_text(path), str(path))


def _read_text(path: Path) -> str:
    """The file's text with line ends as \\n; a byte-order mark is dropped."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a file that can be read") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


# ---- text ----


def text_entries(text: str, file: str) -> list[Entry]:
    """Lines of `name` or `id name`; the rule that tells them apart is at the top of this file."""
    lines = [(f"{file}, line {number}", line.strip(" ")) for number, line in enumerate(text.split("\n"), 1)]
    lines = [(source, line) for source, line in lines if line.strip() and not line.startswith("#")]
    if any("\t" in line for _, line in lines):
        return [_tab_entry(line, source) for source, line in lines]
    with_id = sum(_begins_with_id(line) for _, line in lines)
    if with_id and 2 * with_id >= len(lines):
        return [_id_entry(line, source) for source, line in lines]
    return [_name_entry(line, source) for source, line in lines]


def _tab_entry(line: str, source: str) -> Entry:
    if "\t" not in line:
        raise UserError(f"{source}: no TAB between id and name, as other lines have; add it")
    category_id, name = line.split("\t", 1)
    return Entry(category_id.strip(" "), _one_spaced(name), source)


def _begins_with_id(line: str) -> bool:
    """Whether the first word looks like an id, and a name follows."""
    words = line.split(maxsplit=1)
    return len(words) == 2 and re.search(r"[\d_]", words[0]) is not None


def _id_entry(line: str, source: str) -> Entry:
    words = line.split(maxsplit=1)
    if not _begins_with_id(line) and fault(words[0]) is None:
        raise UserError(
            f'{source}: "{line}" is not an id and a name, as other lines are; separate id and name with a TAB on every '
            "line, or put mere names into a .csv with a `name` column"
        )
    return Entry(words[0], _one_spaced(" ".join(words[1:])), source)


def _name_entry(line: str, source: str) -> Entry:
    """A line that begins like a path, or is a device name, becomes an id, which the vocabulary then refuses."""
    first = line.split()[0]
    unsafe = first in (".", "..") or re.match(r"\.{0,2}[/\\]", first) or reserved(line)
    return Entry(first if unsafe else None, _one_spaced(line), source)


def _one_spaced(name: str) -> str:
    return " ".join(name.split())


# ---- csv ----


def csv_entries(text: str, file: str) -> list[Entry]:
    """Rows under a header with a `name` column and perhaps an `id` column; other columns are ignored."""
    rows = csv.reader(text.split("\n"), strict=True)
    entries, columns = [], None
    try:
        for row in rows:
            source = f"{file}, line {rows.line_num}"
            if not any(cell.strip() for cell in row):
                continue
            if columns is None:
                columns = _csv_columns(row, source)
            else:
                entries.append(_csv_entry(row, columns, source))
    except csv.Error as error:
        raise UserError(f"{file}, line {rows.line_num}: not valid CSV ({error}); repair it") from None
    return entries


def _csv_columns(row: list[str], source: str) -> list[str]:
    columns = [cell.strip().lower() for cell in row]
    if columns.count("name") != 1 or columns.count("id") > 1:
        raise UserError(f"{source}: the header needs one `name` column and at most one `id` column")
    return columns


def _csv_entry(row: list[str], columns: list[str], source: str) -> Entry:
    if len(row) != len(columns):
        raise UserError(f"{source}: {len(row)} columns where the header has {len(columns)}; quote names with commas")
    cells = dict(zip(columns, row, strict=True))
    category_id = cells["id"].strip() if "id" in cells else None
    return Entry(category_id, _one_spaced(cells["name"]), source)


# ---- json ----


class _Object(list):
    """A JSON object as its (key, value) pairs, so that a repeated key is seen."""


def json_entries(text: str, file: str) -> list[Entry]:
    """A list of names, a list of {"id", "name"} objects, or one object {id: name}."""
    try:
        content = json.loads(text, object_pairs_hook=_Object)
    except json.JSONDecodeError as error:
        raise UserError(f"{file}, line {error.lineno}: not valid JSON ({error.msg}); repair it") from None
    except (ValueError, RecursionError):  # a number of thousands of digits, or deep nesting
        raise UserError(f"{file}: not valid JSON (a value in it cannot be read); repair it") from None
    if not isinstance(content, list):
        raise UserError(f'{file}: expected ["name", ...], [{{"id": ..., "name": ...}}, ...] or {{"id": "name", ...}}')
    sources = (f"{file}, item {number}" for number in range(1, len(content) + 1))
    if isinstance(content, _Object):
        return [_json_entry(pair, source) for pair, source in zip(content, sources, strict=True)]
    return [_json_entry(_id_and_name(item), source) for item, source in zip(content, sources, strict=True)]


def _id_and_name(item: Any) -> tuple[Any, Any]:
    if not isinstance(item, _Object):
        return None, item
    fields = dict(item)
    return fields.get("id"), fields.get("name")


def _json_entry(pair: tuple[Any, Any], source: str) -> Entry:
    category_id, name = pair
    if not isinstance(name, str) or not isinstance(category_id, str | None):
        raise UserError(f'{source}: id and name must be text; write "name" or {{"id": "...", "name": "..."}}')
    return Entry(category_id, _one_spaced(name), source)


# ---- ImageFolder ----


def folder_entries(folder: Path) -> list[Entry]:
    """The sub-folders of `folder/train`, if it has any, or else those of `folder`, by name."""
    names = _sub_folders(folder / "train") or _sub_folders(folder)
    return [Entry(path.name, _one_spaced(path.name.replace("_", " ")), str(path)) for path in names]


def _sub_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
