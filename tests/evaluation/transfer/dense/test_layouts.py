"""Sets in COCO's and ADE20K's format, against pycocotools and the files themselves; another layout is named."""

import json
import os
import re
import shutil

import msgspec
import numpy as np
import pytest
from dense_sets import write_ade, write_coco
from PIL import Image

from lbgen.errors import UserError
from lbgen.evaluation.transfer.config import TransferConfig
from lbgen.evaluation.transfer.dense import coco as coco_format
from lbgen.evaluation.transfer.dense import layouts
from lbgen.evaluation.transfer.dense.coco import CocoTargets, Instance
from lbgen.evaluation.transfer.dense.coco import Image as CocoImage
from lbgen.evaluation.transfer.dense.layouts import find_layout
from lbgen.evaluation.transfer.dense.sets import fraction_of, prepare_dense


def prepared(root, method, tmp_path):
    config = TransferConfig(output=str(tmp_path / "out"), data=str(root), method=(method,))
    return prepare_dense(*find_layout(config), config)


def copied(root, tmp_path):
    return shutil.copytree(root, tmp_path / root.name)


def changed(root, split, change):
    """Rewrite the file of instances of a split."""
    path = root / f"annotations/instances_{split}2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# ---- COCO ----


def test_objects_are_those_that_pycocotools_reads(coco, tmp_path):
    from pycocotools.coco import COCO

    dataset = prepared(coco, "detection", tmp_path)
    assert (len(dataset.train), len(dataset.test), dataset.categories) == (12, 6, ("fish", "cup", "mushroom"))
    index = COCO(coco / "annotations/instances_val2017.json")
    for row in dataset.test.tolist():
        split, _, name = dataset.keys[row].partition("/")
        assert split == "test"
        (image,) = (each for each in index.dataset["images"] if each["file_name"] == name)
        (instance,) = index.imgToAnns[image["id"]]
        objects = dataset.targets[row]
        assert (objects.dense_masks()[0] == index.annToMask(instance)).all() and objects.areas == instance["area"]
        x, y, width, height = instance["bbox"]
        assert objects.boxes.tolist() == [[x, y, x + width, y + height]]
        assert index.cats[instance["category_id"]]["name"] == dataset.categories[objects.labels[0] - 1]
        assert (np.asarray(dataset.picture(row)) == np.asarray(Image.open(coco / "val2017" / name))).all()


def test_polygons_and_compressed_run_lengths_are_read_too(coco, tmp_path):
    """A square and, as pycocotools writes them, the compressed lengths of the same object."""
    from pycocotools import mask

    root, kept = copied(coco, tmp_path), []

    def change(content):
        first, second, *_ = content["annotations"]
        first["segmentation"] = [[10, 20, 30, 20, 30, 40, 10, 40]]
        runs = mask.frPyObjects(second["segmentation"], 64, 64)
        kept.append(mask.decode(runs))
        second["segmentation"] = {"size": [64, 64], "counts": runs["counts"].decode()}

    changed(root, "val", change)
    dataset = prepared(root, "detection", tmp_path)
    square, other = (dataset.targets[row].dense_masks()[0] for row in dataset.test[:2].tolist())
    assert square.sum() == 400 and square[20:40, 10:30].all() and (other == kept[0]).all()


def test_a_polygon_of_two_corners_covers_nothing(coco, tmp_path):
    """COCO has some; its images are tested on all the same, as pycocotools and others do."""
    root = copied(coco, tmp_path)
    changed(root, "val", lambda content: content["annotations"][0].update(segmentation=[[1, 2, 3, 4]]))
    changed(root, "val", lambda content: content["annotations"][1].update(segmentation=[[1, 2, 3], [0, 0, 9, 0, 9, 9]]))
    dataset = prepared(root, "detection", tmp_path)
    assert len(dataset.test) == 5 and not dataset.targets[12].dense_masks().any()


