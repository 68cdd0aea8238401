"""Keeping a user's additions to a dataset's card when lbgen writes the card again.

A card is a YAML header and blocks of Markdown separated by empty lines. Its last line lists hashes of the blocks that
lbgen wrote; all other blocks are the user's. Cards of earlier versions have no such line: there, the user's blocks are
those below headings that lbgen does not write.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml

from lbgen.configuration.yaml_lines import YAML_ERRORS
from lbgen.errors import UserError

NOTE = re.compile(r"<!-- lbgen wrote the blocks ([0-9a-f ]*) and keeps all others -->")
HEADINGS = ("How to load it", "How it was made", "Balance", "Screening", "Classes", "Limits", "Labels")
"""Second-level headings that lbgen writes."""
TITLE = "categories drawn by"
"""Text in every title that lbgen writes."""


class Card(NamedTuple):
    head: dict[str, Any]
    blocks: list[str]


def signed(text: str) -> str:
    """A card that lbgen wrote, with the hashes of its blocks."""
    hashes = " ".join(dict.fromkeys(map(_hash, _blocks(_split(text)[1]))))
    return f"{text.rstrip()}\n\n<!-- lbgen wrote the blocks {hashes} and keeps all others -->\n"


def merged(new: str, old: str, source: str) -> str:
    """The card `new` with the user's additions to `old`, the content of the file `source`."""
    head, blocks = parse(new, source)
    earlier = parse(old, source)
    merged_head, added = _merged_head(head, earlier.head), _added_blocks(earlier.blocks)
    if merged_head == head and not added:
        return new
    try:
        text = yaml.safe_dump(merged_head, sort_keys=False, width=10**9)
    except YAML_ERRORS:  # nested too deeply
        raise _wrong_head(source) from None
    return f"---\n{text}---\n\n" + "\n\n".join(_with_added(blocks, added)) + "\n"


def parse(text: str, source: str) -> Card:
    """The parts of a card; raises UserError if the header is not YAML."""
    head, body = _split(text.replace("\r\n", "\n"))
    try:
        values = yaml.safe_load(head)
    except YAML_ERRORS:
        raise _wrong_head(source) from None
    return Card(values if isinstance(values, dict) else {}, _blocks(body))


def _wrong_head(source: str) -> UserError:
    return UserError(f"{source}: its head is not valid YAML; repair it, or remove the file, and start again")


def _split(text: str) -> tuple[str, str]:
    """Head and body."""
    match = re.match(r"---\n(.*?)^---[ \t]*$", text, re.DOTALL | re.MULTILINE)
    return (match[1], text[match.end() :]) if match else ("", text)


def _blocks(body: str) -> list[str]:
    return re.split(r"\n[ \t]*(?:\n[ \t]*)+", body.strip()) if body.strip() else []


def _hash(block: str) -> str:
    return hashlib.sha256(block.strip().encode("utf-8", "surrogatepass")).hexdigest()[:8]


def _merged_head(new: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """lbgen's fields with the user's changes: additional fields, another name, more tags, more configurations."""
    head = new | {name: value for name, value in old.items() if name not in new}
    if isinstance(name := old.get("pretty_name"), str) and TITLE not in name:
        head["pretty_name"] = name
    for field in ("tags", "task_categories"):
        if isinstance(old.get(field), list):
            head[field] = new[field] + [value for value in old[field] if value not in new[field]]
    if isinstance(old.get("configs"), list):
        names = [config["config_name"] for config in new["configs"]]
        more = [config for config in old["configs"] if isinstance(config, dict) and config.get("config_name")]
        head["configs"] = new["configs"] + [config for config in more if config["config_name"] not in names]
    return head


def _added_blocks(blocks: list[str]) -> dict[str, list[str]]:
    """lbgen's heading -> the user's blocks below it, up to lbgen's next heading."""
    notes = [match[1].split() for block in blocks if (match := NOTE.fullmatch(block.strip()))]
    own = set(notes[-1]) if notes else None
    added: dict[str, list[str]] = defaultdict(list)
    section, foreign = "", False
    for block in blocks:
        heading = _heading(block)
        if own is None:
            foreign = heading not in HEADINGS if heading else foreign
        else:
            foreign = _hash(block) not in own and not NOTE.fullmatch(block.strip())
        if foreign:
            added[section].append(block)
        elif heading:
            section = heading
    return dict(added)


def _with_added(blocks: list[str], added: dict[str, list[str]]) -> Iterator[str]:
    section = ""
    for block in blocks:
        heading = _heading(block)
        if heading or NOTE.fullmatch(block):
            yield from added.pop(section, [])
            section = heading or section
        if NOTE.fullmatch(block):  # the user's blocks of sections that the new card lacks
            yield from (block for rest in added.values() for block in rest)
        yield block


def _heading(block: str) -> str:
    """The second-level heading that a block begins with, else an empty text."""
    match = re.match(r"##[ \t]+(.+)", block)
    return match[1].strip() if match else ""
