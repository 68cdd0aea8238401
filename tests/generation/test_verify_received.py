"""A dataset that somebody changed is never called whole: what follows from plan and images is derived and compared.

Every change is made as its sender would: with the hashes that go with it.
"""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from lbgen.datasets import index
from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig
from lbgen.generation.run import generate
from lbgen.generation.screening.consistency import wrong_screening_column
from lbgen.generation.verify import verify
from lbgen.runs.storage import LocalStore

Change = Callable[[dict], object]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, GenerateConfig]:
    """The micro world, judged severely: images that were drawn again, or kept in spite of it, and near-duplicates."""
    folder = tmp_path_factory.mktemp("received")
    (folder / "names.txt").write_text("cup\nfish\ntree\n")
    config = GenerateConfig(
        writers=1, output="x", vocabulary=str(folder / "names.txt"), generator="microworld", scheduler="ddim", steps=2,
        images_per_category=5, batch_size=5, shard_size=15, screen=("label", "quality", "blank", "duplicate"),
        screen_semantics="microworld", label_top_k=1, least_quality=3.5, duplicate_bits=20, duplicate_cosine=0.8,
        max_attempts=3, least_label_probability=0.05,
    )  # fmt: skip
    configs = {name: replace(config, output=folder / name, format=name) for name in ("webdataset", "imagefolder")}
    configs["parquet"] = replace(config, output=folder / "parquet", format="parquet", screen=(), images_per_category=1)
    for each in configs.values():
        generate(each)
        assert verify(each.output).damaged == ()
    return configs


@pytest.fixture
def received(made, tmp_path) -> Callable[[str], Path]:
    return lambda layout: Path(shutil.copytree(made[layout].output, tmp_path / layout))


def edit(folder: Path, change: Callable[[list[dict]], list[dict]], **containers: str) -> None:
    """Rewrite the rows of the index, and the hashes of containers."""
    path = folder / "index/train-00000.parquet"
    table = pq.read_table(path)
    metadata = {b"lbgen_containers": json.dumps(json.loads(table.schema.metadata[b"lbgen_containers"]) | containers)}
    pq.write_table(
        pa.Table.from_pylist(change(table.to_pylist()), table.schema).replace_schema_metadata(metadata), path
    )


def rows_of(folder: Path) -> list[dict]:
    return pq.read_table(folder / "index/train-00000.parquet").to_pylist()


def test_the_set_has_what_is_to_be_changed(made):
    rows = rows_of(Path(made["imagefolder"].output))
    reasons = {entry for row in rows for entry in row["rejections"]}
    assert "duplicate" in reasons and reasons - {"duplicate"} and any(row["attempt"] for row in rows)
    assert any(not row["rejections"] for row in rows) and any(len(row["rejections"]) > row["attempt"] for row in rows)


def first(row: dict) -> bool:
    return not row["rejections"]


def kept(row: dict) -> bool:
    return len(row["rejections"]) > row["attempt"]


def again(row: dict) -> bool:
    return row["attempt"] > 0 and not kept(row)


