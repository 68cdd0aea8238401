"""duplicates.json: which attempts were accepted, and later found to be near-duplicates; a part of what makes a dataset.

Each round names, for one split, shard -> key -> attempt: all that lay near an earlier image when the round began.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from lbgen import dataset
from lbgen.storage import Store

DUPLICATES = "duplicates.json"
Round = dict[int, dict[str, int]]


def read_rounds(store: Store, split: str) -> list[Round]:
    content = dataset.read_json(store, DUPLICATES) or {}
    return [{int(shard): keys for shard, keys in found.items()} for found in content.get(split, [])]


def write_rounds(store: Store, split: str, rounds: Sequence[Round]) -> None:
    """The other splits' rounds stay."""
    content = (dataset.read_json(store, DUPLICATES) or {}) | {split: rounds}
    store.write(DUPLICATES, (json.dumps(content, sort_keys=True) + "\n").encode())
