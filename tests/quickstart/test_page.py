import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import torch
from judged_sets import EVERYWHERE, HOME, LABELS, judged

from lbgen.alignment.config import AlignConfig
from lbgen.configuration.recipes import resolve
from lbgen.quickstart import page as before_after
from lbgen.quickstart.comparison import compare
from lbgen.quickstart.page import Chart, Page, Strip, change, interval, number, write_page
from lbgen.report import figures

VOID = {"meta", "img", "br", "path", "use"}


class Reader(HTMLParser):
    """Collects what a browser would see; fails on tags that do not close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.texts, self.sources, self.tags = [], [], [], set()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "xlink:href", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def read_page(tmp_path, name: str) -> tuple[str, Reader]:
    lines = compare(judged(HOME[LABELS]), judged(EVERYWHERE), HOME, resamples=5)
    image = figures.png_uri(figures.strip(torch.rand(2, 3, 8, 8)))
    svg = figures.curve([1, 2, 3], [0.1, 0.3, 0.2])
    page = Page(
        title="a title",
        lines=lines,
        diverse=compare(judged(HOME[LABELS]), judged(HOME[LABELS]), HOME, resamples=5),
        strips=[Strip(name, "home", image, image, image)],
        maps=[Chart("map", "note", figures.share_map(np.eye(2), [name, "b"], ["x", "y"], [0, 1], figures.BASE))],
        losses=[Chart("loss", "note", svg)],
        statistics=[Chart("statistic", "note", svg)],
        limits=["a limit"],
        facts=[("fact", name)],
    )
    write_page(page, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    reader = Reader()
    reader.feed(html)
    assert not reader.open
    return html, reader


def test_page_says_what_the_figures_say(tmp_path):
    _, reader = read_page(tmp_path, "cat")
    shown = " ".join(" ".join(reader.texts).split())
    assert "After alignment, a category says 100% less about its background." in shown
    assert "100.0%" in shown and "25.0%" in shown


def test_page_needs_no_network(tmp_path):
    html, reader = read_page(tmp_path, "cat")
    assert all(source.startswith(("data:", "#")) for source in reader.sources)
    assert not re.search(r"url\((?!#)|@import|<script|<link", html)


def test_names_are_escaped(tmp_path):
    _, reader = read_page(tmp_path, '<script>alert("1")</script>')
    assert "script" not in reader.tags
    assert any('<script>alert("1")</script>' in text for text in reader.texts)


def test_figures_are_svg_in_the_colours_of_the_page():
    svg = figures.share_map(np.eye(2), ["a", "b"], ["x", "y"], [0, 1], figures.BASE)
    ElementTree.fromstring(svg)
    assert "var(--base)" in svg and "var(--ink)" in svg
    assert not re.search("#0[1-9]0[1-9]0[1-9]", svg)
    assert svg == figures.share_map(np.eye(2), ["a", "b"], ["x", "y"], [0, 1], figures.BASE)


def test_curve_of_one_point_is_drawn():
    ElementTree.fromstring(figures.curve([0], [0.0]))


def test_running_mean_is_the_mean_of_the_neighbours():
    values = [4.0, 1.0, 7.0, 2.0]
    assert np.allclose(figures._running_mean(values, 3), [2.5, 4, 10 / 3, 4.5])
    assert np.allclose(figures._running_mean(values, 9), np.mean(values))


def test_strip_repeats_every_pixel():
    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    sheet = np.asarray(figures.strip(images, scale=3, gap=2))
    assert sheet.shape == (12, 2 * 15 + 2, 4)
    truth = (images[1] * 255).round().permute(1, 2, 0).numpy().repeat(3, axis=0).repeat(3, axis=1)
    assert np.array_equal(sheet[:, 17:, :3], truth)
    assert (sheet[:, 15:17, 3] == 0).all() and (sheet[:, :15, 3] == 255).all()


def test_numbers_are_typeset():
    lines = {line.figure.key: line for line in compare(judged(HOME[LABELS]), judged(EVERYWHERE), HOME, resamples=5)}
    rate, quality = lines["home_scene_rate"], lines["quality"]
    assert (number(0.251, rate), change(rate)) == ("25.1%", "\N{MINUS SIGN}75.0 pts")
    assert (number(3.0, quality), change(quality)) == ("3.00", "0.00")
    assert interval((-0.02, 0.0001), rate) == "\N{MINUS SIGN}2.0 to 0.0"


def test_terms_of_no_weight_have_no_curve():
    """The run logs the discriminator's loss all the same."""
    shown = {recipe: before_after.shown_losses(resolve(AlignConfig, recipe, {})) for recipe in ("independent", "paper")}
    assert not {"entire", "discriminator"} & set(shown["independent"]) and "independence" in shown["independent"]
    assert {"entire", "discriminator", "individual", "quality"} <= set(shown["paper"])


def test_an_extra_term_has_a_curve_under_its_name():
    shown = before_after.shown_losses(AlignConfig(extra_terms=("darkness=0.1",)))
    assert shown["darkness"] == ("darkness", "Extra term, weight 0.1.")
