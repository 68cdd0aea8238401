"""What the audit says and lists: headline, next step, warnings, one row an image. Every fault is planted."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from audited import photographs, write_image_folder
from PIL import Image, ImageFilter

import lbgen
from lbgen.audit.config import AuditConfig

LEAK, CONFLICT = "val/fish/leak.png", "train/key/conflict.png"


def audited(output: Path, *folders: Path) -> Path:
    lbgen.audit(folders, AuditConfig(str(output), semantics="microworld", permutations=99))
    return output


def rows(output: Path, dataset: str) -> dict[str, dict]:
    """Key -> row of images.parquet."""
    found = pq.read_table(output / "images.parquet").to_pylist()
    return {row["key"]: row for row in found if row["dataset"] == dataset}


def header(output: Path) -> str:
    return (output / "report.html").read_text().partition("<header>")[2].partition("</header>")[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """`clean`; `framed`, whose frames have a colour for each category; `dirty`, with two splits and planted faults."""
    folder = tmp_path_factory.mktemp("findings")
    clean, framed = photographs(72, 1), photographs(72, 2)
    write_image_folder(folder / "clean", clean, masks=True)
    colours = np.random.default_rng(0).integers(0, 255, (12, 3))
    for image, category in zip(framed.images, framed.categories, strict=True):
        image[:4] = image[-4:] = image[:, :4] = image[:, -4:] = colours[category]
    write_image_folder(folder / "framed", framed, masks=True)
    train = write_image_folder(folder / "dirty", photographs(60, 3)) / "train"
    write_image_folder(folder / "dirty", photographs(24, 4), split="val")
    fish = sorted((train / "fish").glob("*.png"))
    shutil.copy(fish[1], folder / "dirty" / LEAK)
    shutil.copy(fish[2], folder / "dirty" / CONFLICT)
    shutil.copy(min((folder / "clean" / "train" / "boat").glob("*.png")), train / "boat" / "copy.png")
    write_image_folder(folder / "others", photographs(12, 5))
    odd = sorted((folder / "others" / "train").glob("*/*.png"))
    with Image.open(odd[0]) as image:
        image.resize((20, 24)).save(train / "cup" / "tiny.png")
    with Image.open(odd[1]) as image:
        image.point(lambda value: value // 20).save(train / "cup" / "dark.png")
    with Image.open(odd[2]) as image:
        image.resize((96, 96)).filter(ImageFilter.GaussianBlur(7)).save(train / "cup" / "blurred.png")
    with Image.open(odd[3]) as image:
        image.resize((400, 100)).save(train / "cup" / "strip.png")
    (train / "cup" / "broken.png").write_bytes(b"")
    (train / "cup" / "notes.txt").write_text("x")
    return folder


@pytest.fixture(scope="module")
def dirty(folder) -> Path:
    return audited(folder / "out", folder / "clean", folder / "dirty")


def test_every_planted_fault_has_its_flag(dirty):
    found = rows(dirty, "dirty")
    for flag, name in {"tiny": "tiny", "dark": "dark", "blurred": "blurred", "odd_aspect": "strip"}.items():
        assert found[f"train/cup/{name}.png"][flag], flag
    strip, tiny = found["train/cup/strip.png"], found["train/cup/tiny.png"]
    assert (strip["width"], strip["height"], strip["aspect"]) == (400, 100, 4)
    assert (tiny["width"], tiny["height"]) == (20, 24)
    clean = rows(dirty, "clean").values()
    assert not any(row[flag] for row in clean for flag in ("tiny", "dark", "blurred", "odd_aspect"))


def test_duplicates_say_of_which_image(dirty):
    """Across splits, across labels, and of the other dataset."""
    found = rows(dirty, "dirty")
    leak, conflict = found[LEAK], found[CONFLICT]
    assert leak["duplicate_of"].startswith("train/fish/") and leak["duplicate_of_split"] == "train"
    pair = [conflict, next(row for row in found.values() if row["key"] == conflict["duplicate_of"] or (
        row["duplicate_of"] == CONFLICT))]  # fmt: skip
    assert {row["category"] for row in pair} == {"key", "fish"}
    copy = found["train/boat/copy.png"]
    assert copy["copy_in_dataset"] == "clean" and copy["copy_in_category"] == "boat"
    back = rows(dirty, "clean")[copy["copy_in_key"]]
    assert (back["copy_in_dataset"], back["copy_in_key"]) == ("dirty", "train/boat/copy.png")
    assert sum(row["copy_in_dataset"] is not None for row in found.values()) == 1


def test_labels_that_do_not_fit_are_suspect(dirty):
    found = rows(dirty, "dirty")
    conflict = found[CONFLICT]
    assert conflict["suspect_label"] and conflict["label_margin"] < 0 and conflict["nearest_category"] == "fish"
    usable = [row for row in found.values() if not row["broken"]]
    mean = np.mean([row["label_agreement"] for row in usable])
    figures = json.loads((dirty / "measures.json").read_text())["datasets"]["dirty"]
    assert mean == pytest.approx(figures["label_agreement"]["value"])
    assert all((row["label_margin"] < 0) == row["suspect_label"] for row in usable)


def test_rows_of_images_add_up_to_the_figures(dirty):
    """Broken files too; the balanced mean of what a probe tells is its accuracy."""
    found = rows(dirty, "dirty")
    figures = json.loads((dirty / "measures.json").read_text())["datasets"]["dirty"]
    assert {key: row["broken"] for key, row in found.items() if row["broken"]} == figures["broken_why"]
    assert len(found) == figures["images"] + len(figures["broken"])
    told: dict[str, list[bool]] = {}
    for row in found.values():
        if row["told_by_background"] is not None:
            told.setdefault(row["category"], []).append(row["told_by_background"])
    assert sum(map(len, told.values())) == figures["probed"]["images"]
    accuracy = {category: np.mean(values) for category, values in told.items()}
    assert np.mean(list(accuracy.values())) == pytest.approx(figures["probes"]["background"]["value"])
    lines = pq.read_table(dirty / "measures.parquet").to_pylist()
    background = {
        line["category"]: line["value"]
        for line in lines
        if (line["dataset"], line["measure"]) == ("dirty", "told_by_background")
    }
    assert background == pytest.approx(accuracy)


def test_sizes_of_categories_and_splits_are_rows(dirty):
    lines = [
        line
        for line in pq.read_table(dirty / "measures.parquet").to_pylist()
        if line["dataset"] == "dirty" and line["measure"] in ("category_images", "split_images")
    ]
    figures = json.loads((dirty / "measures.json").read_text())["datasets"]["dirty"]
    assert {x["category"]: x["value"] for x in lines if not x["split"]} == figures["category_images"]
    assert {x["split"]: x["value"] for x in lines if not x["category"]} == figures["splits"]
    both = {(x["category"], x["split"]): x["value"] for x in lines if x["split"] and x["category"]}
    assert both["fish", "val"] == 3 and sum(both.values()) == figures["images"]


def test_the_page_shows_the_worst_images_and_says_what_to_do(dirty):
    page = (dirty / "report.html").read_text()
    for title in ("Near-duplicates", "Copies in another dataset", "Suspect labels", "Tiny", "Dark", "Blurred"):
        assert f"<h4>{title}: " in page, title
    assert "Repair or remove the broken file that is listed below" in header(dirty)
    assert page.index("dirty: 1 broken, 1 skipped") < page.index("<h2>All figures")
    assert "there are no splits" in page  # of `clean`


def test_one_dataset_has_a_verdict(folder):
    assert "No shortcut found in clean" in header(audited(folder / "one", folder / "clean"))
    framed = header(audited(folder / "one", folder / "framed"))
    assert "<h1>In framed, the border of an image alone predicts " in framed and "(chance 8.3%)" in framed
    assert "Categories that a cue predicts" in (folder / "one" / "report.html").read_text()


def test_the_headline_names_the_row_that_differs(folder):
    """Each category's files have a size of their own, and nothing else is linked: no word of the border."""
    shutil.copytree(folder / "clean", folder / "mixed")
    for number, place in enumerate(sorted((folder / "mixed" / "train").iterdir())):
        for path in sorted(place.glob("*.png")):
            with Image.open(path) as image:
                image.resize((96 + 8 * number, 96 + 8 * number), Image.Resampling.BICUBIC).save(path)
    found = header(audited(folder / "two", folder / "clean", folder / "mixed"))
    assert "<h1>In mixed, the size and format of the files alone predict " in found
    assert "Store the images of all categories in one size" in found


