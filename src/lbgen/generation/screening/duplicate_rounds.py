"""duplicates.json: which attempts were accepted, and later found to be near-duplicates; a part of what makes a dataset.

Each round names, for one split, shard -> key -> attempt: all that lay near an earlier image when the round began.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lbgen.datasets import index
from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig
from lbgen.generation.plan import Plan
from lbgen.runs.storage import Store

DUPLICATES = "duplicates.json"
Round = dict[int, dict[str, int]]


def read_rounds(store: Store, config: GenerateConfig, plan: Plan) -> list[Round]:
    """The rounds of the configuration's split; UserError where they are not of the plan."""
    content = index.read_json(store, DUPLICATES) or {}
    found = content.get(config.split, []) if isinstance(content, dict) else None
    if not isinstance(found, list):
        raise UserError(f"{store}/{DUPLICATES}: not what lbgen writes there; restore it or choose another --output")
    return [
        _round(one, f"{store}/{DUPLICATES}, {config.split}, round {n}", config, plan) for n, one in enumerate(found)
    ]


def _round(found: Any, place: str, config: GenerateConfig, plan: Plan) -> Round:
    if not isinstance(found, dict):
        raise UserError(f"{place}: not a table of shards; restore the file or choose another --output")
    shards, rounds = {str(shard): shard for shard in range(plan.shards(config.split))}, {}
    for name, keys in found.items():
        planned = {image.key for image in plan.shard(config.split, shards[name])} if name in shards else set()
        whole = isinstance(keys, dict) and keys.keys() <= planned
        if not whole or not all(type(a) is int and 0 <= a < config.max_attempts for a in keys.values()):
            raise UserError(
                f"{place}, shard {name!r:.20}: not of the plan; restore the file or choose another --output"
            )
        rounds[shards[name]] = keys
    return rounds


def write_rounds(store: Store, split: str, rounds: Sequence[Round]) -> None:
    """The other splits' rounds stay."""
    content = (index.read_json(store, DUPLICATES) or {}) | {split: rounds}
    store.write(DUPLICATES, (json.dumps(content, sort_keys=True) + "\n").encode())
