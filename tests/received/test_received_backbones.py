"""Backbones, their runs and their answers from someone else: refused in one line, and no code of them runs."""

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from audited import photographs, write_image_folder
from safetensors.torch import save_file

from lbgen.errors import UserError
from lbgen.evaluation.arrays import read_npy, read_npz, write_npy
from lbgen.evaluation.transfer.compare import compare
from lbgen.evaluation.transfer.stored import answer_table, load_answers
from lbgen.exports.adapter import refuse_other_file
from lbgen.exports.sources import trained_alpha
from lbgen.models.backbones import load_backbone
from lbgen.pretraining import loop
from lbgen.pretraining.config import PretrainConfig
from lbgen.pretraining.run import pretrain
from lbgen.runs.atomic import ensure_writable
from lbgen.training.tensors import DAMAGE, load_tensors


class Payload:
    """A pickle that runs a program when it is loaded."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.ran),)


# ---- runs of lbgen pretrain ----


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_image_folder(tmp_path_factory.mktemp("images") / "set", photographs(24, seed=1))


@pytest.fixture(scope="module")
def begun(images, tmp_path_factory) -> PretrainConfig:
    """A run that was stopped after the first of two epochs."""
    config = PretrainConfig(
        output=tmp_path_factory.mktemp("begun") / "run", architecture="test_resnet", image_size=32, epochs=2,
        batch_size=12, warmup_epochs=0, learning_rate=1e-3, held_out=0.2, workers=0, logger="none",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(loop, "received_signal", lambda *_: 0)
        patch.setattr(
            loop, "updates_of", lambda state, sources: stop() if state.progress.epoch else updates(state, sources)
        )
        with pytest.raises(KeyboardInterrupt):
            pretrain(images, config)
    return config


updates = loop.updates_of


@pytest.fixture
def received(begun, tmp_path) -> PretrainConfig:
    return replace(begun, output=Path(shutil.copytree(begun.folder, tmp_path / "run")))


def groups(stored: dict, **values: object) -> None:
    stored["optimizer"]["param_groups"][0].update(values)


def states(stored: dict, value: object) -> None:
    stored["optimizer"]["state"] = {number: {"momentum_buffer": value} for number in stored["optimizer"]["state"]}


@pytest.mark.parametrize(
    "change",
    [
        lambda stored: stored["progress"].update(epoch=10**15),
        lambda stored: stored["progress"].update(update=5),
        lambda stored: stored["progress"].update(loss_sums=[float("nan")]),
        lambda stored: stored["progress"].update(best={"epoch": 1, "top1": float("nan")}),
        lambda stored: stored["progress"].update(best={"epoch": 0, "top1": 5.0}),
        lambda stored: groups(stored, momentum="x"),
        lambda stored: stored["optimizer"]["param_groups"][0].pop("momentum"),
        lambda stored: states(stored, torch.zeros(3)),
        lambda stored: states(stored, "x"),
    ],
)
def test_a_checkpoint_that_no_run_saved_is_refused(images, received, change: Callable[[dict], None]):
    path = received.folder / "checkpoint.pt"
    stored = torch.load(path, weights_only=True)
    change(stored)
    torch.save(stored, path)
    with pytest.raises(UserError, match=r"checkpoint\.pt: it cannot be read; restore it, or remove it"):
        pretrain(images, received)


@pytest.mark.parametrize("name", ["backbone.safetensors", "config.json"])
def test_a_run_that_lacks_a_file_is_not_continued(images, received, name):
    (received.folder / name).unlink()
    with pytest.raises(UserError, match=f"{name}.* is missing"):
        pretrain(images, received)


def test_a_loss_that_is_not_finite_leaves_no_backbone(images, begun, tmp_path):
    """The only update's own loss is finite; it is the validation after it that is not."""
    config = replace(begun, output=tmp_path / "run", epochs=1, batch_size=64, learning_rate=1e6)
    with pytest.raises(UserError, match="validation loss is"):
        pretrain(images, config)
    assert not (tmp_path / "run/backbone.safetensors").exists()


@pytest.mark.parametrize("weight", [0.06, 1e-300])
def test_weights_that_leave_no_images_are_refused(images, begun, tmp_path, weight):
    with pytest.raises(UserError, match="to train on; give more, larger --weights"):
        pretrain(images, replace(begun, output=tmp_path / "run", weights=(weight,)))


@pytest.mark.parametrize(
    "values",
    [{"weights": (1e308,)}, {"mixup": 1e-300}, {"cutmix": 1e308}, {"weight_decay": 1e300}, {"batch_size": 10**30},
     {"minimum_learning_rate": 1e300}, {"model_arguments": ("in_chans=1",)}, {"model_arguments": ("features_only=1",)}],
)  # fmt: skip
def test_settings_that_end_in_an_error_are_refused(values):
    with pytest.raises(UserError, match="^--"):
        PretrainConfig(**values)


