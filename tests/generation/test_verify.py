"""Damage of every kind is found by shard, and repaired to the bytes that were there."""

import io
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import contents

from lbgen.datasets.index import read_part
from lbgen.datasets.layouts import LAYOUTS
from lbgen.datasets.tables.hugging_face import COLUMNS
from lbgen.errors import UserError
from lbgen.generation.integrity.shard_rows import DAMAGE
from lbgen.generation.render import Renderer
from lbgen.generation.run import generate
from lbgen.generation.verify import verify
from lbgen.runs.store import LocalStore

CONTAINERS = {"webdataset": "train-{:05d}.tar", "parquet": "data/train-{:05d}.parquet"}


@pytest.fixture(scope="module")
def wholes(config, whole, tmp_path_factory) -> dict[str, Path]:
    """By layout."""
    folder = tmp_path_factory.mktemp("wholes")
    for layout in CONTAINERS:
        generate(replace(config, output=folder / layout, format=layout))
    return {"imagefolder": whole, **{layout: folder / layout for layout in CONTAINERS}}


@pytest.fixture
def copies(wholes, tmp_path) -> dict[str, Path]:
    return {layout: Path(shutil.copytree(path, tmp_path / layout)) for layout, path in wholes.items()}


def damaged(folder: Path) -> list[str]:
    return [line.split(":")[0] for line in verify(folder).damaged]


def shard_file(folder: Path, layout: str, shard: int) -> Path:
    """A container, or for imagefolder one of the shard's images."""
    if layout in CONTAINERS:
        return folder / CONTAINERS[layout].format(shard)
    from lbgen.datasets.index import read_index

    rows = [row for row in read_index(folder).to_pylist() if row["shard"] == shard]
    return folder / rows[0]["file"]


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


