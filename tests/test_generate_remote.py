"""Datasets on object storage, over real HTTP against an S3 server that the test starts."""

import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import s3fs
from test_generate import config, contents, whole  # noqa: F401 (fixtures)

from lbgen.errors import UserError
from lbgen.generation.run import generate
from lbgen.generation.verify import verify
from lbgen.storage import open_store


@pytest.fixture(scope="module")
def server():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def bucket(server, monkeypatch, tmp_path):
    """An empty bucket's file system; the environment is what a user would set."""
    settings = {"AWS_ENDPOINT_URL": server, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    for name, value in {**settings, "AWS_DEFAULT_REGION": "us-east-1", "TMPDIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    name = f"bucket-{time.monotonic_ns()}"
    system.mkdir(name)
    return system, name


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
    assert not list(tmp_path.glob("lbgen-*/.staging"))


def test_killed_upload_goes_on(bucket, config, tmp_path):
    """A run killed after its first shard; resumed, its objects are those of a run left alone."""
    system, name = bucket
    command = [sys.executable, "-m", "lbgen", "generate", "--generator", config.generator, "--vocabulary"]
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


def test_marker_comes_after_the_shard(bucket, config):
    """By the server's own clock."""
    system, name = bucket
    output = f"s3://{name}/cut"
    generate(replace(config, output=output))
    store = open_store(output)
    written = sorted(store.system.info(path)["LastModified"] for path in store.system.find(f"{name}/cut/train"))
    marks = sorted(store.system.info(path)["LastModified"] for path in store.system.find(f"{name}/cut/index"))
    assert marks[-1] >= written[-1] and marks[0] >= written[0]


def test_tampered_object_is_found_and_repaired(bucket, config, capsys):
    system, name = bucket
    output = f"s3://{name}/tampered"
    generate(replace(config, output=output, format="parquet"))
    before = objects(system, f"{name}/tampered")
    system.pipe_file(f"{name}/tampered/data/train-00001.parquet", before["data/train-00001.parquet"][:-20])
    assert [line.split(":")[0] for line in verify(output).damaged] == ["train-00001"]
    assert verify(output, repair=True).damaged == ()
    assert objects(system, f"{name}/tampered") == before


def test_missing_bucket_and_unknown_protocol_are_one_line(bucket, config):
    with pytest.raises(UserError, match="s3://no-such-bucket/x: "):
        generate(replace(config, output="s3://no-such-bucket/x"))
    with pytest.raises(UserError, match="--output nothing://x: "):
        generate(replace(config, output="nothing://x"))
