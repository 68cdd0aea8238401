"""Run folders from someone else: nothing is written through their links, and none of their pickles runs."""

import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from folders import link, nested, tree

from lbgen.alignment import checkpoint
from lbgen.alignment.config import AlignConfig
from lbgen.alignment.run import align
from lbgen.audit.config import AuditConfig
from lbgen.audit.run import audit
from lbgen.errors import UserError
from lbgen.runs import atomic
from lbgen.training.metrics import drop_lines_after

# ---- run folders ----


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples", "checkpoints", "adapter", "logs", "config.yaml"])
def test_align_writes_through_no_link(tmp_path, outside, name):
    run = tmp_path / "received/run"
    link(run / name, outside / ("known.txt" if "." in name else "inner"))
    before = tree(outside)
    with pytest.raises(UserError, match=f"run/{name}: it is a link"):
        align(AlignConfig(output=run, vocabulary="microworld", generator="microworld", semantics="microworld"))
    assert tree(outside) == before


@pytest.fixture(scope="module")
def aligned(tiny_sd_folder, tiny_clip_folder, tmp_path_factory) -> AlignConfig:
    """A run of one update, with its folder."""
    output = tmp_path_factory.mktemp("aligned") / "run"
    (output.parent / "names.txt").write_text("cat\ndog\nant\n")
    config = AlignConfig(
        output=output, vocabulary=str(output.parent / "names.txt"), generator=str(tiny_sd_folder),
        semantics=str(tiny_clip_folder), steps=2, differentiated_steps=1, rank=2, alpha=2, max_steps=1, batch_size=2,
        checkpoint_every=1, evaluate_every=1, evaluation_images=3, logger="none",
    )  # fmt: skip
    align(config)
    return config


@pytest.fixture
def received_run(aligned, tmp_path) -> AlignConfig:
    """The run as somebody receives it, who asks for one more update."""
    return replace(aligned, output=Path(shutil.copytree(aligned.folder, tmp_path / "received/run")), max_steps=2)


@pytest.mark.parametrize(
    "change",
    [{"files": 5}, {"files": {"../../../victim/known.txt": 4}}, {"files": {"/etc/hostname": 1}}, {"step": "1"},
     {"step": -1}, {"step": 10**30}, {"step": True}, {"images_per_update": None}, {"vocabulary": 5}],
)  # fmt: skip
def test_a_checkpoints_marker_of_another_shape_is_refused(received_run, change):
    marker = received_run.folder / "checkpoints/step-000001/checkpoint.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | change))
    with pytest.raises(UserError, match="checkpoint"):
        align(received_run)


class Payload:
    """A pickle that runs a program when it is loaded."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.ran),)


@pytest.mark.parametrize("kind", ["pickle", "zip", "other tensors", "cut off"])
def test_no_pickle_of_a_checkpoint_runs(received_run, tmp_path, kind):
    folder = received_run.folder / "checkpoints/step-000001"
    contents = {
        "pickle": lambda path: path.write_bytes(pickle.dumps(Payload(tmp_path / "ran"))),
        "zip": lambda path: torch.save({"optimizer": Payload(tmp_path / "ran")}, path),
        "other tensors": lambda path: torch.save({"optimizer": [1]}, path),
        "cut off": lambda path: path.write_bytes(path.read_bytes()[:1000]),
    }
    progress = checkpoint.saved_progress(folder)
    contents[kind](folder / "state.pt")
    (folder / "checkpoint.json").unlink()
    checkpoint.mark_complete(folder, progress)
    with pytest.raises(UserError, match="step-000001: its state.pt cannot be read"):
        align(received_run)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("line", [b"5", b"{}", b'{"step": "x"}', b"\xff", nested().encode(), b'{"step": null}'])
def test_odd_lines_of_a_run_are_left_out(received_run, line):
    path = received_run.folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + line + b"\n")
    drop_lines_after(path, 1)
    assert [json.loads(text)["step"] for text in path.read_text().splitlines()] == [0, 1]


@pytest.mark.parametrize(
    "name", ["checkpoints/step-9999999", "checkpoints/step-000001/state.pt", "samples/base.safetensors"]
)
def test_align_continues_through_no_link(received_run, outside, name):
    link(received_run.folder / name, outside / ("known.txt" if "." in name else "inner"))
    before = tree(outside)
    with pytest.raises(UserError, match=f"run/{name}: it is a link"):
        align(received_run)
    assert tree(outside) == before


def test_a_temporary_name_is_no_way_out(tmp_path, outside):
    """What stands under the temporary name of a file is removed, not written through."""
    (tmp_path / ".page.html.tmp").symlink_to(outside / "known.txt")
    atomic.write_text(tmp_path / "page.html", "new")
    assert (tmp_path / "page.html").read_text() == "new" and (outside / "known.txt").read_text() == "mine"


def test_an_audits_cache_is_not_written_through_a_link(tmp_path, received, outside):
    (tmp_path / "audit").mkdir()
    link(tmp_path / "audit/cache", outside / "inner")
    before = tree(outside)
    with pytest.raises(UserError, match="audit/cache: it is a link"):
        audit([received], AuditConfig(output=tmp_path / "audit", semantics="microworld"))
    assert tree(outside) == before
