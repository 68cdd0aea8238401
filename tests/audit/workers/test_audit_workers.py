"""Several workers, and a sample: the images that are measured are the same as with one worker, and as by hand."""

import hashlib
import multiprocessing
import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from audited import photographs, write_image_folder

import lbgen
from lbgen.audit.config import AuditConfig
from lbgen.audit.observe import Observed, Sample, observe
from lbgen.audit.workers.observer import NewImage, Observer, canvas_side
from lbgen.audit.workers.pool import this_process, with_absolute_path, workers_of
from lbgen.audit.workers.row_cache import RowCache
from lbgen.configuration import extensions
from lbgen.datasets.open import open_dataset
from lbgen.errors import UserError
from lbgen.models.semantics import load_semantics


@pytest.fixture(scope="module")
def observer():
    space = load_semantics("microworld", torch.device("cpu"))
    return Observer(space, canvas_side(space))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """48 photographs; one is there twice in a category and in far batches, and a broken file is there twice."""
    folder = write_image_folder(tmp_path_factory.mktemp("workers") / "set", photographs(48, 1))
    fish, key = folder / "train/fish", folder / "train/key"
    shutil.copy(min(fish.iterdir()), fish / "9999.png")
    for place in (fish / "aaaa.png", fish / "zzzz.png", key / "zzzz.png"):
        place.write_bytes(b"no picture")
    return folder


def rows(observed: Observed) -> tuple[bytes, list, list, dict]:
    return observed.cache.path.read_bytes(), observed.keys, observed.rows.tolist(), observed.broken


def seen(observer, folder, cache_folder, config: AuditConfig) -> Observed:
    cache = RowCache(cache_folder, "a test", observer.fields())
    with workers_of(config, observer) as workers:
        return observe(open_dataset(folder), "set", workers, cache, config.batch_size, config.sample, config.seed)


@pytest.mark.usefixtures("warm_processes")
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_rows_do_not_depend_on_the_number_of_workers(engine, observer, folder, tmp_path):
    """The bytes of the cache, the order of the images and what is broken, against one worker."""
    if engine == "ray":
        pytest.importorskip("ray")
    alone = AuditConfig(semantics="microworld", batch_size=5)
    one = seen(observer, folder, tmp_path / "one", alone)
    several = seen(observer, folder, tmp_path / "several", replace(alone, engine=engine, workers=2))
    assert rows(several) == rows(one)
    assert len(one.keys) == 49 and len(one.broken) == 3 and len(set(one.rows.tolist())) == 48


@pytest.mark.usefixtures("warm_processes")
def test_a_killed_worker_ends_the_audit_in_one_line(observer, folder):
    content = min((folder / "train/key").iterdir()).read_bytes()
    image = NewImage(b"key", hashlib.sha256(content).digest(), content, None, "key")
    config = AuditConfig(semantics="microworld", workers=2)
    others = set(multiprocessing.active_children())
    message = r"a worker process .* was killed .* fewer --workers"
    with pytest.raises(UserError, match=message), workers_of(config, observer) as workers:
        assert workers.submit([image]).result().keys == [b"key"]
        (process,) = set(multiprocessing.active_children()) - others
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        workers.submit([image]).result()
    assert set(multiprocessing.active_children()) == others


def test_a_space_of_this_process_is_refused_for_workers(observer, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(extensions.REGISTERED["semantics"], "mine", lambda device: observer.space)
    with pytest.raises(UserError, match="mine was registered in semantics of this process, and workers"):
        lbgen.audit(folder, AuditConfig(semantics="mine", workers=2, output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("microworld", "microworld"), ("here", "{}/here"), ("open_clip:ViT-B-32/here", "open_clip:ViT-B-32/{}/here")],
)
def test_workers_in_other_folders_find_the_model(given, wanted, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "microworld").mkdir()  # the name counts
    monkeypatch.chdir(tmp_path)
    assert with_absolute_path(given) == wanted.format(tmp_path)


def test_a_sample_is_what_its_images_alone_are(observer, folder, tmp_path):
    """Against a folder with the files whose keys have a hash in the first half, made by hand."""
    part = tmp_path / "part"
    for path in sorted(folder.rglob("*.png")):
        key = path.relative_to(folder).as_posix()
        if hashlib.sha256(f"sample\0{3}\0{key}".encode()).digest()[0] < 128:
            (part / key).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, part / key)
    half = seen(observer, folder, tmp_path / "half", AuditConfig(semantics="microworld", sample=0.5, seed=3))
    by_hand = seen(observer, part, tmp_path / "hand", AuditConfig(semantics="microworld"))
    assert rows(half) == rows(by_hand) and 10 < len(half.keys) < 40
    assert_all_are_counted(half, folder)


def assert_all_are_counted(observed, folder):
    """The sizes, with what is broken in the sample, are the numbers of files of all categories."""
    broken = [sum(f"/{label.id}/" in key for key in observed.broken) for label in observed.sizes.labels]
    counted = dict(
        zip((label.id for label in observed.sizes.labels), observed.sizes.counts[:, 0] + broken, strict=True)
    )
    assert counted == {path.name: len(list(path.iterdir())) for path in (folder / "train").iterdir()}


def test_sizes_hold_the_categories_of_which_no_image_was_drawn(observer, folder, tmp_path):
    few = seen(observer, folder, tmp_path, AuditConfig(semantics="microworld", sample=0.1, seed=3))
    assert len(few.labels) < len(few.sizes.labels) == 12
    assert_all_are_counted(few, folder)


def test_the_share_of_broken_images_is_that_of_the_sample(observer, tmp_path):
    """Rows without a label are found without decoding, so all of them are listed, drawn or not."""
    files = sorted(write_image_folder(tmp_path / "files", photographs(24, 1)).rglob("*.png"))
    rows = [{"image": {"bytes": path.read_bytes(), "path": None}, "label": path.parent.name} for path in files * 4]
    rows += [{"image": {"bytes": files[0].read_bytes(), "path": None}, "label": None}] * 6
    (tmp_path / "set").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set/train-00000.parquet")
    part = seen(observer, tmp_path / "set", tmp_path, AuditConfig(semantics="microworld", sample=0.2, seed=0))
    drawn = [key for key in part.broken if key in part.sample]
    assert len(part.broken) == 6 > len(drawn)
    assert part.broken_share == len(drawn) / (len(drawn) + len(part.keys)) < 6 / (6 + len(part.keys))


@pytest.mark.parametrize("share, said", [(1e-9, "none of its 52 images"), (0.03, "of only one category")])
def test_a_sample_that_is_too_small_is_refused(share, said, observer, folder, tmp_path):
    seed = next(seed for seed in range(1000) if fits(folder, share, seed))
    with pytest.raises(UserError, match=said):
        seen(observer, folder, tmp_path, AuditConfig(semantics="microworld", sample=share, seed=seed))


def fits(folder, share, seed) -> bool:
    """Whether the sample has no image, or whole images of one category."""
    sample = Sample(share, seed)
    drawn = [path for path in folder.rglob("*.png") if path.relative_to(folder).as_posix() in sample]
    whole = [path for path in drawn if path.read_bytes() != b"no picture"]
    return not drawn if share < 1e-6 else len(drawn) == len(whole) > 0 == len({path.parent for path in whole}) - 1


def test_without_a_sample_sizes_are_those_of_what_was_seen(observer, folder, tmp_path):
    whole = observe(open_dataset(folder), "set", this_process(observer), RowCache(tmp_path, "", observer.fields()), 64)
    assert whole.sizes.counts[:, 0].tolist() == np.bincount(whole.label).tolist()
