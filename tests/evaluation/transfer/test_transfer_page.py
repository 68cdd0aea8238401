"""The page of a transfer: one file that needs no network, well-formed, with the values of the table."""

import re
from html.parser import HTMLParser

from lbgen.evaluation.transfer.comparison import MeasuredBackbone, differences
from lbgen.evaluation.transfer.page import headline, write_page
from lbgen.evaluation.transfer.values import Value

VOID = {"meta", "br", "path", "use"}


class Reader(HTMLParser):
    """Fails on tags that do not close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.texts, self.sources = [], [], []

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href", "xlink:href", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href", "xlink:href", "srcset")]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())


def measured(name, values):
    few = {
        (dataset, f"linear-{shot}"): share * value
        for dataset, value in values.items()
        for shot, share in (("1%", 0.5), ("20%", 0.8))
    }
    whole = {(dataset, "linear"): value for dataset, value in values.items()}
    entries = {key: Value("accuracy", value, value - 0.02, value + 0.02, 500) for key, value in (whole | few).items()}
    return MeasuredBackbone(name, entries, {})


def read(tmp_path, backbones):
    content = {
        "missing": {"dtd": "dtd: not in <data>"},
        "datasets": {"pets": {"left_out": {"unreadable": 2}}},
        "made_with": {"versions": ["lbgen 1"]},
    }
    write_page(backbones, differences(backbones), tmp_path / "page.html", content)
    reader, html = Reader(), (tmp_path / "page.html").read_text()
    reader.feed(html)
    assert reader.open == []
    return html, reader


def test_the_page_is_one_well_formed_file_with_every_value(tmp_path):
    backbones = [
        measured("resnet <50>", {"pets": 0.861, "food": 0.642, "cars": 0.533}),
        measured("ours", {"pets": 0.884, "food": 0.655, "cars": 0.581}),
    ]
    html, reader = read(tmp_path, backbones)
    assert all(source.startswith("#") for source in reader.sources) and "http" not in re.sub(
        r'xmlns(:\w+)?="[^"]*"', "", html
    )
    for text in (
        "86.1",
        "64.2",
        "53.3",
        "88.4",
        "resnet <50>",
        "70.7",
        "dtd: not in <data>",
        "2 images left out, unreadable",
    ):
        assert any(text in each for each in reader.texts), text
    assert html.count("<svg") == 4  # radar, and few shots of three sets
    assert "53.3 – 58.1" in html and "var(--series-2)" in html
    assert headline(backbones) == "ours: 70.7% on average over 3 data sets by linear probe, the highest of 2 backbones."


def test_a_name_is_no_formula(tmp_path):
    """matplotlib takes what stands between two dollars for mathematics, and refuses what is none."""
    backbones = [measured("a", {r"$\no$": 0.5, "food": 0.7, "pets": 0.6})]
    _, reader = read(tmp_path, backbones)
    assert r"$\no$" in reader.texts


def test_one_backbone_on_one_set_needs_neither_radar_nor_differences(tmp_path):
    html, _ = read(tmp_path, [measured("ours", {"digits": 0.9})])
    assert html.count("<svg") == 1 and "Differences from" not in html and "Side by side" not in html


def test_a_backbone_that_lacks_a_set_has_no_average(tmp_path):
    backbones = [measured("a", {"pets": 0.5, "food": 0.7}), measured("b", {"pets": 0.6})]
    assert headline(backbones).startswith("b: 60.0% on pets by linear probe")
    _, reader = read(tmp_path, backbones)
    assert "–" in reader.texts and "60.0" in reader.texts
