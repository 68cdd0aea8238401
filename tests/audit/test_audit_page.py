"""The audit's page in a headless browser."""

import base64
import io
import re
import time
from collections.abc import Iterator
from functools import lru_cache
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from audited import png
from PIL import Image

from lbgen.audit.attributes import Reading
from lbgen.audit.content import LabelRanks, NameReading
from lbgen.audit.definitions import DEFINITIONS
from lbgen.audit.findings.images import find_images
from lbgen.audit.findings.significance import differences
from lbgen.audit.measures import PROBES, AttributeFigures, MeasuredDataset
from lbgen.audit.observe import Sample, Sizes
from lbgen.audit.output import dataset_figures
from lbgen.audit.page import write_page
from lbgen.datasets.records import ImageRecord, Label, Skipped
from lbgen.metrics.copies import Duplicates
from lbgen.metrics.information import Association, contingency_table, pairs
from lbgen.metrics.intervals import Estimate
from lbgen.report import thumbnails

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
             "--disable-sync", "--no-first-run", "--disable-quic"]  # fmt: skip
HOSTILE = '<script>document.title = "hacked"</script><b id="hostile">'
RNG = np.random.default_rng(0)
COLUMNS = {
    "mask_given": np.ones,
    "facts": lambda count: np.log(np.full((count, 2), 96.0)),
    "brightness": lambda count: np.full(count, 0.5),
    "sharpness": lambda count: np.full(count, 0.5),
    "picture": lambda count: RNG.integers(0, 255, (count, 3072)).astype(np.uint8),
}
FIGURE = Estimate(0.5, 0.4, 0.6)


def sizes_of(label, categories: int) -> Sizes:
    labels = [Label(str(number), f"category {number:04d}") for number in range(categories)]
    return Sizes(labels, ["train"], np.bincount(label, minlength=categories)[:, None])


def made_up(name: str, categories: int, attributes: int, names: list[str] | None = None) -> MeasuredDataset:
    """A dataset's figures without a dataset: four images a category, values drawn or, in the first category, fixed."""
    label = np.repeat(np.arange(categories), 4)
    keys = [f"train/{number}.png" for number in range(len(label))]
    titles = names or [f"category {number:04d}" for number in range(categories)]
    observed = SimpleNamespace(
        name=name, folder="/x", labels=[Label(str(i), title) for i, title in enumerate(titles)], label=label, keys=keys,
        broken={"train/bad.png": "cannot be decoded"}, splits=["train"], split=label * 0, skipped=Skipped(),
        sample=None, sizes=sizes_of(label, categories), broken_share=0.1,
        column=lambda column, chosen=None: COLUMNS[column](len(label if chosen is None else chosen)),
    )  # fmt: skip
    observed.skipped.add("not an image that is read (.txt)", "train/notes.txt")
    found = []
    for number in range(attributes):
        value = np.where(label == 0, 0, RNG.integers(0, 8, len(label)))
        table = contingency_table(label, value, categories, 8)
        reading = Reading(f"attribute {number}", tuple(f"value {v}" for v in range(8)), value)
        q_values = np.ones(table.shape)
        q_values[0, 0] = 0.001
        found.append(
            AttributeFigures(reading, Association(FIGURE, FIGURE, 0.001), 0.002, table, pairs(table), q_values)
        )
    figures = {d.key: FIGURE for d in DEFINITIONS if d.group != "comparison"}
    odd = label % 2
    ranks = LabelRanks((odd == 0) * 1.0, label * 0 + 1.0, (label + odd) % categories, 0.05 - odd * 0.1)
    alone = Duplicates(label < 0, label < 0, np.arange(len(label)))
    quality, vendi = RNG.uniform(1, 5, len(label)), RNG.uniform(1, 4, categories)
    return MeasuredDataset(
        observed,
        figures,
        found,
        ranks,
        quality,
        vendi,
        vendi / 4,
        alone,
        *[np.arange(len(label))] * 2,
        NameReading([], []),
        {},
        {name: np.full(len(label), np.nan) for name in PROBES},
        {},
    )


class Pictures:
    """A source that gives every image the same photograph-like content."""

    def __init__(self, measured: MeasuredDataset) -> None:
        self.keys = measured.observed.keys
        smooth = Image.fromarray(RNG.integers(0, 255, (12, 12, 3)).astype(np.uint8)).resize(
            (96, 96), Image.Resampling.BICUBIC
        )
        self.content = png(np.array(smooth))

    def records(self, wanted: set[str]) -> Iterator[ImageRecord]:
        return (ImageRecord(key, "", "train", self.content if key in wanted else None) for key in self.keys)


