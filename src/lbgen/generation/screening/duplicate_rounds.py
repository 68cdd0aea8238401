"""duplicates.json: accepted attempts that were later found to be near-duplicates. It determines the images of a shard.

Each round of one split maps shard -> key -> attempt, for all images that were near an earlier image in that comparison.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from lbgen.datasets import index
from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig
from lbgen.generation.plan import Plan
from lbgen.runs.parsing import REMEDY, Name, Whole
from lbgen.runs.storage import Store

FILE = "duplicates.json"
DuplicateRound = dict[int, dict[str, int]]
"""Shard -> key -> attempt."""
StoredRound = dict[Name, dict[Name, Whole]]
"""A round in JSON."""


def read_duplicate_rounds(store: Store, config: GenerateConfig, plan: Plan) -> list[DuplicateRound]:
    """The rounds of the configuration's split; raises UserError if they do not match the plan, or each other."""
    source, rounds = f"{store}/{FILE}, {config.split}, round", []
    latest: dict[str, int] = {}
    content = _read(store)
    if unknown := content.keys() - {*plan.splits}:
        raise UserError(f"{store}/{FILE}, {min(unknown)!r:.80}: not a split of the plan; {REMEDY}")
    for number, item in enumerate(content.get(config.split, [])):
        rounds.append(_checked_round(item, f"{source} {number}", config, plan))
        attempts = {key: attempt for shard in rounds[-1].values() for key, attempt in shard.items()}
        if not attempts or any(attempt <= latest.get(key, -1) for key, attempt in attempts.items()):
            raise UserError(f"{source} {number}: no later attempts than in the rounds before; {REMEDY}")
        latest |= attempts
    return rounds


def _read(store: Store) -> dict[str, list[StoredRound]]:
    return index.read_stored(store, FILE, dict[Name, list[StoredRound]]) or {}


def _checked_round(content: StoredRound, source: str, config: GenerateConfig, plan: Plan) -> DuplicateRound:
    shards, checked = {str(shard): shard for shard in range(plan.shards(config.split))}, {}
    for name, attempts in content.items():
        planned = {image.key for image in plan.shard(config.split, shards[name])} if name in shards else None
        if (
            planned is None
            or not attempts.keys() <= planned
            or max(attempts.values(), default=0) >= config.max_attempts
        ):
            raise UserError(f"{source}, shard {name!r:.20}: not of the plan; {REMEDY}")
        checked[shards[name]] = attempts
    return checked


def write_duplicate_rounds(store: Store, split: str, rounds: Sequence[DuplicateRound]) -> None:
    """Replace the rounds of one split; those of other splits are kept."""
    content = _read(store) | {split: rounds}
    store.write(FILE, (json.dumps(content, sort_keys=True) + "\n").encode())
