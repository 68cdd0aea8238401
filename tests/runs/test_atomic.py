import hashlib
import os
import subprocess
import sys

import pytest

from lbgen.errors import UserError
from lbgen.runs import atomic


def test_content_arrives_whole_and_nothing_else_is_left(tmp_path):
    atomic.write_text(tmp_path / "a.txt", "né\n")
    atomic.write_bytes(tmp_path / "a.txt", b"new")
    assert (tmp_path / "a.txt").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_failure_keeps_the_old_file(tmp_path):
    atomic.write_bytes(tmp_path / "a", b"old")
    with pytest.raises(RuntimeError), atomic.replacing(tmp_path / "a") as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_what_a_killed_writer_left_is_overwritten(tmp_path):
    """A process that dies between writing and renaming leaves the old file and a name that the next attempt reuses."""
    atomic.write_bytes(tmp_path / "a", b"old")
    code = (
        "import os, sys; from pathlib import Path; from lbgen.runs import atomic\n"
        "with atomic.replacing(Path(sys.argv[1])) as t: t.write_bytes(b'half'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")]).returncode == -9
    assert (tmp_path / "a").read_bytes() == b"old"
    atomic.write_bytes(tmp_path / "a", b"new")
    assert os.listdir(tmp_path) == ["a"]


def test_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert atomic.sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_folders_too_deep_inside_each_other_are_refused(tmp_path):
    (tmp_path / "samples" / "/".join("a" * 110)).mkdir(parents=True)
    with pytest.raises(UserError, match="more than 100 folders inside each other; remove them"):
        atomic.refuse_links(tmp_path, ["samples"])
