"""Reading labelled datasets of every layout."""

import io
import json
import tarfile

import datasets
import numpy as np
import pytest
from audited import photographs, png, write_image_folder, write_parquet, write_webdataset
from PIL import Image

from lbgen.datasets.index import Row
from lbgen.datasets.layouts import LAYOUTS
from lbgen.datasets.open import open_dataset
from lbgen.datasets.records import name_of
from lbgen.errors import UserError
from lbgen.microworld.world import CATEGORIES


@pytest.fixture(scope="module")
def scenes():
    return photographs(24, seed=0)


def as_pairs(folder) -> list[tuple[str, bytes]]:
    """(category name, image file) of every record, sorted."""
    source = open_dataset(folder)
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
    source = open_dataset(folder)
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
    assert {record.split for record in open_dataset(tmp_path).records()} == {"test"}


def hub_rows(scenes, **more) -> dict:
    return {
        "img": [Image.fromarray(image) for image in scenes.images],
        "fine_label": scenes.categories.tolist(),
        **more,
    }


def test_columns_of_other_names(tmp_path, scenes):
    """As CIFAR's are called: the only images and the only ClassLabel; with two of them, one line that says so."""
    names = datasets.ClassLabel(names=list(CATEGORIES))
    features = datasets.Features(img=datasets.Image(), fine_label=names)
    (tmp_path / "one" / "cifar100").mkdir(parents=True)
    shard = "train-00000-of-00001.parquet"
    datasets.Dataset.from_dict(hub_rows(scenes), features).to_parquet(tmp_path / "one" / "cifar100" / shard)
    assert [name for name, _ in as_pairs(tmp_path / "one")] == sorted(CATEGORIES * 2)
    (tmp_path / "two").mkdir()
    features["coarse_label"] = datasets.ClassLabel(names=["a", "b"])
    rows = hub_rows(scenes, coarse_label=[0, 1] * 12)
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "two" / shard)
    with pytest.raises(UserError, match="no column is called `label`, and fine_label and coarse_label could be it"):
        as_pairs(tmp_path / "two")


def test_labels_that_are_texts(tmp_path, scenes):
    rows = {"image": [png(image) for image in scenes.images], "label": [CATEGORIES[c] for c in scenes.categories]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "train.parquet")
    assert [name for name, _ in as_pairs(tmp_path)] == sorted(CATEGORIES * 2)


def test_masks_in_a_table(tmp_path, scenes):
    """Row for row those that were written; an empty cell is an image without a mask."""
    masks = [Image.fromarray(mask * np.uint8(255)) for mask in scenes.masks]
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"), mask=datasets.Image())
    rows = {"image": masks, "label": scenes.categories.tolist(), "mask": [*masks[:-1], None]}
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "train.parquet")
    found = [record.mask for record in open_dataset(tmp_path).records()]
    assert found[-1] is None
    wanted = [(mask * np.uint8(255)).tobytes() for mask in scenes.masks[:-1]]
    assert [pixels(mask) for mask in found[:-1]] == wanted


def test_a_folder_of_save_to_disk(tmp_path, scenes):
    """Two splits, a folder each, in Arrow files; one that is damaged is a fault."""
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(CATEGORIES)))
    rows = {"image": [Image.fromarray(image) for image in scenes.images], "label": scenes.categories.tolist()}
    whole = datasets.Dataset.from_dict(rows, features)
    datasets.DatasetDict(train=whole, test=whole.select(range(3))).save_to_disk(tmp_path / "set")
    source = open_dataset(tmp_path / "set")
    assert source.count == 27 and [name for name, _ in as_pairs(tmp_path / "set")][:2] == ["boat", "boat"]
    assert [record.split for record in source.records()] == ["test"] * 3 + ["train"] * 24
    (tmp_path / "set" / "train" / "data-00001.arrow").write_bytes(b"not arrow")
    records = list(open_dataset(tmp_path / "set").records())
    assert len([record for record in records if record.content]) == 27 and records[-1].fault


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_images_that_a_metadata_file_lists(tmp_path, scenes, kind):
    """As the Hub's image folders have it, a list a split; a line without a label, or without its image, is a fault."""
    (tmp_path / "test").mkdir()
    lines = [{"file_name": f"{n}.png", "label": CATEGORIES[c]} for n, c in enumerate(scenes.categories)]
    for line, image in zip(lines, scenes.images, strict=True):
        (tmp_path / "test" / line["file_name"]).write_bytes(png(image))
    lines += [{"file_name": "gone.png", "label": "fish"}, {"file_name": "0.png", "label": ""}]
    texts = {
        "csv": ["file_name,label", *(",".join(line.values()) for line in lines)],
        "jsonl": [json.dumps(line) for line in lines],
    }
    (tmp_path / "test" / f"metadata.{kind}").write_text("\n".join(texts[kind]) + "\n")
    records = list(open_dataset(tmp_path).records())
    assert [(r.category, r.split, pixels(r.content)) for r in records[:-2]] == [
        (CATEGORIES[c], "test", image.tobytes()) for c, image in zip(scenes.categories, scenes.images, strict=True)
    ]
    assert [record.fault for record in records[-2:]] == [
        "No such file or directory",
        f"metadata.{kind} has no label for it",
    ]
    (tmp_path / "test" / f"metadata.{kind}").unlink()
    (tmp_path / "test" / "metadata.csv").write_text("file_name,colour,kind\n0.png,red,fish\n")
    with pytest.raises(UserError, match="none of its columns colour, kind is called `label`"):
        list(open_dataset(tmp_path).records())