def test_a_language_space_out_of_its_depth_is_said(folder):
    renamed = folder / "renamed"
    for number, place in enumerate(sorted((folder / "clean" / "train").iterdir())):
        shutil.copytree(place, renamed / "train" / f"zebrawalrus{number}")
    output = audited(folder / "unknown", renamed)
    assert "out of its depth: it knows none of the 12 category names" in header(output)
    assert "Choose another language space (--semantics)" in header(output)
    assert "<h4>Suspect labels" not in (output / "report.html").read_text()
    notes = json.loads((output / "measures.json").read_text())["datasets"]["renamed"]["notes"]
    assert any("out of its depth" in note for note in notes)


def test_wrong_labels_everywhere_put_the_language_space_in_doubt(folder):
    """Known names, but each on another category's images: label agreement is near chance."""
    moved, places = folder / "moved", sorted((folder / "clean" / "train").iterdir())
    for place, other in zip(places, places[1:] + places[:1], strict=True):
        shutil.copytree(place, moved / "train" / other.name)
    assert "is near chance, 8.3%" in header(audited(folder / "wrong", moved))


def test_chance_is_not_stated_where_nothing_is_probed(folder):
    """Three images a category, where probes take five."""
    output = audited(folder / "few", write_image_folder(folder / "three", photographs(36, 6)))
    assert "Too few images per category to find shortcuts" in header(output)
    assert "chance 100" not in (output / "report.html").read_text()
    assert json.loads((output / "measures.json").read_text())["datasets"]["three"]["chance"] is None


def test_the_rows_of_a_single_dataset_say_which_cues_are_linked(folder):
    """Those of measures.json whose test is significant, and no others."""
    output = audited(folder / "rows", folder / "framed")
    page = (output / "report.html").read_text()
    tests = json.loads((output / "measures.json").read_text())["datasets"]["framed"]["probe_tests"]
    significant = sum(test["significant"] for name, test in tests.items() if name != "together")
    assert page.count('<td class="linked">') == significant >= 1
    assert "No splits; 6 images a category" in header(output)
