"""Screening in a whole run: what is rejected is drawn again, counted, and the same on every day."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from folders import contents
from PIL import Image

from lbgen.datasets import index
from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig
from lbgen.generation.render import Renderer
from lbgen.generation.run import generate
from lbgen.generation.verify import verify


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> GenerateConfig:
    """The micro world drawn in a hurry, and judged severely: a third of the images fails."""
    return GenerateConfig(
        writers=1,
        output=tmp_path_factory.mktemp("screening") / "whole",
        vocabulary="microworld",
        generator="microworld",
        scheduler="ddim",
        steps=2,
        images_per_category=3,
        batch_size=6,
        shard_size=12,
        screen=("label", "quality", "blank", "duplicate"),
        screen_semantics="microworld",
        label_top_k=1,
        least_quality=4.0,
    )


@pytest.fixture(scope="module")
def whole(config) -> Path:
    return Path(generate(config).output)


def rows_of(folder: Path) -> list[dict]:
    return index.read_index(folder).to_pylist()


def test_index_has_every_score_and_the_attempts_add_up(config, whole):
    """Against the shard's own tally and the thresholds."""
    rows = rows_of(whole)
    assert len(rows) == 36
    tallies = [json.loads(path.read_text()) for path in sorted((whole / "screening").glob("*.json"))]
    counted = Counter()
    for tally in tallies:
        for category in tally.values():
            counted.update(category.get("reasons", {}))
    listed = Counter(reason for row in rows for entry in row["rejections"] for reason in entry.split(","))
    assert counted == listed and sum(listed.values()) > 0
    for row in rows:
        failed = row["label_rank"] > 1 or row["quality"] < 4.0 or row["deviation"] < config.least_deviation
        assert len(row["rejections"]) == row["attempt"] + failed
        assert not failed or row["attempt"] == config.max_attempts - 1
    assert 0 < sum(row["attempt"] > 0 for row in rows) < 36


@pytest.mark.usefixtures("warm_processes")
def test_dataset_is_the_same_with_other_workers_and_after_a_part_is_lost(config, whole, tmp_path):
    generate(replace(config, output=tmp_path / "two", workers=2))
    assert contents(tmp_path / "two") == contents(whole)
    (tmp_path / "two/index/train-00001.parquet").unlink()
    generate(replace(config, output=tmp_path / "two"))
    assert contents(tmp_path / "two") == contents(whole)


def test_second_attempt_is_drawn_from_its_own_noise(config, whole, tmp_path):
    """Against the same image by plain generation, which has only first attempts."""
    generate(replace(config, output=tmp_path / "plain", screen=()))
    for row in rows_of(whole):
        plain, screened = (
            np.asarray(Image.open(folder / row["file"])).astype(int) for folder in (tmp_path / "plain", whole)
        )
        assert (np.abs(plain - screened).max() <= 1) == (row["attempt"] == 0)


def reject(monkeypatch, keys: set[str], attempts: int) -> None:
    """A generator that draws these images' first `attempts` attempts black, so that the screen finds them blank."""
    render = Renderer.render

    def blackening(self, images):
        rendered = render(self, images)
        rendered.pixels[[image.key in keys and image.attempt < attempts for image in images]] = 0
        return rendered

    monkeypatch.setattr(Renderer, "render", blackening)


def test_last_resorts(config, tmp_path, monkeypatch, capsys):
    plain = replace(config, screen=("blank",), max_attempts=2, images_per_category=2)
    reject(monkeypatch, {"fish_00000", "fish_00001", "cup_00000"}, attempts=2)
    generate(replace(plain, output=tmp_path / "keep"))
    kept = {row["key"]: row["rejections"] for row in rows_of(tmp_path / "keep") if row["rejections"]}
    assert kept == {key: ["blank", "blank"] for key in ("fish_00000", "fish_00001", "cup_00000")}
    assert "100% of the first images of fish were rejected" in capsys.readouterr().out

    generate(replace(plain, output=tmp_path / "drop", last_resort="drop"))
    keys = {row["key"] for row in rows_of(tmp_path / "drop")}
    assert len(keys) == 21 and not keys & set(kept)
    assert not list((tmp_path / "drop").rglob("cup_00000.*"))
    assert verify(tmp_path / "drop").damaged == ()
    assert "21 labelled images" in (tmp_path / "drop/README.md").read_text()

    with pytest.raises(UserError, match="failed blank in the last of its 2 attempts; start anew in another --output"):
        generate(replace(plain, output=tmp_path / "fail", last_resort="fail"))


def test_category_of_which_nothing_is_left_does_not_break_the_dataset(config, tmp_path, monkeypatch):
    plain = replace(config, screen=("blank",), max_attempts=1, images_per_category=1, last_resort="drop")
    reject(monkeypatch, {f"{id}_00000" for id in ("fish", "cup")}, attempts=1)
    for layout in ("imagefolder", "webdataset", "parquet"):
        generate(replace(plain, output=tmp_path / layout, format=layout))
        assert len(rows_of(tmp_path / layout)) == 10
        assert verify(tmp_path / layout).damaged == ()


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("screen", ("colour",), '--screen: "colour" is not one of label, quality'),
        ("max_attempts", 0, "--max-attempts"),
        ("least_quality", 9.0, "--least-quality"),
        ("screen_template", "photo", "--screen-template"),
    ],
)
def test_mistakes_are_refused(config, field, value, message):
    with pytest.raises(UserError, match=message):
        replace(config, **{field: value})


def test_unknown_semantics_leave_the_folder_unmade(config, tmp_path):
    with pytest.raises(UserError, match="semantics /dev/null/x"):
        generate(replace(config, output=tmp_path / "made", screen_semantics="/dev/null/x"))
    assert not (tmp_path / "made/dataset.yaml").exists()
