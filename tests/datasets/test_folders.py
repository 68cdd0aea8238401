"""Image folders and listed images that are not as tidy as the others: nothing vanishes, nothing is made up."""

import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from audited import IMAGES, placed

from lbgen.datasets.open import open_dataset


def listed(folder: Path, *lines: dict) -> Path:
    (folder / "metadata.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def found(folder: Path) -> list[tuple[str, str, str]]:
    return [(record.key, record.category, record.split) for record in open_dataset(folder).records()]


def test_images_beside_splits_are_of_no_category(tmp_path):
    """A test set without labels, as competitions have it; alone, a folder of that name is a category."""
    placed(tmp_path, "train/cat/0.png", "train/dog/1.png", "test/2.png")
    records = list(open_dataset(tmp_path).records())
    assert [(r.key, r.category, r.fault) for r in records if r.content is None] == [
        ("test/2.png", "", "it lies in no category's folder")
    ]
    assert [(r.category, r.split) for r in records if r.content] == [("cat", "train"), ("dog", "train")]
    assert found(placed(tmp_path / "alone", "test/0.png", "exam/1.png"))[1] == ("test/0.png", "test", "all")


def test_folders_inside_a_category_are_walked(tmp_path):
    """As torchvision's ImageFolder does; hidden ones are not."""
    placed(tmp_path, "cat/a/deep/0.png", "cat/1.png", "cat/.hidden/2.png", "dog/3.png")
    assert [key for key, *_ in found(tmp_path)] == ["cat/1.png", "cat/a/deep/0.png", "dog/3.png"]
    assert open_dataset(tmp_path).count == 3


@pytest.mark.parametrize("name", ["masks", "index", "screening"])
def test_a_category_may_have_the_name_of_a_folder_of_lbgens(tmp_path, name):
    """Where images lie in it; masks lie a folder deeper."""
    placed(tmp_path, f"{name}/0.png", "hats/1.png", f"train/{name}/2.png")
    assert sorted(category for _, category, _ in found(tmp_path)) == sorted([name, "hats", name])


@pytest.mark.parametrize("is_listed", [False, True])
def test_folders_too_deep_inside_each_other_are_not_walked(tmp_path, is_listed):
    """Python's own walk of a thousand ended in an error."""
    placed(tmp_path, "cat/0.png")
    if is_listed:
        listed(tmp_path, {"file_name": "cat/0.png", "label": "cat"})
    with inside_each_other(tmp_path / "cat", 1200):
        reader = open_dataset(tmp_path)
        assert [record.key for record in reader.records()] == ["cat/0.png"]
        assert is_listed or [reason for reason in reader.skipped] == ["a folder that lies deeper than 100 folders"]


@contextmanager
def inside_each_other(folder: Path, number: int) -> Iterator[None]:
    """So many folders, which Python makes and removes only one by one."""
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(folder)
        for _ in range(number):
            os.mkdir("a")
            os.chdir("a")
        os.fchdir(here)
        yield
    finally:
        os.fchdir(here)
        os.close(here)
        subprocess.run(["rm", "-rf", folder], check=True)


def test_an_archive_beside_an_image_folder_is_no_shard(tmp_path):
    placed(tmp_path, "cat/0.png", "dog/1.png")
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(tmp_path / "cat", "cat")
    assert [key for key, *_ in found(tmp_path)] == ["cat/0.png", "dog/1.png"]


def test_zero_is_a_label(tmp_path):
    """And null and an empty text are none."""
    placed(tmp_path, *(f"{number}.png" for number in range(4)))
    listed(tmp_path, *({"file_name": f"{n}.png", "label": label} for n, label in enumerate((0, 1, None, ""))))
    assert [category for _, category, _ in found(tmp_path)] == ["0", "1", "", ""]


def test_a_line_that_names_no_file_inside_the_folder_is_a_fault(tmp_path):
    """An absolute path, one that leads out, none, and the folder itself."""
    folder = placed(tmp_path / "set", "0.png")
    placed(tmp_path, "outside.png")
    names = ["0.png", str(tmp_path / "outside.png"), "../outside.png", None, "."]
    listed(folder, *({"file_name": name, "label": "cat"} for name in names), {"label": "cat"})
    records = list(open_dataset(folder).records())
    assert records[0].content == IMAGES[0]
    assert [(r.key, r.fault) for r in records[1:]] == [
        (f"metadata.jsonl, image {n}", "its file_name is no path inside the dataset folder") for n in range(2, 7)
    ]


def test_cells_without_a_header_are_no_column(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,kind\n0.png,fish,more\n")
    (tmp_path / "0.png").write_bytes(b"image")
    assert [record.category for record in open_dataset(tmp_path).records()] == ["fish"]


def test_listed_images_have_masks(tmp_path):
    placed(tmp_path, "0.png", "1.png", "masks/0.png")
    listed(tmp_path, *({"file_name": f"{number}.png", "label": number} for number in range(2)))
    assert [record.mask for record in open_dataset(tmp_path).records()] == [IMAGES[2], None]
