"""What a dataset lacks, or its readers number otherwise, is said at the end of the run and in the card."""

import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from torchvision.datasets import ImageFolder

from lbgen.datasets.index import read_index
from lbgen.generation.render import Renderer
from lbgen.generation.run import generate
from lbgen.generation.verify import verify


def card_of(folder: Path) -> str:
    return unescape((folder / "README.md").read_text(encoding="utf-8"))


@pytest.fixture
def more(tmp_path) -> str:
    (tmp_path / "more.txt").write_text("z1 cat\na2 dog\nm3 red fox\nb7 owl\n")
    return str(tmp_path / "more.txt")


@pytest.mark.parametrize("layout", ["imagefolder", "webdataset"])
def test_images_and_categories_that_were_left_out_are_counted_and_named(config, tmp_path, monkeypatch, capsys, layout):
    """Against what torchvision and the index hold: the dogs come out black, and fail."""
    render = Renderer.render

    def no_dogs(self, batch):
        rendered = render(self, batch)
        rendered.pixels[[image.category.id == "a2" for image in batch]] = 0
        return rendered

    monkeypatch.setattr(Renderer, "render", no_dogs)
    made = replace(config, output=tmp_path / "made", format=layout, images_per_category=2, screen=("blank",))
    made = replace(made, max_attempts=1, last_resort="drop", batch_size=3)
    for _ in range(2):  # also where nothing is left to do
        result = generate(made)
        said = capsys.readouterr().out
        line = f"4 of 6 images of 2 categories in {tmp_path / 'made'}; screening left out 2, and with them all of a2"
        assert said.splitlines()[-1] == line
        assert result.images == 4 == len(read_index(tmp_path / "made"))
    assert verify(tmp_path / "made").damaged == ()
    card = card_of(tmp_path / "made")
    assert "4 labelled images of 2 categories" in card and "# 2 categories drawn by" in card
    assert "- Split train has no image of 1 of the 3 categories: a2." in card
    if layout == "imagefolder":
        assert ImageFolder(str(tmp_path / "made/train")).classes == ["m3", "z1"]
        assert "such as torchvision, number them otherwise than labels.json" in card


def test_splits_with_other_categories_are_named(config, more, tmp_path, capsys):
    """torchvision numbers the same folder differently in the two."""
    made = replace(config, output=tmp_path / "made", images_per_category=1)
    generate(made)
    assert "no image of" not in capsys.readouterr().out + card_of(tmp_path / "made")
    generate(replace(made, split="val", vocabulary=more))
    numbers = [ImageFolder(str(tmp_path / f"made/{split}")).class_to_idx["z1"] for split in ("train", "val")]
    assert numbers == [2, 3]
    said = capsys.readouterr().out
    for text in (said, card_of(tmp_path / "made")):
        assert "Split train has no image of 1 of the 4 categories: b7." in text
        assert "and not in the same way in splits with different folders" in text
    assert "4 of 4 images of 4 categories" in said


def test_tables_that_name_fewer_categories_are_said(config, more, tmp_path, capsys):
    """Against the class lists in the files, and what `datasets` reads: by the card every name, of a shard its own."""
    made = replace(config, output=tmp_path / "made", images_per_category=1, format="parquet")
    generate(made)
    assert "Shards name only" not in capsys.readouterr().out + card_of(tmp_path / "made")
    generate(replace(made, vocabulary=more))
    metadata = [pq.read_schema(path).metadata[b"huggingface"] for path in sorted(tmp_path.glob("made/data/*"))]
    assert [b"b7" in each for each in metadata] == [False, True]
    text = "Shards name only the categories of the time when they were made, at least the first 3 of 4."
    assert text in capsys.readouterr().out and text in re.sub(r"\s+", " ", card_of(tmp_path / "made"))
    data = datasets.load_dataset(str(tmp_path / "made"), split="train", cache_dir=str(tmp_path / "cache"))
    assert data.features["label"].int2str(sorted(data["label"])) == ["z1", "a2", "m3", "b7"]
    for path, ids in zip(sorted(tmp_path.glob("made/data/*")), (["z1", "a2", "m3"], ["b7"]), strict=True):
        alone = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
        assert alone.features["label"].int2str(sorted(alone["label"])) == ids
    assert verify(tmp_path / "made").damaged == ()


def test_a_folder_whose_last_image_was_left_out_is_removed(tmp_path):
    """As a near-duplicate that is drawn again and fails: torchvision refuses an empty folder."""
    from lbgen.runs.storage import open_store

    (tmp_path / "train/a").mkdir(parents=True)
    (tmp_path / "train/b").mkdir()
    (tmp_path / "train/b/x.png").touch()
    for folder in ("train/a", "train/b", "train/c"):
        open_store(str(tmp_path)).remove_if_empty(folder)
    assert [path.name for path in (tmp_path / "train").iterdir()] == ["b"]