@pytest.mark.parametrize("place", ["images", "."])
def test_images_are_found_where_others_keep_them(coco, tmp_path, place):
    """Below images/ as ultralytics has them, and by their whole name, as a dataset of lbgen has them."""
    root = copied(coco, tmp_path)
    if place == "images":
        (root / "images").mkdir()
        for split in ("train2017", "val2017"):
            (root / split).rename(root / "images" / split)
    else:
        for split in ("train", "val"):
            (root / f"{split}2017").rename(root / split)

            def change(content, split=split):
                for image in content["images"]:
                    image["file_name"] = f"{split}/{image['file_name']}"

            changed(root, split, change)
            (root / f"annotations/instances_{split}2017.json").rename(root / f"annotations/instances_{split}.json")
    assert len(prepared(root, "detection", tmp_path).train) == 12


def test_crowds_and_images_without_objects(coco, tmp_path, capsys):
    """They are not trained on; an image without objects is tested on, a crowd is read as one."""
    root = copied(coco, tmp_path)
    changed(root, "train", lambda content: content["annotations"].pop(0))
    changed(root, "train", lambda content: content["annotations"][0].update(iscrowd=1))
    changed(root, "val", lambda content: content["annotations"].pop(0))
    dataset = prepared(root, "detection", tmp_path)
    assert (len(dataset.train), len(dataset.test)) == (10, 6)
    assert dataset.facts["left_out"] == {"in train without an object": 2}
    assert "2 images left out, in train without an object" in capsys.readouterr().err
    assert dataset.targets[1].is_crowd.tolist() == [True] and len(dataset.targets[12].labels) == 0


@pytest.mark.parametrize("method", ["detection", "segmentation"])
def test_a_test_image_is_never_trained_on(coco, ade, tmp_path, capsys, method):
    """A copy in another format and of another name among the training images."""
    root = copied(coco if method == "detection" else ade, tmp_path)
    train, val = ("train2017", "val2017") if method == "detection" else ("images/training", "images/validation")
    victim = sorted((root / train).iterdir())[3]
    with Image.open(sorted((root / val).iterdir())[2]) as picture:
        picture.save(victim, compress_level=0)
    dataset = prepared(root, method, tmp_path)
    assert (len(dataset.train), len(dataset.test)) == (11, 6)
    assert "1 image left out, in train with the pixels of a test image" in capsys.readouterr().err
    assert not {dataset.hashes[row] for row in dataset.train} & {dataset.hashes[row] for row in dataset.test}


def test_a_broken_image_or_mask_is_left_out_and_named(coco, tmp_path, capsys):
    root = copied(coco, tmp_path)
    (root / "train2017/000000000004.png").write_bytes(b"")
    changed(root, "train", lambda content: content["annotations"][5]["segmentation"].update(counts=[7]))
    changed(root, "val", lambda content: content["images"][0].update(width=65))
    dataset = prepared(root, "detection", tmp_path)
    assert (len(dataset.train), len(dataset.test)) == (10, 5)
    assert "3 images left out, unreadable (train/000000000004.png: cannot identify" in capsys.readouterr().err


def objects_with(segmentation, side=64, count=1):
    instance = Instance(0, 7, [0, 0, 1, 1], msgspec.Raw(json.dumps(segmentation).encode()))
    return CocoTargets([CocoImage(0, "x.png", side, side)], {0: [instance] * count}, {7: 1})[0]


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [64, 64], "counts": "P" * 40}, "run lengths of a mask are malformed"),
        ({"size": [64, 64], "counts": "o"}, "run lengths of a mask are malformed"),
        ({"size": [64, 64], "counts": "\u00e9\u0000"}, "run lengths of a mask are malformed"),
        ({"size": [64, 64], "counts": "PPPPPPP1"}, "run lengths of a mask are malformed"),
        ({"size": [64, 64], "counts": ""}, "are not those of its size"),
        ({"size": [64, 64], "counts": "ooo1O"}, "are not those of its size"),
        ({"size": [64, 64], "counts": [0] * 4097 + [4096]}, "are not those of its size"),
        ([[99_999, 0, -99_999, 50] * 30], "the polygons of an object are longer than 4,194,304 pixels"),
        ([[1e400, 0, 1, 1, 2, 2]], "JSON"),
        ([[1e300, 0, 1, 1, 2, 2]], "Expected `float` <= 100000"),
        ([[[[[]]]]], "Expected"),
        ({"size": [2**20, 64], "counts": "0"}, "Expected `int` <= 65535"),
    ],
)  # fmt: skip
def test_a_hostile_mask_is_refused_before_pycocotools_reads_it(segmentation, message):
    """It writes outside of its memory where compressed run lengths are malformed, and takes any outline."""
    with pytest.raises(ValueError, match=re.escape(message.replace("`", ""))):
        objects_with(segmentation)


