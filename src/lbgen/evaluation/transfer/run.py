"""The transfer: read every data set, probe and fine-tune every backbone on it, write the table and the page.

Torch is imported only after all checks that do not need it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbgen.configuration import saved
from lbgen.configuration.documentation import Documented
from lbgen.configuration.ranges import ensure_config, one_or_more
from lbgen.errors import UserError
from lbgen.evaluation.transfer.config import (
    ANSWERS,
    CACHE,
    CONFIGS,
    FREE,
    FREE_DENSE,
    LOCK,
    PAGE,
    RESULTS,
    WRITTEN,
    TransferConfig,
)
from lbgen.evaluation.transfer.dense.layouts import Layout, find_layout
from lbgen.evaluation.transfer.sets import sources
from lbgen.evaluation.transfer.sets.sources import NotHere
from lbgen.models.backbones import display_names, ensure_backbone, load_backbone
from lbgen.models.backbones.location import find_local
from lbgen.runs import atomic, outputs
from lbgen.runs.console import counted, device_name, result, say, table, warn
from lbgen.runs.lock import locked

if TYPE_CHECKING:
    from lbgen.evaluation.transfer.dense.measure import DenseMeasurer
    from lbgen.evaluation.transfer.dense.sets import DenseSet
    from lbgen.evaluation.transfer.measure import Measurer, Prepared
    from lbgen.evaluation.transfer.stored import Result
    from lbgen.models.backbones.backbone import Backbone


@dataclass(frozen=True)
class TransferResult(Documented):
    """Where a transfer wrote its values."""

    table: Path
    """transfer.json"""
    page: Path
    """report.html."""
    next_command: str
    """A command that compares the backbones, or measures another."""


def transfer(backbones: str | Path | Sequence[str | Path], config: TransferConfig | None = None) -> TransferResult:
    """Measure how backbones transfer to downstream data sets.

    backbones: one or several; each a run of lbgen pretrain, a timm name, a timm folder, or ARCHITECTURE:FILE.

    Writes transfer.json, report.html and the answers for every test image to `config.output`, and returns their paths.
    Raises UserError for a backbone that cannot be loaded, for a set without train and test images, and for a folder
    with other results.

    >>> import lbgen
    >>> result = lbgen.transfer("runs/pretrain", lbgen.TransferConfig(datasets=("digits",), output="runs/transfer"))
    """
    config = TransferConfig() if config is None else config
    ensure_config(config, TransferConfig)
    given = one_or_more(backbones, "backbones")
    if not given:
        raise UserError("no backbone is given; name one or more")
    names = dict(zip(display_names(given), given, strict=True))
    for name in given:
        ensure_backbone(name)
    data = find_data(config)
    folder = config.folder
    atomic.ensure_writable(folder)
    atomic.refuse_links(folder, WRITTEN)
    outputs.ensure_outside(folder, data.places)
    outputs.ensure_own(folder, is_of_transfer(folder), WRITTEN, "transfer")
    with locked(folder / LOCK, str(folder)):
        if (folder / config.saved_as).is_file():
            saved.ensure_same(config, folder / config.saved_as, ignore=FREE_DENSE if config.dense else FREE)
        return _measured(names, data, config)


def is_of_transfer(folder: Path) -> bool:
    """Whether a folder was written by a transfer, even if that was interrupted or its cache was removed."""
    has_config = any((folder / name).is_file() for name in CONFIGS)
    return (folder / LOCK).exists() or (has_config and (folder / RESULTS).is_dir())


@dataclass(frozen=True)
class Data:
    """The data sets of a run."""

    datasets: dict[str, str]
    """Available sets: name for output -> as it was given."""
    missing: dict[str, str]
    """Missing sets, as they were given -> how to get them."""
    places: list[Path]
    """Folders of the sets."""
    layout: Layout | None = None
    """The parts of a single set for detection or segmentation."""


def find_data(config: TransferConfig) -> Data:
    """The sets for classification, or the set for detection or segmentation. Raises UserError if there is none."""
    root = Path(config.data)
    if config.dense:
        name, layout = find_layout(config)
        return Data({name: config.data}, {}, [root], layout)
    found, missing = find_datasets(config)
    places = [place for given in found.values() if (place := sources.place_of(given, root))]
    return Data(found, missing, places)


def find_datasets(config: TransferConfig) -> tuple[dict[str, str], dict[str, str]]:
    """The available sets for classification, by their names for output, and the missing ones with how to get them.

    A set's name for output is the given name, or the last folder of a path. A line is printed for each missing set.

    Raises UserError for an unknown name, for a set that is given twice, and if all sets are missing.
    """
    root, found, missing = Path(config.data), {}, {}
    known = [sources.known_name(name) for name in config.datasets]
    if twice := next((name for name in known if known.count(name) > 1), None):
        raise UserError(f"--datasets {twice}: given twice; name every set once")
    for name in config.datasets:
        try:
            sources.ensure_here(name, root)
            found[shown_name(name, config.datasets)] = name
        except NotHere as error:
            missing[name] = str(error)
    if not found:
        raise nothing_here(missing)
    for text in missing.values():
        warn(text)
    return found, missing


def shown_name(name: str, names: Sequence[str]) -> str:
    """The last folder of a path, or the whole path if another one ends in the same folder."""
    last = [Path(each).name for each in names]
    return Path(name).name if last.count(Path(name).name) == 1 else name


def nothing_here(missing: Mapping[str, str]) -> UserError:
    """The error for a run without any data set."""
    return UserError(
        f"--datasets: none of them is there; add digits, which always is, or get one ({'; '.join(missing.values())})"
    )


def _measured(names: dict[str, str], data: Data, config: TransferConfig) -> TransferResult:
    import torch  # late, like all imports that need it

    from lbgen.evaluation.transfer.output import write_transfer
    from lbgen.models.backbones.backbone import locate

    # Refuse invalid backbones before hours are spent on others.
    for place in names.values():
        if find_local(place) is None:
            locate(place)

    # Print the opening, and store the settings.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    say_opening(names, data.datasets, config, device_name(device))
    for inner in (RESULTS, ANSWERS, CACHE):
        (config.folder / inner).mkdir(parents=True, exist_ok=True)
    saved.save(config, config.folder / config.saved_as)

    # Read every data set once, and measure every backbone on it.
    prepared: list[Any] = read_dense(data, config) if config.dense else read_datasets(data, config)
    for name, place in names.items():
        measurer = measurer_of(name, load_backbone(place, device), config)
        for dataset in prepared:
            for found in measurer.results(dataset):
                say_result(found)

    # Write the table and the page.
    written = write_transfer(list(names), prepared, data.missing, config)
    result(written.shown)
    say(f"The page: {config.folder / PAGE}; every value: {written.path}")
    compare = f"lbgen compare {written.path} ANOTHER/transfer.json"
    return TransferResult(written.path, config.folder / PAGE, f"open {config.folder / PAGE}; with others: {compare}")


def read_datasets(data: Data, config: TransferConfig) -> list[Prepared]:
    """The sets for classification; a set that cannot be read is added to the missing ones."""
    from lbgen.evaluation.transfer.measure import prepare

    prepared: list[Prepared] = []
    for name, given in data.datasets.items():
        try:
            prepared.append(prepare(name, given, config))
        except NotHere as error:
            data.missing[name] = str(error)
            if len(data.missing) == len(config.datasets):
                raise nothing_here(data.missing) from None
            warn(str(error))
    return prepared


def read_dense(data: Data, config: TransferConfig) -> list[DenseSet]:
    from lbgen.evaluation.transfer.dense.sets import prepare_dense

    assert data.layout is not None
    return [prepare_dense(name, data.layout, config) for name in data.datasets]


def measurer_of(name: str, backbone: Backbone, config: TransferConfig) -> Measurer | DenseMeasurer:
    if config.dense:
        from lbgen.evaluation.transfer.dense.measure import DenseMeasurer

        return DenseMeasurer(name, backbone, config)
    from lbgen.evaluation.transfer.measure import Measurer

    return Measurer(name, backbone, config)


def say_opening(names: dict[str, str], datasets: dict[str, str], config: TransferConfig, device: str) -> None:
    """Print what will be measured."""
    few = f"; few-shot: {', '.join(config.shots)}, {counted(config.seeds, 'draw')}" if config.shots else ""
    shares = f"; of the images {', '.join(f'{100 * share:g}%' for share in config.fraction)}, seeds: {config.seeds}"
    rows = [
        *((f"backbone {name}", place) for name, place in names.items()),
        ("data sets", ", ".join(datasets)),
        ("methods", f"{', '.join(config.method)}{shares if config.dense else few}"),
        ("output", str(config.folder)),
        ("device", device),
    ]
    say(table(rows))
    saved.say_in_full(config)
    if known := sum(1 for _ in (config.folder / RESULTS).glob("*.json")):
        say(f"going on with {counted(known, 'result')} from before")


def say_result(found: Result) -> None:
    interval = "" if found.low is None or found.high is None else f" ({100 * found.low:.1f} to {100 * found.high:.1f})"
    say(f"{found.backbone}, {found.dataset}, {found.method}: {100 * found.value:.1f}{interval}")
