"""Pre-training on datasets in object storage, over real HTTP, against the same run on the local files."""

import gc
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import s3fs
from folders import contents
from hub_server import REPOSITORY, Hub
from pretrained import assert_equal_runs

from lbgen.datasets.files.remote import Address
from lbgen.datasets.open import open_dataset
from lbgen.datasets.tables import hugging_face
from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig
from lbgen.generation.run import generate
from lbgen.pretraining.config import PretrainConfig
from lbgen.pretraining.run import pretrain


@pytest.fixture(scope="module")
def made(tiny_sd_folder, tmp_path_factory):
    """12 images of 3 categories in 3 shards, by layout; Parquet in row groups of 2."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "names.txt").write_text("z1 cat\na2 dog\nm3 red fox\n")
    settings = GenerateConfig(
        writers=1, output=folder / "webdataset", vocabulary=str(folder / "names.txt"), generator=str(tiny_sd_folder),
        images_per_category=4, scheduler="ddim", steps=2, batch_size=2, shard_size=5,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hugging_face, "ROWS_AT_ONCE", 2)
        for layout in ("imagefolder", "webdataset", "parquet"):
            generate(replace(settings, output=folder / layout, format=layout))
    return folder


def identity(run):
    return json.loads((run.folder / "config.json").read_text())["data"]


@pytest.mark.parametrize(("layout", "workers"), [("imagefolder", 0), ("webdataset", 2), ("parquet", 2)])
def test_backbone_is_that_of_the_local_files(bucket, made, config, tmp_path, layout, workers):
    """To the bit, with the same identity of the data; and nothing stays on this machine."""
    system, name = bucket
    system.put(str(made / layout), f"{name}/set", recursive=True)
    here = replace(config, output=tmp_path / "here", epochs=2, held_out=0.3, batch_size=5)
    there = replace(here, output=tmp_path / "there", workers=workers)
    pretrain(made / layout, here)
    pretrain(f"s3://{name}/set", there)
    assert_equal_runs(there, here)
    (ours,), (theirs,) = (
        json.loads((run.folder / "config.json").read_text())["data"].values() for run in (there, here)
    )
    assert ours == theirs
    gc.collect()
    assert not list(tmp_path.glob("lbgen-*/reading-*"))


def test_mixed_with_a_local_folder_and_validated_from_afar(bucket, made, config, tmp_path):
    system, name = bucket
    system.put(str(made / "parquet"), f"{name}/far/set", recursive=True)
    near = made / "imagefolder"
    here = replace(config, output=tmp_path / "here", epochs=1, weights=(1, 2), validation=str(near), batch_size=5)
    there = replace(here, output=tmp_path / "there", validation=f"s3://{name}/far/set/")
    pretrain([near, made / "parquet"], replace(here, validation=str(made / "parquet")))
    pretrain([near, f"s3://{name}/far/set"], there)
    assert (there.folder / "backbone.safetensors").read_bytes() == (here.folder / "backbone.safetensors").read_bytes()


@pytest.mark.parametrize("layout", ["imagefolder", "webdataset", "parquet"])
def test_what_stands_for_a_dataset_takes_no_room(bucket, made, layout):
    """By the system's count of blocks, after the index was read: its descriptions and footers alone have content."""
    system, name = bucket
    system.put(str(made / layout), f"{name}/set", recursive=True)
    reader = open_dataset(Address(f"s3://{name}/set"))
    found = [(record.key, reader.read(record.location)) for record in reader.records(wanted=())]
    local = open_dataset(made / layout)
    assert found == [(record.key, record.content) for record in local.records()] and len(found) == 12
    sizes = {path: path.stat() for path in reader.folder.rglob("*") if path.is_file()}
    assert sum(each.st_size for each in sizes.values()) > 12 * 1000
    full = {path.name for path, each in sizes.items() if each.st_blocks}
    shards = {path.name for path in (made / layout / "data").glob("*")} if layout == "parquet" else set()
    assert full <= {"labels.json", "_info.json"} | shards


