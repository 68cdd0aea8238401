"""A small run on random-weight miniatures."""

import dataclasses

import pytest

from lbgen.alignment import run
from lbgen.alignment.config import AlignConfig


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory, tiny_sd_folder, tiny_clip_folder):
    """A config of the miniatures; `dataclasses.replace` gives variants."""
    names = tmp_path_factory.mktemp("names") / "names.txt"
    names.write_text("cat\ndog\nant\nbee\ncup\n")
    return AlignConfig(
        output=tmp_path_factory.mktemp("run"),
        vocabulary=str(names),
        generator=str(tiny_sd_folder),
        semantics=str(tiny_clip_folder),
        steps=3,
        differentiated_steps=2,
        rank=2,
        alpha=2,
        max_steps=2,
        batch_size=2,
        checkpoint_every=1,
        evaluate_every=1,
        evaluation_images=5,
        learning_rate=1e-3,
        logger="none",
    )


@pytest.fixture(scope="session")
def finished(tiny_config):
    """A whole run, with its folder."""
    run.align(tiny_config)
    return tiny_config


@pytest.fixture
def fresh(tiny_config, tmp_path):
    """Variants of the config with a folder of their own."""
    return lambda **changes: dataclasses.replace(tiny_config, **{"output": tmp_path / "run", **changes})
