"""Small datasets of the three layouts, written by hand: 4 categories with nasty names, 2 splits, 12 images of 16x16."""

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lbgen.datasets.index import SCHEMA, SCORES, SUFFIXES
from lbgen.datasets.tables.hugging_face import huggingface_metadata
from lbgen.generation.card.croissant import croissant
from lbgen.generation.card.json_files import info_json, labels_json
from lbgen.generation.card.readme import card
from lbgen.generation.card.samples import sample_grid
from lbgen.generation.card.summary import DatasetSummary, ShardFile, SplitSummary
from lbgen.generation.workers.encode import ImageMetadata, encode
from lbgen.vocabulary.vocabulary import Category

LAYOUTS = ("imagefolder", "webdataset", "parquet")
CATEGORIES = (
    Category("z'ebra & co", '<b>ze|bra</b> "x" # {{ y }} `c` ]]> --- \\', "test"),
    Category("_ünïcode[1]", "🦊 fox: @lbgen *a* _b_ https://example.com", "test"),
    Category("true", "قطّة \u202eabc\u202c", "test"),
    Category("007", "- item\u2028 <!-- </details> <script>alert(1)</script>", "test"),
)
"""In the order of the labels, which is not the alphabet's."""
COUNTS = {"train": (3, 2, 2, 1), "val_2": (1, 1, 1, 1)}
"""Split -> images of each category."""


@dataclass(frozen=True)
class Sample:
    split: str
    key: str
    label: int
    colour: tuple[int, int, int]
    """Of all the image's pixels: what tells it from every other."""
    content: bytes
    """The image file."""
    suffix: str
    metadata: ImageMetadata


def samples(image_format="png"):
    """All images, those of a split mixed over the categories."""
    made = []
    for split, counts in COUNTS.items():
        for index in range(max(counts)):
            for label, category in enumerate(CATEGORIES):
                if index < counts[label]:
                    colour = (40 * label, 80 * index, 200 if split == "train" else 20)
                    metadata = ImageMetadata(
                        "tiny", None, f"photo of {category.name}", 5, category.id, category.name, index, split, 0
                    )
                    content = encode(np.full((16, 16, 3), colour, np.uint8), metadata, image_format, 95)
                    made.append(
                        Sample(
                            split,
                            f"{category.id}_{index:05d}",
                            label,
                            colour,
                            content,
                            SUFFIXES[image_format],
                            metadata,
                        )
                    )
    return made


def shards(images, split, size=5):
    """(number, images) of the shards of a split."""
    own = [image for image in images if image.split == split]
    return [(start // size, own[start : start + size]) for start in range(0, len(own), size)]


def write(folder: Path, layout: str, images: list[Sample], metadata: dict[bytes, bytes]) -> dict[str, dict]:
    """Write the images; split -> file -> number of images, of the shards (none where each image is a file)."""
    lengths: dict[str, dict] = {split: {} for split in COUNTS}
    for image in images if layout == "imagefolder" else ():
        path = folder / image.split / CATEGORIES[image.label].id / f"{image.key}.{image.suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image.content)
    for split in COUNTS if layout != "imagefolder" else ():
        for number, part in shards(images, split):
            name = f"{split}-{number:05d}.tar" if layout == "webdataset" else f"data/{split}-{number:05d}.parquet"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if layout == "webdataset":
                write_tar(folder / name, part)
            else:
                write_parquet(folder / name, part, metadata)
            lengths[split][name] = len(part)
    write_index(folder, images)
    (folder / "screening").mkdir()
    (folder / "screening" / "train-00000.json").write_text("{}")
    (folder / "plan.json").write_text("[]")
    return lengths


def write_tar(path, images):
    with tarfile.open(path, "w") as archive:
        for image in images:
            members = {
                image.suffix: image.content,
                "cls": str(image.label).encode(),
                "json": json.dumps(facts_of(image)).encode(),
            }
            for extension, content in members.items():
                member = tarfile.TarInfo(f"{image.key}.{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def write_parquet(path, images, metadata):
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())], metadata
    )
    rows = [{"image": {"bytes": i.content, "path": f"{i.key}.{i.suffix}"}, "label": i.label} for i in images]
    pq.write_table(pa.Table.from_pylist(rows, schema), path)


def write_index(folder, images):
    (folder / "index").mkdir()
    for split in COUNTS:
        for number, part in shards(images, split):
            rows = [facts_of(image, number) for image in part]
            pq.write_table(pa.Table.from_pylist(rows, SCHEMA), folder / "index" / f"{split}-{number:05d}.parquet")


def facts_of(image, shard=0):
    """An image's line in the index."""
    id, name = CATEGORIES[image.label].id, CATEGORIES[image.label].name
    file = f"{image.split}/{id}/{image.key}.{image.suffix}"
    return {
        "id": id, "name": name, "label": image.label, "prompt": image.metadata.prompt, "seed": 5, "attempt": 0,
        "split": image.split, "shard": shard, "key": image.key, "file": file,
        "sha256": hashlib.sha256(image.content).hexdigest(), "perceptual_hash": None,
        **dict.fromkeys(SCORES), "rejections": ["blank"],
        "target": None, "found": None,
    }  # fmt: skip


def colour_of(image):
    """Of the middle pixel, to the nearest 5: lossy formats come close."""
    pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape == (16, 16, 3)
    return tuple(int(round(value / 5) * 5) for value in pixels[8, 8])


def expected(images, split):
    """Sorted (colour, label) of a split."""
    return sorted((image.colour, image.label) for image in images if image.split == split)


def described(layout: str, suffix: str, lengths: dict[str, dict], folder: Path | None = None) -> DatasetSummary:
    """What is to be said of a dataset by hand; shards of a dataset in `folder` with their hashes."""
    splits = []
    for split, files in lengths.items():
        hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() if folder else "" for name in files}
        shards = [ShardFile(name, images, hashes[name]) for name, images in files.items()]
        splits.append(SplitSummary(split, sum(COUNTS[split]), shards))
    return DatasetSummary("by: hand\n<i>", layout, suffix, CATEGORIES, splits, "prompt_template: '``` {name}'\n")


def make(folder: Path, layout: str, image_format: str = "png") -> list[Sample]:
    """A whole dataset in `folder`, described; returns what is in it."""
    folder.mkdir()
    images = samples(image_format)
    lengths = write(folder, layout, images, huggingface_metadata([category.id for category in CATEGORIES]))
    description = described(layout, images[0].suffix, lengths, folder)
    pictures = [Image.open(io.BytesIO(image.content)) for image in images]
    (folder / "samples.png").write_bytes(sample_grid(pictures, [image.metadata.name for image in images]))
    for name, text in {
        "README.md": card(description), "labels.json": labels_json(CATEGORIES),
        "croissant.json": croissant(description), "_info.json": info_json(description.splits),
    }.items():  # fmt: skip
        (folder / name).write_bytes(text.encode())
    return images