ROWS: dict[str, tuple[Callable[[dict], bool], dict]] = {
    "prompt": (first, {"prompt": "dog"}),
    "seed": (first, {"seed": 1}),
    "shard": (first, {"shard": 1}),
    "split": (first, {"split": "val"}),
    "name": (first, {"name": "dog"}),
    "label": (first, {"label": 7}),
    "attempt": (first, {"attempt": 1, "rejections": ["label"]}),
    "attempt, back": (again, {"attempt": 0, "rejections": []}),
    "perceptual_hash": (first, {"perceptual_hash": "x"}),
    "label_rank": (first, {"label_rank": 2.0}),
    "label_rank, none": (first, {"label_rank": None}),
    "label_rank, below": (first, {"label_rank": 0.0}),
    "label_probability": (first, {"label_probability": 1.5}),
    "label_probability, below": (first, {"label_probability": 0.01}),
    "quality": (first, {"quality": 3.0}),
    "quality, above": (first, {"quality": 6.0}),
    "quality, nan": (first, {"quality": float("nan")}),
    "deviation": (first, {"deviation": 0.0}),
    "deviation, of other pixels": (first, {"deviation": 0.3}),
    "perceptual_hash, of other pixels": (first, {"perceptual_hash": "00000000ffffffff"}),
    "duplicate_bits, of other hashes": (first, {"duplicate_bits": 63.0}),
    "duplicate_cosine, of none": (first, {"duplicate_cosine": 0.5}),
    "deviation, above": (first, {"deviation": 0.6}),
    "unsafe": (first, {"unsafe": -0.5}),
    "duplicate_bits": (first, {"duplicate_bits": 70.0}),
    "duplicate_cosine": (first, {"duplicate_bits": 4.0, "duplicate_cosine": 1.1}),
    "rejections": (again, {"rejections": ["unsafe"]}),
    "rejections, kept": (kept, {"rejections": ["label", "label", "blank"]}),
    "rejections, fewer": (kept, {"rejections": ["label"] * 2}),
    "found": (first, {"found": ["snow"]}),
    "target": (first, {"target": ["snow"]}),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_changed_column_of_the_index_is_found(received, name):
    """One value of one row, of the kind of row in which a sender would change it."""
    folder = received("imagefolder")
    kind, changes = ROWS[name]
    key = next(row["key"] for row in rows_of(folder) if kind(row))
    edit(folder, lambda rows: [row | changes if row["key"] == key else row for row in rows])
    (line,) = verify(folder).damaged
    assert line.startswith("train-00000: ")


@pytest.mark.parametrize(
    "scores", [{"label_rank": 1.5, "label_probability": 0.5}, {"label_rank": 2.0, "label_probability": 0.6}]
)
def test_a_rank_that_no_image_can_have_is_found(made, scores):
    """Ranks are whole numbers, and the second most probable category has at most a half."""
    config = replace(made["imagefolder"], label_top_k=3)
    rows, _ = index.read_part(LocalStore(Path(config.output), "all"), "train", 0, 15)
    row = next(row for row in rows if not row.rejections)
    assert wrong_screening_column(row, config) is None
    assert wrong_screening_column(replace(row, scores=row.scores | scores), config) == "label_rank"


def test_rows_in_another_order_are_found(received):
    """The order is that of the plan, and near-duplicates are found by it."""
    folder = received("imagefolder")
    edit(folder, lambda rows: rows[::-1])
    assert "the order of its rows" in verify(folder).damaged[0]


def test_an_index_of_far_more_rows_is_not_unpacked(received):
    """Half a megabyte stood for 4.6 GB."""
    folder = received("webdataset")
    edit(folder, lambda rows: rows * 2000)
    assert verify(folder).damaged[0].startswith("train-00000: index/train-00000.parquet cannot be read")


@pytest.mark.parametrize("change", [{"seed": 1}, {"prompt_template": "a {name}"}, {"generator": "other"}])
def test_a_record_that_the_images_contradict_is_found(received, change):
    """The index changed with it: the image files say what made them."""
    folder = received("imagefolder")
    content = yaml.safe_load((folder / "dataset.yaml").read_text())
    content["config"] |= change
    (folder / "dataset.yaml").write_text(yaml.safe_dump(content))
    new = {
        "seed": lambda row: 1,
        "prompt": lambda row: f"a {row['name']}" if "prompt_template" in change else row["name"],
    }
    edit(folder, lambda rows: [row | {"prompt": new["prompt"](row), "seed": change.get("seed", 0)} for row in rows])
    message = "15 of 15 images missing or changed" if "seed" not in change else "the order of its rows"
    assert message in verify(folder).damaged[0]


def black() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (64, 64)).save(stream, "png")
    return stream.getvalue()


@pytest.mark.parametrize("content", [b"no image", black()], ids=["text", "black"])
def test_an_image_that_does_not_say_what_made_it_is_found(received, content):
    folder = received("imagefolder")
    row = rows_of(folder)[0]
    path = folder / row["file"]
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    edit(folder, lambda rows: [rows[0] | {"sha256": digest}, *rows[1:]])
    assert f"1 of 15 images missing or changed ({row['key']})" in verify(folder).damaged[0]


@pytest.mark.parametrize("number", range(3))
def test_an_image_whose_pixels_are_damaged_is_found(received, number):
    """Whatever Pillow raises for it; its hash and its metadata, which stand before the pixels, are right."""
    folder = received("imagefolder")
    row = rows_of(folder)[0]
    content = (folder / row["file"]).read_bytes()
    start = content.index(b"IDAT")
    length = int.from_bytes(content[start - 4 : start], "big")
    damaged = [
        content[: start + 40],
        content[: start + 4] + bytes(length) + content[start + 4 + length :],
        content[: start + 4 + length // 2] + content[start + 4 + length :],
    ][number]
    (folder / row["file"]).write_bytes(damaged)
    digest = hashlib.sha256(damaged).hexdigest()
    edit(folder, lambda rows: [rows[0] | {"sha256": digest}, *rows[1:]])
    assert f"({row['key']})" in verify(folder).damaged[0] or f"(pixels of {row['key']})" in verify(folder).damaged[0]


# ---- containers ----


def repack(folder: Path, change: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]) -> None:
    path = folder / "train-00000.tar"
    with tarfile.open(path) as archive:
        members = [(member.name, archive.extractfile(member).read()) for member in archive]
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in change(members):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    edit(folder, lambda rows: rows, **{path.name: hashlib.sha256(path.read_bytes()).hexdigest()})


