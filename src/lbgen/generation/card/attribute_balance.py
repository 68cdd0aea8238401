"""How well the balanced attributes of a finished dataset are balanced, according to the language space.

N images, A balanced attributes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lbgen.generation.card.summary import AttributeBalance
from lbgen.generation.config import GenerateConfig
from lbgen.generation.integrity.shard_rows import read_rows
from lbgen.generation.plan import Plan
from lbgen.metrics.information import adjusted_information, contingency_table
from lbgen.runs.storage import Store
from lbgen.vocabulary.attributes import Attribute


def attribute_balances(store: Store, config: GenerateConfig, plan: Plan) -> list[AttributeBalance]:
    """The balance of each balanced attribute, over all splits together."""
    label, *values = torch.cat(list(_columns_of_shards(store, config, plan))).T  # (N,) and 2A times (N,)
    targets, detected = values[: len(plan.balanced)], values[len(plan.balanced) :]
    columns = zip(plan.balanced, targets, detected, strict=True)
    return [attribute_balance(attribute, target, shown, label) for attribute, target, shown in columns]


def attribute_balance(attribute: Attribute, target: Tensor, detected: Tensor, label: Tensor) -> AttributeBalance:
    """The balance of one attribute.  target, detected: (N,) indices into the attribute's values; label: (N,)."""
    targeted, shown = (
        torch.bincount(column, minlength=len(attribute.values)).tolist() for column in (target, detected)
    )
    return AttributeBalance(
        attribute.name,
        adjusted_information(contingency_table(label.numpy(), detected.numpy())),
        (target == detected).double().mean().item(),
        list(zip(attribute.values, targeted, shown, strict=True)),
    )


def _columns_of_shards(store: Store, config: GenerateConfig, plan: Plan) -> Iterator[Tensor]:
    """For each shard a tensor (images, 1 + 2A): label, indices of the target values, indices of the detected values."""
    indices = [{value: number for number, value in enumerate(attribute.values)} for attribute in plan.balanced]
    for split in plan.splits:
        for shard in range(plan.shards(split)):
            rows, _ = read_rows(store, config, plan, split, shard)
            lines = [[row.label, *map(dict.__getitem__, indices * 2, row.target + row.found)] for row in rows]
            yield torch.tensor(lines, dtype=torch.int64).view(len(rows), 1 + 2 * len(indices))
