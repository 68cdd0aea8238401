"""What the label of the stored images still tells of each balanced attribute, as the language space sees them.

N images, A balanced attributes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lbgen.generation.card.description import Residual
from lbgen.generation.config import GenerateConfig
from lbgen.generation.finished_shards import read_rows
from lbgen.generation.plan import Plan
from lbgen.metrics.information import adjusted_information, contingency_table
from lbgen.runs.storage import Store
from lbgen.vocabulary.attributes import Attribute


def residuals(store: Store, config: GenerateConfig, plan: Plan) -> list[Residual]:
    """Of all splits together, one for each balanced attribute."""
    label, *values = torch.cat(list(_shards(store, config, plan))).T  # (N,) and 2A times (N,)
    targets, found = values[: len(plan.balanced)], values[len(plan.balanced) :]
    return [residual(*of_one, label) for of_one in zip(plan.balanced, targets, found, strict=True)]


def residual(attribute: Attribute, target: Tensor, found: Tensor, label: Tensor) -> Residual:
    """target, found: (N,) indices into the attribute's values; label: (N,)."""
    asked, seen = (torch.bincount(column, minlength=len(attribute.values)).tolist() for column in (target, found))
    return Residual(
        attribute.name,
        adjusted_information(contingency_table(label.numpy(), found.numpy())),
        (target == found).double().mean().item(),
        list(zip(attribute.values, asked, seen, strict=True)),
    )


def _shards(store: Store, config: GenerateConfig, plan: Plan) -> Iterator[Tensor]:
    """Label, index of each target value and of each value found: (images, 1 + 2A)."""
    numbers = [{value: number for number, value in enumerate(attribute.values)} for attribute in plan.balanced]
    for split in plan.splits:
        for shard in range(plan.shards(split)):
            rows, _ = read_rows(store, config, plan, split, shard)
            lines = [[row.label, *map(dict.__getitem__, numbers * 2, row.target + row.found)] for row in rows]
            yield torch.tensor(lines, dtype=torch.int64).view(len(rows), 1 + 2 * len(numbers))
