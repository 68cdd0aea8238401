"""`lbgen compare`: backbones of several transfers side by side, with paired tests on the stored answers."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbgen.configuration.ranges import ensure_config, one_or_more
from lbgen.errors import UserError
from lbgen.evaluation.transfer.config import ANSWERS, COMPARISON, COMPARISON_PAGE, CONFIG, TRANSFER, CompareConfig
from lbgen.evaluation.transfer.values import Share, Value
from lbgen.runs import atomic, identity, outputs
from lbgen.runs.console import result, say
from lbgen.runs.parsing import Name, Text, Whole, parse_json, read_json

if TYPE_CHECKING:
    from lbgen.evaluation.transfer.comparison import Difference, MeasuredBackbone

REMEDY = "give the transfer.json that lbgen transfer wrote"


@dataclass(frozen=True)
class StoredDetails:
    answers: Name
    draws: list[Share] = field(default_factory=list)
    figures: list[dict[Name, Share]] = field(default_factory=list)
    """Only for detection and segmentation."""
    resampled: list[Share] = field(default_factory=list)
    identity: dict[Name, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ResultConfig:
    seed: Whole | None = None


@dataclass(frozen=True)
class MadeWith:
    config: ResultConfig = field(default_factory=ResultConfig)


@dataclass(frozen=True)
class StoredTransfer:
    """The part of a transfer.json that is read."""

    backbones: dict[Name, dict[Name, dict[Name, Value]]]
    details: dict[Name, dict[Name, dict[Name, StoredDetails]]] = field(default_factory=dict)
    missing: dict[Name, Text] = field(default_factory=dict)
    made_with: MadeWith = field(default_factory=MadeWith)


@dataclass(frozen=True)
class Compared:
    """A comparison of backbones with the first one."""

    backbones: list[MeasuredBackbone]
    """All of them with their values; the reference comes first."""
    differences: list[Difference]
    """Each backbone's difference from the reference in each data set and method, with its test."""


def compare(files: str | Path | Sequence[str | Path], config: CompareConfig | None = None) -> Compared:
    """Compare the backbones of one or several transfers with the first one.

    files: the transfers' files transfer.json, or their folders. Prints the tables; writes comparison.json and
    comparison.html if `config.output` is given. Raises UserError for another file, and for a single backbone.

    >>> import lbgen
    >>> compared = lbgen.compare(["runs/base/transfer.json", "runs/aligned/transfer.json"])
    """
    config = CompareConfig() if config is None else config
    ensure_config(config, CompareConfig)
    paths = [Path(os.path.expanduser(file)) for file in one_or_more(files, "transfers")]
    paths = [path / TRANSFER if path.is_dir() else path for path in paths]
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError(f"{' '.join(map(str, paths))}: a file is given twice; name every transfer.json once")
    found = [(path, _read(path)) for path in paths]
    if sum(len(content.backbones) for _, content in found) < 2:
        raise UserError(f"{paths[0]}: a single backbone cannot be compared; give the transfer.json of another too")
    folder = Path(config.output) if config.output else None
    if folder:
        atomic.ensure_writable(folder)
        outputs.ensure_outside(folder)
        refused_names = (COMPARISON, COMPARISON_PAGE, CONFIG)  # the last marks the folder of another verb
        outputs.ensure_own(folder, _is_comparison(folder), refused_names, "compare")
    return _compared(found, folder)


def _is_comparison(folder: Path) -> bool:
    try:
        content = parse_json(atomic.read_bytes(folder / COMPARISON))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"reference", "differences"} <= content.keys()


def _read(path: Path) -> StoredTransfer:
    try:
        return read_json(atomic.read_bytes(path), StoredTransfer, str(path), REMEDY)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {REMEDY}") from None


def _compared(found: Sequence[tuple[Path, StoredTransfer]], folder: Path | None) -> Compared:
    from lbgen.evaluation.transfer.comparison import differences
    from lbgen.evaluation.transfer.page import write_page
    from lbgen.evaluation.transfer.tables import tables, text_of

    measured = _measured(found)
    compared = Compared(measured, differences(measured))
    result(f"{tables(measured)}\n\n{text_of(compared.differences)}")
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        content = comparison_content(compared, [path for path, _ in found])
        atomic.write_text(folder / COMPARISON, json.dumps(content, indent=2, allow_nan=False) + "\n")
        write_page(measured, compared.differences, folder / COMPARISON_PAGE, content)
        say(f"The page: {folder / COMPARISON_PAGE}; every value: {folder / COMPARISON}")
    return compared


def _measured(found: Sequence[tuple[Path, StoredTransfer]]) -> list[MeasuredBackbone]:
    """Every backbone; if several files have the same name, the folder is added to it."""
    from lbgen.evaluation.transfer.comparison import MeasuredBackbone, Trainings

    names = [name for _, content in found for name in content.backbones]
    measured = []
    for path, content in found:
        for name, datasets in content.backbones.items():
            shown = name if names.count(name) == 1 else f"{name} ({path.parent})"
            values = {(dataset, method): value for dataset, each in datasets.items() for method, value in each.items()}
            details = {
                (dataset, method): each
                for dataset, methods in content.details.get(name, {}).items()
                for method, each in methods.items()
            }
            trainings = {key: Trainings(each.draws, each.resampled) for key, each in details.items() if each.figures}
            answers = {
                key: atomic.inside(path.parent, each.answers)
                for key, each in details.items()
                if each.answers.startswith(f"{ANSWERS}/")
            }
            hashes = {key: each.identity.get("data_sha256") for key, each in details.items()}
            measured.append(MeasuredBackbone(shown, values, answers, trainings, hashes, content.made_with.config.seed))
    if twice := next((each.name for each in measured if [one.name for one in measured].count(each.name) > 1), None):
        raise UserError(f"{twice}: given twice; name every transfer.json once")
    return measured


def comparison_content(compared: Compared, paths: Sequence[Path]) -> dict[str, Any]:
    """The content of comparison.json."""
    return {
        "reference": compared.backbones[0].name,
        "backbones": {each.name: _nested(each) for each in compared.backbones},
        "differences": [plain(each) for each in compared.differences],
        "made_with": {"files": list(map(str, paths)), "versions": list(identity.versions())},
    }


def _nested(one: MeasuredBackbone) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for (dataset, method), value in one.values.items():
        found.setdefault(dataset, {})[method] = asdict(value)
    return found


def plain(difference: Difference) -> dict[str, Any]:
    """A difference in JSON."""
    chances = {
        name: value if math.isfinite(value := getattr(difference, name)) else None for name in ("p_value", "q_value")
    }
    return {
        "backbone": difference.backbone,
        "dataset": difference.dataset,
        "method": difference.method,
        **difference.estimate.to_json(),
        **chances,
        "test": difference.note,
    }
