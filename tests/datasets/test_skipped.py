"""What a reader leaves out is counted by reason; splits are told from categories; no folder is read twice."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from audited import IMAGES, placed
from PIL import Image

from lbgen.datasets.decode import FORMATS
from lbgen.datasets.files.local import LARGEST_FILE
from lbgen.datasets.open import open_dataset
from lbgen.datasets.records import IMAGE_SUFFIXES, ImageRecord
from lbgen.datasets.tables import reading
from lbgen.errors import UserError


def read(folder: Path) -> tuple[list[ImageRecord], dict[str, int]]:
    """All records, and how many things were skipped for which reason."""
    reader = open_dataset(folder)
    records = list(reader.records())
    return records, {reason: found.count for reason, found in reader.skipped.items()}


def labelled(folder: Path) -> list[tuple[str, str]]:
    """(category, split) of every image with content, sorted."""
    return sorted((record.category, record.split) for record in read(folder)[0] if record.content)


# ---- suffixes ----


def test_the_suffixes_are_those_of_pillow():
    """For the formats that may be opened."""
    Image.init()
    assert set(IMAGE_SUFFIXES) == {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}


def test_every_format_that_pillow_may_open_is_read(tmp_path):
    """A category each, and one of files without a suffix; what is no image is counted, and hidden files too."""
    picture = Image.open(io.BytesIO(IMAGES[0])).convert("RGB")
    for suffix in ("avif", "jfif", "jp2", "ppm"):
        (tmp_path / suffix).mkdir()
        picture.save(tmp_path / suffix / f"a.{suffix}")
    placed(tmp_path, "bare/0001", "bare/0002")
    (tmp_path / "bare" / "README").write_text("Python and others")
    for name in ("a.heic", "b.HEIC", "note.txt", ".DS_Store", "part.0001"):
        (tmp_path / "ppm" / name).write_bytes(b"x")
    os.mkfifo(tmp_path / "bare" / "pipe")
    records, skipped = read(tmp_path)
    assert sorted(record.category for record in records) == ["avif", "bare", "bare", "jfif", "jp2", "ppm"]
    assert skipped == {
        "not an image that is read (no suffix)": 2,
        "not an image that is read (.heic)": 2,
        "not an image that is read (.txt)": 1,
        "not an image that is read (another suffix)": 1,
        "a hidden file": 1,
    }


def test_empty_folders_and_loose_images_are_counted(tmp_path):
    """And the dataset's own sample picture is no image of it."""
    placed(tmp_path, "train/cat/0.png", "train/dog/1.png", "loose.png", "samples.png")
    (tmp_path / "train/empty").mkdir()
    (tmp_path / "val").mkdir()
    (tmp_path / "shard.tar").write_bytes(b"x")
    assert read(tmp_path)[1] == {
        "a shard beside those that are read": 1,
        "a category's folder without images": 2,
        "an image beside the folders of splits or categories": 1,
    }
    assert read(tmp_path)[0][0].key == "train/cat/0.png"


def test_images_that_no_list_names_are_counted(tmp_path):
    placed(tmp_path, "train/a.png", "train/b.png", "train/deep/c.png", "masks/train/a.png")
    (tmp_path / "train/metadata.jsonl").write_text('{"file_name": "a.png", "label": "cat"}\n')
    records, skipped = read(tmp_path)
    assert [record.key for record in records] == ["train/a.png"] and records[0].mask
    assert skipped == {"an image that no list names": 2}


# ---- splits ----


@pytest.mark.parametrize(
    ("places", "splits"),
    [
        (["train/cat/0.png", "train/dog/1.png", "eval/cat/2.png"], ["eval", "train", "train"]),
        (["train/cat/0.png", "evaluation/owl/2.png"], ["evaluation", "train"]),
        (["train2017/cat/0.png", "val2017/cat/1.png"], ["train2017", "val2017"]),
        (["train/cat/0.png", "holdout/cat/1.png", "holdout/owl/2.png"], ["holdout", "holdout", "train"]),
        (["train/cat/0.png", "train/dog/1.png", "val/cat/2.png", "val/preview.png"], ["train", "train", "val"]),
        (["train/cat/0.png", "train/dog/1.png", "train/preview.png"], ["train", "train"]),
    ],
)
def test_a_folder_of_the_same_categories_is_a_split(tmp_path, places, splits):
    """The category is the folder around the image, as torchvision has it in each split; a preview has none."""
    records, _ = read(placed(tmp_path, *places))
    assert sorted(record.split for record in records if record.content) == splits
    assert all(record.category == Path(record.key).parent.name for record in records if record.content)
    faults = {record.key: record.fault for record in records if not record.content}
    assert faults == {place: "it lies in no category's folder" for place in places if "preview" in place}


