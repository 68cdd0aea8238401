"""What generate writes, read back by those who would read it: every image with its own label, in all three layouts."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lbgen.datasets import index
from lbgen.generation.run import generate

SUFFIXES = {"png": "png", "jpeg": "jpg", "webp": "webp"}


@pytest.fixture(scope="module")
def made(config, tmp_path_factory):
    """(layout, image format) -> its folder, with two splits; ids with dots and in no alphabetical order."""
    folder = tmp_path_factory.mktemp("formats")
    (folder / "names.csv").write_text("id,name\nz.1,cat\na2,dog\nm3,red fox\n")

    def make(layout: str, image_format: str) -> Path:
        output = folder / f"{layout}-{image_format}"
        plain = replace(config, output=output, format=layout, image_format=image_format)
        plain = replace(plain, vocabulary=str(folder / "names.csv"))
        if not output.exists():
            generate(plain)
            generate(replace(plain, split="val", images_per_category=2))
        return output

    return make


def pixels(image: Image.Image) -> bytes:
    return np.asarray(image.convert("RGB")).tobytes()


def truth(folder: Path, made, image_format: str, split: str) -> dict[bytes, int]:
    """Pixels -> label, from the loose files of the imagefolder layout and the index alone."""
    plain = made("imagefolder", image_format)
    rows = [row for row in index.read_index(folder).to_pylist() if row["split"] == split]
    loose = {row["key"]: row["file"] for row in index.read_index(plain).to_pylist() if row["split"] == split}
    labels = {"z.1": 0, "a2": 1, "m3": 2}
    found = {pixels(Image.open(plain / loose[row["key"]])): labels[row["id"]] for row in rows}
    assert len(found) == {"train": 12, "val": 6}[split]
    return found


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("layout, image_format", [("imagefolder", "jpeg"), ("webdataset", "png"), ("parquet", "webp")])
def test_datasets_needs_nothing_configured(made, tmp_path, layout, image_format):
    import datasets

    folder = made(layout, image_format)
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train", "val"}
    for split, images in loaded.items():
        image, label = (SUFFIXES[image_format], "cls") if layout == "webdataset" else ("image", "label")
        assert isinstance(images.features[image], datasets.Image)
        names = images.features[label].names
        assert set(names) == {"z.1", "a2", "m3"}
        ids = [category["id"] for category in json.loads((folder / "labels.json").read_text())]
        if layout != "imagefolder":
            assert names == ids
        read = {pixels(row[image]): ids.index(names[row[label]]) for row in images}
        assert read == truth(folder, made, image_format, split)


def test_torchvision_reads_the_imagefolder(made):
    from torchvision.datasets import ImageFolder

    folder = made("imagefolder", "png")
    images = ImageFolder(str(folder / "val"))
    ids = [category["id"] for category in json.loads((folder / "labels.json").read_text())]
    read = {pixels(image): ids.index(images.classes[label]) for image, label in images}
    assert read == truth(folder, made, "png", "val")


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_webdataset_reads_the_shards(made, image_format):
    import webdataset

    folder = made("webdataset", image_format)
    shards = sorted(str(path) for path in folder.glob("train-*.tar"))
    assert len(shards) == 3
    images = webdataset.WebDataset(shards, shardshuffle=False).decode("pil")
    read = {}
    for sample in images:
        read[pixels(sample[SUFFIXES[image_format]])] = sample["cls"]
        assert sample["json"]["label"] == sample["cls"]
    assert read == truth(folder, made, image_format, "train")


@pytest.mark.parametrize("layout", ["webdataset", "imagefolder"])
def test_timm_reads_it(made, layout):
    from timm.data import create_dataset

    folder = made(layout, "png")
    if layout == "webdataset":
        images = create_dataset("wds/", root=str(folder), split="train", batch_size=1)
    else:
        labels = {row["id"]: n for n, row in enumerate(json.loads((folder / "labels.json").read_text()))}
        images = create_dataset("", root=str(folder), split="train", class_map=labels)
    assert len(images) == 12
    read = {pixels(image): label for image, label in images}
    assert read == truth(folder, made, "png", "train")


@pytest.mark.parametrize("layout", ["imagefolder", "webdataset", "parquet"])
def test_mlcroissant_accepts_the_metadata(made, layout, tmp_path):
    command = [sys.executable, "-m", "mlcroissant.scripts.validate"]
    if (script := Path(sys.executable).with_name("mlcroissant")).exists():
        command = [str(script), "validate"]
    folder = made(layout, "png")
    checked = subprocess.run(
        [*command, "--jsonld", str(folder / "croissant.json")],
        capture_output=True,
        text=True,
        env={**os.environ, "CROISSANT_CACHE": str(tmp_path)},
    )
    assert checked.returncode == 0, checked.stderr
    assert "error" not in checked.stderr.lower()


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_image_file_says_what_made_it(made, image_format):
    folder = made("imagefolder", image_format)
    row = next(row for row in index.read_index(folder).to_pylist() if row["id"] == "m3")
    content = (folder / row["file"]).read_bytes()
    image = Image.open(BytesIO(content))
    text = image.text["Description"] if image_format == "png" else image.getexif()[0x010E]
    facts = json.loads(text)
    assert {name: facts[name] for name in ("prompt", "id", "seed", "split", "attempt", "synthetic")} == {
        "prompt": "red fox",
        "id": "m3",
        "seed": 7,
        "split": "train",
        "attempt": 0,
        "synthetic": True,
    }
    assert b"trainedAlgorithmicMedia" in content


def test_stored_size_is_apart_from_the_drawn_size(config, tmp_path):
    """Against Pillow's own resizing of the image as it was drawn."""
    made = replace(config, images_per_category=1)
    generate(replace(made, output=tmp_path / "drawn"))
    generate(replace(made, output=tmp_path / "small", stored_size=(8, 16), format="parquet"))
    import pyarrow.parquet as pq

    rows = pq.read_table(tmp_path / "small/data/train-00000.parquet", use_threads=False, pre_buffer=False).to_pylist()
    small = {row["image"]["path"]: np.asarray(Image.open(BytesIO(row["image"]["bytes"]))) for row in rows}
    for path in (tmp_path / "drawn/train").rglob("*.png"):
        expected = Image.open(path).resize((16, 8), Image.Resampling.LANCZOS)
        assert np.array_equal(small[path.name], np.asarray(expected))
