"""Detection data in COCO's format (https://cocodataset.org/#format-data): boxes, masks and categories of images."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from lbgen.errors import UserError
from lbgen.evaluation.transfer.dense.layouts import Layout
from lbgen.evaluation.transfer.dense.pictures import UnlabelledPictures
from lbgen.evaluation.transfer.sets.splits import TEST, TRAIN
from lbgen.runs import atomic
from lbgen.runs.parsing import Malformed, Name, Text, parse_json

LARGEST_FILE = 2**32
"""Largest file of instances in bytes; COCO's train2017 has 2**28.8."""

Number = Annotated[float, Meta(ge=-1e5, le=1e5)]
"""A coordinate in pixels."""
Side = Annotated[int, Meta(ge=1, le=65_535)]
Id = Annotated[int, Meta(ge=-(2**62), le=2**62)]


class Image(msgspec.Struct):
    id: Id
    file_name: Text
    height: Side
    width: Side


class Instance(msgspec.Struct):
    image_id: Id
    category_id: Id
    bbox: Annotated[list[Number], Meta(min_length=4, max_length=4)]
    """x, y, width, height."""
    segmentation: msgspec.Raw = msgspec.Raw(b"[]")
    """Polygons or run lengths, unparsed: as Python numbers, COCO's would need gigabytes."""
    iscrowd: int = 0
    area: Annotated[float, Meta(ge=0, le=1e10)] | None = None
    """Area of the object in pixels, used only to class it as small, medium or large."""


class CocoCategory(msgspec.Struct):
    id: Id
    name: Name


class Instances(msgspec.Struct):
    """The part of a file of instances that is read."""

    images: list[Image]
    annotations: list[Instance]
    categories: list[CocoCategory]


class Runs(msgspec.Struct):
    """Lengths of runs of equal pixels, column by column."""

    size: tuple[Side, Side]
    """Height, width."""
    counts: str | list[Annotated[int, Meta(ge=0, le=2**32)]]


Segmentation = Runs | list[list[Number]]
CORNERS = 3
"""Least number of coordinates of a polygon; COCO has some with fewer, which cover nothing."""
LONGEST_OUTLINE = 2**22
"""Longest outline of an object's polygons in pixels; pycocotools uses about 50 bytes per pixel."""
LARGEST_MASKS = 2**31
"""Most bytes of all masks of an image, at one byte per pixel."""
COMPRESSED = re.compile(r"([P-o]{0,6}[0-O])*")
"""Run lengths as text: each number has digits with the continuation bit, then one digit without it."""


@dataclass(frozen=True)
class Objects:
    """The instances of an image."""

    boxes: NDArray[np.float32]
    """(n, 4): left, top, right, bottom, in pixels."""
    labels: NDArray[np.int64]
    """(n,) from 1 on; 0 is the background."""
    is_crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    """(n,) pixels."""
    masks: list[Any]
    """n masks in pycocotools' run lengths."""
    size: tuple[int, int]
    """Height, width."""

    def dense_masks(self) -> NDArray[np.uint8]:
        """(n, height, width), 0 and 1."""
        from pycocotools import mask  # type: ignore[import-untyped]

        if not self.masks:
            return np.zeros((0, *self.size), np.uint8)
        return np.ascontiguousarray(mask.decode(self.masks).transpose(2, 0, 1))


class CocoTargets(Sequence[Objects]):
    """The objects of every image; raises ValueError for a malformed mask."""

    def __init__(self, images: Sequence[Image], instances: dict[int, list[Instance]], number: dict[int, int]) -> None:
        """number: category id -> label."""
        self.images, self.instances, self.number = images, instances, number

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row):  # type: ignore[no-untyped-def]  # by number only
        image, found = self.images[row], self.instances.get(row, [])
        size = (image.height, image.width)
        runs = [_run_lengths(bytes(each.segmentation), *size) for each in found]
        x, y, width, height = np.array([each.bbox for each in found], np.float32).reshape(-1, 4).T
        return Objects(
            np.stack([x, y, x + width, y + height], axis=1),
            np.array([self.number[each.category_id] for each in found], np.int64),
            np.array([bool(each.iscrowd) for each in found], bool),
            np.array(
                [area_of(mask) if each.area is None else each.area for each, mask in zip(found, runs, strict=True)]
            ),
            runs,
            size,
        )

    def is_trained_on(self, row: int) -> bool:
        """Whether the image has an object with an area that is not a crowd."""
        return any(not each.iscrowd and min(each.bbox[2:]) > 0 for each in self.instances.get(row, []))

    def identity(self, row: int) -> str:
        """Hash of all properties of the objects."""
        lines = [
            f"{self.number[each.category_id]} {each.bbox} {each.iscrowd} {sha256(bytes(each.segmentation)).hexdigest()}"
            for each in self.instances.get(row, [])
        ]
        return sha256("\n".join(lines).encode()).hexdigest()


def area_of(runs: Any) -> float:
    """Pixels of a mask."""
    from pycocotools import mask

    return float(mask.area(runs))


