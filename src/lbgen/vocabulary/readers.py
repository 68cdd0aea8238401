"""Reading category lists: the format of each kind of file, and the line from which a category was read.

text            One category per line, as `name` or `id name`; UTF-8; blank lines and lines that begin with # are
                skipped.
                A TAB separates id and name. Without TABs, the file has ids if at least half of its lines consist of a
                word that looks like an id (with a digit or "_": n01440764, cat_01) and a name; then all lines must have
                this form. Otherwise each line is a name, and its id is made from it: `polar bear` is never split.
                If every line is numbered (`0, tench`, `1) tench`), the numbers are the ids.
.csv, .tsv      A header line with the column `name` and optionally `id`. A .tsv without a header is read as text.
.json           ["name", ...], [{"id": ..., "name": ...}, ...] or {"id": "name", ...}.
.jsonl, .ndjson One "name" or {"id": ..., "name": ...} per line.
ImageFolder     One sub-folder per category, directly or in `train/`. Its name is the category's id and name.

An ImageNet id without a name gets its usual name, and an underscore in a name is read as a space (vocabulary.py).
"""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from lbgen.errors import UserError
from lbgen.runs import atomic
from lbgen.runs.parsing import parse_json
from lbgen.vocabulary.ids import fault, reserved
from lbgen.vocabulary.tokens import on_one_line


class Entry(NamedTuple):
    """One category as written in the file."""

    id: str | None
    """None if only a name was given."""
    name: str
    source: str


