"""Files in a dataset folder that are not the dataset's: those that a run would overwrite, and those that readers take.

Readers: `datasets` by the patterns of the card, torchvision's ImageFolder, the webdataset pattern, lbgen's own audit.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator

from lbgen.datasets import index
from lbgen.datasets.layouts import LAYOUTS
from lbgen.datasets.listed import NAMES as LISTS
from lbgen.datasets.records import IMAGE_SUFFIXES
from lbgen.generation.config import GenerateConfig
from lbgen.generation.plan import Plan
from lbgen.generation.shard_rows import file_of
from lbgen.runs import atomic
from lbgen.runs.outputs import DATASET_RECORD, taken_names
from lbgen.runs.storage import Store

LABELS, CARD, SAMPLES, INFO, CROISSANT = "labels.json", "README.md", "samples.png", "_info.json", "croissant.json"
WRITTEN = (
    *DATASET_RECORD, LABELS, CARD, SAMPLES, INFO, CROISSANT, "duplicates.json", "index", "screening", "data",
    "config.yaml",
)  # fmt: skip
"""Names that are a dataset's; config.yaml is that of an alignment run."""
SHARD_SUFFIXES = (".tar", ".parquet", ".arrow")

BELONGS_TO_NO_SHARD = "belongs to no shard; remove it"


def foreign_names(store: Store, config: GenerateConfig) -> list[str]:
    """Names in a folder without a dataset that a run would write, or that readers of its dataset would take."""
    names = store.names()
    masks = ("masks", "annotations") if config.localize else ()
    found = taken_names(names, (*WRITTEN, *masks, config.split))
    found += sorted(name for name in names if _is_shard(name) or name in LISTS)
    if config.format == "imagefolder":
        found += [name for name in sorted(store.folders()) if any(map(is_picture, store.names(name)))]
    return found


def existing_files(store: Store, config: GenerateConfig, plan: Plan, split: str, first_shard: int) -> Iterator[str]:
    """Files that the shards of a split, from this one on, would write and that exist already.

    Of a new split, whose shards all count, also files that its readers would take.
    """
    if not first_shard:
        yield from _files_of_split(store, config, split)
    listings: dict[str, set[str]] = {}
    for shard in range(first_shard, plan.shards(split)):
        for file in planned_files(config, plan, split, shard):
            folder, _, name = file.rpartition("/")
            if folder not in listings:
                listings[folder] = store.names(folder)
            if name in listings[folder]:
                yield file
            mask = index.mask_file(file)
            if has_mask_files(config) and store.exists(mask):
                yield mask


def _files_of_split(store: Store, config: GenerateConfig, split: str) -> list[str]:
    """The folder of a split, or files that match its pattern in the card (card/readme.py, DATA_FILES)."""
    if config.format == "imagefolder":
        return taken_names(store.names(), [split])
    folder = "data/" if config.format == "parquet" else ""
    return [f"{folder}{name}" for name in store.names(folder[:-1]) if _is_shard(name) and name.startswith(f"{split}-")]


def has_mask_files(config: GenerateConfig) -> bool:
    """Whether masks are files of their own."""
    return config.localize and not LAYOUTS[config.format].container


def strays(store: Store, config: GenerateConfig, plan: Plan, known: Collection[str]) -> Iterator[tuple[str, str]]:
    """(name, what is wrong with it) of what some reader takes besides the dataset's own files, which are `known`."""
    parts = {index.part_name(split, shard) for split in plan.splits for shard in range(plan.shards(split))}
    found = [name for name in sorted(store.names()) if _is_shard(name) or name in LISTS]
    found += [f"index/{name}" for name in sorted(store.names("index")) if _is_shard(name)]
    if config.format == "parquet":
        found += [f"data/{name}" for name in sorted(store.names("data")) if _is_shard(name)]
    yield from ((name, BELONGS_TO_NO_SHARD) for name in found if name not in known and name not in parts)
    if config.format == "imagefolder":
        for split in plan.splits:
            yield from _strays_of_split(store, split, known)
    if config.localize:
        of_splits = map(index.annotations_name, plan.splits)
        others = {f"annotations/{name}" for name in store.names("annotations")}.difference(of_splits)
        yield from ((name, BELONGS_TO_NO_SHARD) for name in sorted(others))
    if has_mask_files(config):
        masks = {index.mask_file(file) for file in known}
        pictures = _pictures_below(store, "masks")
        yield from ((name, BELONGS_TO_NO_SHARD) for name in pictures if name not in masks)


def _strays_of_split(store: Store, split: str, known: Container[str]) -> Iterator[tuple[str, str]]:
    """torchvision takes every folder for a category, hidden ones too, and each has to hold an image at any depth."""
    folders = store.folders(split)
    beside = [f"{split}/{name}" for name in store.names(split) - folders if is_picture(name) or name in LISTS]
    yield from ((name, BELONGS_TO_NO_SHARD) for name in sorted(beside))
    for folder in sorted(folders):
        pictures = list(_pictures_below(store, f"{split}/{folder}"))
        yield from ((name, BELONGS_TO_NO_SHARD) for name in pictures if name not in known)
        if not pictures:
            yield f"{split}/{folder}", "a folder without an image, which torchvision refuses; remove it"


def _pictures_below(store: Store, folder: str) -> Iterator[str]:
    """The pictures in a folder and in those inside it, and every folder that lies too deep to be searched."""
    if folder.count("/") > atomic.DEEPEST:
        yield folder
        return
    inner = store.folders(folder)
    yield from (f"{folder}/{name}" for name in sorted(store.names(folder) - inner) if is_picture(name))
    for name in sorted(inner):
        yield from _pictures_below(store, f"{folder}/{name}")


def planned_files(config: GenerateConfig, plan: Plan, split: str, shard: int) -> Iterator[str]:
    """The files that hold the images of a shard, or would if screening dropped none."""
    images = plan.shard(split, shard)
    for image in images[:1] if LAYOUTS[config.format].container else images:
        yield file_of(image, shard, config)


def is_picture(name: str) -> bool:
    """Whether torchvision or the audit take a file of this name for an image; torchvision takes hidden ones too."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def _is_shard(name: str) -> bool:
    return name.endswith(SHARD_SUFFIXES) and not name.startswith(".")
