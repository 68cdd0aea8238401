"""Datasets on object storage, over real HTTP against servers that the tests start: S3, Google's, and a Hub of ours."""

import logging
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import s3fs
from folders import contents
from hub_server import REPOSITORY, Hub
from warm_python import started

from lbgen.datasets.index import read_part
from lbgen.errors import UserError
from lbgen.generation.run import generate
from lbgen.generation.verify import verify
from lbgen.runs import atomic
from lbgen.runs.storage import open_store


def objects(system: s3fs.S3FileSystem, root: str) -> dict[str, bytes]:
    system.invalidate_cache()
    return {path.removeprefix(f"{root}/"): system.cat_file(path) for path in system.find(root)}


@pytest.mark.parametrize("layout", ["imagefolder", "webdataset", "parquet"])
def test_objects_are_the_files_of_a_local_run(bucket, config, tmp_path, layout):
    system, name = bucket
    made = replace(config, format=layout)
    generate(replace(made, output=f"s3://{name}/data/set"))
    generate(replace(made, output=tmp_path / "local"))
    files = {path: (tmp_path / "local" / path).read_bytes() for path in contents(tmp_path / "local") if path != ".lock"}
    assert objects(system, f"{name}/data/set") == files
    assert not list(tmp_path.glob("lbgen-*/**/.staging"))


def test_killed_upload_goes_on(bucket, config, tmp_path, warm_python):
    """A run killed after its first shard; resumed, its objects are those of a run left alone."""
    system, name = bucket
    command = [warm_python, "-m", "lbgen", "generate", "--generator", config.generator, "--vocabulary"]
    command += [config.vocabulary, "--images-per-category", "20", "--seed", "7", "--scheduler", "ddim", "--steps", "2"]
    command += ["--batch-size", "2", "--shard-size", "5", "--output", f"s3://{name}/broken", "--format", "webdataset"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not system.exists(f"{name}/broken/index/train-00000.parquet") and process.poll() is None:
        system.invalidate_cache()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    shards = len(system.find(f"{name}/broken/index"))
    assert 1 <= shards < 12
    made = replace(config, images_per_category=20, format="webdataset")
    generate(replace(made, output=f"s3://{name}/broken"))
    generate(replace(made, output=f"s3://{name}/whole"))
    assert objects(system, f"{name}/broken") == objects(system, f"{name}/whole")


def test_marker_comes_after_the_shard(bucket, config, caplog):
    """By the server's own log of requests."""
    _, name = bucket
    caplog.set_level(logging.INFO, "werkzeug")
    generate(replace(config, output=f"s3://{name}/cut"))
    lines = [re.search(rf'"PUT /{name}/cut/(\S+) HTTP', record.getMessage()) for record in caplog.records]
    put = [line[1] for line in lines if line]
    index = {path: place for place, path in enumerate(put)}
    rows = [row for part in (0, 1) for row in read_part(open_store(f"s3://{name}/cut"), "train", part, 1000)[0]]
    assert len(rows) == 10
    assert all(index[row.file] < index[f"index/train-{row.shard:05d}.parquet"] for row in rows)
    assert put[-1] == "croissant.json"


def test_tampered_object_is_found_and_repaired(bucket, config, capsys):
    system, name = bucket
    output = f"s3://{name}/tampered"
    generate(replace(config, output=output, format="parquet"))
    before = objects(system, f"{name}/tampered")
    system.pipe_file(f"{name}/tampered/data/train-00001.parquet", before["data/train-00001.parquet"][:-20])
    assert [line.split(":")[0] for line in verify(output).damaged] == ["train-00001"]
    assert verify(output, repair=True).damaged == ()
    assert objects(system, f"{name}/tampered") == before


def test_near_duplicates_are_drawn_again_on_object_storage_as_on_disk(bucket, config, tmp_path):
    """And what is downloaded to change a shard does not pile up."""
    _, name = bucket
    near = {"duplicate_bits": 22, "duplicate_cosine": 0.8, "images_per_category": 8}
    made = replace(config, format="webdataset", screen=("duplicate",), screen_semantics="microworld", **near)
    generate(replace(made, output=tmp_path / "local"))
    generate(replace(made, output=f"s3://{name}/near"))
    files = {path: (tmp_path / "local" / path).read_bytes() for path in contents(tmp_path / "local") if path != ".lock"}
    assert "duplicates.json" in files and objects(bucket[0], f"{name}/near") == files
    assert not list(tmp_path.glob("lbgen-*/**/.staging"))


@pytest.mark.parametrize("call", ["get_file", "cat_file"])
@pytest.mark.parametrize("cause", [ConnectionResetError("reset by peer"), OSError(5, "Input/output error")], ids=str)
def test_link_that_fails_is_no_damage(bucket, config, monkeypatch, call, cause):
    """Good shards stay when the second file that is read does not come."""
    system, name = bucket
    output = f"s3://{name}/far"
    generate(replace(config, output=output, format="webdataset"))
    before, real = objects(system, f"{name}/far"), getattr(system, call)

    def flaky(path, *arguments, **options):
        if "train-00001" in path:
            raise cause
        return real(path, *arguments, **options)

    monkeypatch.setattr(system, call, flaky)
    with pytest.raises(UserError, match=f"{output}: .*{cause.args[-1]}.*start again"):
        verify(output, repair=True)
    monkeypatch.undo()
    assert objects(system, f"{name}/far") == before


def test_objects_that_are_too_large_are_not_fetched(bucket, monkeypatch):
    """By their size, before a byte is read: one that is read at once, and one that this disk has no room for."""
    system, name = bucket
    system.pipe_file(f"{name}/set/plan.json", b"x" * 100)
    system.pipe_file(f"{name}/set/empty", b"")
    store = open_store(f"s3://{name}/set")
    assert store.read("plan.json") == b"x" * 100 and store.read("empty") == b""
    monkeypatch.setattr(type(system), "_cat_file", None)
    monkeypatch.setattr(type(system), "_get_file", None)
    monkeypatch.setattr(atomic, "LARGEST_FILE", 99)
    with pytest.raises(UserError, match="set/plan.json: it has 100 bytes, more than the 99 that are read"):
        store.read("plan.json")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=50))
    with pytest.raises(UserError, match="set/plan.json: it has 100 bytes, .* has room for 50; make room"):
        store.fetched("plan.json").__enter__()


