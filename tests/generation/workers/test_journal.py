"""A shard that was interrupted goes on where it was; every dataset is compared with one that was not interrupted."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from folders import contents, link

from lbgen.errors import Interrupted, UserError
from lbgen.generation.config import GenerateConfig
from lbgen.generation.render import Renderer
from lbgen.generation.run import generate
from lbgen.generation.verify import verify

BATCHES = 7
"""Of the small dataset: 3, 3 and 1 in its shards."""


@pytest.fixture
def rendered(monkeypatch) -> list[list[str]]:
    """The keys of every batch that is drawn."""
    batches, render = [], Renderer.render

    def counting(self, batch):
        batches.append([f"{image.key} {image.attempt}" for image in batch])
        return render(self, batch)

    monkeypatch.setattr(Renderer, "render", counting)
    return batches


def interrupted(config: GenerateConfig, batch: int, monkeypatch) -> None:
    """A run that gets Ctrl-C while it draws this batch, counted from 1."""
    render, drawn = Renderer.render, []

    def interrupting(self, images):
        drawn.append(images)
        if len(drawn) == batch:
            os.kill(os.getpid(), signal.SIGINT)
        return render(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(Renderer, "render", interrupting)
        with pytest.raises(Interrupted, match="keeps its finished shards and what is drawn of others"):
            generate(config)


@pytest.mark.parametrize("batch", range(1, BATCHES + 1))
def test_no_batch_is_drawn_twice_wherever_a_run_is_interrupted(config, whole, tmp_path, monkeypatch, rendered, batch):
    made = replace(config, output=tmp_path / "made")
    interrupted(made, batch, monkeypatch)
    assert generate(made).finished
    assert len(rendered) == BATCHES and len({key for keys in rendered for key in keys}) == 12
    assert contents(tmp_path / "made") == contents(whole)


def test_a_run_that_is_interrupted_at_every_batch_comes_to_its_end(config, whole, tmp_path, monkeypatch, rendered):
    made = replace(config, output=tmp_path / "made", format="webdataset")
    for _ in range(BATCHES):
        interrupted(made, 1, monkeypatch)
    generate(made)
    assert len(rendered) == BATCHES
    generate(replace(made, output=tmp_path / "at once"))
    assert contents(tmp_path / "made") == contents(tmp_path / "at once")


BALANCE = {"balance": ("scene",), "attributes": Path("microworld"), "balance_template": "{name} {value}"}
SCREENS = {
    "screen": {"screen": ("label", "blank", "duplicate"), "label_top_k": 1, "qualify_names": False},
    "balance": BALANCE,
    "drop": {**BALANCE, "last_resort": "drop"},
}


@pytest.mark.parametrize("checks", SCREENS)
def test_rejected_images_are_taken_over_with_their_verdicts(config, tmp_path, monkeypatch, rendered, checks):
    """Interrupted at every second batch: scores, reasons and counts are those of the run that went through."""
    made = replace(config, screen_semantics="microworld", max_attempts=3, output=tmp_path / "made", **SCREENS[checks])
    generate(replace(made, output=tmp_path / "whole"))
    batches = list(rendered)
    assert any(key.endswith(" 1") for keys in batches for key in keys)  # some are drawn again
    rendered.clear()
    finished = False
    while not finished:
        try:
            interrupted(made, 2, monkeypatch)
        except pytest.fail.Exception:  # it came to its end before a second batch
            finished = True
    assert rendered == batches
    assert contents(tmp_path / "made") == contents(tmp_path / "whole")


def left(folder: Path) -> Path:
    """What an interrupted run left of its second shard."""
    return folder / ".staging/all/train-00001"


@pytest.mark.parametrize(
    ("damage", "again"),
    [
        (lambda folder: (folder / "batch-000001.json").unlink(), 2),
        (lambda folder: (folder / "batch-000002.json").unlink(), 1),
        (lambda folder: (folder / "batch-000001.json").write_text("[{"), 2),
        (lambda folder: (folder / "batch-000001.json").write_text('{"key": 1}'), 2),
        (lambda folder: os.replace(folder / "batch-000002.json", folder / "batch-000001.json"), 2),
        (lambda folder: edit(folder, attempt=1), 2),
        (lambda folder: next(iter(sorted(folder.glob("*_*")))).write_bytes(b"cut"), None),
        (lambda folder: [path.unlink() for path in folder.glob("*_*")], 2),
        (lambda folder: folder.rename(folder.parent.parent / "other" / folder.name), 0),
    ],
    ids=["no file", "no second file", "cut", "other", "another batch", "another attempt", "image", "images", "worker"],
)
def test_what_is_damaged_is_drawn_again(config, whole, tmp_path, monkeypatch, rendered, damage, again):
    """again: batches of the two that were drawn before."""
    made = replace(config, output=tmp_path / "made")
    interrupted(made, 5, monkeypatch)
    (tmp_path / "made/.staging/other").mkdir()
    damage(left(tmp_path / "made"))
    generate(made)
    assert len(rendered) - BATCHES in ((1, 2) if again is None else (again,))
    assert contents(tmp_path / "made") == contents(whole)


def edit(folder: Path, **changes) -> None:
    path = folder / "batch-000001.json"
    first, *rest = json.loads(path.read_text())
    path.write_text(json.dumps([{**first, **changes}, *rest]))


def test_links_are_neither_followed_nor_written_through(config, whole, tmp_path, monkeypatch):
    """Someone else may have prepared the folder: files, a folder and the whole of it as links to elsewhere."""
    made = replace(config, output=tmp_path / "made")
    (tmp_path / "outside").mkdir()
    for planted in ("batch-000001.json", "image", ".", "../../unfinished"):
        interrupted(made, 5, monkeypatch)
        folder = left(tmp_path / "made")
        path = next(iter(sorted(folder.glob("*_*")))) if planted == "image" else folder / planted
        path = Path(os.path.normpath(path))
        target = tmp_path / "outside" / planted.replace("/", "-").replace(".", "x")
        target.mkdir() if planted == "../../unfinished" else None
        link(path, target)
        before = contents(tmp_path / "outside")
        generate(made)
        assert contents(tmp_path / "outside") == before
        assert contents(tmp_path / "made") == contents(whole)
        made = replace(made, output=tmp_path / planted.replace("/", "-").replace(".", "y"))
        (tmp_path / "made").rename(tmp_path / f"done-{len(list(tmp_path.iterdir()))}")
        made = replace(made, output=tmp_path / "made")


def test_a_record_that_keeps_an_image_without_a_file_is_refused(config, tmp_path, monkeypatch):
    made = replace(config, output=tmp_path / "made", screen=("blank",), max_attempts=1)
    interrupted(made, 5, monkeypatch)
    edit(left(tmp_path / "made"), sha256=None, reasons=["blank"])
    with pytest.raises(UserError, match="is inconsistent at .*; remove .staging and start again"):
        generate(made)


def test_a_repair_draws_its_shards_whatever_was_left(config, whole, tmp_path, monkeypatch, rendered):
    made = replace(config, output=tmp_path / "made")
    interrupted(made, 5, monkeypatch)
    (tmp_path / "kept").mkdir()
    left(tmp_path / "made").rename(tmp_path / "kept/shard")
    generate(made)
    (tmp_path / "made/.staging/all").mkdir(parents=True)
    (tmp_path / "kept/shard").rename(left(tmp_path / "made"))
    (tmp_path / "made/index/train-00001.parquet").unlink()
    rendered.clear()
    assert verify(tmp_path / "made", repair=True).damaged == ()
    assert len(rendered) == 3
    assert contents(tmp_path / "made") == contents(whole)
