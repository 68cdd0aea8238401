"""The eight sets in tiny folders of their published layouts, and folders of other formats."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import Flowers102

from lbgen.errors import UserError
from lbgen.evaluation.transfer.config import TransferConfig
from lbgen.evaluation.transfer.measure import prepare
from lbgen.evaluation.transfer.run import find_datasets
from lbgen.evaluation.transfer.sets import sources
from lbgen.evaluation.transfer.sets.scan import scan

DRAWN = 5
"""Images of a category; at 20% one of them is drawn."""


class Painter:
    """Writes images of noise, each of its own, and remembers which category and split each has."""

    def __init__(self, root):
        self.root, self.rng, self.expected = root, np.random.default_rng(0), {}

    def paint(self, place, category, split):
        path = self.root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(self.rng.integers(0, 256, (9, 12, 3), np.uint8))
        image.save(path, "PNG")  # under the published name: readers go by content
        self.expected[image.tobytes()] = (category, split)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def fgvcaircraft(root, painter):
    """variant names have spaces; the lists give "number variant"."""
    data = root / "fgvc-aircraft-2013b/data"
    write(data / "variants.txt", "707-320\nA300 B4\n")
    for split in ("train", "val", "test"):
        lines = []
        for number in range(4):
            name, variant = f"{split}{number}", ("707-320", "A300 B4")[number % 2]
            painter.paint(f"fgvc-aircraft-2013b/data/images/{name}.jpg", variant, split)
            lines.append(f"{name} {variant}\n")
        write(data / f"images_variant_{split}.txt", "".join(lines))


def stanfordcars(root, painter):
    """Categories are counted from 1; val is drawn from train."""
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array(["AM General", "Acura RL"], dtype=object)})
    for split, file in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = [(f"{number:05}.jpg", number % 2 + 1) for number in range(2 * DRAWN)]
        for name, category in rows:
            painter.paint(f"stanford_cars/cars_{split}/{name}", ("AM General", "Acura RL")[category - 1], split)
        savemat(folder / file, {"annotations": np.array(rows, dtype=[("fname", object), ("class", object)])})


def dtd(root, painter):
    """The first of ten partitions."""
    for split in ("train", "val", "test"):
        names = [f"{texture}/{texture}_{split}{number}.jpg" for texture in ("banded", "woven") for number in range(2)]
        for name in names:
            painter.paint(f"dtd/dtd/images/{name}", name.partition("/")[0], split)
        write(root / f"dtd/dtd/labels/{split}1.txt", "".join(f"{name}\n" for name in names))


def eurosat(root, painter):
    """No split is published: a fifth of each category tests, a fifth of the rest chooses."""
    for category in ("AnnualCrop", "River"):
        for number in range(DRAWN):
            painter.paint(f"eurosat/2750/{category}/{category}_{number}.jpg", category, None)


def flowers102(root, painter):
    """Lists of numbers counted from 1; the loader checks the hash of both."""
    ids = {"trnid": [1, 2, 3], "valid": [4, 5], "tstid": [6, 7, 8]}
    splits = {
        number: split
        for split, numbers in zip(("train", "val", "test"), ids.values(), strict=True)
        for number in numbers
    }
    labels = [1, 102, 1, 1, 102, 102, 1, 102]
    for number, label in enumerate(labels, 1):
        name = "pink primrose" if label == 1 else "blackberry lily"
        painter.paint(f"flowers-102/jpg/image_{number:05}.jpg", name, splits[number])
    savemat(root / "flowers-102/imagelabels.mat", {"labels": np.array(labels)})
    savemat(root / "flowers-102/setid.mat", ids)


def food101(root, painter):
    for split in ("train", "test"):
        listed = {}
        for category in ("apple_pie", "waffles"):
            listed[category] = [f"{category}/{split}{number}" for number in range(DRAWN)]
            for name in listed[category]:
                painter.paint(f"food-101/images/{name}.jpg", category, split)
        write(root / f"food-101/meta/{split}.json", json.dumps(listed))


def oxfordiiitpet(root, painter):
    for split, file in (("train", "trainval"), ("test", "test")):
        lines = []
        for label, breed in ((1, "Abyssinian"), (2, "american_bulldog")):
            for number in range(DRAWN):
                name = f"{breed}_{file}{number}"
                painter.paint(f"oxford-iiit-pet/images/{name}.jpg", breed.replace("_", " ").title(), split)
                lines.append(f"{name} {label} {label} 1\n")
        write(root / f"oxford-iiit-pet/annotations/{file}.txt", "".join(lines))


def sun397(root, painter):
    """Names of scenes may have two parts; images in no list are not used."""
    write(root / "SUN397/ClassName.txt", "/a/abbey\n/c/cathedral/outdoor\n")
    for split, file in (("train", "Training_01"), ("test", "Testing_01")):
        names = []
        for scene in ("a/abbey", "c/cathedral/outdoor"):
            for number in range(DRAWN):
                name = f"{scene}/sun_{split}{number}.jpg"
                painter.paint(f"SUN397/{name}", scene[2:], split)
                names.append(f"/{name}\n")
        write(root / f"SUN397/{file}.txt", "".join(names))
    unlisted = Painter(root)
    unlisted.rng = np.random.default_rng(1)
    unlisted.paint("SUN397/a/abbey/sun_unlisted.jpg", "abbey", "train")


WRITERS = (fgvcaircraft, stanfordcars, dtd, eurosat, flowers102, food101, oxfordiiitpet, sun397)
METRICS = {"fgvcaircraft": "mean_per_class", "flowers102": "mean_per_class", "oxfordiiitpet": "mean_per_class"}


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
def test_a_published_set_gives_its_images_labels_and_splits(writer, tmp_path, monkeypatch):
    """Against what the painter wrote: every image by its pixels, with its category and its use."""
    painter = Painter(tmp_path / "data")
    writer(tmp_path / "data", painter)
    if writer is flowers102:  # the published lists have other hashes
        files = {name: (file, hash_) for name, (file, hash_) in Flowers102._file_dict.items()}
        for name in ("label", "setid"):
            path = tmp_path / "data/flowers-102" / files[name][0]
            files[name] = (files[name][0], hashlib.md5(path.read_bytes()).hexdigest())
        monkeypatch.setattr(Flowers102, "_file_dict", files)
    config = TransferConfig(data=str(tmp_path / "data"), output=str(tmp_path / "out"), datasets=(writer.__name__,))
    prepared = prepare("shown", writer.__name__, config)
    division, source = prepared.division, prepared.source
    assert source.metric == METRICS.get(writer.__name__, "accuracy") and prepared.left == []
    found, drawn = {}, []
    for use in ("train", "val", "test"):
        for row in getattr(division, use).tolist():
            image, label = source.images[row]
            category, split = painter.expected[image.tobytes()]
            assert label == division.label[row] and source.categories[label] == category
            found[image.tobytes()] = use
            if use != split:
                drawn.append((split, use))
    assert found.keys() == painter.expected.keys()
    published = {split for _, split in painter.expected.values()}
    if published == {"train", "test"}:  # one of five of each category of train
        assert drawn == [("train", "val")] * 2
    elif published == {None}:
        assert sorted(use for _, use in drawn) == ["test"] * 2 + ["train"] * 6 + ["val"] * 2
    else:
        assert drawn == []


def test_a_missing_set_is_named_with_the_way_to_get_it_and_the_others_go_on(tmp_path, capsys):
    config = TransferConfig(data=str(tmp_path), datasets=("digits", "dtd", "cars", "SUN397"))
    found, missing = find_datasets(config)
    assert found == {"digits": "digits"} and list(missing) == ["dtd", "cars", "SUN397"]
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 3 and f'DTD("{tmp_path}", download=True)' in told[0]
    assert "kaggle datasets download" in told[1] and "Partitions.zip" in told[2]


def test_every_command_that_downloads_names_a_loader_of_torchvision():
    import torchvision.datasets

    assert all(hasattr(torchvision.datasets, published.loader) for published in sources.PUBLISHED.values())


def test_a_set_without_its_lists_is_missing_too(tmp_path):
    (tmp_path / "SUN397").mkdir()
    (tmp_path / "SUN397/ClassName.txt").write_text("/a/abbey\n")
    with pytest.raises(sources.NotHere, match=r"Partitions.zip in .*SUN397 \(torchvision cannot .*Training_01.txt"):
        sources.open_published("sun397", tmp_path)


def test_a_damaged_set_is_left_out_like_one_that_is_missing(tmp_path):
    """Lists of other shapes than the loader expects."""
    for writer in (fgvcaircraft, dtd, food101):
        writer(tmp_path, Painter(tmp_path))
    (tmp_path / "fgvc-aircraft-2013b/data/images_variant_val.txt").write_text("no_variant\n")
    (tmp_path / "dtd/dtd/labels/test1.txt").write_text("one/two/three\n")
    (tmp_path / "food-101/meta/test.json").write_text('{"apple_pie": 3')
    for name in ("fgvcaircraft", "dtd", "food101"):
        with pytest.raises(sources.NotHere, match=f"^{name}: not there as .*torchvision cannot read it: "):
            sources.open_published(name, tmp_path)


def test_one_pixel_makes_another_image_and_so_does_another_shape(tmp_path):
    """Grey and RGB of the same look are one image; what is read again comes from the cache, until a file changes."""
    pixels = np.zeros((4, 6, 3), np.uint8)
    changed = pixels.copy()
    changed[-1, -1, -1] = 1
    arrays = [pixels, changed, pixels.reshape(6, 4, 3), pixels[..., 0], pixels]
    images = [(Image.fromarray(array), 0) for array in arrays]
    source = sources.Source(images, tuple("abcde"), ("train",) * 5, ("only",))
    first, second, third, grey, last = scan(source, "x", tmp_path, workers=0).hashes
    assert first == grey == last and len({first, second, third}) == 3
    images[1] = images[0]
    assert scan(source, "x", tmp_path, workers=0).hashes[1] == second
    assert scan(replace(source, fingerprint="changed"), "x", tmp_path, workers=0).hashes[1] == first
    for path in tmp_path.glob("scan-*.npy"):  # as an earlier version wrote it, with a label that there is not
        table = np.load(path)
        table[0, :8] = 255
        np.save(path, table)
    assert scan(source, "x", tmp_path, workers=0).label.min() == 0


# ---- folders ----


def own_folder(root, splits, painter=None):
    painter = painter or Painter(root)
    for split, count in splits.items():
        for category in ("cat", "dog"):
            for number in range(count):
                painter.paint(f"{split}/{category}/{number}.png", category, split)
    return painter


def test_an_image_folder_is_a_set_and_its_copies_are_found_by_their_pixels(tmp_path, capsys):
    """A copy in another format, under another name, in another split."""
    own_folder(tmp_path / "own", {"train": 10, "validation": 4, "test": 6})
    Image.open(tmp_path / "own/test/dog/3.png").save(tmp_path / "own/train/dog/copy.bmp")
    (tmp_path / "own/train/cat/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    config = TransferConfig(output=str(tmp_path / "out"), data=str(tmp_path), datasets=("own",))
    prepared = prepare("own", "own", config)
    sizes = [len(getattr(prepared.division, part)) for part in ("train", "val", "test")]
    assert sizes == [20, 8, 12]
    told = capsys.readouterr().err
    assert "own: 1 image left out, in train or val with the pixels of a test image (train/dog/copy.bmp)" in told
    assert "own: 1 image left out, unreadable (train/cat/broken.png: " in told


def test_a_saved_hugging_face_set_is_a_set(tmp_path):
    """Written by `datasets` itself, as it lies on disk."""
    datasets = pytest.importorskip("datasets")
    own_folder(tmp_path / "own", {"train": 5, "test": 2})
    datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "own"), cache_dir=str(tmp_path / "hf")).save_to_disk(
        str(tmp_path / "saved")
    )
    config = TransferConfig(output=str(tmp_path / "out"), datasets=(str(tmp_path / "saved"),))
    saved, own = (prepare(name, str(tmp_path / name), config) for name in ("saved", "own"))

    def uses(prepared, part):
        rows = getattr(prepared.division, part).tolist()
        return {(prepared.hashes[row], int(prepared.division.label[row])) for row in rows}

    assert uses(saved, "test") == uses(own, "test") and len(uses(own, "test")) == 4
    assert uses(saved, "train") | uses(saved, "val") == uses(own, "train") | uses(own, "val")


def test_a_path_is_shown_by_its_last_folder_unless_two_end_in_the_same(tmp_path):
    for name in ("a/own", "b/own", "b/other"):
        (tmp_path / name).mkdir(parents=True)
    a, b, other = (str(tmp_path / name) for name in ("a/own", "b/own", "b/other"))
    assert find_datasets(TransferConfig(datasets=(a, other)))[0] == {"own": a, "other": other}
    assert find_datasets(TransferConfig(datasets=(a, b, "digits")))[0] == {a: a, b: b, "digits": "digits"}
    assert find_datasets(TransferConfig(datasets=("own/",), data=str(tmp_path / "b")))[0] == {"own": "own/"}


def test_a_folder_without_a_test_is_refused(tmp_path):
    own_folder(tmp_path / "own", {"train": 3, "val": 2})
    config = TransferConfig(output=str(tmp_path / "out"), datasets=(str(tmp_path / "own"),))
    with pytest.raises(UserError, match="no image for test; give a set with train and test images"):
        prepare("own", str(tmp_path / "own"), config)