def test_compressed_run_lengths_are_those_of_pycocotools():
    from pycocotools import mask

    random = np.random.default_rng(0)
    for share in np.linspace(0, 1, 60):
        side = int(random.integers(1, 60))
        pixels = np.asfortranarray(random.random((side, side)) < share, np.uint8)
        counts = mask.encode(pixels)["counts"].decode()
        assert (objects_with({"size": [side, side], "counts": counts}, side).dense_masks()[0] == pixels).all()


def test_an_image_of_too_many_masks_is_left_out(coco, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(coco_format, "LARGEST_MASKS", 64 * 64 * 3)
    root = copied(coco, tmp_path)
    changed(root, "train", lambda content: content["annotations"].extend(content["annotations"][:1] * 3))
    assert len(prepared(root, "detection", tmp_path).train) == 11
    assert "the masks of its 4 objects take more than 12,288 bytes" in capsys.readouterr().err


def remove(name):
    return lambda root: shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()


def write(name, content):
    return lambda root: (root / name).write_text(content)


TRAIN_JSON, VAL_JSON = "annotations/instances_train2017.json", "annotations/instances_val2017.json"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("annotations"), "coco: it has no folder annotations; give the folder that holds annotations/instances"),
        (remove(VAL_JSON), "coco: it has no annotations/instances_val*.json; give the folder that holds"),
        (remove("val2017"), "names the image 000000000000.png, which lies neither in val2017, nor in images/val2017"),
        (write("annotations/instances_val.json", "{}"), "instances_val.json and instances_val2017.json are both val"),
        (write(TRAIN_JSON, '{"file_name": "000000000000.png"}'), "required field images; give a file of COCO's"),
        (write(TRAIN_JSON, '{"file_name": ' + "[" * 100_000), "names the image of no file, which lies neither in tra"),
    ],
)  # fmt: skip
def test_another_layout_than_cocos_is_refused(coco, tmp_path, change, message):
    root = copied(coco, tmp_path)
    change(root)
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        prepared(root, "detection", tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["categories"].pop(), "instances_val2017.json: its categories are not those of"),
        (lambda content: content["annotations"][2].update(image_id=7), "annotations[2]: there is no such image"),
        (lambda content: content["images"][2].update(id=100), "images: an id is given twice; restore the file"),
        (lambda content: content["images"][2].update(file_name="../x.png"), "../x.png"),
        (lambda content: content["annotations"][2].update(bbox=[0, 0, 1]), "Expected array of length >= 4"),
    ],
)
def test_a_malformed_file_of_instances_is_refused(coco, tmp_path, change, message):
    root = copied(coco, tmp_path)
    changed(root, "val", change)
    with pytest.raises(UserError, match=re.escape(message)):
        prepared(root, "detection", tmp_path)


# ---- ADE20K ----


def test_labels_are_those_of_the_files(ade, tmp_path):
    dataset = prepared(ade, "segmentation", tmp_path)
    assert (len(dataset.train), len(dataset.test), dataset.categories) == (12, 6, ("1", "2", "3", "4"))
    for row in dataset.test.tolist():
        stored = np.asarray(Image.open(ade / "annotations/validation" / dataset.keys[row].split("/")[1])).astype(int)
        labels = dataset.targets[row]
        assert (labels[stored > 0] == stored[stored > 0] - 1).all() and (labels[stored == 0] == 255).all()


