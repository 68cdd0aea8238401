"""Values and differences as text, one table per method, like the paper's."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lbgen.errors import printable
from lbgen.evaluation.transfer.comparison import AVERAGE, Difference, MeasuredBackbone


def methods_of(measured: Sequence[MeasuredBackbone]) -> list[str]:
    return list(dict.fromkeys(method for each in measured for _, method in each.values))


def datasets_of(measured: Sequence[MeasuredBackbone], method: str) -> list[str]:
    return list(dict.fromkeys(dataset for each in measured for dataset in each.datasets(method)))


@dataclass(frozen=True)
class Grid:
    """A table of text."""

    title: str
    columns: list[str]
    rows: list[list[str]]

    def text(self) -> str:
        lines = [list(map(printable, line)) for line in (self.columns, *self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.columns))]
        shown = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
        return "\n".join([self.title, *map(str.rstrip, shown)])


def tables(measured: Sequence[MeasuredBackbone]) -> str:
    """One table per method, in percent: a row per backbone, a column per data set, average last."""
    return "\n\n".join(_table(measured, method).text() for method in methods_of(measured))


def _table(measured: Sequence[MeasuredBackbone], method: str) -> Grid:
    datasets = datasets_of(measured, method)
    rows = []
    for each in measured:
        values = [each.values.get((dataset, method)) for dataset in datasets]
        if any(values):
            average = [each.average(method, datasets)] if len(datasets) > 1 else []
            cells = [value.value if value else float("nan") for value in values]
            rows.append([each.name, *(percent(value) for value in [*cells, *average])])
    return Grid(f"{method}, %", ["", *datasets, *[AVERAGE] * (len(datasets) > 1)], rows)


def text_of(found: Sequence[Difference]) -> str:
    """One line per difference from the reference."""
    rows = []
    for each in found:
        low, high = each.estimate.low, each.estimate.high
        interval = f"{points(low)} to {points(high)}" if np.isfinite([low, high]).all() else ""
        p_value = f"p {p_text(each.p_value)}" if np.isfinite(each.p_value) else ""
        rows.append(
            [each.backbone, each.method, each.dataset, points(each.estimate.value), interval, p_value, each.note]
        )
    return Grid("differences from the first backbone, points", ["", "", "", "", "", "", ""], rows).text()


def percent(value: float) -> str:
    return f"{100 * value:.1f}" if np.isfinite(value) else "-"


def points(value: float) -> str:
    return f"{round(100 * value, 1) + 0:+.1f}"  # adding 0 removes the sign of minus zero


def p_text(p_value: float) -> str:
    return f"{p_value:.3f}" if p_value >= 0.001 else f"{p_value:.1e}"