@pytest.mark.parametrize("workers", [0, 2])
def test_storage_that_fails_is_one_line_and_the_run_goes_on(bucket, made, config, tmp_path, monkeypatch, workers):
    """To the bits of a run that nothing happened to."""
    system, name = bucket
    system.put(str(made / "webdataset"), f"{name}/set", recursive=True)
    whole = replace(config, output=tmp_path / "whole", epochs=2, held_out=0.3, batch_size=4, checkpoint_every=1)
    pretrain(made / "webdataset", whole)
    cut, real, calls = replace(whole, output=tmp_path / "cut", workers=workers), s3fs.S3FileSystem._cat_file, []

    async def failing(self, path, **options):
        calls.append(path)
        if sum(each.endswith(".tar") for each in calls) > 6:  # of this process: in its second batch
            raise ConnectionResetError("reset by peer")
        return await real(self, path, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_cat_file", failing)
    with pytest.raises(
        UserError, match=r"could not be read from their storage \(reset by peer\); start again"
    ) as caught:
        pretrain(f"s3://{name}/set", cut)
    assert "\n" not in str(caught.value) and (cut.folder / "checkpoint.pt").exists()
    monkeypatch.setattr(s3fs.S3FileSystem, "_cat_file", real)
    pretrain(f"s3://{name}/set", cut)
    assert_equal_runs(cut, whole)


def test_addresses_without_a_dataset_are_one_line(bucket, made, config, tmp_path):
    system, name = bucket
    settings = replace(config, output=tmp_path / "run")
    for address in (f"s3://{name}/nothing", "s3://no-such-bucket/set"):
        with pytest.raises(UserError, match=f"^{address}: there are no files; give the address of a dataset"):
            pretrain(address, settings)
    with pytest.raises(UserError, match="^sftp://host/set: datasets are read from folders and from s3://"):
        pretrain("sftp://host/set", settings)
    system.pipe_file(f"{name}/flat/a.png", b"x")
    with pytest.raises(UserError, match=f"^s3://{name}/flat: no labelled image in it"):
        pretrain(f"s3://{name}/flat", settings)
    system.put(str(made / "webdataset"), f"{name}/odd", recursive=True)
    system.pipe_file(f"{name}/odd/labels.json", b"{")
    with pytest.raises(UserError, match=f"^s3://{name}/odd/labels.json"):
        pretrain(f"s3://{name}/odd", settings)
    with pytest.raises(UserError, match="given twice"):
        pretrain([f"s3://{name}/flat", f"s3://{name}/flat/"], settings)
    system.pipe_file(f"{name}/arrow/data-00000.arrow", b"x")
    with pytest.raises(UserError, match=f"^s3://{name}/arrow: .arrow files are read from local folders only"):
        pretrain(f"s3://{name}/arrow", settings)
    assert not settings.folder.exists()


def test_google_gives_the_same_backbone(google, made, config, tmp_path):
    google.put(str(made / "webdataset"), "bucket/set", recursive=True)
    here = replace(config, output=tmp_path / "here", epochs=1, batch_size=5)
    pretrain(made / "webdataset", here)
    pretrain("gs://bucket/set", replace(here, output=tmp_path / "there", workers=2))
    assert_equal_runs(replace(here, output=tmp_path / "there"), here)


def test_the_hub_gives_the_same_backbone(made, tmp_path):
    """In a process of its own: the Hub's address is read when its library is imported."""
    hub = Hub()
    hub.files.update({f"set/{name}": (made / "parquet" / name).read_bytes() for name in contents(made / "parquet")})
    settings = {"HF_ENDPOINT": hub.address, "HF_TOKEN": "hf_x", "HF_HUB_OFFLINE": "0"}
    flags = ["--recipe", "micro", "--epochs", "1", "--batch-size", "5", "--workers", "1", "--logger", "none"]
    command = [sys.executable, "-m", "lbgen", "pretrain", f"hf://datasets/{REPOSITORY}/set", *flags, "--output"]
    done = subprocess.run([*command, tmp_path / "there"], env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    here = PretrainConfig.from_recipe("micro", output=tmp_path / "here", epochs=1, batch_size=5, logger="none")
    pretrain(made / "parquet", here)
    assert_equal_runs(replace(here, output=tmp_path / "there"), here)
    hub.shutdown()