def compressed(path: Path) -> None:
    """What torch.save wrote, packed again: it could claim any size."""
    torch.save({"a": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("kind", ["pickle", "zip", "compressed", "earlier format", "empty"])
def test_files_of_torch_run_no_code_and_are_no_larger_than_they_are(kind, tmp_path):
    path, payload = tmp_path / "checkpoint.pt", Payload(tmp_path / "ran")
    contents: dict[str, Callable[[], object]] = {
        "pickle": lambda: path.write_bytes(pickle.dumps(payload)),
        "zip": lambda: torch.save({"optimizer": payload}, path),
        "compressed": lambda: compressed(path),
        "earlier format": lambda: torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False),
        "empty": lambda: path.write_bytes(b""),
    }
    contents[kind]()
    with pytest.raises(DAMAGE):
        load_tensors(path, "cpu")
    assert not (tmp_path / "ran").exists()


# ---- backbones and answers ----


def test_a_backbone_with_weights_that_are_not_finite_is_refused(tmp_path):
    weights = timm.create_model("test_resnet", num_classes=5).state_dict()
    weights["fc.bias"] = weights["fc.bias"] * float("nan")
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"fc\.bias is not finite"):
        load_backbone(f"test_resnet:{tmp_path}/weights.safetensors")


def huge(path: Path) -> None:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 15), }".ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("predictions.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


@pytest.mark.parametrize("kind", ["array", "cut off", "huge", "empty", "objects"])
def test_arrays_that_cannot_be_read_are_refused(kind, tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, predictions=np.array([{}] * 3) if kind == "objects" else np.zeros((3, 15)))
    contents: dict[str, Callable[[], object]] = {
        "array": lambda: np.save(path.open("wb"), np.zeros(3)),
        "cut off": lambda: path.write_bytes(path.read_bytes()[:200]),
        "huge": lambda: huge(path),
        "empty": lambda: path.write_bytes(b""),
        "objects": lambda: None,
    }
    contents[kind]()
    with pytest.raises(ValueError):
        read_npz(path, "predictions")
    if kind != "array":
        assert read_npy(path) is None


def test_an_array_of_the_cache_with_a_flipped_bit_is_not_read(tmp_path):
    """numpy reads the file too; one of an earlier version ends without a hash."""
    path, values = tmp_path / "a.npy", np.arange(12, dtype=np.float32).reshape(4, 3)
    write_npy(path, values)
    content = path.read_bytes()
    assert (np.load(path) == values).all() and (read_npy(path) == values).all()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert read_npy(path) is None, place
    np.save(path, values)
    assert (read_npy(path) == values).all()


@pytest.mark.parametrize("value", [1e308, -5, 10**30, None, "x"])
def test_values_that_are_no_shares_are_not_compared(value, tmp_path):
    one = {"metric": "accuracy", "value": value, "low": None, "high": None, "n_test": 3}
    (tmp_path / "transfer.json").write_text(json.dumps({"backbones": {"a": {"b": {"linear": one}}}}))
    with pytest.raises(UserError, match=r"transfer\.json.*value"):
        compare(tmp_path)


def test_answers_whose_draws_have_other_images_are_refused(tmp_path):
    table = answer_table(["i", "j"], ["i", "j"], ["x", "y"], [["x", "y"], ["y", "y"]])
    pq.write_table(
        table.slice(1).append_column("draw2", table["draw"].slice(1)).drop_columns(["draw2"]), tmp_path / "a"
    )
    rows = table.to_pylist()
    rows[3]["image"] = "k"
    pq.write_table(type(table).from_pylist(rows, table.schema), tmp_path / "b")
    for name in "ab":
        with pytest.raises(UserError, match="run lbgen transfer on that --output again"):
            load_answers(tmp_path / name)


# ---- exports and outputs ----


def test_an_export_does_not_wait_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="lbgen export did not write it"):
        refuse_other_file(tmp_path / "a.safetensors")


@pytest.mark.parametrize("alpha", ["1" * 400, ".inf", ".nan", "-1", "x", "true"])
def test_an_alpha_that_no_run_has_is_refused(alpha, tmp_path):
    (tmp_path / "config.yaml").write_text(f"alpha: {alpha}\n")
    with pytest.raises(UserError, match="alpha"):
        trained_alpha(tmp_path)


def test_an_output_of_too_long_a_name_is_refused(tmp_path):
    with pytest.raises(UserError, match="name too long; choose a folder"):
        ensure_writable(tmp_path / ("x" * 300))
