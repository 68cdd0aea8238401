"""Datasets by hand (tests/handmade.py), described by lbgen and read back by the libraries that the card names."""

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from handmade import CATEGORIES, COUNTS, LAYOUTS, colour_of, described, expected, facts_of, make
from PIL import Image

from lbgen.datasets.index import SUFFIXES
from lbgen.generation.card.json_files import info_json, labels_json
from lbgen.generation.card.readme import LONG_TABLE, as_text, card
from lbgen.generation.card.summary import DatasetSummary, ShardFile, SplitSummary
from lbgen.vocabulary.vocabulary import Category

IDS = [category.id for category in CATEGORIES]
LONG_LIST = tuple(Category(f"c{number}", f"name {number}", "test") for number in range(LONG_TABLE + 1))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The datasets library, with its cache in the test's folder and no network."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    return datasets


@pytest.mark.parametrize("image_format", ("png", "jpeg", "webp"))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_load_dataset_needs_nothing_but_the_folder(hub, tmp_path, layout, image_format):
    images = make(tmp_path / "made", layout, image_format)
    loaded = hub.load_dataset(str(tmp_path / "made"))
    packed = layout == "webdataset"
    image, label = (SUFFIXES[image_format], "cls") if packed else ("image", "label")
    assert list(loaded) == list(COUNTS)
    for split, rows in loaded.items():
        assert rows.features[label] == hub.ClassLabel(names=IDS)
        assert set(rows.column_names) == {image, label} | ({"json"} if packed else set())
        near = Counter((tuple(value // 20 for value in colour), label) for colour, label in expected(images, split))
        read = [(tuple((value + 5) // 20 for value in colour_of(row[image])), row[label]) for row in rows]
        assert Counter(read) == near
    if packed:
        assert loaded["train"][0]["json"] == facts_of(images[0])


def test_class_names_are_equal_in_all_layouts_though_the_loaders_would_sort_them(hub, tmp_path):
    """Against the loader without a card: it sorts the folder names."""
    make(tmp_path / "made", "imagefolder")
    (tmp_path / "made" / "README.md").unlink()
    bare = hub.load_dataset("imagefolder", data_files={"train": str(tmp_path / "made" / "train" / "*" / "*")})
    assert bare["train"].features["label"].names == sorted(IDS) != IDS


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_loading_examples_of_the_card_give_images_and_labels(hub, tmp_path, monkeypatch, layout):
    """Each example runs as it stands, but for DIR; what it loads is compared with what was made."""
    for library in ("timm", "webdataset"):
        pytest.importorskip(library)
    folder = tmp_path / "made"
    images = make(folder, layout)
    examples = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 3
    for example in examples:
        names: dict = {}
        exec(example.replace("DIR", str(folder)), names)
        read = [pair_of(sample) for sample in names["images"]]
        assert sorted(read) == expected(images, "train"), example


def pair_of(sample):
    """(colour, label) of what a loader gives."""
    image, label = sample if isinstance(sample, tuple) else list(sample.values())[:2]
    if not isinstance(image, Image.Image):
        image = Image.fromarray(np.asarray(image.permute(1, 2, 0)))
    return colour_of(image), label


def test_timm_trains_on_tar_shards_by_their_info(tmp_path):
    """`is_training` needs the number of images, which only _info.json tells."""
    create_dataset = pytest.importorskip("timm.data").create_dataset
    pytest.importorskip("webdataset")
    images = make(tmp_path / "made", "webdataset")
    for split in COUNTS:
        options = {"split": split, "is_training": True, "batch_size": 2}
        reader = create_dataset("wds/", root=str(tmp_path / "made"), **options)
        assert len(reader) == len(expected(images, split))
        assert sorted((colour_of(image), label) for image, label in reader) == expected(images, split)


def test_labels_json_and_info_json_hold_what_their_readers_expect():
    assert json.loads(labels_json(CATEGORIES)) == [{"id": c.id, "name": c.name} for c in CATEGORIES]
    files = (ShardFile("train-00000.tar", 5, "a"), ShardFile("train-00001.tar", 3, "b"))
    assert json.loads(info_json([SplitSummary("train", 8, files)])) == {
        "splits": {
            "train": {
                "name": "train",
                "num_samples": 8,
                "filenames": ["train-00000.tar", "train-00001.tar"],
                "shard_lengths": [5, 3],
            }
        }
    }


# ---- the card as people see it ----


def text_of(layout="parquet", **changes):
    description = described(layout, "png", {split: {} for split in COUNTS})
    return card(DatasetSummary(**(vars(description) | changes)))


class Page(HTMLParser):
    """The cells of the tables and the headings, as text, and the names of all elements."""

    def __init__(self, markdown):
        super().__init__()
        parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True}).enable("table")
        self.elements: Counter = Counter()
        self.texts: list[str] = []
        self.feed(parser.render(markdown.split("\n---\n", 1)[1]))

    def handle_starttag(self, tag, attrs):
        self.elements[tag] += 1
        if tag in ("td", "h1"):
            self.texts.append("")

    def handle_data(self, data):
        if self.texts:
            self.texts[-1] += data


def test_names_show_as_text():
    """As CommonMark with raw HTML and tables renders them, which is more than the Hub lets through."""
    rejections = {category.id: {"la|bel": 2} for category in CATEGORIES}
    page = Page(text_of(rejections=rejections))
    texts = [text.strip() for text in page.texts]
    for category in CATEGORIES:
        place = texts.index(category.id)
        assert texts[place + 1].replace("\n", "") == category.name
        assert texts.count(category.name) == 2  # in the list of labels and in the screening table
    assert texts[0].startswith("by: hand\n<i>")
    assert not {"b", "i", "script", "details", "em"} & set(page.elements)


def test_text_survives_any_sign():
    signs = "".join(map(chr, range(32, 127)))
    (shown,) = [text.strip() for text in Page(f"---\n---\n\n|a|\n|---|\n| {as_text(signs.strip())} |\n").texts]
    assert shown == signs.strip()


def test_long_lists_are_folded_and_still_tables():
    counts = {category.id: {"blank": 1} for category in LONG_LIST}
    page = Page(text_of(categories=LONG_LIST, rejections=counts))
    assert page.elements["details"] == 2 == page.elements["summary"]
    assert page.elements["td"] >= 5 * len(LONG_LIST)


def test_rejections_stand_by_category_and_reason_the_most_first():
    rejections = {IDS[1]: {"label": 1}, IDS[2]: {"label": 3, "blank": 4}}
    lines = text_of(rejections=rejections).split("## Screening")[1].split("##")[0].strip().splitlines()
    assert [re.split(r"\s*\|\s*", line)[2:-1] for line in lines if line.startswith("|")] == [
        ["blank", "label"], ["---:", "---:"], ["4", "3"], ["0", "1"],
    ]  # fmt: skip
    assert "Screening" not in text_of()


def test_configuration_stands_as_it_is_whatever_fences_it_holds():
    config = "prompt_template: '```` {name}'\nadapter: null\n"
    assert f"`````yaml\n{config}`````\n" in text_of(config=config)


@pytest.mark.parametrize(
    ("images", "size"), ((999, "n<1K"), (1000, "1K<n<10K"), (1_300_000, "1M<n<10M"), (14_000_000, "n>10M"))
)
def test_head_is_yaml_that_names_the_size_as_the_hub_does(images, size):
    head = yaml.safe_load(text_of(splits=[SplitSummary("train", images)]).split("\n---\n")[0].removeprefix("---\n"))
    assert head["size_categories"] == [size]
    assert head["pretty_name"] == "by: hand\n<i>"
    assert "synthetic" in head["tags"]


def test_card_says_what_made_the_images():
    text = text_of(hashes={"generator": "ab12", "adapter": None}, versions=("lbgen 0.1.0", "torch 2.11.0"))
    for line in ("| generator | ab12 |", "| adapter | none |", "With lbgen 0.1.0, torch 2.11.0."):
        assert line in text.splitlines()


@pytest.mark.parametrize("used", [(), ("adapter",), ("attributes",)])
def test_card_promises_less_bias_only_where_something_was_done_about_it(used):
    hashes = {"generator": "a", "adapter": None, "attributes": None} | dict.fromkeys(used, "b")
    shown = " ".join(text_of(hashes=hashes).split())
    assert ("do not predict background" in shown) == ("The aim is fewer shortcuts" in shown) == bool(used)
    assert ("these are the base generator's images, and they have its biases" in shown) != bool(used)


def test_description_files_of_a_dataset_are_not_data(tmp_path):
    """No file beside the images matches a pattern of the head."""
    for layout in LAYOUTS:
        make(tmp_path / layout, layout)
        text = (tmp_path / layout / "README.md").read_text(encoding="utf-8")
        head = yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))
        patterns = [file["path"] for file in head["configs"][0]["data_files"]]
        data = {path for pattern in patterns for path in Path(tmp_path / layout).glob(pattern)}
        others = {path for path in (tmp_path / layout).rglob("*") if path.is_file()} - data
        assert {path.relative_to(tmp_path / layout).parts[0] for path in others} == {
            "README.md", "_info.json", "croissant.json", "index", "labels.json", "plan.json",
            "samples.png", "screening",
        }  # fmt: skip
