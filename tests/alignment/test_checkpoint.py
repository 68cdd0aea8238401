"""Checkpoints on disk: whole, or not there."""

import json

import pytest
import torch

from lbgen.alignment import checkpoint
from lbgen.errors import UserError
from lbgen.training.metrics import append_line, drop_lines_after


def write(run, step, text="adapter"):
    path = checkpoint.checkpoint_path(run, step)
    with checkpoint.new_folder(path) as folder:
        (folder / "adapter").mkdir()
        (folder / "adapter" / "weights").write_text(text)
        checkpoint.mark_complete(folder, checkpoint.AlignmentProgress(step, 0, 4, "the categories"))
    return path


def test_the_newest_whole_checkpoint_is_found(tmp_path):
    assert checkpoint.newest(tmp_path) is None
    write(tmp_path, 9), write(tmp_path, 10)
    assert checkpoint.newest(tmp_path).name == "step-000010"
    assert checkpoint.saved_progress(checkpoint.newest(tmp_path)).step == 10


@pytest.mark.parametrize("damage", ["no marker", "cut marker", "cut file", "missing file"])
def test_a_damaged_checkpoint_is_passed_over_and_cleaned_away(tmp_path, damage):
    good, bad = write(tmp_path, 1), write(tmp_path, 2)
    marker, weights = bad / checkpoint.MARKER, bad / "adapter" / "weights"
    {
        "no marker": marker.unlink,
        "cut marker": lambda: marker.write_bytes(marker.read_bytes()[:-5]),
        "cut file": lambda: weights.write_text("ada"),
        "missing file": weights.unlink,
    }[damage]()
    assert checkpoint.newest(tmp_path) == good
    checkpoint.clean(tmp_path)
    assert sorted((tmp_path / "checkpoints").iterdir()) == [good]


def test_a_changed_byte_is_refused(tmp_path):
    """The size is the same, so only the hash tells."""
    path = write(tmp_path, 1)
    checkpoint.ensure_unchanged(path)
    (path / "adapter" / "weights").write_text("adaptor")
    with pytest.raises(UserError, match="weights: its content was changed; restore it, or remove this checkpoint"):
        checkpoint.ensure_unchanged(path)


def test_a_marker_of_an_earlier_version_has_no_hashes(tmp_path):
    path = write(tmp_path, 1)
    marker = json.loads((path / checkpoint.MARKER).read_text())
    del marker["sha256"]
    (path / checkpoint.MARKER).write_text(json.dumps(marker))
    assert checkpoint.newest(tmp_path) == path
    checkpoint.ensure_unchanged(path)


def test_a_write_that_dies_leaves_the_old_checkpoint(tmp_path):
    path = write(tmp_path, 3, "old")
    with pytest.raises(KeyboardInterrupt), checkpoint.new_folder(path) as folder:
        (folder / "adapter").write_text("half")
        raise KeyboardInterrupt
    assert (path / "adapter" / "weights").read_text() == "old"
    assert checkpoint.newest(tmp_path) == path
    assert (write(tmp_path, 3, "new") / "adapter" / "weights").read_text() == "new"


def test_the_last_two_are_kept(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, step)
    checkpoint.clean(tmp_path)
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step-000002", "step-000003"]


def test_what_is_not_a_checkpoint_is_left_alone(tmp_path):
    """A user's notes and copies; only a killed process's temporary folder goes."""
    for step in (1, 2, 3):
        write(tmp_path, step)
    folder = tmp_path / "checkpoints"
    (folder / "step-000003").rename(folder / "step-best")
    (folder / "notes.txt").write_text("keep")
    (folder / "mine").mkdir()
    (folder / ".step-000004.tmp").mkdir()
    assert checkpoint.newest(tmp_path).name == "step-000002"
    checkpoint.clean(tmp_path)
    left = ["mine", "notes.txt", "step-000001", "step-000002", "step-best"]
    assert sorted(path.name for path in folder.iterdir()) == left


def test_steps_are_ordered_as_numbers(tmp_path):
    write(tmp_path, 999_999), write(tmp_path, 1_000_000)
    assert checkpoint.newest(tmp_path).name == "step-1000000"


def test_state_comes_back_bit_for_bit(tmp_path):
    """An AdamW that goes on from the file takes the same step as the one that never stopped."""

    def optimizer(weight):
        return torch.optim.AdamW([weight], lr=0.1, betas=(0.0, 0.99))

    weight = torch.nn.Parameter(torch.randn(5))
    kept = optimizer(weight)
    weight.grad = torch.randn(5)
    kept.step()
    checkpoint.save_tensors(tmp_path, {"optimizer": kept.state_dict()})
    other = torch.nn.Parameter(weight.detach().clone())
    resumed = optimizer(other)
    resumed.load_state_dict(checkpoint.load_tensors(tmp_path, torch.device("cpu"))["optimizer"])
    weight.grad = other.grad = torch.randn(5)
    kept.step(), resumed.step()
    assert torch.equal(weight, other)


def test_code_in_a_state_file_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"optimizer": Evil()}, tmp_path / "state.pt")
    with pytest.raises(Exception, match="weights_only"):
        checkpoint.load_tensors(tmp_path, torch.device("cpu"))
    assert not (tmp_path / "ran").exists()


def test_lines_after_the_step_and_a_cut_line_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in range(5):
        append_line(path, {"step": step})
    with path.open("a") as stream:
        stream.write('{"step": 1, "lo')
    drop_lines_after(path, 2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2]
    drop_lines_after(tmp_path / "none.jsonl", 2)
