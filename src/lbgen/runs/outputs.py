"""Which folder a run may write to: a new one or its own, but none inside a dataset."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from lbgen.errors import UserError, printable

DATASET_RECORD = ("dataset.yaml", "plan.json")
"""The two files that every dataset of lbgen generate has."""


def ensure_own(output: Path, is_own: bool, written: Iterable[str], verb: str) -> None:
    """Refuse a folder that `verb` did not make (is_own is false) and that holds one of the names in `written`."""
    names = os.listdir(output) if os.path.isdir(output) and not is_own else []
    if taken := taken_names(names, written):
        refuse(str(output), taken[0], verb)


def taken_names(names: Iterable[str], written: Iterable[str]) -> list[str]:
    """The names, sorted, that equal one of `written`; case is ignored, because some file systems ignore it."""
    reserved = set(map(str.casefold, written))
    return sorted(name for name in names if name.casefold() in reserved)


def refuse(output: str, name: str, verb: str) -> None:
    raise UserError(
        f"--output {output}: it holds {printable(name)}, which lbgen {verb} did not write; choose another --output"
    )


def ensure_outside(output: Path, datasets: Sequence[Path] = (), within: bool = True) -> None:
    """Refuse a folder that is one of `datasets` or a dataset of lbgen generate, or lies inside one.

    within: also refuse the folder if it is itself a dataset of lbgen generate.
    """
    place = output.resolve()
    places = [place, *place.parents]
    inside = {folder.resolve(): folder for folder in datasets}
    found = next((inside[folder] for folder in places if folder in inside), None)
    if found := found or next(filter(_is_dataset, places[not within :]), None):
        raise UserError(
            f"--output {output}: it lies in the dataset {found}, whose readers would take what is written there; "
            "choose another --output"
        )


def _is_dataset(folder: Path) -> bool:
    return all(os.path.exists(folder / name) for name in DATASET_RECORD)
