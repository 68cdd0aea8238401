"""Packed datasets whose shards and rows have names in common: every image keeps a key and a split of its own."""

import shutil

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from audited import photographs, png, write_webdataset

from lbgen.datasets.open import open_dataset
from lbgen.microworld.world import CATEGORIES


@pytest.fixture(scope="module")
def scenes():
    return photographs(24, seed=0)


@pytest.fixture
def numbered(tmp_path, scenes):
    """train/00000.tar and test/00000.tar, with members of the same names, other images in each."""
    for split, drawn in (("train", scenes), ("test", photographs(24, seed=1))):
        shard = write_webdataset(tmp_path / f"whole {split}", drawn) / "train-00000.tar"
        (tmp_path / "set" / split).mkdir(parents=True)
        shutil.move(shard, tmp_path / "set" / split / "00000.tar")
    return tmp_path / "set"


def test_numbered_shards_are_of_the_split_that_their_folder_names(numbered):
    splits = [record.split for record in open_dataset(numbered).records()]
    assert splits == ["test"] * 24 + ["train"] * 24
    shutil.move(numbered / "train" / "00000.tar", numbered / "00000.tar")
    assert {record.split for record in open_dataset(numbered).records()} == {"all"}


def test_shards_of_one_name_have_keys_of_their_own(numbered, scenes):
    """One key an image; that of a training image finds it, and a damaged shard of the same name is named."""
    source = open_dataset(numbered)
    assert len({record.key for record in source.records()}) == 48
    (found,) = [r for r in source.records({"train/00000.tar/0003.png"}) if r.content is not None]
    assert found.content == png(scenes.images[3])
    for split in ("test", "train"):
        (numbered / split / "00000.tar").write_bytes(b"damaged" * 100)
    assert [r.key for r in open_dataset(numbered).records()] == ["test/00000.tar", "train/00000.tar"]


@pytest.mark.parametrize("columns", [{"image": ["a.png"]}, {"image": [b"image"], "mask": [1]}])
def test_a_column_that_holds_no_files_is_a_fault(tmp_path, columns):
    pq.write_table(pa.table({**columns, "label": [0]}), tmp_path / "train.parquet")
    (record,) = open_dataset(tmp_path).records()
    assert record.content is None and record.fault == "its image or its mask is not the content of a file"


def test_rows_of_one_path_have_keys_of_their_own(tmp_path, scenes):
    """As a table has them whose images came from folders of their own."""
    cells = [{"bytes": png(image), "path": "image.png"} for image in scenes.images]
    features = datasets.Features(image=datasets.Image(decode=False), label=datasets.ClassLabel(names=list(CATEGORIES)))
    rows = {"image": cells, "label": np.asarray(scenes.categories).tolist()}
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "train.parquet")
    source = open_dataset(tmp_path)
    keys = [record.key for record in source.records()]
    assert len(set(keys)) == 24
    assert [r.content for r in source.records({keys[5]}) if r.key == keys[5]] == [png(scenes.images[5])]
