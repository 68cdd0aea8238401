"""A detection whose process is killed ends as one that was left alone."""

import importlib
import json
import multiprocessing
import os
import signal
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

import lbgen

pytestmark = pytest.mark.usefixtures("warm_processes")

context = multiprocessing.get_context("forkserver")
TRAINING, DETECTION = "lbgen.evaluation.transfer.dense.training", "lbgen.evaluation.transfer.dense.detection"
context.set_forkserver_preload([TRAINING, DETECTION])


def transfer_until(backbone, config, module="", name="", calls=0):
    """Transfer, and be killed by the system at the given call of a function; in a process of its own."""
    import torch

    torch.set_num_threads(1)
    if name:
        place = importlib.import_module(module)
        function, left = getattr(place, name), [calls]

        def fatal(*arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        setattr(place, name, fatal)
    lbgen.transfer(backbone, config)


def ended(*arguments) -> int:
    process = context.Process(target=transfer_until, args=arguments)
    process.start()
    process.join(120)
    return process.exitcode


def found(config):
    """transfer.json but for the date, and the table of detections."""
    content = json.loads((config.folder / "transfer.json").read_text())
    details = content["details"]["base"]["coco"]
    return content["backbones"], details, pq.read_table(config.folder / details["detection"]["answers"])


def test_killed_at_any_moment_a_detection_ends_with_the_same_detections(base, coco, tmp_path):
    """SIGKILL before the first checkpoint, in the second epoch, while the test images are seen, before the values."""
    whole = lbgen.TransferConfig(
        output=str(tmp_path / "whole"), data=str(coco), method=("detection",), epochs=2, batch_size=4, image_size=64,
        learning_rates=(2e-3,), workers=0,
    )  # fmt: skip
    killed = replace(whole, output=str(tmp_path / "killed"))
    moments = [
        (TRAINING, "training_step", 2),  # before the first checkpoint
        (TRAINING, "training_step", 5),  # begun again: in the second epoch
        (DETECTION, "as_detections", 3),  # at the third test image
    ]
    for module, name, calls in moments:
        assert ended(base, killed, module, name, calls) == -signal.SIGKILL, (name, calls)
    assert ended(base, killed) == ended(base, whole) == 0
    (values, details, table), (others, other_details, other_table) = found(killed), found(whole)
    assert (values, details) == (others, other_details) and values["base"]["coco"]["detection"]["value"] >= 0
    assert len(table) > 0 and table.equals(other_table)
    assert list((killed.folder / "trainings").glob("*.pt")) == []