def _run_lengths(segmentation: bytes, height: int, width: int) -> Any:
    """pycocotools' run lengths of a mask.  Raises ValueError."""
    from pycocotools import mask

    found = parse_json(segmentation, Segmentation)
    if not isinstance(found, Runs):
        if not found:
            raise ValueError("an object has no segmentation")
        if any(len(polygon) % 2 for polygon in found):
            raise ValueError("a polygon has an odd number of coordinates")
        polygons = [polygon for polygon in found if len(polygon) >= 2 * CORNERS]
        if not polygons:
            return mask.encode(np.zeros((height, width), np.uint8, order="F"))
        if sum(map(_outline, polygons)) > LONGEST_OUTLINE:
            raise ValueError(f"the polygons of an object are longer than {LONGEST_OUTLINE:,} pixels")
        return mask.merge(mask.frPyObjects(polygons, height, width))
    if found.size != (height, width):
        raise ValueError(f"a mask is {found.size[1]}x{found.size[0]}, its image {width}x{height}")
    counts = _uncompressed(found.counts) if isinstance(found.counts, str) else found.counts
    if sum(counts) != height * width or min(counts) < 0 or len(counts) > height * width + 1:
        raise ValueError("the run lengths of a mask are not those of its size")
    return mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)


def _outline(polygon: list[float]) -> float:
    """Approximate length of the outline in pixels."""
    corners = np.array(polygon).reshape(-1, 2)
    return float(np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum())


def _uncompressed(text: str) -> list[int]:
    """Run lengths from COCO's text: base 32, lowest digit first; from the fourth on, differences to the second-last.

    For a malformed text, pycocotools itself would read and write outside its memory.
    """
    if not COMPRESSED.fullmatch(text):
        raise ValueError("the run lengths of a mask are malformed")
    counts: list[int] = []
    number = shift = 0
    for digit in text.encode():
        number |= (digit - 48 & 31) << shift
        shift += 5
        if digit - 48 & 32:  # another digit follows
            continue
        if digit - 48 & 16:
            number -= 1 << shift
        counts.append(number + (counts[-2] if len(counts) > 2 else 0))
        number = shift = 0
    return counts


# ---- reading ----


@dataclass(frozen=True)
class CocoSet:
    pictures: UnlabelledPictures
    targets: CocoTargets
    keys: tuple[str, ...]
    split: tuple[str, ...]
    categories: tuple[str, ...]
    files: list[Path]
    """All files from which the set is read."""


def read_coco(layout: Layout) -> CocoSet:
    """The images of train and test with their objects. Raises UserError for files in another format."""
    parts = {split: (layout[split], _read(layout[split].annotations)) for split in (TRAIN, TEST)}
    categories = {split: {each.id: each.name for each in found.categories} for split, (_, found) in parts.items()}
    if categories[TRAIN] != categories[TEST]:
        raise UserError(
            f"{layout[TEST].annotations}: its categories are not those of {layout[TRAIN].annotations.name}; give both "
            "the same categories"
        )
    number = {category: place for place, category in enumerate(sorted(categories[TRAIN]), 1)}
    images: list[Image] = []
    paths: list[Path] = []
    splits: list[str] = []
    instances: dict[int, list[Instance]] = {}
    for split, (part, found) in parts.items():
        row = {image.id: len(images) + place for place, image in enumerate(found.images)}
        for place, each in enumerate(found.annotations):
            if each.image_id not in row or each.category_id not in number:
                missing = "image" if each.image_id not in row else "category"
                raise UserError(
                    f"{part.annotations}, annotations[{place}]: there is no such {missing}; restore the file"
                )
            instances.setdefault(row[each.image_id], []).append(each)
        images += found.images
        splits += [split] * len(found.images)
        paths += [atomic.inside(part.images, image.file_name) for image in found.images]
    keys = tuple(f"{split}/{image.file_name}" for split, image in zip(splits, images, strict=True))
    targets = CocoTargets(images, instances, number)
    sizes = [(image.height, image.width) for image in images]
    names = tuple(categories[TRAIN][category] for category in number)
    pictures = UnlabelledPictures(paths, lambda row, size: _fault(targets, sizes, row, size))
    files = [*paths, *(part.annotations for part in layout.values())]
    return CocoSet(pictures, targets, keys, tuple(splits), names, files)


def _read(path: Path) -> Instances:
    try:
        found: Instances = parse_json(atomic.read_bytes(path, LARGEST_FILE), Instances, LARGEST_FILE)
    except (OSError, Malformed) as error:
        raise UserError(f"{path}: {error}; give a file of COCO's instances") from None
    for name, ids in (("images", [each.id for each in found.images]), ("categories", [c.id for c in found.categories])):
        if not ids or len(set(ids)) < len(ids):
            raise UserError(f"{path}, {name}: {'an id is given twice' if ids else 'there is none'}; restore the file")
    return found


def _fault(targets: CocoTargets, sizes: Sequence[tuple[int, int]], row: int, size: tuple[int, int]) -> str:
    """Why an image cannot be used, judged by its size; empty if it can."""
    if size != sizes[row]:
        return f"it is {size[1]}x{size[0]}, and {sizes[row][1]}x{sizes[row][0]} in the file of instances"
    count = len(targets[row].masks)
    if count * size[0] * size[1] > LARGEST_MASKS:
        return f"the masks of its {count:,} objects take more than {LARGEST_MASKS:,} bytes"
    return ""
