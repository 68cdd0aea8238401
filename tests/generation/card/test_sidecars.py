"""The files that describe a dataset: verify names what is missing or wrong, and both ways of mending bring it back."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from folders import contents

from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig
from lbgen.generation.run import generate
from lbgen.generation.verify import verify

FORMATS = ("imagefolder", "webdataset", "parquet")


@pytest.fixture(scope="module")
def made(config, tmp_path_factory) -> dict[str, GenerateConfig]:
    """Small datasets of two splits, by layout."""
    folder = tmp_path_factory.mktemp("described")
    configs = {name: replace(config, output=folder / name, format=name, images_per_category=1) for name in FORMATS}
    for each in configs.values():
        generate(each)
        generate(replace(each, split="val"))
    return configs


@pytest.fixture
def copy(made, tmp_path) -> Callable[[str], tuple[GenerateConfig, Path]]:
    def of(layout: str) -> tuple[GenerateConfig, Path]:
        folder = Path(shutil.copytree(made[layout].output, tmp_path / layout))
        return replace(made[layout], output=folder), folder

    return of


@pytest.mark.parametrize("mend", ["generate", "repair"])
@pytest.mark.parametrize(
    "layout, name",
    [("imagefolder", name) for name in ("labels.json", "README.md", "samples.png", "croissant.json")]
    + [("webdataset", "_info.json")],
)
def test_a_missing_file_is_named_and_written_again(copy, monkeypatch, layout, name, mend):
    """To the byte, by both ways, and without a model."""
    config, folder = copy(layout)
    before = contents(folder)
    os.remove(folder / name)
    assert verify(folder).damaged == (f"{name}: missing; run lbgen generate again, or lbgen verify --repair",)
    monkeypatch.setattr("lbgen.generation.run.draw_missing", lambda *_: pytest.fail("draws"))
    if mend == "generate":
        generate(config)
    else:
        assert verify(folder, repair=True).damaged == ()
    assert contents(folder) == before


def reversed_labels(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text())[::-1]))


def other_head(change: Callable[[str], str]) -> Callable[[Path], None]:
    return lambda path: path.write_text(change(path.read_text()))


WRONG: list[tuple[str, str, Callable[[Path], object]]] = [
    ("imagefolder", "labels.json", reversed_labels),
    ("imagefolder", "labels.json", lambda path: path.write_text("[]")),
    ("imagefolder", "labels.json", lambda path: path.write_bytes(b"\xff")),
    ("imagefolder", "README.md", lambda path: path.write_text("# mine\n")),
    ("imagefolder", "README.md", other_head(lambda text: text.replace("'0': z1", "'0': a2"))),
    ("parquet", "README.md", other_head(lambda text: text.replace("data/val-*", "data/*"))),
    ("imagefolder", "samples.png", lambda path: path.write_bytes(path.read_bytes()[:200])),
    ("imagefolder", "croissant.json", lambda path: path.write_text("{}")),
    ("webdataset", "croissant.json", other_head(lambda text: text.replace("train-00000.tar", "other.tar"))),
    ("webdataset", "_info.json", other_head(lambda text: text.replace('"num_samples": 3', '"num_samples": 4'))),
    ("webdataset", "_info.json", lambda path: path.write_text("[" * 100_000)),
]


@pytest.mark.parametrize("layout, name, change", WRONG)
def test_a_wrong_file_is_named_and_repaired(copy, layout, name, change):
    _, folder = copy(layout)
    before = contents(folder)
    change(folder / name)
    assert contents(folder) != before
    (line,) = verify(folder).damaged
    assert line.startswith(f"{name}: contradicts the ")
    assert verify(folder, repair=True).damaged == ()
    assert contents(folder) == before or name == "README.md"


def test_labels_that_contradict_the_plan_are_written_by_generate_too(copy):
    config, folder = copy("parquet")
    before = contents(folder)
    reversed_labels(folder / "labels.json")
    generate(config)
    assert contents(folder) == before


def test_labels_count_before_the_dataset_is_finished(copy):
    _, folder = copy("parquet")
    os.remove(folder / "index/val-00000.parquet")
    reversed_labels(folder / "labels.json")
    assert verify(folder).damaged == (
        "val-00000: not made",
        "labels.json: missing, or contradicts the plan; run lbgen generate again, or lbgen verify --repair",
    )


def test_what_a_user_writes_into_the_card_is_no_fault_and_survives_growth_and_repair(copy):
    config, folder = copy("imagefolder")
    card = folder / "README.md"
    text = card.read_text().replace("---\n", "---\nlicense: cc0-1.0\n", 1)
    card.write_text(text.replace("## Limits", "## Licence\n\nCC0.\n\n## Limits"))
    assert verify(folder).damaged == ()

    def kept() -> bool:
        text = card.read_text()
        return yaml.safe_load(text.split("---\n")[1])["license"] == "cc0-1.0" and text.count("## Licence\n\nCC0.") == 1

    os.remove(folder / "samples.png")
    assert verify(folder, repair=True).damaged == () and kept()
    generate(replace(config, images_per_category=2))
    assert "| train | 6 |" in card.read_text() and kept()
    next(folder.glob("train/*/*.png")).unlink()
    assert verify(folder, repair=True).damaged == () and kept()


def test_a_card_that_cannot_be_read_is_not_overwritten(copy):
    config, folder = copy("imagefolder")
    (folder / "README.md").write_text("---\na: [\n---\n# mine\n")
    os.remove(folder / "samples.png")
    with pytest.raises(UserError, match="README.md: its head is not valid YAML; repair it, or remove the file"):
        generate(config)
    assert (folder / "README.md").read_text().endswith("# mine\n")


def test_a_repair_that_was_killed_before_the_last_file_is_completed_by_the_next(config, tmp_path, monkeypatch):
    """Also where near-duplicates are searched: the marker says that they were."""
    made = replace(config, output=tmp_path / "made", images_per_category=1, screen=("duplicate",))
    made = replace(made, screen_semantics="microworld", duplicate_bits=0)
    generate(made)
    before = contents(tmp_path / "made")
    os.remove(tmp_path / "made/index/train-00000.parquet")

    def killed(*_: object) -> None:
        raise SystemExit(9)

    monkeypatch.setattr("lbgen.generation.card.describe.croissant", killed)
    with pytest.raises(SystemExit):
        verify(tmp_path / "made", repair=True)
    monkeypatch.undo()
    assert not (tmp_path / "made/croissant.json").exists()
    assert verify(tmp_path / "made", repair=True).damaged == ()
    assert contents(tmp_path / "made") == before


def test_the_balance_in_a_card_is_written_again_by_the_file_of_attributes(config, tmp_path):
    """By one with other content it is not."""
    file = tmp_path / "attributes.yaml"
    file.write_text("scene:\n  template: 'on {value}'\n  values: [sea, land]\n")
    made = replace(config, output=tmp_path / "made", images_per_category=1, balance=("scene",), attributes=file)
    generate(replace(made, screen_semantics="microworld", max_attempts=1))
    before = contents(tmp_path / "made")
    os.remove(tmp_path / "made/README.md")
    text = file.read_text()
    file.write_text(text.replace("land", "snow"))
    with pytest.raises(UserError, match="was made with other templates or values of scene"):
        verify(tmp_path / "made", repair=True)
    file.write_text(text)
    assert verify(tmp_path / "made", repair=True).damaged == ()
    assert contents(tmp_path / "made") == before


def test_a_description_of_a_damaged_index_is_refused_in_one_line(copy):
    made, folder = copy("imagefolder")
    (folder / "README.md").unlink()
    (folder / "index/val-00000.parquet").write_bytes(b"")
    with pytest.raises(UserError, match="index/val-00000.parquet cannot be read .*run lbgen verify .* --repair"):
        generate(made)
