"""Datasets that grow, names that are hard to keep, folders that are large or closed."""

import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

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
from lbgen.models.generator import Generator

HARD_NAMES = [
    'a "quoted" name',
    "it's",
    "either/or \\ and",
    "🦊 fox",
    "\u05e9\u05dc\u05d5\u05dd",
    "<b>bold</b> & <script>alert(1)</script>",
    "*.png; rm -rf",
    "comma, tab: colon",
    "{name}",
    "%s %(x)d",
]


@pytest.mark.parametrize("layout", ["imagefolder", "webdataset", "parquet"])
def test_grown_dataset_makes_what_is_missing_and_changes_no_image(config, tmp_path, monkeypatch, layout):
    render, rendered = Renderer.render, []
    monkeypatch.setattr(Renderer, "render", lambda self, batch: rendered.extend(batch) or render(self, batch))
    made = replace(config, output=tmp_path / "made", format=layout)
    generate(made)
    shards = {
        path: sha for path, sha in contents(tmp_path / "made").items() if path.startswith(("index/", "train", "data/"))
    }
    rendered.clear()

    assert generate(replace(made, images_per_category=6)).images == 18
    assert sorted((image.category.id, image.index) for image in rendered) == [
        (id, index) for id in ("a2", "m3", "z1") for index in (4, 5)
    ]
    rendered.clear()
    (tmp_path / "more.txt").write_text("b7 owl\nz1 cat\na2 dog\nm3 red fox\n")
    more = replace(made, images_per_category=6, vocabulary=str(tmp_path / "more.txt"))
    assert generate(more).images == 24
    assert [image.category.id for image in rendered] == ["b7"] * 6
    after = contents(tmp_path / "made")
    assert {path: after[path] for path in shards} == shards
    assert verify(tmp_path / "made").damaged == ()
    labels = json.loads((tmp_path / "made/labels.json").read_text())
    assert [label["id"] for label in labels] == ["z1", "a2", "m3", "b7"]  # labels given once stay
    assert generate(more).images == 24


def test_a_dataset_does_not_grow_with_another_configuration_of_its_generator(config, tmp_path):
    """Nor is it repaired; a file that is not loaded makes no difference."""
    generator = Path(shutil.copytree(config.generator, tmp_path / "generator"))
    made = replace(config, output=tmp_path / "made", generator=str(generator), images_per_category=1)
    generate(made)
    scheduler = generator / "scheduler/scheduler_config.json"
    original = scheduler.read_text()
    scheduler.write_text(original.replace('"epsilon"', '"v_prediction"'))
    assert scheduler.read_text() != original
    with pytest.raises(UserError, match="made with generator_sha256 v2:"):
        generate(replace(made, images_per_category=2))
    (tmp_path / "made/train/z1/z1_00000.png").unlink()
    with pytest.raises(UserError, match="made with generator_sha256 v2:"):
        verify(tmp_path / "made", repair=True)
    scheduler.write_text(original)
    (generator / "unet/diffusion_pytorch_model.fp16.safetensors").write_text("not loaded")
    assert verify(tmp_path / "made", repair=True).damaged == ()
    assert generate(replace(made, images_per_category=2)).images == 6


def test_growth_that_is_killed_before_its_card_is_described_all_the_same(config, tmp_path, monkeypatch):
    made = replace(config, output=tmp_path / "made", images_per_category=1)
    generate(made)
    monkeypatch.setattr("lbgen.generation.card.describe.describe", lambda *arguments: sys.exit(9))
    with pytest.raises(SystemExit):
        generate(replace(made, images_per_category=2))
    monkeypatch.undo()
    assert not (tmp_path / "made/croissant.json").exists()
    generate(replace(made, images_per_category=2))
    assert (tmp_path / "made/croissant.json").exists()


def test_split_repeats_no_image_of_another(config, tmp_path):
    made = replace(config, output=tmp_path / "made")
    generate(made)
    generate(replace(made, split="val", images_per_category=2))
    images = [
        np.asarray(Image.open(path)).tobytes()
        for path in (tmp_path / "made").rglob("*.png")
        if path.parts[-3] in ("train", "val")
    ]
    assert len(images) == len(set(images)) == 12 + 6
    assert generate(made).images == 12
    assert verify(tmp_path / "made").damaged == ()