def test_categories_without_splits_and_other_entries(tmp_path, scenes):
    """Folders that lbgen puts beside the images are no categories, nor are hidden files images."""
    image = png(scenes.images[0])
    for place in ("n01440764/a.JPG", "polar_bear/b.png", "masks/polar_bear/b.png", "index/deep/x.png", ".hidden/c.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(image)
    (tmp_path / "polar_bear" / "._b.png").write_bytes(b"")
    (tmp_path / "polar_bear" / "notes.txt").write_text("no image")
    records = list(open_dataset(tmp_path).records())
    assert [record.key for record in records] == ["n01440764/a.JPG", "polar_bear/b.png"]
    assert [name_of(record.category, {}) for record in records] == ["tench", "polar bear"]
    assert records[1].mask == image


def test_labels_json_names_the_categories_of_an_image_folder(tmp_path, scenes):
    write_image_folder(tmp_path, scenes)
    (tmp_path / "labels.json").write_text(json.dumps([{"id": "fish", "name": "goldfish"}]))
    assert open_dataset(tmp_path).labels()["fish"].name == "goldfish"


def test_only_wanted_images_are_read_again(tmp_path, scenes):
    for write in (write_image_folder, write_webdataset, write_parquet):
        source = open_dataset(write(tmp_path / write.__name__, scenes))
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
    records = list(open_dataset(shard.parent).records())
    assert "cannot be read to its end" in records[-1].fault
    assert len([record for record in records if record.content]) == 9


def test_the_strict_reader_raises_where_the_tolerant_one_has_a_fault(tmp_path, scenes):
    """A damaged header, which tarfile takes for the archive's end, after nine images."""
    shard = write_webdataset(tmp_path / "set", scenes) / "train-00000.tar"
    shard.write_bytes(shard.read_bytes().replace(b"0009.png", b"0009.xxx"))
    row = Row(
        id="boat",
        name="boat",
        label=0,
        prompt="",
        seed=0,
        attempt=0,
        split="train",
        shard=0,
        key="",
        file="",
        sha256="",
    )
    read = LAYOUTS["webdataset"].read(shard, row)
    found = [next(read) for _ in range(9)]
    assert [(one.key, one.label, pixels(one.content)) for one in found] == [
        (f"{n:04d}", scenes.categories[n], scenes.images[n].tobytes()) for n in range(9)
    ]
    with pytest.raises(tarfile.ReadError):
        next(read)


def test_a_sample_without_a_label_is_a_fault(tmp_path, scenes):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("x/0.png")
        member.size = len(png(scenes.images[0]))
        archive.addfile(member, io.BytesIO(png(scenes.images[0])))
    (record,) = open_dataset(tmp_path).records()
    assert record.key == "a.tar/x/0.png" and "no .cls" in record.fault


def test_a_file_that_is_not_parquet_is_a_fault(tmp_path, scenes):
    folder = write_parquet(tmp_path / "set", scenes)
    (folder / "data" / "train-00001.parquet").write_bytes(b"not parquet")
    records = list(open_dataset(folder).records())
    assert len([record for record in records if record.content]) == 24 and records[-1].fault


def test_refusals(tmp_path):
    with pytest.raises(UserError, match="no such folder; give"):
        open_dataset(tmp_path / "missing")
    (tmp_path / "labels.json").write_text('{"fish": 1}')
    with pytest.raises(UserError, match="labels.json: .*; write a list of"):
        open_dataset(tmp_path).labels()


@pytest.mark.parametrize("write", [write_image_folder, write_webdataset, write_parquet])
def test_an_image_is_read_again_where_its_record_says(tmp_path, scenes, write):
    """Against the content that reading from front to back gives, in another order."""
    reader = open_dataset(write(tmp_path / "set", scenes))
    wanted = {record.key: record.content for record in reader.records()}
    located = list(reader.records(wanted=()))
    assert len(located) == 24 and all(record.content is None for record in located)
    for record in reversed(located):
        assert reader.read(record.location) == wanted[record.key]


def test_rows_of_tables_are_read_where_their_records_say(tmp_path, scenes):
    """Row groups of Parquet and batches of Arrow, against the library that wrote them."""
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(CATEGORIES)))
    rows = {"image": [Image.fromarray(image) for image in scenes.images], "label": scenes.categories.tolist()}
    written = datasets.Dataset.from_dict(rows, features=features)
    (tmp_path / "parquet").mkdir()
    written.to_parquet(tmp_path / "parquet/train-0.parquet", batch_size=7)
    written.save_to_disk(tmp_path / "arrow")
    for folder in ("parquet", "arrow"):
        reader = open_dataset(tmp_path / folder)
        located = list(reader.records(wanted=()))
        blocks = {record.location.block for record in located}
        assert len(blocks) == (4 if folder == "parquet" else 1)
        for number in (23, 0, 13, 6, 7):
            assert pixels(reader.read(located[number].location)) == scenes.images[number].tobytes()