def shown(image: Image.Image, **options) -> np.ndarray:
    """(8, 8, 3) what the page shows of an image file."""
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    uri = thumbnails.webp_uri(stream.getvalue(), 8)
    return np.array(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


def test_thumbnails_are_upright():
    """EXIF orientation 6: the file's left half, which is white, is the picture's upper half."""
    pixels, exif = np.zeros((32, 48, 3), np.uint8), Image.Exif()
    pixels[:, :24] = 255
    exif[0x0112] = 6
    found = shown(Image.fromarray(pixels), exif=exif)
    assert (found[:3] > 200).all() and (found[5:] < 55).all()


def test_thumbnails_are_seen_as_the_audit_sees():
    """What is transparent is white; of 16 bits, the middle of a ramp from black to white is grey."""
    assert (shown(Image.new("RGBA", (16, 16), (0, 0, 0, 0))) > 250).all()
    ramp = np.linspace(0, 65535, 32).round().astype(np.uint16)[None].repeat(32, axis=0)
    assert shown(Image.fromarray(ramp))[4, 3:5].mean() == pytest.approx(128, abs=10)


def page_of(measured: list[MeasuredDataset], path: Path) -> Path:
    content = {
        "datasets": {m.observed.name: dataset_figures(m) for m in measured},
        "comparisons": {"datasets": {}},
        "differences": differences(measured),
        "made_with": {"seed": 0},
    }
    write_page(measured, [Pictures(m) for m in measured], content, find_images(measured), path)
    return path


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM.is_file():
        pytest.skip(f"no {CHROMIUM}: the page is not looked at (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    names = ["plain", HOSTILE, "zebra", "ant"]
    measured = [made_up("first", 4, 2, names), made_up(HOSTILE, 4, 2, names)]
    return page_of(measured, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture
def opened(browser, small):
    """The small page; anything on the console, any error and any request but for the file itself fails the test."""
    page, problems = browser.new_page(), []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: problems.append(request.url) if request.url.startswith("http") else None)
    page.goto(small.as_uri())
    yield page
    assert problems == []
    page.close()


def rows(page) -> list[str]:
    return page.locator("#heat tbody th").all_inner_texts()


def test_names_with_html_show_as_text(opened):
    assert opened.title() == f"lbgen audit: first, {HOSTILE}"
    assert opened.locator("#hostile").count() == 0
    assert HOSTILE in rows(opened) and HOSTILE in opened.locator("h3").all_inner_texts()


def test_the_heat_map_is_sorted_and_filtered(opened):
    opened.select_option("#heat-sort", "name")
    assert rows(opened) == sorted([HOSTILE, "ant", "plain", "zebra"])
    opened.locator("#heat thead button").nth(3).click()
    shares = [int(cell.rstrip("%")) for cell in opened.locator("#heat tbody tr td:nth-child(5)").all_inner_texts()]
    assert shares == sorted(shares, reverse=True)
    opened.fill("#heat-filter", "ZEB")
    assert rows(opened) == ["zebra"]
    opened.fill("#heat-filter", "nothing has this name")
    assert rows(opened) == []


def test_the_samples_are_filtered_and_their_pictures_load(opened):
    opened.fill("#grid-filter", "ant")
    assert opened.locator("#grid p").all_inner_texts() == ["plain (4)", "ant (4)"][1:]
    assert opened.evaluate("[...document.images].every((image) => image.decode().then(() => image.naturalWidth > 0))")
    assert opened.evaluate("document.images[0].decode().then(() => document.images[0].naturalWidth)") > 0


def test_every_part_is_there(opened):
    """Of two datasets of four categories with two linked attributes each: columns, pairs with four pictures, charts."""
    assert opened.locator("#figures thead th").all_text_contents() == ["figure", "first", HOSTILE]
    assert opened.locator("#figures td").all_text_contents()[:2] == ["50.0%40.0% to 60.0%"] * 2
    assert opened.locator(".pair").count() == 4 and opened.locator(".pair img").count() == 16
    assert opened.locator("figure svg").count() == 4
    assert opened.locator("#grid img").count() == 16
    titles = opened.locator("h2").all_text_contents()
    for title in (
        "Categories with the lowest label agreement",
        "Broken and skipped files",
        "Images to check",
        "Methods and limits",
    ):
        assert title in titles


def test_a_verdict_says_which_way_a_difference_goes(browser, tmp_path):
    """Lower is better for what the border tells, worse for label agreement, and neither for edges."""
    first, second = made_up("first", 4, 2), made_up("second", 4, 2)
    changed = ("probes.border", "label_agreement", "edge_density")
    second.figures.update(dict.fromkeys(changed, Estimate(0.1, 0.09, 0.11)))
    page = browser.new_page()
    page.goto(page_of([first, second], tmp_path / "report.html").as_uri())
    words = {}
    for row in page.locator("#figures tr").all():
        if row.locator(".word").count():
            words[row.locator("th").text_content()] = row.locator(".word").all_text_contents()
    found = {title.partition("lower")[0].partition("higher")[0]: said for title, said in words.items()}
    assert found == {"Label from the border": ["better"], "Label agreement": ["worse"], "Edge density": ["differs"]}
    page.close()


def test_what_is_said_to_be_tested_is_tested(small):
    """The rows whose differences have a p-value, and no others, are of the two groups that the caption names."""
    tested = differences([made_up("first", 4, 2), made_up("second", 4, 2)])["second"]
    assert set(tested) == {d.key for d in DEFINITIONS if d.group in ("shortcuts", "content")}
    assert "over the rows of shortcuts and over those of content; a shortcut is marked" in small.read_text()


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (360, "light")])
def test_it_fits_the_screen_and_can_be_photographed(browser, small, tmp_path, width, scheme):
    """No part is wider than the screen; dark paper is darker than its ink."""
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.goto(small.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=tmp_path / "page.png")
    corner = Image.open(tmp_path / "page.png").convert("L").getpixel((3, 3))
    assert (corner < 60) == (scheme == "dark")
    page.close()


