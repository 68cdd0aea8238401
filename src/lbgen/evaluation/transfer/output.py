"""The values as plain data and as text: transfer.json, and tables like the paper's."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from lbgen.configuration import saved
from lbgen.evaluation.transfer.comparison import MeasuredBackbone, Trainings, differences
from lbgen.evaluation.transfer.config import PAGE, RESULT_METHODS, TRANSFER, TransferConfig
from lbgen.evaluation.transfer.dense.sets import DenseSet
from lbgen.evaluation.transfer.measure import Prepared
from lbgen.evaluation.transfer.page import write_page
from lbgen.evaluation.transfer.stored import Result, all_results
from lbgen.evaluation.transfer.tables import tables, text_of
from lbgen.evaluation.transfer.values import Value
from lbgen.runs import atomic, identity


class Written(NamedTuple):
    path: Path
    """transfer.json"""
    shown: str
    """The tables as text."""


def write_transfer(
    first: Sequence[str], prepared: Sequence[Prepared | DenseSet], missing: Mapping[str, str], config: TransferConfig
) -> Written:
    """Write transfer.json and the page from all results in the folder.  first: the backbones to list first."""
    results = _sorted(all_results(config.folder), first, [each.name for each in prepared])
    path = config.folder / TRANSFER
    content = transfer_content(results, prepared, missing, config)
    atomic.write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
    measured = measured_of(results, config.folder)
    found = differences(measured)
    write_page(measured, found, config.folder / PAGE, content)
    return Written(path, "\n\n".join([tables(measured), *([text_of(found)] if found else [])]))


def _sorted(results: list[Result], backbones: Sequence[str], datasets: Sequence[str]) -> list[Result]:
    """The results in the order of this run, followed by those of earlier runs."""

    def place(name: str, names: Sequence[str]) -> tuple[int, str]:
        return (names.index(name) if name in names else len(names)), name

    def method(name: str) -> tuple[int, bool, float]:
        base, _, shot = name.partition("-")
        return RESULT_METHODS.index(base), shot.endswith("%"), float(shot.removesuffix("%").removesuffix("shot") or 0)

    order = {id(each): (place(each.backbone, backbones), place(each.dataset, datasets)) for each in results}
    return sorted(results, key=lambda each: (*order[id(each)], method(each.method)))


def transfer_content(
    results: Sequence[Result],
    prepared: Sequence[Prepared | DenseSet],
    missing: Mapping[str, str],
    config: TransferConfig,
) -> dict[str, Any]:
    """The content of transfer.json: `backbones` has the values, the rest describes how they were computed."""
    backbones: dict[str, dict[str, dict[str, Any]]] = {}
    details: dict[str, dict[str, dict[str, Any]]] = {}
    datasets: dict[str, dict[str, Any]] = {}
    for each in results:
        value = asdict(Value(each.metric, each.value, each.low, each.high, each.n_test))
        backbones.setdefault(each.backbone, {}).setdefault(each.dataset, {})[each.method] = value
        more = {
            "answers": each.answers,
            "chosen": each.chosen,
            "draws": each.draws,
            "images": each.images,
            "identity": each.identity,
            **({"figures": each.figures, "resampled": each.resampled} if each.figures else {}),
        }
        details.setdefault(each.backbone, {}).setdefault(each.dataset, {})[each.method] = more
        datasets.setdefault(each.dataset, {"metric": each.metric, "n_test": each.n_test})
    for one in prepared:
        if one.name in datasets:
            datasets[one.name] |= one.facts
    return {
        "backbones": backbones,
        "datasets": datasets,
        "missing": dict(missing),
        "details": details,
        "made_with": {"config": saved.plain(config), "versions": list(identity.versions())},
    }


def measured_of(results: Sequence[Result], folder: Path) -> list[MeasuredBackbone]:
    """The results by backbone, with the paths of their answers."""
    found: dict[str, MeasuredBackbone] = {}
    for each in results:
        one = found.setdefault(each.backbone, MeasuredBackbone(each.backbone, {}, {}))
        one.values[each.dataset, each.method] = Value(each.metric, each.value, each.low, each.high, each.n_test)
        one.answers[each.dataset, each.method] = atomic.inside(folder, each.answers)
        one.data_hashes[each.dataset, each.method] = each.identity.get("data_sha256")
        if each.figures:
            one.trainings[each.dataset, each.method] = Trainings(each.draws, each.resampled)
    return list(found.values())