def in_json(members: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    content = json.dumps(json.loads(members[2][1]) | {"prompt": "dog"}).encode()
    return [*members[:2], (members[2][0], content), *members[3:]]


def more_samples(members: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    return members + [(f"more.{name.rpartition('.')[2]}", content) for name, content in members[:3]]


TARS = {
    "the same": (lambda members: members, ""),
    "another prompt in .json": (in_json, "1 of 15 images missing or changed"),
    "more samples": (more_samples, "holds more than its images"),
    "another order": (lambda members: members[3:] + members[:3], "in another order"),
    "a mask": (lambda members: [*members, ("x.mask.png", b"")], "holds more than its images"),
    "no .json": (lambda members: members[:2] + members[3:], "images missing or changed"),
}


@pytest.mark.parametrize("name", TARS)
def test_a_changed_archive_is_found(received, name):
    folder = received("webdataset")
    change, message = TARS[name]
    repack(folder, change)
    damaged = [line for line in verify(folder).damaged if line.startswith("train-")]
    assert bool(damaged) == bool(message) and message in " ".join(damaged)


def test_a_container_outside_the_folder_is_found(received):
    folder = received("webdataset")
    shutil.copy(folder / "train-00000.tar", folder.parent / "outside.tar")
    digest = hashlib.sha256((folder / "train-00000.tar").read_bytes()).hexdigest()
    edit(folder, lambda rows: rows, **{"../outside.tar": digest})
    assert "its list of files" in verify(folder).damaged[0]


@pytest.mark.parametrize("change", ["names", "metadata", "order", "more"])
def test_a_changed_table_is_found(received, change):
    """Its class list, with which `datasets` reads it alone; its rows."""
    folder = received("parquet")
    path = folder / "data/train-00000.parquet"
    table = pq.read_table(path)
    if change == "names":
        metadata = {b"huggingface": table.schema.metadata[b"huggingface"].replace(b'"cup", "fish"', b'"fish", "cup"')}
        assert metadata != table.schema.metadata
        table = table.replace_schema_metadata(metadata)
    elif change == "metadata":
        table = table.replace_schema_metadata({b"huggingface": b'{"info": 5}'})
    else:
        table = table.take([2, 1, 0] if change == "order" else [0, 1, 2, 0])
    pq.write_table(table, path)
    edit(folder, lambda rows: rows, **{"data/train-00000.parquet": hashlib.sha256(path.read_bytes()).hexdigest()})
    messages = {"names": "names other categories than the plan", "metadata": "parquet cannot be read"}
    assert messages.get(change, "holds more than its images") in verify(folder).damaged[0]


# ---- counts and rounds ----


@pytest.mark.parametrize(
    "change",
    [
        lambda counts: counts["cup"].update(rejected=counts["cup"].get("rejected", 0) + 1),
        lambda counts: counts["cup"].update(kept=counts["cup"].get("kept", 0) + 1),
        lambda counts: counts["fish"].update(images=6),
        lambda counts: counts["fish"].setdefault("reasons", {}).update(blank=3),
        lambda counts: counts["tree"].pop("images"),
        lambda counts: counts.update(dog={"images": 1}),
        lambda counts: counts.pop("tree"),
    ],
)
def test_changed_counts_are_found(received, change: Change):
    folder = received("imagefolder")
    path = folder / "screening/train-00000.json"
    counts = json.loads(path.read_text())
    change(counts)
    path.write_text(json.dumps(counts))
    assert verify(folder).damaged == ("train-00000: screening/train-00000.json contradicts the index",)


def test_missing_counts_and_rounds_are_named_and_repaired(received, made):
    folder = received("imagefolder")
    before = {path: path.read_bytes() for path in folder.rglob("*.json")} | {
        path: path.read_bytes() for path in folder.rglob("*.png")
    }
    (folder / "screening/train-00000.json").unlink()
    (folder / "duplicates.json").unlink()
    (line,) = verify(folder).damaged
    assert "screening/train-00000.json is missing; duplicates.json does not list " in line
    assert verify(folder, repair=True).damaged == ()
    assert {path: path.read_bytes() for path in before} == before


def test_a_round_that_was_never_drawn_is_named(received):
    folder = received("imagefolder")
    key = next(row["key"] for row in rows_of(folder) if first(row))
    path = folder / "duplicates.json"
    rounds = json.loads(path.read_text())
    path.write_text(json.dumps({"train": [*rounds["train"], rounds["train"][0]]}))
    with pytest.raises(UserError, match="no later attempts than in the rounds before"):
        verify(folder)
    path.write_text(json.dumps({"train": [*rounds["train"], {"0": {key: 0}}]}))
    assert verify(folder).damaged == (f"train-00000: duplicates.json lists {key}, which was not drawn again",)


@pytest.mark.parametrize("image_format", ["jpeg", "webp"])
def test_metadata_and_size_are_read_in_every_image_format(config, tmp_path, image_format):
    """A whole dataset is whole; one whose record says another size is not."""
    made = replace(config, output=tmp_path / "made", image_format=image_format, images_per_category=1, format="parquet")
    generate(replace(made, stored_size=(16, 24)))
    assert verify(tmp_path / "made").damaged == ()
    record = tmp_path / "made/dataset.yaml"
    content = yaml.safe_load(record.read_text())
    content["config"]["stored_size"] = [24, 16]
    record.write_text(yaml.safe_dump(content))
    assert "3 of 3 images missing or changed" in verify(tmp_path / "made").damaged[0]