def test_missing_bucket_is_one_line(bucket, config):
    with pytest.raises(UserError, match="s3://no-such-bucket/x: "):
        generate(replace(config, output="s3://no-such-bucket/x"))


@pytest.mark.parametrize("protocol", ["nothing", "sftp", "memory", "simplecache::s3"])
def test_protocols_whose_files_may_be_seen_half_written_are_refused(config, protocol):
    with pytest.raises(UserError, match=f"--output {protocol}://x/y: .* half-written; give a folder, or .* s3://"):
        generate(replace(config, output=f"{protocol}://x/y"))


def test_file_address_is_the_folder(config, whole, tmp_path):
    """Whose files appear whole, and which is locked."""
    generate(replace(config, output=f"file://{tmp_path}/made"))
    assert contents(tmp_path / "made") == contents(whole)
    (tmp_path / "made/index/train-00001.parquet").unlink()
    assert verify(f"file://{tmp_path}/made").damaged == ("train-00001: not made",)


# ---- Google Cloud Storage ----


@pytest.mark.parametrize("layout", ["imagefolder", "webdataset", "parquet"])
def test_google_objects_are_the_files_of_a_local_run(google, config, tmp_path, layout):
    made = replace(config, format=layout)
    generate(replace(made, output="gs://bucket/set"))
    generate(replace(made, output=tmp_path / "local"))
    files = {path: (tmp_path / "local" / path).read_bytes() for path in contents(tmp_path / "local") if path != ".lock"}
    assert objects(google, "bucket/set") == files
    google.rm_file("bucket/set/index/train-00001.parquet")
    assert verify("gs://bucket/set").damaged == ("train-00001: not made",)
    assert verify("gs://bucket/set", repair=True).damaged == ()
    assert objects(google, "bucket/set") == files


# ---- the Hugging Face Hub ----


@pytest.fixture(scope="module")
def hub():
    """A Hub and a Python that uses it: its address is read when its library is imported."""
    hub = Hub()
    with started({"HF_ENDPOINT": hub.address, "HF_TOKEN": "hf_x", "HF_HUB_OFFLINE": "0"}) as python:
        yield hub, python
    hub.shutdown()


@pytest.mark.parametrize("layout", ["webdataset", "parquet"])
def test_hub_files_are_those_of_a_local_run_markers_after_shards(hub, config, tmp_path, layout):
    hub, python = hub
    hub.files.clear()
    hub.commits.clear()

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command, environment = [python, "-m", "lbgen", *arguments], os.environ | {"TMPDIR": str(tmp_path)}
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    flags = ["--generator", config.generator, "--vocabulary", config.vocabulary, "--images-per-category", "4"]
    flags += ["--seed", "7", "--scheduler", "ddim", "--steps", "2", "--batch-size", "2", "--shard-size", "5"]
    flags += ["--format", layout, "--output", f"hf://datasets/{REPOSITORY}/set"]
    made = run("generate", *flags)
    assert made.returncode == 0, made.stderr
    generate(replace(config, output=tmp_path / "local", format=layout))
    files = {path: (tmp_path / "local" / path).read_bytes() for path in contents(tmp_path / "local") if path != ".lock"}
    assert {path.removeprefix("set/"): content for path, content in hub.files.items()} == files
    order = [path for commit in hub.commits for path in commit]
    for shard in range(3):
        file = {"webdataset": f"set/train-{shard:05d}.tar", "parquet": f"set/data/train-{shard:05d}.parquet"}[layout]
        assert order.index(file) < order.index(f"set/index/train-{shard:05d}.parquet")
    hub.files.pop("set/index/train-00001.parquet")
    found = run("verify", f"hf://datasets/{REPOSITORY}/set", "--repair")
    assert (found.returncode, found.stdout.splitlines()[0]) == (0, "train-00001: not made"), found.stderr
    assert {path.removeprefix("set/"): content for path, content in hub.files.items()} == files


def test_image_folder_on_the_hub_is_refused(config):
    with pytest.raises(UserError, match="--format imagefolder: hf:// .*; choose webdataset or parquet"):
        replace(config, output="hf://datasets/me/set")
