"""File systems without locks or without fsync of folders, simulated by system calls that fail."""

import errno
import fcntl
import os
import stat
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from folders import contents

from lbgen.alignment import checkpoint
from lbgen.errors import UserError
from lbgen.generation.run import generate
from lbgen.generation.verify import verify
from lbgen.runs import atomic, console
from lbgen.runs.lock import locked
from lbgen.runs.store import LocalStore

NO_LOCKS = [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP]
HOLD = """
import sys
from pathlib import Path
import pytest
from test_weak_file_systems import without_locks
from lbgen.runs.lock import locked
path = Path(sys.argv[1])
with pytest.MonkeyPatch.context() as patch:
    without_locks(patch, path.parent, int(sys.argv[2]))
    with locked(path, "out", (0, 2) if sys.argv[3:] else None):
        print("held", flush=True)
        input()
"""


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """A temporary folder of the test's own, and nothing said yet."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    console.warn_once.cache_clear()


def without_locks(monkeypatch, place: Path, number: int) -> None:
    real = fcntl.lockf

    def lockf(descriptor, *how):
        if os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(place)):
            raise OSError(number, os.strerror(number))
        return real(descriptor, *how)

    monkeypatch.setattr(fcntl, "lockf", lockf)


def without_flush(monkeypatch, number: int, of_folders: bool) -> None:
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) == of_folders:
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


def holder(path: Path, number: int, *part: str) -> subprocess.Popen:
    """A process that says when it holds the lock, and waits for a line."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", HOLD, str(path), str(number), *part]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


@pytest.mark.parametrize("number", NO_LOCKS)
def test_a_lock_on_this_machine_takes_the_place_of_one_there(tmp_path, monkeypatch, capsys, number):
    """Two processes, as two runs; the second is refused until the first ends."""
    path = tmp_path / "out/.lock"
    without_locks(monkeypatch, tmp_path / "out", number)
    with holder(path, number) as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another run is writing there"), locked(path, "out"):
            pass
        _, shown = first.communicate("\n")
    assert "warning: the file system of --output out has no locks" in shown and os.strerror(number) in shown
    for _ in range(2):  # of one process
        with locked(path, "out"):
            pass
    assert capsys.readouterr().err.count("warning: ") == 1


def test_parts_of_a_run_share_the_lock_on_this_machine(tmp_path, monkeypatch):
    without_locks(monkeypatch, tmp_path / "out", errno.ENOSYS)
    with holder(tmp_path / "out/.lock", errno.ENOSYS, "part") as first:
        assert first.stdout.readline() == "held\n"
        with locked(tmp_path / "out/.lock", "out", (1, 2)):
            pass
        first.communicate("\n")
    assert not (tmp_path / "out").exists()  # nothing was written


def test_no_locks_anywhere_is_one_line(tmp_path, monkeypatch):
    without_locks(monkeypatch, tmp_path, errno.ENOLCK)
    expected = "no locks there .No locks available., nor in .*; set TMPDIR to a folder"
    with pytest.raises(UserError, match=expected), locked(tmp_path / "out/.lock", "out"):
        pass
    assert not (tmp_path / "out").exists()


def test_a_dataset_is_made_without_locks_and_without_flushed_folders(config, whole, tmp_path, monkeypatch, capfd):
    """The same one; each lack is said."""
    without_locks(monkeypatch, tmp_path / "out", errno.ENOSYS)
    without_flush(monkeypatch, errno.EINVAL, of_folders=True)
    assert generate(replace(config, output=tmp_path / "out")).finished
    assert contents(tmp_path / "out") == contents(whole)
    shown = capfd.readouterr().err
    assert shown.count("has no locks (Function not implemented)") == 1
    assert shown.count("cannot flush folders to disk (Invalid argument)") == 1
    (tmp_path / "out/index/train-00001.parquet").unlink()
    assert verify(tmp_path / "out", repair=True).damaged == ()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP])
@pytest.mark.parametrize("of_folders", [True, False])
def test_every_way_of_writing_goes_on_without_flush(tmp_path, monkeypatch, number, of_folders):
    without_flush(monkeypatch, number, of_folders)
    atomic.write_text(tmp_path / "a", "1")
    LocalStore(tmp_path, "all").write("b", b"1")
    with checkpoint.new_folder(tmp_path / "folder") as folder:
        (folder / "c").write_text("1")
    assert [(tmp_path / name).read_text() for name in ("a", "b", "folder/c")] == ["1"] * 3


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("of_folders", [True, False])
def test_a_write_that_failed_is_not_taken_for_that(tmp_path, monkeypatch, number, of_folders):
    without_flush(monkeypatch, number, of_folders)
    with pytest.raises(OSError, match=os.strerror(number)):
        atomic.write_text(tmp_path / "a", "1")
