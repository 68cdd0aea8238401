"""A backbone's value on a data set, as transfer.json holds it."""

from dataclasses import dataclass
from typing import Literal

from lbgen.runs.parsing import Whole

Metric = Literal["accuracy", "mean_per_class"]


@dataclass(frozen=True)
class Value:
    """An entry of transfer.json."""

    metric: Metric
    value: float
    """A share in [0, 1]."""
    low: float | None
    high: float | None
    """95% interval; None where there is one draw only."""
    n_test: Whole
