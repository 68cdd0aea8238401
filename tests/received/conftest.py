"""A received dataset, and what lies beside it on the receiver's disk."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lbgen.generation.run import generate


@pytest.fixture(scope="module")
def screened(config, tmp_path_factory):
    """A dataset with a round of near-duplicates, so that its shards are taken over and changed."""
    made = replace(config, output=str(tmp_path_factory.mktemp("screened") / "made"), screen=("duplicate",))
    made = replace(made, screen_semantics="microworld", duplicate_bits=22, duplicate_cosine=0.8, images_per_category=8)
    generate(made)
    assert (Path(made.output) / "duplicates.json").exists()
    return made


@pytest.fixture
def received(screened, tmp_path) -> Path:
    return Path(shutil.copytree(screened.output, tmp_path / "received/dataset"))


@pytest.fixture
def outside(tmp_path) -> Path:
    """What must stay as it is: files beside the received folder, and a folder that links point to."""
    victim = tmp_path / "received/victim"
    (victim / "inner").mkdir(parents=True)
    (victim / "known.txt").write_text("mine")
    (victim / "inner/file").write_text("mine too")
    (victim / "index").mkdir()
    (victim / "index/train-00000.parquet").write_text("of another dataset")
    return victim
