"""A backbone's value on a data set in transfer.json."""

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from lbgen.runs.parsing import Whole

Metric = Literal["accuracy", "mean_per_class", "box_AP", "mask_AP", "mIoU"]
Share = Annotated[float, Meta(ge=0, le=1)]
Limit = Annotated[float, Meta(ge=-100, le=100)]
"""Limit of an interval; with few draws, Student's interval may exceed [0, 1]."""


@dataclass(frozen=True)
class Value:
    """An entry of transfer.json."""

    metric: Metric
    value: Share
    low: Limit | None
    high: Limit | None
    """95% interval; None for a single draw."""
    n_test: Whole
