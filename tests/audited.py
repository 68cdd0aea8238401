"""Datasets for the audit's tests, written as other programs write them."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lbgen.microworld.scenes import Scenes, World, render
from lbgen.microworld.world import CATEGORIES

ATTRIBUTES = 'scene:\n  template: "{name} on {value}"\n  values: [grass, sea, desert, snow, brick, forest]\n'
"""What the micro world's CLIP can tell of an image besides its object."""


def photographs(count: int, seed: int, **links: float) -> Scenes:
    """So many micro-world photographs, the categories in turn, with factors linked to the category."""
    return render(np.arange(count) % len(CATEGORIES), seed, World(links=links, styles=("photo",)))


def write_image_folder(folder: Path, scenes: Scenes, split: str = "train", masks: bool = False) -> Path:
    """DIR/<split>/<category>/<number>.png, and DIR/masks/... of the same paths."""
    for number, (image, category) in enumerate(zip(scenes.images, scenes.categories, strict=True)):
        place = Path(split) / CATEGORIES[category] / f"{number:04d}.png"
        _save(image, folder / place)
        if masks:
            _save(scenes.masks[number], folder / "masks" / place)
    return folder


def _save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=1)


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def write_webdataset(folder: Path, scenes: Scenes) -> Path:
    """One shard of .png and .cls, with labels.json and _info.json."""
    folder.mkdir(parents=True)
    with tarfile.open(folder / "train-00000.tar", "w") as archive:
        for number, (image, category) in enumerate(zip(scenes.images, scenes.categories, strict=True)):
            for suffix, content in (("png", png(image)), ("cls", str(category).encode()), ("json", b"{}")):
                member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    info = {"filenames": ["train-00000.tar"], "shard_lengths": [len(scenes.images)]}
    (folder / "_info.json").write_text(json.dumps({"splits": {"train": {"name": "train", **info}}}))
    labels = [{"id": f"c{number:02d}", "name": name} for number, name in enumerate(CATEGORIES)]
    (folder / "labels.json").write_text(json.dumps(labels))
    return folder


def write_parquet(folder: Path, scenes: Scenes) -> Path:
    """As `datasets` writes it, with the classes' names in the schema."""
    (folder / "data").mkdir(parents=True)
    features = {"image": {"_type": "Image"}, "label": {"names": list(CATEGORIES), "_type": "ClassLabel"}}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    rows = [
        {"image": {"bytes": png(image), "path": f"{number:04d}.png"}, "label": int(category)}
        for number, (image, category) in enumerate(zip(scenes.images, scenes.categories, strict=True))
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "data" / "train-00000.parquet")
    return folder


IMAGES = [png(image) for image in photographs(4, seed=0).images]


def placed(folder: Path, *places: str) -> Path:
    """The folder, with one of IMAGES in each of these places."""
    for number, place in enumerate(places):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(IMAGES[number % len(IMAGES)])
    return folder