def test_the_table_of_categories_gives_their_number_and_names(ade, tmp_path):
    """As objectInfo150.txt: a line of headings, then number, shares, counts and names."""
    root = copied(ade, tmp_path)
    lines = [f"{number}\t0.1\t5\t5\tname {number}, other" for number in range(1, 151)]
    (root / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *lines]) + "\n")
    categories = prepared(root, "segmentation", tmp_path).categories
    assert len(categories) == 150 and categories[149] == "name 150, other"
    (root / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *lines[:3]]) + "\n")
    with pytest.raises(UserError, match="no image for train; 18 unreadable"):
        prepared(root, "segmentation", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("images/validation"), "ade: it has no folder images/validation; give the folder that holds images/t"),
        (remove("annotations/training"), "ade: it has no folder annotations/training; give the folder"),
        (remove("annotations/training/ADE_00000003.png"), "ADE_00000003.png: there is no such file for ADE_"),
        (write("objectInfo150.txt", "Idx Name\n1 wall"), "its lines do not begin with 1, 2, 3 and a tab"),
    ],
)  # fmt: skip
def test_another_layout_than_ade20ks_is_refused(ade, tmp_path, change, message):
    root = copied(ade, tmp_path)
    change(root)
    with pytest.raises(UserError, match=re.escape(message)):
        prepared(root, "segmentation", tmp_path)


def test_labels_of_another_size_or_mode_are_left_out(ade, tmp_path, capsys):
    """Such as the colour images of the full ADE20K."""
    root = copied(ade, tmp_path)
    Image.new("L", (64, 63), 1).save(root / "annotations/training/ADE_00000000.png")
    Image.new("RGB", (64, 64)).save(root / "annotations/validation/ADE_00000000.png")
    dataset = prepared(root, "segmentation", tmp_path)
    assert (len(dataset.train), len(dataset.test)) == (11, 5)
    assert "unreadable (train/ADE_00000000.png: it is 64x64, and its labels 64x63" in capsys.readouterr().err


# ---- both ----


@pytest.mark.parametrize(("method", "package"), layouts.PACKAGES.items())
def test_a_missing_package_is_named_with_the_extra(coco, monkeypatch, method, package):
    monkeypatch.setattr(layouts, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=rf"{method} needs {package}, which is not installed; pip install 'lbgen\[dense\]'"
    ):
        find_layout(TransferConfig(data=str(coco), method=(method,)))


def test_shares_are_drawn_by_the_seed_and_nested():
    rows, keys = np.arange(50, 150), [f"image {number}" for number in range(150)]
    parts = [fraction_of(rows, keys, share, seed=3) for share in (0.01, 0.2, 0.5, 1.0)]
    assert [len(part) for part in parts] == [1, 20, 50, 100] and set(parts[3]) == set(rows)
    assert all(set(small) < set(large) for small, large in zip(parts, parts[1:], strict=False))
    assert (fraction_of(rows[::-1], keys, 0.2, seed=3) == parts[1]).all()
    assert set(fraction_of(rows, keys, 0.2, seed=4)) != set(parts[1])


# ---- pictures of someone else ----


@pytest.mark.parametrize("method", ["detection", "segmentation"])
def test_a_picture_is_handed_to_no_other_program(method, tmp_path):
    """An EPS, which Pillow hands to Ghostscript, is no picture, whatever it is called."""
    write, folder = (write_coco, "train2017") if method == "detection" else (write_ade, "images/training")
    root = write(tmp_path / "set")
    program = sorted((root / folder).iterdir())[1]
    program.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n")
    dataset = prepared(root, method, tmp_path)
    (left,) = dataset.left
    assert [dataset.keys[row] for row in left.rows] == [f"train/{program.name}"] and len(dataset.train) == 11


def test_a_pipe_is_not_waited_for(tmp_path):
    root = write_ade(tmp_path / "ade")
    pipe = sorted((root / "images/training").iterdir())[1]
    pipe.unlink()
    os.mkfifo(pipe)
    assert len(prepared(root, "segmentation", tmp_path).train) == 11
    root = write_coco(tmp_path / "coco")
    pipe = sorted((root / "train2017").iterdir())[1]
    pipe.unlink()
    os.mkfifo(pipe)
    with pytest.raises(UserError, match=f"{pipe.name}: it is neither a regular file nor a folder"):
        prepared(root, "detection", tmp_path)


def test_pictures_and_labels_have_a_largest_size(tmp_path, monkeypatch):
    """So that the decoded pixels of one have a bound."""
    monkeypatch.setattr("lbgen.evaluation.transfer.dense.pictures.LARGE", 64 * 64 - 1)
    with pytest.raises(UserError, match="no image for train; 18 unreadable"):
        prepared(write_coco(tmp_path / "set"), "detection", tmp_path)