def read_entries(path: Path) -> list[Entry]:
    """The categories of a file or an ImageFolder, in its order."""
    if path.is_dir():
        return folder_entries(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(
            f"{path}: lbgen does not read vocabularies of type {path.suffix}; give a .txt with one category per line, "
            "a .csv, .tsv, .json or .jsonl, or an ImageFolder"
        )
    return reader(_read_text(path), str(path))


def _read_text(path: Path) -> str:
    """The file's text with line ends as \\n; a byte-order mark is dropped."""
    try:
        read = atomic.read_pipe if path.is_fifo() else atomic.read_bytes
        text = read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a file that can be read") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


# ---- text ----

Line = tuple[str, str]
"""The location of a line, for messages, and its text."""

HEADERS = {"id", "wnid", "synset", "class", "label", "name", "category", "index", "number", "key", "text"}
HEADERS |= {f"{word}_{ending}" for word in ("class", "label", "category") for ending in ("id", "name")}
"""Words in the header of a table of categories."""

NUMBERED = re.compile(r"[(\[]?([\w-]++)(\s*[,;:|]\s+|[.)\]]\s+|\s+[-–—]\s+|[,;|](?=\S))\s*(?!['\"].*['\"],?$)(.+)")
"""A number or another id, a sign that separates it, and a name that is not quoted."""


def text_entries(text: str, file: str) -> list[Entry]:
    """Lines of `name` or `id name`; the rule that tells them apart is at the top of this file."""
    lines = [(f"{file}, line {number}", line.strip(" ")) for number, line in enumerate(text.split("\n"), 1)]
    lines = [(source, line) for source, line in lines if line.strip() and not line.startswith("#")]
    _refuse_json(text, lines, file)
    if any("\t" in line for _, line in lines):
        if _is_header(lines[0][1].split("\t")):
            return table_entries(text, file, "\t")
        return [_tab_entry(line, source) for source, line in lines]
    if numbered := _numbered_entries(lines):
        return numbered
    with_id = sum(_begins_with_id(line) for _, line in lines)
    has_ids = with_id > 0 and 2 * with_id >= len(lines)
    _refuse_header(lines, has_ids)
    return [(_id_entry if has_ids else _name_entry)(line, source) for source, line in lines]


def _refuse_json(text: str, lines: list[Line], file: str) -> None:
    """Refuse JSON in a text file, which would be read as names."""
    if _is_json(text, "[{"):
        raise UserError(f"{file}: it holds JSON; call the file .json")
    for source, line in lines:
        if _is_json(line, "{"):
            raise UserError(f"{source}: it holds JSON; call the file .jsonl")


def _is_json(text: str, brackets: str) -> bool:
    """Whether the text is a JSON list or object that begins with one of the brackets."""
    if text.lstrip()[:1] not in tuple(brackets):
        return False
    try:
        parse_json(text)
    except ValueError:
        return False
    return True


def _is_header(cells: list[str]) -> bool:
    return len(cells) > 1 and all(cell.strip().lower() in HEADERS for cell in cells)


def _refuse_header(lines: list[Line], has_ids: bool) -> None:
    """Refuse the header of a table, which would be read as a category; without ids, a name may have several words."""
    for source, line in lines[:1]:
        if _is_header(re.split(r"[,;\s]+" if has_ids else r"[,;]", line)):
            raise UserError(
                f"{source}: it is the header of a table; call the file .csv, or .tsv if TABs separate the columns, "
                "or remove the line"
            )


def _tab_entry(line: str, source: str) -> Entry:
    if "\t" not in line:
        raise UserError(f"{source}: no TAB between id and name, unlike other lines; add it")
    category_id, name = line.split("\t", 1)
    return Entry(category_id.strip(" "), _one_spaced(name), source)


def _numbered_entries(lines: list[Line]) -> list[Entry]:
    """The entries of a list whose lines are all numbered with distinct numbers; empty for any other list.

    A comma needs no space after it (`0,tench`), unless most of the names would then begin with a digit, as in
    `1,2-dichloroethane`.
    """
    matches = [NUMBERED.fullmatch(line) for _, line in lines]
    found = [match.groups() for match in matches if match and re.search(r"[\d_]", match[1])]
    ambiguous = sum(len(sign) == 1 and not name[0].isalpha() for _, sign, name in found)
    if len(found) < len(lines) or len({number for number, *_ in found}) < len(found) or 2 * ambiguous >= len(found):
        return []
    return [Entry(id, _one_spaced(name), source) for (id, _, name), (source, _) in zip(found, lines, strict=True)]


def _begins_with_id(line: str) -> bool:
    """Whether the first word looks like an id and a name follows it."""
    words = line.split(maxsplit=1)
    return len(words) == 2 and re.search(r"[\d_]", words[0]) is not None


def _id_entry(line: str, source: str) -> Entry:
    words = line.split(maxsplit=1)
    if not _begins_with_id(line) and fault(words[0]) is None:
        raise UserError(
            f'{source}: "{on_one_line(line)}" is not an id and a name, unlike other lines; separate id and name with a '
            "TAB on every line, or put names without ids into a .csv with a `name` column"
        )
    if len(words) == 2 and re.search(r"^[(\[{\"']|[,;)\]}\"']$", words[0]):
        raise UserError(
            f'{source}: "{on_one_line(words[0])}" is not an id; number every line in the same way, or separate id and '
            "name with a TAB"
        )
    return Entry(words[0], _one_spaced(" ".join(words[1:])), source)


def _name_entry(line: str, source: str) -> Entry:
    """The entry of a name; one that begins like a path or is a device name becomes an id that `Vocabulary` refuses."""
    first = line.split()[0]
    unsafe = first in (".", "..") or re.match(r"\.{0,2}[/\\]", first) or reserved(line)
    return Entry(first if unsafe else None, _one_spaced(line), source)


def _one_spaced(name: str) -> str:
    return " ".join(name.split())


# ---- tables ----


def csv_entries(text: str, file: str) -> list[Entry]:
    return table_entries(text, file, ",")


def tsv_entries(text: str, file: str) -> list[Entry]:
    """A table if the first line has a `name` column; a text list without one."""
    lines = (line for line in text.split("\n") if line.strip() and not line.startswith("#"))
    columns = [cell.strip().lower() for cell in next(lines, "").split("\t")]
    return table_entries(text, file, "\t") if "name" in columns else text_entries(text, file)


def table_entries(text: str, file: str, separator: str) -> list[Entry]:
    """Rows below a header with a `name` column and an optional `id` column; other columns are ignored.

    separator: if it is a TAB, quotes are part of a name, and lines that begin with # are skipped.
    """
    lines = text.split("\n")
    if separator == "\t":
        unquoted = ("" if line.startswith("#") else line for line in lines)
        rows = csv.reader(unquoted, strict=True, delimiter=separator, quoting=csv.QUOTE_NONE)
    else:
        rows = csv.reader(lines, strict=True, delimiter=separator)
    entries, columns = [], None
    try:
        for row in rows:
            source = f"{file}, line {rows.line_num}"
            if not any(cell.strip() for cell in row):
                continue
            if columns is None:
                columns = _columns(row, source)
            else:
                entries.append(_table_entry(row, columns, source))
    except csv.Error as error:
        raise UserError(f"{file}, line {rows.line_num}: not valid CSV ({error}); repair it") from None
    return entries


def _columns(row: list[str], source: str) -> list[str]:
    columns = [cell.strip().lower() for cell in row]
    if columns.count("name") != 1 or columns.count("id") > 1:
        raise UserError(f"{source}: the header needs one `name` column and at most one `id` column")
    return columns


def _table_entry(row: list[str], columns: list[str], source: str) -> Entry:
    if len(row) != len(columns):
        raise UserError(f"{source}: {len(row)} columns where the header has {len(columns)}; quote names with commas")
    cells = dict(zip(columns, row, strict=True))
    category_id = cells["id"].strip() if "id" in cells else None
    return Entry(category_id, _one_spaced(cells["name"]), source)


# ---- json ----


class _Object(list):
    """A JSON object as its (key, value) pairs, so that repeated keys are detected."""


def json_entries(text: str, file: str) -> list[Entry]:
    """A list of names, a list of {"id", "name"} objects, or one object {id: name}."""
    content = _parsed(text, file)
    if not isinstance(content, list):
        raise UserError(f'{file}: expected ["name", ...], [{{"id": ..., "name": ...}}, ...] or {{"id": "name", ...}}')
    sources = (f"{file}, item {number}" for number in range(1, len(content) + 1))
    if isinstance(content, _Object):
        return [_json_entry(pair, source) for pair, source in zip(content, sources, strict=True)]
    return [_json_entry(_id_and_name(item), source) for item, source in zip(content, sources, strict=True)]


def json_line_entries(text: str, file: str) -> list[Entry]:
    """One name, or one {"id", "name"} object, per line."""
    lines = enumerate(text.split("\n"), 1)
    return [
        _json_entry(_id_and_name(_parsed(line, file, number)), f"{file}, line {number}")
        for number, line in lines
        if line.strip()
    ]


def _parsed(text: str, file: str, line: int = 1) -> Any:
    """The parsed JSON text, which begins on this line of the file."""
    try:
        return json.loads(text, object_pairs_hook=_Object)
    except json.JSONDecodeError as error:
        at, why = line + error.lineno - 1, error.msg
    except (ValueError, RecursionError):  # a number with thousands of digits, or deeply nested brackets
        at, why = line, "too long a number, or nested too deeply"
    raise UserError(f"{file}, line {at}: not valid JSON ({why}); repair it")


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
    """The sub-folders, sorted by name, of `folder/train` if it has any, otherwise of `folder`."""
    names = _sub_folders(folder / "train") or _sub_folders(folder)
    return [Entry(path.name, _one_spaced(path.name), str(path)) for path in names]


def _sub_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


# ---- kinds of files ----

READERS: dict[str, Callable[[str, str], list[Entry]]] = {
    **dict.fromkeys(("", ".txt", ".text", ".list", ".lst", ".names", ".labels", ".classes"), text_entries),
    ".csv": csv_entries,
    **dict.fromkeys((".tsv", ".tab"), tsv_entries),
    ".json": json_entries,
    **dict.fromkeys((".jsonl", ".ndjson"), json_line_entries),
}
"""Suffix of a file, in lower case -> the function that reads its text; the second argument names the file."""
