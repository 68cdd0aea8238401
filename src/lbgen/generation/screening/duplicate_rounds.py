"""duplicates.json: accepted attempts that were later found to be near-duplicates. It determines what a shard holds.

Each round lists, for one split, shard -> key -> attempt: all images that were near an earlier image in that comparison.
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

FILE = "duplicates.json"
DuplicateRound = dict[int, dict[str, int]]
"""Shard -> key -> attempt."""


def read_duplicate_rounds(store: Store, config: GenerateConfig, plan: Plan) -> list[DuplicateRound]:
    """The rounds of the configuration's split; raises UserError if they do not match the plan."""
    content = index.read_json(store, FILE) or {}
    rounds = content.get(config.split, []) if isinstance(content, dict) else None
    if not isinstance(rounds, list):
        raise UserError(f"{store}/{FILE}: not what lbgen writes there; restore it or choose another --output")
    return [
        _checked_round(item, f"{store}/{FILE}, {config.split}, round {number}", config, plan)
        for number, item in enumerate(rounds)
    ]


def _checked_round(content: Any, source: str, config: GenerateConfig, plan: Plan) -> DuplicateRound:
    if not isinstance(content, dict):
        raise UserError(f"{source}: not a table of shards; restore the file or choose another --output")
    shards, checked = {str(shard): shard for shard in range(plan.shards(config.split))}, {}
    for name, attempts in content.items():
        planned = {image.key for image in plan.shard(config.split, shards[name])} if name in shards else None
        are_planned = planned is not None and isinstance(attempts, dict) and attempts.keys() <= planned
        if not are_planned or not all(type(a) is int and 0 <= a < config.max_attempts for a in attempts.values()):
            raise UserError(
                f"{source}, shard {name!r:.20}: not of the plan; restore the file or choose another --output"
            )
        checked[shards[name]] = attempts
    return checked


def write_duplicate_rounds(store: Store, split: str, rounds: Sequence[DuplicateRound]) -> None:
    """Replace the rounds of one split; those of other splits are kept."""
    content = (index.read_json(store, FILE) or {}) | {split: rounds}
    store.write(FILE, (json.dumps(content, sort_keys=True) + "\n").encode())