def test_a_category_of_a_splits_name_stays_one(tmp_path):
    """Trains beside buses, with images of its own and a folder of more."""
    placed(tmp_path, "train/0.png", "train/steam/1.png", "bus/2.png", "bus/steam/3.png")
    assert labelled(tmp_path) == [("bus", "all")] * 2 + [("train", "all")] * 2


# ---- links ----


def test_links_lead_to_no_image_twice(tmp_path):
    """Loops, a link to the dataset, to another category, to the masks, and two to one folder outside."""
    data = placed(tmp_path / "data", "train/cat/0.png", "train/dog/1.png", "masks/train/cat/0.png")
    placed(tmp_path / "outside", "a.png", "deep/b.png")
    (tmp_path / "outside/self").symlink_to(".")
    links = {"train/a_link": "dog", "train/cat/up": "../..", "train/cat/self": ".", "train/dog/masks": "../../masks",
             "loop": ".", "train/owl": "../../outside", "train/dog/again": "../../../outside",
             "train/dog/deep": "../../../outside/deep", "masks/train/dog": "../../train/dog"}  # fmt: skip
    for name, target in links.items():
        (data / name).symlink_to(target)
    records, skipped = read(data)
    assert sorted(record.key for record in records) == [
        "train/cat/0.png", "train/dog/1.png", "train/owl/a.png", "train/owl/deep/b.png",
    ]  # fmt: skip
    assert [record.category for record in records if "owl" in record.key] == ["owl", "owl"]
    (reason,) = skipped
    assert reason.startswith("a link to a folder that is read already") and skipped[reason] == 8


