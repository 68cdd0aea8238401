"""A backbone from image folders: what is written, what timm makes of it, and runs that are killed and go on."""

import dataclasses
import importlib
import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import timm
import torch
from audited import photographs, write_image_folder
from safetensors.torch import load_file

from lbgen import cli
from lbgen.configuration.saved import save
from lbgen.pretraining import loop
from lbgen.pretraining.config import PretrainConfig
from lbgen.pretraining.run import pretrain

context = multiprocessing.get_context("forkserver")
LOOP = "lbgen.pretraining.loop"
context.set_forkserver_preload([LOOP])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """50 images of 12 categories, an odd number on purpose."""
    return write_image_folder(tmp_path_factory.mktemp("data") / "set", photographs(50, seed=1))


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def whole(folder, config) -> PretrainConfig:
    """The run that nothing happened to."""
    pretrain(folder, config)
    return config


def lines(config: PretrainConfig) -> list[dict]:
    return [json.loads(line) for line in (config.folder / "metrics.jsonl").read_text().splitlines()]


def without_speed(config: PretrainConfig) -> list[dict]:
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines(config)]


def assert_equal_runs(ours: PretrainConfig, theirs: PretrainConfig) -> None:
    """Backbones to the bit, the checkpoints too, and every line of metrics but the speed."""
    for name in ("backbone.safetensors", "checkpoint.pt"):
        assert (ours.folder / name).read_bytes() == (theirs.folder / name).read_bytes(), name
    assert without_speed(ours) == without_speed(theirs)


def test_timm_loads_the_backbone_and_knows_its_classes(whole):
    """Against timm's own readers: of a checkpoint, and of a folder as the hub has it."""
    described = json.loads((whole.folder / "config.json").read_text())
    weights = whole.folder / "backbone.safetensors"
    model = timm.create_model("test_convnext", num_classes=12, checkpoint_path=weights).eval()
    stored = load_file(weights)
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())
    assert (described["architecture"], described["num_classes"]) == ("test_convnext", 12)
    (whole.folder / "model.safetensors").symlink_to(weights)
    hub = timm.create_model(f"local-dir:{whole.folder}", pretrained=True).eval()
    (whole.folder / "model.safetensors").unlink()
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(hub(images), model(images))
    assert hub.pretrained_cfg["label_names"][:2] == ["boat", "bottle"]
    assert timm.data.resolve_data_config({}, model=hub)["input_size"] == (3, 32, 32)


def test_metrics_have_a_line_for_each_epoch(whole):
    rows = lines(whole)
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 4), (2, 8), (3, 12)]
    assert all(
        row["loss"] > 0 and 0 <= row["top1"] <= row["top5"] <= 1 and row["images_per_second"] > 0 for row in rows
    )


def train_until(config, folder, module, name, calls):
    """Train, and be killed by the system at the given call of a function; in a process of its own."""
    module = importlib.import_module(module)
    function, left = getattr(module, name), [calls]

    def fatal(*arguments, **options):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    setattr(module, name, fatal)
    pretrain(folder, config)


def ended(target, *arguments) -> int:
    process = context.Process(target=target, args=arguments)
    process.start()
    process.join(120)
    return process.exitcode


def test_killed_at_any_moment_and_resumed_the_run_ends_bit_identical(folder, whole, tmp_path):
    """SIGKILL before the first checkpoint, in the middle of epochs, and between the files of one's end."""
    killed = dataclasses.replace(whole, output=tmp_path / "run")
    moments = [
        (LOOP, "training_step", 2),  # before the first checkpoint
        (LOOP, "training_step", 4),  # a checkpoint was written after two updates
        ("lbgen.pretraining.export", "write_backbone", 1),  # the end of the first epoch
        ("lbgen.training.metrics", "append_line", 1),  # resumed, the backbone is written
        (LOOP, "validate", 2),  # in the validation of the second epoch
        (LOOP, "training_step", 5),  # in the third epoch
    ]
    for module, name, calls in moments:
        assert ended(train_until, killed, folder, module, name, calls) == -signal.SIGKILL, (name, calls)
    assert ended(pretrain, folder, killed) == 0
    assert_equal_runs(killed, whole)


def test_workers_and_checkpoints_change_nothing(folder, whole, tmp_path):
    """Two worker processes and no checkpoint within epochs, against none and one after two updates."""
    other = dataclasses.replace(whole, output=tmp_path / "run", workers=2, checkpoint_every=100)
    pretrain(folder, other)
    assert_equal_runs(other, whole)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_next_start_goes_on_bit_identically(folder, whole, tmp_path, signum):
    stopped = dataclasses.replace(whole, output=tmp_path / "run", checkpoint_every=100)
    save(stopped, tmp_path / "recipe.yaml")
    argv = ["pretrain", str(folder), "--recipe", str(tmp_path / "recipe.yaml")]
    assert ended(command_line_until, argv, signum, 7) == 128 + signum
    assert ended(cli.main, argv) == 0
    assert_equal_runs(stopped, whole)


def command_line_until(argv, signum, calls):
    """`lbgen pretrain`, signalled in the update of this number."""
    step, left = loop.training_step, [calls]

    def signalled(*arguments):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signum)
        return step(*arguments)

    loop.training_step = signalled
    cli.main(argv)
