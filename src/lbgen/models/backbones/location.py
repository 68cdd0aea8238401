"""Locating a backbone's files and reading its config.json, without torch. Files that may run code are never read."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from msgspec import Meta

from lbgen.errors import UserError
from lbgen.runs import atomic
from lbgen.runs.model_folder import PICKLES
from lbgen.runs.parsing import Name, Text, read_json

CONFIG = "config.json"
RUN_WEIGHTS, TIMM_WEIGHTS = "backbone.safetensors", "model.safetensors"
"""The weights in the folder of a pre-training run, and in a folder that timm saved for the Hub."""
SAFE = ".safetensors"
UNSAFE = (*PICKLES, ".tar", ".npz", ".pkl")
"""Suffixes of checkpoints that are not read: all but .npz may run code, and .npz is a format of another library."""
REMEDY = "restore the file, or give another backbone"
OWN_ARGUMENTS = ("pretrained", "checkpoint", "cache_dir", "num_classes", "in_chans", "features_only", "out_indices")
"""Prefixes of timm arguments that select what is loaded or returned; such arguments in a config are ignored."""

Side = Annotated[int, Meta(ge=1, le=8192)]
Unit = Annotated[float, Meta(ge=-10, le=10)]
Spread = Annotated[float, Meta(gt=0, le=10)]
Crop = Annotated[float, Meta(gt=0, le=10)]
Classes = Annotated[int, Meta(ge=0, le=10_000_000)]
Labels = list[Text] | dict[Name, Text]


@dataclass(frozen=True)
class InputSettings:
    """The fields of timm's `pretrained_cfg` that describe images and classes; None if a field is missing."""

    input_size: tuple[Literal[3], Side, Side] | None = None
    """Channels, height, width."""
    mean: tuple[Unit, Unit, Unit] | None = None
    std: tuple[Spread, Spread, Spread] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] | None = None
    crop_pct: Crop | None = None
    crop_mode: Literal["center", "squash", "border"] | None = None
    label_names: Labels | None = None
    label_descriptions: dict[Name, Text] | None = None
    num_classes: Classes | None = None


@dataclass(frozen=True)
class HubConfig:
    """A config.json in timm's layout for the Hub."""

    architecture: Name
    num_classes: Classes | None = None
    label_names: Labels | None = None
    label_descriptions: dict[Name, Text] | None = None
    model_args: dict[Name, Any] = field(default_factory=dict)
    """Arguments of the architecture, such as `img_size`."""
    pretrained_cfg: InputSettings = field(default_factory=InputSettings)

    @property
    def architecture_arguments(self) -> dict[str, Any]:
        return {name: value for name, value in self.model_args.items() if not name.startswith(OWN_ARGUMENTS)}

    @property
    def class_names(self) -> list[str] | None:
        """The class names in the order of the model's outputs."""
        names = self.label_names or self.pretrained_cfg.label_names
        if isinstance(names, dict):  # output -> name
            numbered = {int(number): name for number, name in names.items() if number.isdecimal()}
            return [numbered[number] for number in sorted(numbered)]
        return names or None

    @property
    def class_descriptions(self) -> dict[str, str]:
        """Class name -> description."""
        return self.label_descriptions or self.pretrained_cfg.label_descriptions or {}


class BackboneFiles(NamedTuple):
    """The files of a backbone."""

    weights: Path
    architecture: str
    """timm's name of the architecture. Without a config, a tag of timm's weights in it selects their preprocessing."""
    config: HubConfig | None
    """None for a checkpoint without a config.json; timm's defaults for the architecture are then used."""


def find_local(name: str) -> BackboneFiles | None:
    """The files of a backbone on this machine; None for a possible timm name; UserError for anything else."""
    place = os.path.expanduser(name)
    if os.path.isdir(place):
        return _in_folder(Path(place))
    architecture, colon, file = name.partition(":")
    if colon:
        return _checkpoint(name, architecture, Path(os.path.expanduser(file)))
    if os.path.isfile(place):
        refuse_unsafe(name, Path(place))
        raise UserError(f"backbone {name} is a file; say of which architecture it is: ARCHITECTURE:{name}")
    if os.sep in name or name.startswith("."):
        raise UserError(f"backbone {name}: there is no such folder; give a run of lbgen pretrain or a name of timm")
    return None


def ensure_backbone(name: str) -> None:
    """Refuse a backbone whose files are missing or in a format that is not read; needs no torch."""
    find_local(name)


def _in_folder(folder: Path) -> BackboneFiles:
    weights = next((folder / file for file in (RUN_WEIGHTS, TIMM_WEIGHTS) if (folder / file).is_file()), None)
    config = folder / CONFIG
    if weights is None:
        for path in sorted(folder.iterdir()):
            if path.is_file():
                refuse_unsafe(str(folder), path)
    if weights is None or not config.is_file():
        lacking = CONFIG if weights else f"{RUN_WEIGHTS} or {TIMM_WEIGHTS}"
        raise UserError(
            f"backbone {folder}: the folder has no {lacking}; give a finished run of lbgen pretrain or a folder of timm"
        )
    stored = read_json(atomic.read_bytes(config), HubConfig, str(config), REMEDY)
    return BackboneFiles(weights, stored.architecture, stored)


def _checkpoint(name: str, architecture: str, file: Path) -> BackboneFiles:
    refuse_unsafe(name, file)
    if file.suffix != SAFE or not architecture:
        raise UserError(f"backbone {name}: write ARCHITECTURE:FILE{SAFE}, a name of timm and a file of weights")
    if not os.path.isfile(file):
        raise UserError(f"backbone {name}: there is no file {file}; give one")
    return BackboneFiles(file, architecture, None)


def refuse_unsafe(name: str, path: Path) -> None:
    if path.suffix in UNSAFE:
        raise UserError(
            f"backbone {name}: {path.name} may run code and is never loaded; if you trust it, load it with torch, save "
            f"its state dict with safetensors.torch.save_file, and give ARCHITECTURE:FILE{SAFE}"
        )


# ---- names for people ----


def display_names(backbones: Sequence[str]) -> list[str]:
    """A short, unique name for each backbone: the last folder of a path, with as many parents as make it unique.

    Raises UserError if one is given twice.
    """
    parts = [_parts(name) for name in backbones]
    if twice := next((name for name, path in zip(backbones, parts, strict=True) if parts.count(path) > 1), None):
        raise UserError(f"backbone {twice}: given twice; name every backbone once")
    shown = []
    for path in parts:
        length = 1
        while sum(other[-length:] == path[-length:] for other in parts) > 1:
            length += 1
        shown.append("/".join(path[-length:]).lstrip("/"))
    return shown


def _parts(name: str) -> tuple[str, ...]:
    """The parts of a name: one for a timm name; for a path its folders and file, the last with its `ARCHITECTURE:`."""
    place = os.path.expanduser(name)
    if os.path.isdir(place):
        return Path(os.path.abspath(place)).parts
    architecture, colon, file = name.partition(":")
    if colon:
        path = Path(os.path.abspath(os.path.expanduser(file)))
        return (*path.parts[:-1], f"{architecture}:{path.stem}")
    return (name,)
