"""A card that is written again keeps what its user added, and is otherwise the card that lbgen writes."""

import re
from collections.abc import Callable

import pytest
import yaml
from handmade import COUNTS, described

from lbgen.errors import UserError
from lbgen.generation.card.merge import merged
from lbgen.generation.card.readme import card
from lbgen.generation.card.summary import DatasetSummary, SplitSummary


def text_of(layout: str = "imagefolder", **changes: object) -> str:
    summary = vars(described(layout, "png", {split: {} for split in COUNTS}))
    return card(DatasetSummary(**(summary | {"title": "4 categories drawn by tiny"} | changes)))


GROWN = {"title": "5 categories drawn by tiny", "splits": [SplitSummary("train", 12345)], "rejections": {}}


def unsigned(text: str) -> str:
    """As earlier versions wrote it."""
    return re.sub(r"\n<!-- lbgen wrote .*", "", text)


def test_a_card_that_nobody_touched_is_replaced():
    for old in (text_of(), unsigned(text_of())):
        assert merged(text_of(**GROWN), old, "README.md") == text_of(**GROWN)


LICENCE = "## Licence\n\nCC0, see\n\n```\nline 1\n\nline 2\n```\n\n### Why\n\nBecause."
ADDITIONS: dict[str, Callable[[str], str]] = {
    "a section": lambda text: text.replace("## Limits", f"{LICENCE}\n\n## Limits"),
    "a last section": lambda text: text.rstrip() + f"\n\n{LICENCE}\n",
    "a section in Windows": lambda text: text.replace("## Limits", f"{LICENCE}\n\n## Limits").replace("\n", "\r\n"),
    "the only section": lambda text: LICENCE,
}


@pytest.mark.parametrize("earlier", [lambda text: text, unsigned], ids=["signed", "unsigned"])
@pytest.mark.parametrize("addition", ADDITIONS)
def test_a_section_of_the_users_survives(addition, earlier):
    """Word by word, once, however often the card is written."""
    old = ADDITIONS[addition](earlier(text_of()))
    for _ in range(3):
        old = merged(text_of(**GROWN), old, "README.md")
        assert old.count("## Licence") == old.count("Because.") == old.count("line 1\n\nline 2\n```") == 1
        assert LICENCE in old
        assert "12,345" in old and old.count("## Limits") == old.count("## Labels") == 1
    assert set(text_of(**GROWN).split("\n\n")) <= set(old.replace(LICENCE, "").split("\n\n"))
    if addition == "a section":
        assert old.index("## How it was made") < old.index("## Licence") < old.index("## Limits")


@pytest.mark.parametrize("before", ["How to load it", "Labels", "Limits"])
def test_a_paragraph_of_the_users_survives_in_lbgens_own_sections(before):
    """Also above the first of them."""
    old = text_of().replace(f"## {before}", f"My word on this.\n\n## {before}")
    new = merged(text_of(**GROWN), old, "README.md")
    assert new.count("My word on this.") == 1 and f"My word on this.\n\n## {before}" in new
    changed = text_of().replace("are often wrong.", "are often wrong, see [1].")
    assert "see [1]." in merged(text_of(**GROWN), changed, "README.md")


def head_of(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def with_head(text: str, **fields: object) -> str:
    head = head_of(text) | fields
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n" + text.split("---\n", 2)[2]


def test_fields_of_the_head_survive():
    other = {"config_name": "small", "data_files": "train/0*/*.png"}
    configs = [*head_of(text_of())["configs"], other]
    fields = {"license": "cc0-1.0", "language": ["en"], "pretty_name": "Beasts", "tags": ["lbgen", "beasts"]}
    old = with_head(text_of(), **fields, configs=configs, size_categories=["n>1T"])
    new, ours = head_of(merged(text_of(**GROWN), old, "README.md")), head_of(text_of(**GROWN))
    assert (new["license"], new["language"], new["pretty_name"]) == ("cc0-1.0", ["en"], "Beasts")
    assert new["tags"] == [*ours["tags"], "beasts"]
    assert new["configs"] == [*ours["configs"], other]
    assert new["size_categories"] == ours["size_categories"] == ["10K<n<100K"]


@pytest.mark.parametrize(
    "head", ["a: [", "a: !!int ''", "[" * 3000, f"a: {'[' * 400}{']' * 400}", "a: !!python/object:os.system x"]
)
def test_a_head_that_nobody_reads_is_named(head):
    with pytest.raises(UserError, match="README.md: its head is not valid YAML; repair it, or remove the file"):
        merged(text_of(), f"---\n{head}\n---\n# mine\n", "README.md")


def test_many_empty_lines_are_read_in_no_time():
    """Before a form feed, a million of them took hours."""
    assert "mine" in merged(text_of(), text_of() + "\n" * 1_000_000 + "\fmine\n", "README.md")


@pytest.mark.parametrize(
    "old", ["", "---\n", "---\n---\n", "---\n5\n---\n", "# mine\n", "\x00", "---\nconfigs: 5\n---"]
)
def test_a_card_of_another_shape_is_completed(old):
    new = merged(text_of(), old, "README.md")
    assert head_of(new) == head_of(text_of()) and "## Limits" in new