def test_a_thousand_categories_in_five_datasets(browser, tmp_path, monkeypatch):
    """Below 15 MB, no more rows than are looked at, and it opens: `-s` shows the seconds (benchmarks/RESULTS.md).

    The one picture that all share is encoded once."""
    monkeypatch.setattr(thumbnails, "webp_uri", lru_cache(thumbnails.webp_uri))
    path = page_of([made_up(f"dataset {number}", 1000, 12) for number in range(5)], tmp_path / "report.html")
    assert path.stat().st_size < 15e6
    page, seconds = browser.new_page(), []
    for _ in range(3):
        began = time.monotonic()
        page.goto(path.as_uri())
        assert page.locator("#heat tbody tr").count() == 40
        seconds.append(time.monotonic() - began)
    print(f"{path.stat().st_size / 1e6:.1f} MB, open after {', '.join(f'{each:.2f}' for each in seconds)} s")
    page.fill("#heat-filter", "0999")
    assert rows(page) == ["category 0999"]
    page.close()


def test_the_page_loads_nothing(small):
    """Every src, href and the like and every url() is a data URI; no other host stands there."""
    sources: list[str] = []
    parser = HTMLParser()
    loads = ("src", "srcset", "href", "data", "poster", "action")
    parser.handle_starttag = lambda tag, given: sources.extend(v for k, v in given if k in loads)  # type: ignore
    parser.feed(small.read_text())
    sources += [source.strip("\"' ") for source in re.findall(r"url\(([^)]*)\)", small.read_text())]
    assert sources and all(source.startswith(("data:", "#")) for source in sources)
    assert not re.search(r"http|@import|fetch\(|XMLHttpRequest|WebSocket|[\"'(]//\w", small.read_text())


BROKEN_WORDS = """() => {
  const words = [], walk = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  for (let node; (node = walk.nextNode());) {
    if (!node.parentElement.checkVisibility()) continue;
    for (const found of node.data.matchAll(/[\\p{L}\\p{N}]+/gu)) {
      const range = document.createRange();
      range.setStart(node, found.index);
      range.setEnd(node, found.index + found[0].length);
      const tops = new Set([...range.getClientRects()].map((box) => Math.round(box.top)));
      if (tops.size > 1) words.push(found[0]);
    }
  }
  return words;
}"""
"""The words that stand on two lines."""
WORDS = ["umbrella stand", "chrysanthemum", "photosynthesis", "ant"]


def test_on_a_phone_no_word_is_broken_and_wide_tables_say_so(browser, tmp_path):
    """390 pixels: tables scroll in their own boxes, with a line above those that are cut and above no others."""
    page = browser.new_page(viewport={"width": 390, "height": 800})
    measured = [made_up(name, 4, 2, WORDS) for name in ("imagenet-validation", "second", "third", "fourth")]
    page.goto(page_of(measured, tmp_path / "report.html").as_uri())
    page.wait_for_function("document.querySelector('.frame.cut')")
    assert page.evaluate(BROKEN_WORDS) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    boxes = page.locator(".scroll").all()
    assert len(boxes) == 6
    for box in boxes:
        is_wide = box.evaluate("(box) => box.scrollWidth > box.clientWidth + 2")
        assert box.evaluate("(box) => !box.parentElement.previousElementSibling.hidden") == is_wide
    assert page.locator("#figures").evaluate("(table) => table.closest('.frame').classList.contains('cut')")
    page.close()


def test_what_a_row_measures_is_said_beside_it(opened):
    row = opened.locator("#figures tr", has=opened.locator("text=Label from the border")).first
    explained = row.locator("xpath=following-sibling::tr[1]")
    assert explained.is_hidden()
    row.locator("button").click()
    assert explained.is_visible() and "outermost sixteenth" in explained.inner_text()


def test_a_sample_is_said_with_what_it_cannot_tell():
    """Sizes are those of all images; the first note names the figures that a sample bounds from below."""
    m = made_up("drawn", 3, 1)
    labels, splits, counts = m.observed.sizes
    m.observed.sample, m.observed.sizes = Sample(0.25, 0), Sizes(labels, splits, 4 * counts)
    content = dataset_figures(m)
    assert (content["images"], content["sampled_from"]) == (12, 48)
    assert content["category_images"] == {"0": 16, "1": 16, "2": 16} and content["splits"] == {"train": 48}
    assert content["notes"][0].startswith("Measured on a random 0.25 of the images")
    assert "lower bounds" in content["notes"][0]
