"""The before/after page: one HTML file that needs no network, light and dark, wide and narrow."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lbgen.quickstart.comparison import Line, headline, price
from lbgen.report.page import render
from lbgen.runs import atomic


@dataclass(frozen=True)
class Strip:
    """The same seeds in every set, for one category."""

    name: str
    note: str
    base: str
    """PNG data URI."""
    aligned: str
    diverse: str


@dataclass(frozen=True)
class Chart:
    title: str
    note: str
    svg: str


@dataclass(frozen=True)
class Page:
    title: str
    lines: list[Line]
    """Base and aligned."""
    diverse: list[Line]
    """Base and diverse prompts, figure by figure the same."""
    strips: list[Strip]
    maps: list[Chart]
    losses: list[Chart]
    statistics: list[Chart]
    limits: list[str]
    facts: list[tuple[str, str]]
    """How it was made: label and value."""


def write_page(page: Page, path: Path) -> None:
    filters: dict[str, Callable[..., str]] = {"number": number, "change": change, "interval": interval}
    html = render("before_after.html", filters, page=page, headline=headline(page.lines), price=price(page.lines))
    atomic.write_text(path, html)


def number(value: float, line: Line) -> str:
    return f"{value:.1%}" if line.figure.percent else f"{value:.2f}"


def change(line: Line) -> str:
    shown = f"{100 * line.change:+.1f} pts" if line.figure.percent else f"{line.change:+.2f}"
    return _with_minus(shown)


def interval(ends: tuple[float, float], line: Line) -> str:
    scale, digits = (100, 1) if line.figure.percent else (1, 2)
    return " to ".join(_with_minus(f"{scale * end:.{digits}f}") for end in ends)


def _with_minus(shown: str) -> str:
    """The sign as typeset, and none before a zero."""
    if not any(digit in shown for digit in "123456789"):
        shown = shown.lstrip("+-")
    return shown.replace("-", "\N{MINUS SIGN}")
