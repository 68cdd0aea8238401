"""A small dataset, and a short run on it that nothing happened to."""

from pathlib import Path

import pytest
from audited import photographs, write_image_folder

from lbgen.pretraining.config import PretrainConfig
from lbgen.pretraining.run import pretrain


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """50 images of 12 categories, of which 6 are held out of a run of `config`."""
    return write_image_folder(tmp_path_factory.mktemp("data") / "set", photographs(50, seed=1))


@pytest.fixture(scope="session")
def config(tmp_path_factory) -> PretrainConfig:
    """Everything random is on; batches of unequal size."""
    return PretrainConfig(
        output=tmp_path_factory.mktemp("whole") / "run",
        architecture="test_convnext",
        image_size=32,
        epochs=3,
        batch_size=12,
        warmup_epochs=1,
        optimizer="adamw",
        learning_rate=2e-2,
        held_out=0.1,
        checkpoint_every=2,
        drop_path=0.2,
        ema_decay=0.9,
        max_grad_norm=1.0,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="random",
        random_erasing=0.5,
        mixup=0.8,
        cutmix=1.0,
        workers=0,
        logger="none",
    )


@pytest.fixture(scope="session")
def whole(folder, config) -> PretrainConfig:
    """The run that nothing happened to."""
    pretrain(folder, config)
    return config
