"""The examples of a card, and Croissant metadata, read on the very dataset that they describe.

Every layout, image format and sort of category id, made by `generate`; what a library loads is compared with the stored
files, read without lbgen.
"""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lbgen.generation.run import generate

IDS = ("z.b", "50%", "x%2Ey", "Ünï code", "it's", "[1] (b)", "a&b,c", "10", "#7", "true")
"""Not in the alphabet's order, so that a reader's own numbering is seen."""
FORMATS = ("png", "jpeg", "webp")
LAYOUTS = ("imagefolder", "webdataset", "parquet")


@pytest.fixture(scope="module")
def datasets(config, tmp_path_factory) -> dict[tuple[str, str], Path]:
    """One of each layout and image format, with two splits."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "names.json").write_text(json.dumps({id: f"name {n}" for n, id in enumerate(IDS)}))
    made = {}
    for layout in LAYOUTS:
        for image_format in FORMATS:
            output = folder / layout / image_format
            own = replace(
                config, output=output, vocabulary=str(folder / "names.json"), format=layout, image_format=image_format,
                images_per_category=2, steps=1, batch_size=16, shard_size=12,
            )  # fmt: skip
            generate(own)
            generate(replace(own, split="val", images_per_category=1))
            made[layout, image_format] = output
    return made


def truth(folder: Path, split: str) -> Counter:
    """How often each (pixels, label) is in a split; the label is known by the name of the file."""
    stored = [(path.parent.name, path.read_bytes()) for path in folder.glob(f"{split}/*/*")]
    for shard in folder.glob(f"{split}-*.tar"):
        with tarfile.open(shard) as archive:
            for member in archive:
                stem, _, suffix = member.name.partition(".")
                if suffix not in ("cls", "json"):
                    id = stem.rpartition("_")[0].replace("%2E", ".").replace("%25", "%")
                    stored.append((id, archive.extractfile(member).read()))
    for shard in folder.glob(f"data/{split}-*.parquet"):
        for image in pq.read_table(shard).column("image").to_pylist():
            stored.append((image["path"].rpartition("_")[0].rpartition("/")[2], image["bytes"]))
    assert len(stored) == len(IDS) * (2 if split == "train" else 1)
    return Counter((pixels(Image.open(io.BytesIO(content))), IDS.index(id)) for id, content in stored)


def pixels(image: Image.Image) -> bytes:
    return np.asarray(image.convert("RGB")).tobytes()


def pair_of(sample):
    """(pixels, label) of what a loader gives."""
    image, label = sample if isinstance(sample, tuple) else list(sample.values())[:2]
    if not isinstance(image, Image.Image):
        image = Image.fromarray(np.asarray(image.permute(1, 2, 0)))
    return pixels(image), label


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_example_of_a_card_works_for_its_dataset(datasets, tmp_path, monkeypatch, layout, image_format):
    hub = pytest.importorskip("datasets")
    for library in ("timm", "webdataset"):
        pytest.importorskip(library)
    monkeypatch.setattr(hub.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(hub.config, "HF_HUB_OFFLINE", True)
    hub.disable_progress_bars()
    folder = datasets[layout, image_format]
    examples = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 3
    for example in examples:
        names: dict = {}
        exec(example.replace("DIR", str(folder)), names)
        assert Counter(map(pair_of, names["images"])) == truth(folder, "train"), example


READ = """
import json, sys
import numpy as np
import mlcroissant
dataset = mlcroissant.Dataset(sys.argv[1])
read = [
    [np.asarray(line[f"{split}/image"].convert("RGB")).tobytes().hex(), int(line[f"{split}/label"])]
    for split in sys.argv[2:] for line in dataset.records(split)
]
ids = [line["label-names/id"].decode() for line in dataset.records("label-names")]
print(json.dumps({"issues": sorted(dataset.metadata.ctx.issues.errors), "read": read, "ids": ids}))
"""


@pytest.mark.parametrize(
    ("layout", "image_format"),
    [("imagefolder", "png"), ("webdataset", "png"), ("webdataset", "webp"), ("parquet", "jpeg")],
)
def test_mlcroissant_finds_the_label_of_every_image(datasets, tmp_path, layout, image_format):
    pytest.importorskip("mlcroissant")
    folder = datasets[layout, image_format]
    command = [sys.executable, "-c", READ, str(folder / "croissant.json"), "train", "val"]
    environment = os.environ | {"CROISSANT_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["issues"] == [] and result["ids"] == list(IDS)
    read = Counter((bytes.fromhex(image), label) for image, label in result["read"])
    assert read == truth(folder, "train") + truth(folder, "val")
