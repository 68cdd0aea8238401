"""An output folder that holds somebody else's files is left alone, also where a dataset grows into them."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from folders import contents

from lbgen.errors import UserError
from lbgen.generation.run import generate

ANY = ("imagefolder", "webdataset", "parquet")


def put(folder: Path, name: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    return folder


@pytest.mark.parametrize(
    "name, formats",
    [
        ("labels.json", ANY), ("README.md", ANY), ("readme.md", ANY), ("samples.png", ANY), ("croissant.json", ANY),
        ("dataset.yaml", ANY), ("duplicates.json", ANY), ("_info.json", ANY), ("screening/mine", ANY),
        ("index/mine", ANY), ("train/mine", ANY), ("train-00000.tar", ANY), ("train-00001.tar", ANY),
        ("data/train-00000.parquet", ANY), ("other.parquet", ANY), ("metadata.csv", ANY), ("config.yaml", ANY),
        ("photos/a.JPG", ["imagefolder"]),
    ],
)  # fmt: skip
def test_a_folder_with_a_name_of_a_dataset_is_refused(config, tmp_path, name, formats):
    """Names that a run writes and names that readers of its dataset match; no model is loaded."""
    for layout in formats:
        output = put(tmp_path / layout, name)
        before = contents(output)
        with pytest.raises(
            UserError, match=f"it holds {name.partition('/')[0]}, which lbgen generate did not write; choose another"
        ):
            generate(replace(config, output=output, format=layout, generator="/dev/null/no-model"))
        assert contents(output) == before


def test_other_files_are_no_hindrance_and_stay(config, tmp_path):
    for name in ("LICENSE", "notes/a.txt", ".git/config"):
        put(tmp_path, name)
    assert generate(replace(config, output=tmp_path, images_per_category=1)).finished
    assert all((tmp_path / name).read_text() == "mine" for name in ("LICENSE", "notes/a.txt", ".git/config"))


@pytest.fixture(scope="module")
def grown(config, tmp_path_factory) -> dict[str, Path]:
    """A small dataset by layout."""
    folder = tmp_path_factory.mktemp("grown")
    for layout in ANY:
        generate(replace(config, output=folder / layout, format=layout, images_per_category=1))
    return {layout: folder / layout for layout in ANY}


@pytest.mark.parametrize(
    "layout, changes, name",
    [
        ("webdataset", {"images_per_category": 2}, "train-00001.tar"),
        ("webdataset", {"split": "val"}, "val-00000 (1).tar"),
        ("parquet", {"images_per_category": 2}, "data/train-00001.parquet"),
        ("parquet", {"split": "val"}, "data/val-old.parquet"),
        ("imagefolder", {"images_per_category": 2}, "train/z1/z1_00001.png"),
        ("imagefolder", {"split": "val"}, "val/z1/holiday.png"),
    ],
)
def test_growth_overwrites_nothing(config, grown, tmp_path, layout, changes, name):
    """A file that is in no plan yet, where the next shards go."""
    output = put(Path(shutil.copytree(grown[layout], tmp_path / "made")), name)
    before = contents(output)
    asked = {"images_per_category": 1, "format": layout, **changes}
    found = name if layout != "imagefolder" or "split" not in changes else "val"
    with pytest.raises(UserError) as caught:
        generate(replace(config, output=output, **asked))
    assert str(caught.value).endswith(
        f"made: it holds {found}, which lbgen generate did not write; choose another --output"
    )
    assert contents(output) == before


def test_a_dataset_that_lost_its_plan_is_not_begun_anew(config, grown, tmp_path):
    output = Path(shutil.copytree(grown["webdataset"], tmp_path / "made"))
    os.remove(output / "plan.json")
    before = contents(output)
    with pytest.raises(UserError, match=r"has a dataset.yaml and README.md, but no plan.json; restore it or choose"):
        generate(replace(config, output=output, format="webdataset", images_per_category=1))
    assert contents(output) == before


@pytest.mark.parametrize("killed_at", ["labels.json", "plan.json"])
def test_a_run_that_was_killed_before_it_had_a_plan_begins_again(config, tmp_path, monkeypatch, killed_at):
    """Only the first files of its record are there."""
    made = replace(config, output=tmp_path / "made", images_per_category=1)
    calls = {"labels.json": "lbgen.generation.record.labels_json", "plan.json": "lbgen.generation.targets.to_json"}

    def killed(*_: object) -> None:
        raise SystemExit(9)

    monkeypatch.setattr(calls[killed_at], killed)
    with pytest.raises(SystemExit):
        generate(made)
    monkeypatch.undo()
    assert (tmp_path / "made/dataset.yaml").exists() and not (tmp_path / "made/plan.json").exists()
    assert generate(replace(made, seed=8)).finished


def test_another_part_of_the_run_that_grew_it_meanwhile_is_no_stranger(config, grown, tmp_path, monkeypatch):
    """Its first shard is there before this part reads the plan again."""
    from lbgen.generation import run

    output = Path(shutil.copytree(grown["webdataset"], tmp_path / "made"))
    more = replace(config, output=output, format="webdataset", images_per_category=3)
    extended, done = run.targets.extended, []

    def grow_first(*arguments: object) -> object:
        if not done:
            done.append(True)
            generate(replace(more, shard_of="0/2"))
        return extended(*arguments)

    monkeypatch.setattr(run.targets, "extended", grow_first)
    assert generate(replace(more, shard_of="1/2")).finished