def test_lists_and_shards_behind_links_are_read_once(tmp_path):
    """Twenty links to the folder itself."""
    placed(tmp_path / "listed", *(f"{number}.png" for number in range(12)))
    lines = ({"file_name": f"{number}.png", "label": number % 2} for number in range(12))
    (tmp_path / "listed/metadata.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    write_tar(tmp_path / "packed/data/a.tar", ("0.png", IMAGES[0]), ("0.cls", b"cat"))
    for number in range(20):
        (tmp_path / f"listed/link{number}").symlink_to(".")
        (tmp_path / f"packed/link{number}").symlink_to("data")
    assert len(read(tmp_path / "listed")[0]) == 12
    assert len(read(tmp_path / "packed")[0]) == 1


# ---- shards ----


def write_tar(path: Path, *members: tuple[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_a_dot_in_the_stem_is_the_extension_s_as_other_readers_have_it(tmp_path):
    """Against the webdataset library: it finds .png in the same samples, and here the others are counted."""
    names = ["a", "b.c", "v1.0", "v1.1", "folder.d/e", ".hidden", "last"]
    files = [(f"{name}.{suffix}", content) for name in names for suffix, content in (("png", IMAGES[0]), ("cls", b"1"))]
    shard = write_tar(tmp_path / "train-0.tar", *files)
    library = webdataset.WebDataset(str(shard), shardshuffle=False, empty_check=False)
    theirs = [sample["__key__"] for sample in library if "png" in sample]
    records, skipped = read(tmp_path)
    assert [record.key.removeprefix("train-0.tar/") for record in records] == [f"{key}.png" for key in theirs]
    (reason,) = skipped
    assert theirs == ["a", "folder.d/e", "last"] and "further dot" in reason and skipped[reason] == 4


def test_what_an_archive_holds_besides_is_counted(tmp_path):
    """Second images, samples without one, links, shards that are missing, deeper, compressed or pipes."""
    shard = write_tar(
        tmp_path / "train-0.tar",
        *(("0.png", IMAGES[0]), ("0.jpg", IMAGES[1]), ("0.cls", b"cat"), ("1.heic", b"x"), ("1.cls", b"cat")),
        *(("2.png", IMAGES[0]), ("2.cls", b"cat"), ("2.png", IMAGES[1])),
    )
    with tarfile.open(shard, "a") as archive:
        link = tarfile.TarInfo("3.png")
        link.type, link.linkname = tarfile.LNKTYPE, "0.png"
        archive.addfile(link)
    write_tar(tmp_path / "val/val-0.tar")
    (tmp_path / "train-1.tar.gz").write_bytes(b"x")
    os.mkfifo(tmp_path / "train-2.tar")
    info = {"splits": {"train": {"filenames": ["train-0.tar", "train-7.tar"]}}}
    (tmp_path / "_info.json").write_text(json.dumps(info))
    records, skipped = read(tmp_path)
    assert [record.key for record in records if record.content] == ["train-0.tar/0.png", "train-0.tar/2.png"]
    assert skipped == {
        "a shard beside those that are read": 2,
        "a shard that is no regular file": 1,
        "a shard that _info.json lists and that is missing": 1,
        "an image of a sample that has another": 1,
        "a sample without an image": 1,
        "an image of a sample that has two of this name": 1,
        "a link or a special file in an archive": 1,
    }


def test_a_second_pass_counts_anew(tmp_path):
    placed(tmp_path, "cat/0.png", "dog/1.png")
    (tmp_path / "cat/note.txt").write_text("x")
    reader = open_dataset(tmp_path)
    for _ in range(2):
        list(reader.records(wanted=set()))
        assert [found.count for found in reader.skipped.values()] == [1]
        assert [found.first for found in reader.skipped.values()] == [["cat/note.txt"]]


# ---- files that claim or take gigabytes ----


def test_a_member_of_gigabytes_is_a_fault_and_the_others_are_read(tmp_path):
    """The archive is a sparse file that has them all; the label of another member is too long."""
    header = tarfile.TarInfo("0.png")
    header.size = LARGEST_FILE + 512
    rest = write_tar(tmp_path / "rest", ("0.cls", b"cat"), ("1.png", IMAGES[1]), ("1.cls", b"cat"),
                     ("2.png", IMAGES[2]), ("2.cls", b"9" * 100_000))  # fmt: skip
    with (tmp_path / "train-0.tar").open("wb") as stream:
        stream.write(header.tobuf())
        stream.seek(512 + header.size)
        stream.write(rest.read_bytes())
    rest.unlink()
    records, _ = read(tmp_path)
    assert [(record.key, record.content) for record in records if record.content] == [("train-0.tar/1.png", IMAGES[1])]
    assert [record.fault.partition(", more than")[0] for record in records if record.fault] == [
        f"it has {header.size:,} bytes", "it has 100,000 bytes",
    ]  # fmt: skip


def test_an_empty_label_is_none(tmp_path):
    """In a tar and in a table."""
    write_tar(tmp_path / "tar/a-0.tar", ("0.png", IMAGES[0]), ("0.cls", b" "), ("1.png", IMAGES[1]), ("1.cls", b"cat"))
    (tmp_path / "table").mkdir()
    pq.write_table(pa.table({"image": IMAGES[:2], "label": ["", "cat"]}), tmp_path / "table/a.parquet")
    for name in ("tar", "table"):
        first, second = read(tmp_path / name)[0]
        assert first.fault and first.content is None and (second.category, second.content) == ("cat", IMAGES[1])


def test_an_image_file_of_gigabytes_is_a_fault(tmp_path):
    placed(tmp_path, "cat/0.png", "dog/1.png")
    os.truncate(tmp_path / "cat/0.png", LARGEST_FILE + 1)
    assert read(tmp_path)[0][0].fault.startswith(f"it has {LARGEST_FILE + 1:,} bytes, more than")


# ---- names that are not UTF-8 ----


def test_names_that_are_not_utf_8_are_text_and_find_their_images(tmp_path):
    """Latin-1 in a folder, a file, a mask and a tar; key and category can be encoded, and the key finds the image."""
    odd = os.fsdecode(b"caf\xe9")
    placed(tmp_path / "set", f"{odd}/{odd}.png", "dog/1.png", f"masks/{odd}/{odd}.png")
    write_tar(tmp_path / "packed" / f"{odd}-0.tar", ("0.png", IMAGES[0]), ("0.cls", b"caf\xe9"))
    with tarfile.open(tmp_path / "packed" / f"{odd}-0.tar", "a", encoding="latin-1") as archive:
        for name in ("café.png", "café.cls"):
            member = tarfile.TarInfo(name)
            member.size = len(IMAGES[1])
            archive.addfile(member, io.BytesIO(IMAGES[1]))
    for folder in (tmp_path / "set", tmp_path / "packed"):
        records, _ = read(folder)
        for record in records:
            json.loads(json.dumps([record.key, record.category, record.split, record.fault]).encode("ascii"))
            assert all(text.encode("utf-8") for text in (record.key, record.split))
    (first, _) = read(tmp_path / "set")[0]
    assert (first.key, first.category) == ("caf\\udce9/caf\\udce9.png", "caf\\udce9") and first.mask == IMAGES[2]
    again = open_dataset(tmp_path / "set").records({first.key})
    assert [record.content for record in again] == [IMAGES[0], None]


# ---- damaged tables ----

READ_ALL = """
import random, sys
from pathlib import Path
from lbgen.datasets.open import open_dataset
from lbgen.errors import UserError
shard, rng = next(Path(sys.argv[1]).iterdir()), random.Random(0)
whole = shard.read_bytes()
for _ in range(400):
    content = bytearray(whole)
    for _ in range(rng.choice((1, 1, 2, 8))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    shard.write_bytes(content)
    try:
        list(open_dataset(shard.parent).records())
    except UserError:
        pass
"""


def table(rows: int = 12, content: bytes = IMAGES[0][:200]) -> pa.Table:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {"image": {"_type": "Image"}, "label": {"names": ["a", "b"], "_type": "ClassLabel"}}
    schema = pa.schema([("image", kind), ("label", pa.int64())])
    images = [{"bytes": content, "path": f"{row}.png"} for row in range(rows)]
    columns = pa.table([images, [row % 2 for row in range(rows)]], schema=schema)
    return columns.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


@pytest.mark.parametrize("suffix", ["arrow", "parquet"])
def test_flipped_bits_end_in_a_fault_or_a_message(tmp_path, suffix):
    """400 times, in a process of its own: offsets of a damaged .arrow file led outside of its memory."""
    if suffix == "arrow":
        with pa.ipc.new_stream(tmp_path / "data-0.arrow", table().schema) as writer:
            writer.write_table(table())
    else:
        pq.write_table(table(), tmp_path / "train.parquet")
    done = subprocess.run([sys.executable, "-c", READ_ALL, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]


def test_a_table_that_grows_is_refused_and_never_held_at_once(tmp_path, monkeypatch):
    """Thirty rows of one value of a megabyte are a few kilobytes on disk: one of them is in memory at a time."""
    path = tmp_path / "train.parquet"
    pq.write_table(table(30, bytes(10**6)), path, compression="zstd")
    assert path.stat().st_size < 10**5
    assert max(batch.nbytes for batch in reading.batches(path, ["image", "label"])) < 1.1e6
    monkeypatch.setattr(reading, "MOST_UNPACKED", 10**7)
    pq.write_table(table(30, bytes(10**6)), path, compression="zstd", use_dictionary=False)
    (record,) = read(tmp_path)[0]
    assert "row group 0 grows to" in record.fault


@pytest.mark.parametrize("compression", ["zstd", "lz4", None])
def test_a_compressed_arrow_file_is_refused(tmp_path, compression):
    """Written by pyarrow; `save_to_disk` compresses nothing."""
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(tmp_path / "data-0.arrow", table().schema, options=options) as writer:
        writer.write_table(table())
    faults = {record.fault for record in read(tmp_path)[0]}
    reason = "the file cannot be read to its end (its batches are compressed; write it again with save_to_disk)"
    assert faults == {reason if compression else ""}


LABEL_WITHOUT_NAMES = '{"info": {"features": {"label": {"_type": "ClassLabel", "names": 5}}}}'


@pytest.mark.parametrize("stored", ["x", "[]", '{"info": 5}', LABEL_WITHOUT_NAMES])
def test_schema_metadata_of_another_shape_is_refused(tmp_path, stored):
    pq.write_table(table().replace_schema_metadata({"huggingface": stored}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match="train.parquet, its schema's metadata.*; write the file again with datasets"):
        read(tmp_path)


def test_a_copy_of_a_table_is_the_same_table(tmp_path):
    """What is not damaged is read as before: against the rows that were written."""
    pq.write_table(table(), tmp_path / "train.parquet")
    shutil.copy(tmp_path / "train.parquet", tmp_path / "test.parquet")
    records, skipped = read(tmp_path)
    assert [(record.content, record.category) for record in records] == [
        (IMAGES[0][:200], "ab"[n % 2]) for n in range(12)
    ] * 2
    assert not skipped
