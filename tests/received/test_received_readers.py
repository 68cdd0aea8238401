"""Labelled datasets from someone else, in any format: reading them neither hangs nor fills the memory."""

import io
import os
import tarfile
from pathlib import Path

import pytest
from folders import nested

from lbgen.datasets.open import open_dataset
from lbgen.datasets.records import ImageRecord
from lbgen.datasets.webdataset import content_of, members, opened_tar
from lbgen.errors import UserError
from lbgen.generation.verify import verify

# ---- the audit's own readers ----


def records_of(folder: Path) -> list[ImageRecord]:
    return list(open_dataset(folder).records())


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), os.mkdir])
def test_only_regular_files_are_read_as_images(received, make):
    """A pipe has no end of waiting, and /dev/zero none at all."""
    image = received / "train/z1/z1_00000.png"
    image.unlink()
    make(image)
    if not image.is_dir():
        faults = {record.key: record.fault for record in records_of(received) if record.fault}
        assert faults == {"train/z1/z1_00000.png": "it is not a regular file"}
    else:
        assert not any(record.fault for record in records_of(received))


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_verify_reads_regular_files_alone(received, make):
    image = received / "train/z1/z1_00000.png"
    image.unlink()
    make(image)
    with pytest.raises(UserError, match="z1_00000.png: it is "):
        verify(received)


def test_no_folder_is_read_twice(received):
    before = [record.key for record in records_of(received)]
    (received / "train/z1/loop").symlink_to("..")
    (received / "train/z1/self").symlink_to(".")
    assert len(records_of(received)) == len(before)


@pytest.mark.parametrize(
    "line", ["5", "[]", nested(), '{"file_name": "a\\u0000b", "label": "x"}', '{"file_name": "\\ud800", "label": "x"}']
)  # fmt: skip
def test_a_list_of_images_of_another_shape_is_a_fault(tmp_path, line):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "label": "b"}\n' + line + "\n")
    try:
        assert records_of(tmp_path)[1].fault == "no file can have this name"
    except UserError as error:
        assert "metadata.jsonl: " in str(error)


@pytest.mark.parametrize(
    "file, content",
    [
        ("labels.json", nested()),
        ("_info.json", nested()),
        ("_info.json", '{"splits": {"a": {"filenames": [], "shard_lengths": "x"}}}'),
    ],
)
def test_descriptions_of_another_shape_are_refused(tmp_path, file, content):
    with tarfile.open(tmp_path / "train-00000.tar", "w") as archive:
        for name, stored in (("a.png", b"x"), ("a.cls", b"9" * 6000)):
            member = tarfile.TarInfo(name)
            member.size = len(stored)
            archive.addfile(member, io.BytesIO(stored))
    assert records_of(tmp_path)[0].category == "9" * 6000
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=f"{file}[:,] "):
        records_of(tmp_path)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.GNUTYPE_SPARSE])
def test_an_archive_reserves_no_memory_for_what_it_claims(tmp_path, kind):
    """Eight terabytes, in the header or as the size of a sparse file."""
    member = tarfile.TarInfo("a.png")
    member.type, member.size = kind, 8 * 10**12
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    if kind == tarfile.GNUTYPE_SPARSE:
        header[124:136], header[483:495] = b"0" * 11 + b"\0", header[124:136]
        header[148:156] = b" " * 8
        header[148:156] = f"{sum(header):06o}\0 ".encode()
    label = tarfile.TarInfo("a.cls")
    (tmp_path / "train-00000.tar").write_bytes(bytes(header) + label.tobuf() + bytes(1024))
    assert all(record.fault or not record.content for record in records_of(tmp_path))
    with pytest.raises(tarfile.TarError), opened_tar(tmp_path / "train-00000.tar") as archive:
        for _, _, found in members(archive):
            content_of(archive, found)
