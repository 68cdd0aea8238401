"""Session fixtures: folders of random-weight miniatures, and a small dataset and a small run made with them."""

import multiprocessing.spawn
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # here and in every process a test starts: the bits of a sum depend on the threads
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # the tests run in several processes on the same cores
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp()  # which datasets were made here is noted there

import pytest
from miniatures import write_aimv2, write_clip, write_metaclip2, write_siglip, write_siglip2, write_stable_diffusion
from warm_python import started

from lbgen.alignment import run
from lbgen.alignment.config import AlignConfig
from lbgen.generation.config import GenerateConfig
from lbgen.generation.run import generate
from lbgen.models.generator import Generator, load_generator

# Ctrl-C is heeded even where a shell that started the tests in the background has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def warm_python() -> Iterator[str]:
    """An executable like Python that has imported the libraries when it starts (warm_python.py)."""
    with started() as executable:
        yield executable


@pytest.fixture
def warm_processes(warm_python: str) -> Iterator[None]:
    """Processes that multiprocessing starts in the test are those of `warm_python`."""
    before = multiprocessing.spawn.get_executable()
    multiprocessing.set_executable(warm_python)
    yield
    multiprocessing.set_executable(before)


@pytest.fixture(scope="session")
def tiny_sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion predicting epsilon, PNDM scheduler, 32x32 images, prompts of up to 16 tokens."""
    return write_stable_diffusion(tmp_path_factory.mktemp("tiny-sd"))


@pytest.fixture(scope="session")
def tiny_sd_v_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, predicting velocity as Stable Diffusion 2.1 does."""
    return write_stable_diffusion(tmp_path_factory.mktemp("tiny-sd-v"), prediction_type="v_prediction")


@pytest.fixture(scope="session")
def tiny_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("tiny-clip"))


@pytest.fixture(scope="session")
def tiny_siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_siglip(tmp_path_factory.mktemp("tiny-siglip"))


@pytest.fixture(scope="session")
def tiny_siglip2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_siglip2(tmp_path_factory.mktemp("tiny-siglip2"))


@pytest.fixture(scope="session")
def tiny_metaclip2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_metaclip2(tmp_path_factory.mktemp("tiny-metaclip2"))


@pytest.fixture(scope="session")
def tiny_aimv2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_aimv2(tmp_path_factory.mktemp("tiny-aimv2"))


@pytest.fixture
def tiny_generator(tiny_sd_folder: Path) -> Generator:
    """Freshly loaded, so that a test may do to it what it likes."""
    return load_generator(str(tiny_sd_folder))


@pytest.fixture(scope="session")
def config(tiny_sd_folder, tmp_path_factory) -> GenerateConfig:
    """12 images in 3 shards of 5, 5 and 2; batches of 2."""
    folder = tmp_path_factory.mktemp("generate")
    (folder / "names.txt").write_text("z1 cat\na2 dog\nm3 red fox\n")
    return GenerateConfig(
        writers=1,
        output=folder / "whole",
        vocabulary=str(folder / "names.txt"),
        generator=str(tiny_sd_folder),
        images_per_category=4,
        seed=7,
        scheduler="ddim",
        steps=2,
        batch_size=2,
        shard_size=5,
    )


@pytest.fixture(scope="session")
def whole(config) -> Path:
    """The folder of a run that was never interrupted."""
    return Path(generate(config).output)


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory, tiny_sd_folder, tiny_clip_folder):
    """A config of the miniatures; `dataclasses.replace` gives variants."""
    names = tmp_path_factory.mktemp("names") / "names.txt"
    names.write_text("cat\ndog\nant\nbee\ncup\n")
    return AlignConfig(
        output=tmp_path_factory.mktemp("run"),
        vocabulary=str(names),
        generator=str(tiny_sd_folder),
        semantics=str(tiny_clip_folder),
        steps=3,
        differentiated_steps=2,
        rank=2,
        alpha=2,
        max_steps=2,
        batch_size=2,
        checkpoint_every=1,
        evaluate_every=1,
        evaluation_images=5,
        learning_rate=1e-3,
        logger="none",
    )


@pytest.fixture(scope="session")
def finished(tiny_config):
    """A whole run, with its folder."""
    run.align(tiny_config)
    return tiny_config


@pytest.fixture
def fresh(tiny_config, tmp_path):
    """Variants of the config with a folder of their own."""
    return lambda **changes: replace(tiny_config, **{"output": tmp_path / "run", **changes})


@pytest.fixture(scope="session")
def object_store():
    """The address of an S3 server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def bucket(object_store, monkeypatch, tmp_path):
    """An empty bucket's file system; the environment is what a user would set."""
    import s3fs

    settings = {"AWS_ENDPOINT_URL": object_store, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    for name, value in {**settings, "AWS_DEFAULT_REGION": "us-east-1", "TMPDIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    name = f"bucket-{time.monotonic_ns()}"
    system.mkdir(name)
    return system, name


@pytest.fixture
def google(monkeypatch, tmp_path):
    """An empty bucket's file system, at an emulator."""
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # asks over gRPC, which the emulator lacks
    gcsfs = pytest.importorskip("gcsfs", reason="needs gcsfs, of `pip install 'lbgen[gs]'`")
    emulator = pytest.importorskip("gcp_storage_emulator.server", reason="needs gcp-storage-emulator")
    server = emulator.create_server("127.0.0.1", 0, in_memory=True)
    server.start()
    port = server._api._httpd.socket.getsockname()[1]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("FSSPEC_GCS_TOKEN", "anon")
    monkeypatch.setattr("fsspec.config.conf", {"gcs": {"token": "anon"}})
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    gcsfs.GCSFileSystem.clear_instance_cache()
    system = gcsfs.GCSFileSystem()
    system.mkdir("bucket")
    yield system
    server.stop()
