"""Stray files in a dataset folder: files that a run would overwrite, and files that readers would read as data.

Readers are `datasets` with the patterns of the card, torchvision's ImageFolder, the webdataset pattern and lbgen audit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from lbgen.datasets import index
from lbgen.datasets.index import SUFFIXES
from lbgen.datasets.layouts import LAYOUTS
from lbgen.datasets.listed import NAMES as LISTS
from lbgen.datasets.records import IMAGE_SUFFIXES
from lbgen.generation.config import GenerateConfig
from lbgen.generation.integrity.shard_rows import file_of
from lbgen.generation.plan import Plan, image_key
from lbgen.generation.targets import image_counts
from lbgen.runs import atomic
from lbgen.runs.outputs import DATASET_RECORD, taken_names
from lbgen.runs.storage import Store

LABELS, CARD, SAMPLES, INFO, CROISSANT = "labels.json", "README.md", "samples.png", "_info.json", "croissant.json"
WRITTEN = (
    *DATASET_RECORD, LABELS, CARD, SAMPLES, INFO, CROISSANT, "duplicates.json", "index", "screening", "data",
    "config.yaml",
)  # fmt: skip
"""Names that belong to a dataset; config.yaml belongs to an alignment run."""
SHARD_SUFFIXES = (".tar", ".parquet", ".arrow")

LONGEST_INDEX = 9
"""Most digits of an image's index; a plan cannot have more images."""
BELONGS_TO_NO_SHARD = "belongs to no shard; remove it"


def foreign_names(store: Store, config: GenerateConfig) -> list[str]:
    """Names, in a folder without a dataset, that a run would write or that readers of its dataset would read."""
    names = store.names()
    masks = ("masks", "annotations") if config.localize else ()
    found = taken_names(names, (*WRITTEN, *masks, config.split))
    found += sorted(name for name in names if _is_shard(name) or name in LISTS)
    if config.format == "imagefolder":
        found += [name for name in sorted(store.folders()) if any(map(is_picture, store.names(name)))]
    return found


def existing_files(store: Store, config: GenerateConfig, plan: Plan, split: str, earlier: Plan) -> Iterator[str]:
    """Existing files that new shards of a split, those not in the plan `earlier`, would overwrite.

    For a new split, also files that its readers would read.
    """
    is_new = split not in earlier.splits
    if is_new:
        yield from _files_of_split(store, config, split)
    if LAYOUTS[config.format].container:
        shards = range(0 if is_new else earlier.shards(split), plan.shards(split))
        files = [file for shard in shards for file in planned_files(config, plan, split, shard)]
        present = {folder: store.names(folder) for folder in {file.rpartition("/")[0] for file in files}}
        yield from (file for file in files if file.rpartition("/")[2] in present[file.rpartition("/")[0]])
        return
    before, asked = KnownFiles(config, earlier), KnownFiles(config, plan)
    for category in plan.categories:
        files = [f"{split}/{category.id}/{name}" for name in sorted(store.names(f"{split}/{category.id}"))]
        yield from (file for file in files if file in asked and file not in before)
        if has_mask_files(config):
            masks = [
                f"masks/{split}/{category.id}/{name}" for name in sorted(store.names(f"masks/{split}/{category.id}"))
            ]
            yield from (mask for mask in masks if asked.has_mask(mask) and not before.has_mask(mask))


def _files_of_split(store: Store, config: GenerateConfig, split: str) -> list[str]:
    """The folder of a split, or the files that match its pattern in the card (card/readme.py, DATA_FILES)."""
    if config.format == "imagefolder":
        return taken_names(store.names(), [split])
    folder = "data/" if config.format == "parquet" else ""
    return [f"{folder}{name}" for name in store.names(folder[:-1]) if _is_shard(name) and name.startswith(f"{split}-")]


def has_mask_files(config: GenerateConfig) -> bool:
    """Whether masks are files of their own."""
    return config.localize and not LAYOUTS[config.format].container