def test_split_that_ends_before_another_leaves_the_card_to_it(config, tmp_path):
    made = replace(config, output=tmp_path / "made")
    generate(made)
    (tmp_path / "made/index/train-00001.parquet").unlink()
    assert generate(replace(made, split="val", images_per_category=2)).finished
    assert not (tmp_path / "made/croissant.json").exists()
    generate(made)
    assert "| val | 6 |" in (tmp_path / "made/README.md").read_text()


def test_growth_that_is_killed_while_it_is_recorded_is_recorded_again(config, tmp_path, monkeypatch):
    """Between the labels and the plan, which is what makes them count."""
    made = replace(config, output=tmp_path / "made", images_per_category=1)
    generate(made)
    monkeypatch.setattr("lbgen.generation.targets.to_json", lambda targets: sys.exit(9))
    (tmp_path / "more.txt").write_text("z1 cat\na2 dog\nm3 red fox\nb7 owl\n")
    with pytest.raises(SystemExit):
        generate(replace(made, vocabulary=str(tmp_path / "more.txt")))
    monkeypatch.undo()
    assert generate(replace(made, vocabulary=str(tmp_path / "more.txt"))).images == 4
    assert len(json.loads((tmp_path / "made/labels.json").read_text())) == 4
    assert verify(tmp_path / "made").damaged == ()


@pytest.mark.parametrize("layout", ["imagefolder", "webdataset", "parquet"])
def test_hard_names_are_kept_to_the_letter(config, tmp_path, layout):
    vocabulary = tmp_path / "names.json"
    vocabulary.write_text(json.dumps([{"id": f"n.{n}", "name": name} for n, name in enumerate(HARD_NAMES)]))
    made = replace(
        config, output=tmp_path / "made", vocabulary=str(vocabulary), images_per_category=1, format=layout, steps=1
    )
    with pytest.MonkeyPatch.context() as patch:  # the miniature's letters are few; its encoder cuts what is too long
        encode = Generator.encode
        patch.setattr(Generator, "count_tokens", lambda self, prompt: 1)
        patch.setattr(Generator, "encode", lambda self, prompts: encode(self, ["x"] * len(prompts)))
        generate(made)
    rows = index.read_index(tmp_path / "made").to_pylist()
    assert {row["id"]: row["name"] for row in rows} == {f"n.{n}": name for n, name in enumerate(HARD_NAMES)}
    assert {row["prompt"] for row in rows} == set(HARD_NAMES)
    assert verify(tmp_path / "made").damaged == ()


NOBODY = 65534


def refusal_of_a_user(output: Path, said: Connection) -> None:
    """What generate says in this process, which gives up root's rights where it has them."""
    if os.geteuid() == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    try:
        generate(GenerateConfig(output=output, generator="microworld", vocabulary="microworld"))
    except UserError as error:
        said.send(str(error))
    said.close()


def test_folder_without_permission_is_refused():
    """To a user, in a forked process: root may write anywhere."""
    with TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # which others may look into, unlike pytest's own
        closed = Path(folder) / "closed"
        closed.mkdir(mode=0o555)
        heard, said = multiprocessing.Pipe(duplex=False)
        child = multiprocessing.get_context("fork").Process(target=refusal_of_a_user, args=(closed / "made", said))
        child.start()
        said.close()
        message = heard.recv()
        child.join()
    assert message == f"--output {closed}/made: no permission to write in {closed}; choose another folder"


def test_folder_that_takes_no_files_is_said_in_one_line(config):
    """A folder of the kernel's, where even root makes none."""
    with pytest.raises(UserError, match="--output /proc/made|/proc/made"):
        generate(replace(config, output="/proc/made"))


def test_start_on_a_finished_dataset_of_a_million_images_is_light():
    """1,300 marks: a run ends in little memory, without torch (the time is the benchmark's to say)."""
    script = Path(__file__).parents[2] / "benchmarks/speed/start_up.py"
    shown = subprocess.run(
        [sys.executable, script, "--repeats", "1"], capture_output=True, text=True, check=True
    ).stdout
    assert "1300000 of 1300000 images of 1000 categories" in shown
    assert int(re.search(r"(\d+) MB", shown)[1]) < 500