THREADS = """
import os, sys, threading
from pathlib import Path
from lbgen.datasets.open import open_dataset
from lbgen.generation.verify import verify

def native():
    names = [Path(f"/proc/self/task/{{thread}}/comm").read_text() for thread in os.listdir("/proc/self/task")]
    return sum(name != "jemalloc_bg_thd\\n" for name in names) - threading.active_count()

before = native()
{reading}
sys.exit(f"{{native() - before}} more threads" if native() > before else 0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads by Linux's /proc")
@pytest.mark.parametrize("reading", ["verify({folder!r})", "list(open_dataset(Path({folder!r})).records())"])
@pytest.mark.parametrize("layout", CONTAINERS)
def test_reading_leaves_no_native_thread_behind(wholes, layout, reading):
    """By the system's count: one of Arrow's pool, alive while the process ends, aborts it now and then (code 134)."""
    program = THREADS.format(reading=reading.format(folder=str(wholes[layout])))
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("layout", ["imagefolder", "webdataset", "parquet"])
def test_damage_is_named_by_shard_and_repaired_to_the_same_bytes(copies, wholes, layout):
    folder = copies[layout]
    assert damaged(folder) == []
    flip(shard_file(folder, layout, 0), -30)
    path = shard_file(folder, layout, 1)
    os.truncate(path, path.stat().st_size // 2)
    assert damaged(folder) == ["train-00000", "train-00001"]
    shard_file(folder, layout, 2).unlink()
    assert damaged(folder) == ["train-00000", "train-00001", "train-00002"]
    assert verify(folder, repair=True).damaged == ()
    assert contents(folder) == contents(wholes[layout])


def test_repair_to_other_bytes_is_said_and_recorded(copies, wholes, capsys, monkeypatch):
    """A device that draws one level brighter: the shard is whole again, and no longer what the index promised."""
    folder = copies["webdataset"]
    for shard in (0, 1):
        flip(shard_file(folder, "webdataset", shard), -30)
    (folder / "index/train-00000.parquet").unlink()
    render = Renderer.render

    def brighter(self, batch):
        rendered = render(self, batch)
        return rendered._replace(pixels=rendered.pixels ^ 1)

    monkeypatch.setattr(Renderer, "render", brighter)
    capsys.readouterr()
    assert verify(folder, repair=True).damaged == ()
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("train-00000: made again; its part of the index was lost")]
    assert [line for line in lines if line.startswith("train-00001: made again; 5 of 5 images differ in bytes from")]
    assert lines[-1].startswith("3 of 3 shards")
    monkeypatch.undo()
    for shard in (0, 1):
        flip(shard_file(folder, "webdataset", shard), -30)
    (folder / "index/train-00000.parquet").unlink()
    verify(folder, repair=True)
    assert "train-00001: made again; 5 of 5 images differ" in capsys.readouterr().out  # from the brighter ones
    flip(shard_file(folder, "webdataset", 1), -30)
    verify(folder, repair=True)
    assert "train-00001: made again, to the bytes that were recorded" in capsys.readouterr().out
    assert contents(folder) == contents(wholes["webdataset"])


@pytest.mark.parametrize("layout", ["webdataset", "parquet"])
def test_every_byte_of_a_container_counts(copies, layout):
    """Labels and headers too, not only the images."""
    path = shard_file(copies[layout], layout, 1)
    for at in range(0, path.stat().st_size, path.stat().st_size // 20):
        flip(path, at)
        assert damaged(copies[layout]) == ["train-00001"], at
        flip(path, at)


def test_whatever_a_damaged_footer_raises_is_damage(wholes, tmp_path):
    """Some have pyarrow raise what is no ValueError: integers of 12 bits are not implemented."""
    row = read_part(LocalStore(wholes["parquet"], "x"), "train", 1, 1)[0][0]
    stream = io.BytesIO()
    pq.write_table(pa.table([[{"bytes": b"x", "path": "a.png"}], [0]], schema=pa.schema(COLUMNS)), stream)
    content, raised = bytearray(stream.getvalue()), set()
    for at in range(len(content) - 8 - int.from_bytes(content[-8:-4], "little"), len(content)):
        content[at] ^= 2
        (tmp_path / "shard.parquet").write_bytes(content)
        try:
            list(LAYOUTS["parquet"].read(tmp_path / "shard.parquet", row))
        except DAMAGE as error:
            raised.add(type(error))
        content[at] ^= 2
    assert pa.ArrowNotImplementedError in raised


def test_damaged_index_is_found(copies, wholes):
    index = copies["webdataset"] / "index"
    os.truncate(index / "train-00000.parquet", 100)
    (index / "train-00001.parquet").unlink()
    shutil.copy(wholes["imagefolder"] / "index/train-00000.parquet", index / "train-00002.parquet")
    lines = verify(copies["webdataset"]).damaged
    assert lines[0] == "train-00000: index/train-00000.parquet cannot be read"
    assert lines[1] == "train-00001: not made"
    assert lines[2].startswith("train-00002: index/train-00002.parquet is not that of the plan")
    assert verify(copies["webdataset"], repair=True).damaged == ()
    assert contents(copies["webdataset"]) == contents(wholes["webdataset"])


def test_image_of_no_shard_is_named(copies):
    """torchvision's ImageFolder would take it for one of the dataset's."""
    image = next((copies["imagefolder"] / "train/m3").iterdir())
    shutil.copy(image, image.with_name("holiday.png"))
    assert verify(copies["imagefolder"]).damaged == ("train/m3/holiday.png: belongs to no shard; remove it",)


def test_unreadable_image_is_damage(copies):
    image = shard_file(copies["imagefolder"], "imagefolder", 1)
    image.unlink()
    image.mkdir()
    assert damaged(copies["imagefolder"]) == ["train-00001"]


def test_exit_codes(copies, tmp_path, warm_python):
    """0 whole, 3 damaged with a line a shard on stdout, 2 for a folder that is no dataset."""

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([warm_python, "-m", "lbgen", "verify", *arguments], capture_output=True, text=True)

    folder = copies["parquet"]
    assert run(str(folder)).returncode == 0
    flip(shard_file(folder, "parquet", 2), 50)
    found = run(str(folder))
    assert found.returncode == 3
    assert found.stdout.splitlines()[0].startswith("train-00002: ")
    assert run(str(folder), "--repair").returncode == 0
    nothing = run(str(tmp_path / "nothing"))
    assert nothing.returncode == 2
    assert nothing.stderr.startswith(f"lbgen: {tmp_path / 'nothing'}: no dataset.yaml in it") and not nothing.stdout


def test_dataset_made_by_another_version_is_not_repaired_with_this_one(copies):
    """Its other images are of that version."""
    record = copies["parquet"] / "dataset.yaml"
    record.write_text(record.read_text().replace("- torch ", "- torch 0"))
    flip(shard_file(copies["parquet"], "parquet", 2), 50)
    before = contents(copies["parquet"])
    with pytest.raises(UserError, match="was begun with torch=="):
        verify(copies["parquet"], repair=True)
    assert contents(copies["parquet"]) == before
