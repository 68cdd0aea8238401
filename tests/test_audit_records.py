"""Reading labelled datasets of every layout."""

import io
import json
import tarfile

import datasets
import numpy as np
import pytest
from audited import photographs, png, write_image_folder, write_parquet, write_webdataset
from PIL import Image

from lbgen.audit.records import name_of, open_source
from lbgen.errors import UserError
from lbgen.microworld.world import CATEGORIES


@pytest.fixture(scope="module")
def scenes():
    return photographs(24, seed=0)


def as_pairs(folder) -> list[tuple[str, bytes]]:
    """(category name, image file) of every record, sorted."""
    source = open_source(folder)
    known = source.labels()
    return sorted((name_of(record.category, known), record.content) for record in source.records())


@pytest.mark.parametrize("write", [write_image_folder, write_webdataset, write_parquet])
def test_every_layout_gives_the_same_images_under_the_same_names(tmp_path, scenes, write):
    """Against the pictures that were written."""
    folder = write(tmp_path / "set", scenes)
    found = as_pairs(folder)
    assert [name for name, _ in found] == sorted(CATEGORIES * 2)
    wanted = sorted((CATEGORIES[c], image.tobytes()) for c, image in zip(scenes.categories, scenes.images, strict=True))
    decoded = sorted((name, pixels(content)) for name, content in found)
    assert decoded == wanted
    source = open_source(folder)
    assert source.count == 24 and {record.split for record in source.records()} == {"train"}


def pixels(content: bytes) -> bytes:
    return np.array(Image.open(io.BytesIO(content))).tobytes()


def test_a_folder_that_datasets_wrote(tmp_path, scenes):
    """Against the library's own writer."""
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(CATEGORIES)))
    rows = {"image": [Image.fromarray(image) for image in scenes.images], "label": scenes.categories.tolist()}
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    assert [name for name, _ in as_pairs(tmp_path)] == sorted(CATEGORIES * 2)
    assert {record.split for record in open_source(tmp_path).records()} == {"test"}


def test_categories_without_splits_and_other_entries(tmp_path, scenes):
    """Folders that lbgen puts beside the images are no categories, nor are hidden files images."""
    image = png(scenes.images[0])
    for place in ("n01440764/a.JPG", "polar_bear/b.png", "masks/polar_bear/b.png", "index/x.png", ".hidden/c.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(image)
    (tmp_path / "polar_bear" / "._b.png").write_bytes(b"")
    (tmp_path / "polar_bear" / "notes.txt").write_text("no image")
    records = list(open_source(tmp_path).records())
    assert [record.key for record in records] == ["n01440764/a.JPG", "polar_bear/b.png"]
    assert [name_of(record.category, {}) for record in records] == ["tench", "polar bear"]
    assert records[1].mask == image


def test_labels_json_names_the_categories_of_an_image_folder(tmp_path, scenes):
    write_image_folder(tmp_path, scenes)
    (tmp_path / "labels.json").write_text(json.dumps([{"id": "fish", "name": "goldfish"}]))
    assert open_source(tmp_path).labels()["fish"].name == "goldfish"


def test_only_wanted_images_are_read_again(tmp_path, scenes):
    for write in (write_image_folder, write_webdataset, write_parquet):
        source = open_source(write(tmp_path / write.__name__, scenes))
        wanted = {record.key for record in list(source.records())[3:5]}
        assert {record.key for record in source.records(wanted) if record.content is not None} == wanted


@pytest.mark.parametrize("damage", ["cut", "header"])
def test_a_damaged_shard_is_a_fault_and_keeps_what_is_before(tmp_path, scenes, damage):
    """The shard ends inside the tenth image, or the header of that image is overwritten."""
    shard = write_webdataset(tmp_path / "set", scenes) / "train-00000.tar"
    with tarfile.open(shard) as archive:
        place = archive.getmember("0009.png").offset_data
    content = shard.read_bytes()
    shard.write_bytes(content[: place + 20] if damage == "cut" else content.replace(b"0009.png", b"0009.xxx"))
    records = list(open_source(shard.parent).records())
    assert "cannot be read to its end" in records[-1].fault
    assert len([record for record in records if record.content]) == 9


def test_a_sample_without_a_label_is_a_fault(tmp_path, scenes):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("x/0.png")
        member.size = len(png(scenes.images[0]))
        archive.addfile(member, io.BytesIO(png(scenes.images[0])))
    (record,) = open_source(tmp_path).records()
    assert record.key == "a.tar/x/0.png" and "no .cls" in record.fault


def test_a_file_that_is_not_parquet_is_a_fault(tmp_path, scenes):
    folder = write_parquet(tmp_path / "set", scenes)
    (folder / "data" / "train-00001.parquet").write_bytes(b"not parquet")
    records = list(open_source(folder).records())
    assert len([record for record in records if record.content]) == 24 and records[-1].fault


def test_refusals(tmp_path):
    with pytest.raises(UserError, match="no such folder; give"):
        open_source(tmp_path / "missing")
    (tmp_path / "labels.json").write_text('{"fish": 1}')
    with pytest.raises(UserError, match="labels.json: not a list"):
        open_source(tmp_path).labels()