class KnownFiles:
    """The files with the images of a plan. For an image folder they are not listed: millions of names take GBs."""

    def __init__(self, config: GenerateConfig, plan: Plan) -> None:
        self.config, self.plan = config, plan
        self.layout, self.suffix = LAYOUTS[config.format], SUFFIXES[config.image_format]
        of_splits = {split: [target for target in plan.targets if target.split == split] for split in plan.splits}
        self.counts = {split: image_counts(targets) for split, targets in of_splits.items()}
        """Split -> category id -> number of images."""
        self.containers: set[str] = set()
        self.absent: set[str] = set()
        """Planned images that screening left out."""

    def add_shard(self, split: str, shard: int, files: Collection[str]) -> None:
        """files: named by a shard's part of the index; empty if it cannot be read, and all planned files then count."""
        if self.layout.container:
            self.containers.update(files or planned_files(self.config, self.plan, split, shard))
        elif files:
            self.absent.update(set(planned_files(self.config, self.plan, split, shard)).difference(files))

    def __contains__(self, name: str) -> bool:
        return name in self.containers if self.layout.container else self._is_planned(name) and name not in self.absent

    def _is_planned(self, name: str) -> bool:
        split, _, place = name.partition("/")
        category_id, _, file = place.partition("/")
        number = file.removeprefix(f"{category_id}_").removesuffix(f".{self.suffix}")
        if not (number.isascii() and number.isdigit() and len(number) <= LONGEST_INDEX):
            return False
        planned = self.layout.file(split, 0, category_id, image_key(category_id, int(number)), self.suffix)
        return name == planned and int(number) < self.counts.get(split, {}).get(category_id, 0)

    def has_mask(self, mask: str) -> bool:
        """Whether this is the mask of one of the images."""
        image = f"{mask.removeprefix('masks/').removesuffix('.png')}.{self.suffix}"
        return mask == index.mask_file(image) and image in self


def strays(store: Store, config: GenerateConfig, plan: Plan, known: KnownFiles) -> Iterator[tuple[str, str]]:
    """(name, fault) of files and folders that some reader would read besides the dataset's own files (`known`)."""
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
        pictures = _pictures_below(store, "masks")
        yield from ((name, BELONGS_TO_NO_SHARD) for name in pictures if not known.has_mask(name))


def _strays_of_split(store: Store, split: str, known: KnownFiles) -> Iterator[tuple[str, str]]:
    """Stray folders and pictures: to torchvision every folder, even hidden, is a category that must hold an image."""
    folders = store.folders(split)
    beside = [f"{split}/{name}" for name in store.names(split) - folders if is_picture(name) or name in LISTS]
    yield from ((name, BELONGS_TO_NO_SHARD) for name in sorted(beside))
    for folder in sorted(folders):
        pictures = list(_pictures_below(store, f"{split}/{folder}"))
        yield from ((name, BELONGS_TO_NO_SHARD) for name in pictures if name not in known)
        if not pictures:
            yield f"{split}/{folder}", "a folder without an image, which torchvision refuses; remove it"


def _pictures_below(store: Store, folder: str) -> Iterator[str]:
    """The pictures below a folder, and every folder that is nested too deeply to be searched."""
    if folder.count("/") > atomic.DEEPEST:
        yield folder
        return
    inner = store.folders(folder)
    yield from (f"{folder}/{name}" for name in sorted(store.names(folder) - inner) if is_picture(name))
    for name in sorted(inner):
        yield from _pictures_below(store, f"{folder}/{name}")


def planned_files(config: GenerateConfig, plan: Plan, split: str, shard: int) -> Iterator[str]:
    """The files with the images of a shard, including those of images that screening dropped."""
    images = plan.shard(split, shard)
    for image in images[:1] if LAYOUTS[config.format].container else images:
        yield file_of(image, shard, config)


def is_picture(name: str) -> bool:
    """Whether torchvision (also for hidden files) or the audit would read a file of this name as an image."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def _is_shard(name: str) -> bool:
    return name.endswith(SHARD_SUFFIXES) and not name.startswith(".")
