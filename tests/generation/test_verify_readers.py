"""verify against the usual readers: what they take besides the dataset is named, what none of them reads is not."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from torchvision.datasets import ImageFolder

from lbgen.datasets.open import open_dataset
from lbgen.generation.config import GenerateConfig
from lbgen.generation.run import generate
from lbgen.generation.verify import verify

FORMATS = ("imagefolder", "webdataset", "parquet")
STRAY = "belongs to no shard; remove it"


@pytest.fixture(scope="module")
def made(config, tmp_path_factory) -> dict[str, GenerateConfig]:
    folder = tmp_path_factory.mktemp("read")
    configs = {name: replace(config, output=folder / name, format=name, images_per_category=1) for name in FORMATS}
    for each in configs.values():
        generate(each)
    return configs


@pytest.fixture
def copy(made, tmp_path) -> Callable[[str], Path]:
    return lambda layout: Path(shutil.copytree(made[layout].output, tmp_path / layout))


def rows_of_datasets(folder: Path, cache: Path) -> int:
    """What `load_dataset` reads by the card."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    return len(datasets.load_dataset(str(folder), split="train", cache_dir=str(cache)))


@pytest.mark.parametrize(
    "layout, source, name",
    [
        ("webdataset", "train-00000.tar", "train-00000 (1).tar"),
        ("webdataset", "train-00000.tar", "train-00001.tar"),
        ("parquet", "data/train-00000.parquet", "data/train-00000 (1).parquet"),
        ("imagefolder", "train/z1/z1_00000.png", "train/z1/z1_00000 (1).png"),
    ],
)
def test_what_load_dataset_reads_twice_is_named(copy, tmp_path, layout, source, name):
    folder = copy(layout)
    assert verify(folder).damaged == () and rows_of_datasets(folder, tmp_path / "cache") == 3
    shutil.copy(folder / source, folder / name)
    assert verify(folder).damaged == (f"{name}: {STRAY}",)
    assert rows_of_datasets(folder, tmp_path / "cache2") > 3


def samples_of_torchvision(folder: Path) -> int | str:
    try:
        return len(ImageFolder(str(folder / "train")).samples)
    except FileNotFoundError as error:
        return str(error)


@pytest.mark.parametrize("name", ["train/z1/.z1_00000.png", "train/z1/deep/er/x.JPG", "train/.hidden/x.png"])
def test_what_torchvision_takes_for_an_image_is_named(copy, name):
    folder = copy("imagefolder")
    assert samples_of_torchvision(folder) == 3
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "train/z1/z1_00000.png", folder / name)
    assert samples_of_torchvision(folder) == 4
    assert verify(folder).damaged == (f"{name}: {STRAY}",)


@pytest.mark.parametrize("name", ["empty", ".ipynb_checkpoints"])
def test_a_folder_without_images_is_named_as_torchvision_refuses_it(copy, name):
    folder = copy("imagefolder")
    (folder / "train" / name / "inner").mkdir(parents=True)
    assert name in str(samples_of_torchvision(folder))
    assert verify(folder).damaged == (f"train/{name}: a folder without an image, which torchvision refuses; remove it",)


@pytest.mark.parametrize(
    "layout, name",
    [("imagefolder", "train/z1/.DS_Store"), ("imagefolder", "train/z1/Thumbs.db"), ("imagefolder", "train/notes.txt"),
     ("imagefolder", "train/.DS_Store"), ("imagefolder", "LICENSE"), ("imagefolder", "assets/logo.svg"),
     ("webdataset", ".DS_Store"), ("webdataset", "._train-00000.tar"), ("webdataset", "train-00000.tar.idx"),
     ("parquet", "data/.DS_Store"), ("imagefolder", "screening/.DS_Store"), ("imagefolder", "index/.DS_Store")],
)  # fmt: skip
def test_what_no_reader_reads_is_no_fault(copy, tmp_path, layout, name):
    folder = copy(layout)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"\0" * 100)
    assert verify(folder).damaged == ()
    assert rows_of_datasets(folder, tmp_path / "cache") == 3
    assert sum(not record.fault for record in open_dataset(folder).records()) == 3
    if layout == "imagefolder":
        assert samples_of_torchvision(folder) == 3


@pytest.mark.parametrize(
    "layout, name",
    [("imagefolder", "x.tar"), ("imagefolder", "x.parquet"), ("imagefolder", "metadata.csv"),
     ("imagefolder", "train/x.png"), ("imagefolder", "train/z1/x.avif"), ("imagefolder", "train/z1/x.jfif"),
     ("webdataset", "other.tar"), ("parquet", "x.parquet"), ("parquet", "data/x.arrow"),
     ("webdataset", "index/train-00099.parquet"), ("webdataset", "index/old.parquet")],
)  # fmt: skip
def test_what_lbgens_own_readers_take_is_named(copy, layout, name):
    """A table or an archive beside the images is read in their place; the card's `index/*.parquet` takes all parts."""
    folder = copy(layout)
    shutil.copy(next(folder.glob("index/*.parquet")), folder / name)
    assert verify(folder).damaged == (f"{name}: {STRAY}",)


def test_a_folder_too_deep_to_be_searched_is_named(copy):
    """A search of a thousand folders inside each other takes minutes, and more than Python's stack."""
    folder = copy("imagefolder")
    (folder / "train/z1" / "/".join("a" * 110)).mkdir(parents=True)
    (found,) = verify(folder).damaged
    assert found.startswith("train/z1/a/") and found.endswith(f"/a: {STRAY}")


def test_strays_are_named_beside_a_damaged_shard(copy):
    folder = copy("webdataset")
    shutil.copy(folder / "train-00000.tar", folder / "train-00001.tar")
    (folder / "index/train-00000.parquet").unlink()
    assert verify(folder).damaged == ("train-00000: not made", f"train-00001.tar: {STRAY}")


def test_a_stray_file_beside_the_counts_ends_no_run(config, tmp_path):
    """The card sums the counts of the plan's shards, and of nothing else in their folder."""
    made = replace(config, output=tmp_path / "made", images_per_category=1, screen=("blank",))
    generate(made)
    (tmp_path / "made/screening/.DS_Store").write_bytes(b"\0")
    (tmp_path / "made/screening/train-00009.json").write_text('{"z1": {"dropped": 5}}')
    assert generate(replace(made, images_per_category=2)).finished
    assert "left out" not in (tmp_path / "made/README.md").read_text()
