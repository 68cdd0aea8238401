"""The audit's files: measures.json, measures.parquet, report.html."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lbgen.audit.config import AuditConfig
from lbgen.audit.definitions import ASSOCIATION, DEFINITIONS
from lbgen.audit.figures import category_means, dataset_figures, differences
from lbgen.audit.measures import AttributeFigures, Measured
from lbgen.audit.page import write_page
from lbgen.datasets.records import Source
from lbgen.metrics.intervals import Estimate
from lbgen.runs import atomic, identity

SCHEMA = pa.schema(
    [("dataset", pa.string()), ("measure", pa.string()), ("category", pa.string()), ("attribute", pa.string())]
    + [("attribute_value", pa.string()), ("value", pa.float64()), ("low", pa.float64()), ("high", pa.float64())]
)


@dataclass(frozen=True)
class AuditResult:
    page: Path
    measures: Path


Comparisons = dict[str, dict[str, Estimate]]


def write(
    measured: list[Measured],
    comparisons: Comparisons,
    sources: list[Source],
    config: AuditConfig,
    diversity_images: int,
    compared_in: str,
) -> AuditResult:
    content = {
        "datasets": {m.observed.name: dataset_figures(m) for m in measured},
        "comparisons": {
            "reference": measured[0].observed.name,
            "features": compared_in,
            "datasets": {name: {key: e.plain() for key, e in found.items()} for name, found in comparisons.items()},
        },
        "differences": differences(measured),
        "definitions": {d.key: d.plain() for d in DEFINITIONS} | {"attributes": ASSOCIATION},
        "made_with": {
            "folders": {m.observed.name: m.observed.folder for m in measured},
            "semantics": config.semantics,
            "attributes": str(config.attributes or "built-in"),
            "seed": config.seed,
            "permutations": config.permutations,
            "probe_images": config.probe_images,
            "diversity_images": diversity_images,
            "versions": list(identity.versions()),
        },
    }
    atomic.write_text(config.folder / "measures.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
    with atomic.replacing(config.folder / "measures.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(list(_lines(measured, comparisons)), schema=SCHEMA), temporary)
    page = config.folder / "report.html"
    write_page(measured, sources, content, page)
    return AuditResult(page, config.folder / "measures.json")


def _lines(measured: list[Measured], comparisons: Comparisons) -> Iterator[dict[str, Any]]:
    """Every figure, one a line."""
    for m in measured:
        name, names = m.observed.name, [label.name for label in m.observed.labels]
        for key, estimate in m.figures.items():
            yield {"dataset": name, "measure": key, **estimate._asdict()}
        for key, estimate in comparisons.get(name, {}).items():
            yield {"dataset": name, "measure": key, **estimate._asdict()}
        columns = {"label_agreement": category_means(m, m.ranks.first), "quality": category_means(m, m.quality)}
        for key, values in {**columns, "diversity": m.vendi, "feature_distance": m.distance}.items():
            yield from (
                {"dataset": name, "measure": key, "category": category, "value": float(value)}
                for category, value in zip(names, values, strict=True)
            )
        for a in m.attributes:
            yield from _attribute_lines(a, name, names)


def _attribute_lines(a: AttributeFigures, name: str, names: list[str]) -> Iterator[dict[str, Any]]:
    for key in ("normalized_mutual_information", "cramers_v"):
        estimate = getattr(a.association, key)
        yield {"dataset": name, "measure": key, "attribute": a.reading.name, **estimate._asdict()}
    yield {"dataset": name, "measure": "p_value", "attribute": a.reading.name, "value": a.association.p_value}
    yield {"dataset": name, "measure": "q_value", "attribute": a.reading.name, "value": a.q_value}
    for measure, cells in {"images": a.table, "lift": a.pairs.lift, "pair_q_value": a.pair_q_values}.items():
        for (category, value), cell in np.ndenumerate(cells):
            place = {"category": names[category], "attribute": a.reading.name}
            yield {"dataset": name, "measure": measure, **place, "attribute_value": a.reading.values[value],
                   "value": float(cell)}  # fmt: skip
