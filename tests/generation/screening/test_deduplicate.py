"""Near-duplicates across a whole split: none is left, wherever a run was killed, and whoever drew the shards."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from io import BytesIO
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from folders import contents
from PIL import Image

from lbgen.datasets import index
from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig
from lbgen.generation.run import generate, plan_dataset
from lbgen.generation.screening import deduplicate
from lbgen.generation.screening.checks import Screen
from lbgen.generation.screening.duplicate_rounds import read_duplicate_rounds
from lbgen.generation.verify import verify
from lbgen.generation.workers.dispatch import draw_shards
from lbgen.generation.workers.shard import Worker
from lbgen.models.semantics import load_semantics
from lbgen.runs.storage import LocalStore, open_store


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> GenerateConfig:
    """Shards with one image of each category, and limits so wide that a good part of the images are duplicates."""
    return GenerateConfig(
        writers=1,
        output=tmp_path_factory.mktemp("duplicates") / "whole",
        vocabulary="microworld",
        generator="microworld",
        scheduler="ddim",
        steps=2,
        images_per_category=3,
        batch_size=6,
        shard_size=12,
        screen=("blank", "duplicate"),
        screen_semantics="microworld",
        duplicate_bits=22,
        duplicate_cosine=0.85,
    )


@pytest.fixture(scope="module")
def whole(config) -> Path:
    return Path(generate(config).output)


def rows_of(folder: Path) -> list[dict]:
    return index.read_index(folder).to_pylist()


def features_of(folder: Path, rows: list[dict]) -> np.ndarray:
    """(N, D), one image at a time."""
    space = load_semantics("microworld", torch.device("cpu"), torch.float32)
    images = [np.asarray(Image.open(BytesIO((folder / row["file"]).read_bytes()))) for row in rows]
    with torch.no_grad():
        embedded = [space.embed_images(torch.tensor(image).permute(2, 0, 1)[None] / 255) for image in images]
    return torch.cat(embedded).numpy()


def test_no_image_is_near_an_earlier_one_and_every_score_is_that_of_a_double_loop(config, whole):
    rows = rows_of(whole)
    features, hashes = features_of(whole, rows), [int(row["perceptual_hash"], 16) for row in rows]
    failed = [len(row["rejections"]) > row["attempt"] for row in rows]
    nearest: dict[int, list[tuple[int, float]]] = {}
    for earlier, later in combinations(range(len(rows)), 2):
        if rows[earlier]["id"] == rows[later]["id"] and not failed[earlier]:
            bits, cosine = (hashes[earlier] ^ hashes[later]).bit_count(), float(features[earlier] @ features[later])
            nearest.setdefault(later, []).append((bits, cosine))
    for later, row in enumerate(rows):
        near = nearest.get(later, [])
        alike = [pair for pair in near if pair[0] <= config.duplicate_bits and pair[1] >= config.duplicate_cosine]
        assert bool(alike) == failed[later]
        if not near:
            assert row["duplicate_bits"] is None
            continue
        bits, cosine = min(alike or near, key=lambda pair: (pair[0], -pair[1]))
        assert row["duplicate_bits"] == bits
        if bits <= config.duplicate_bits:
            assert row["duplicate_cosine"] == pytest.approx(cosine, abs=1e-5)
        else:
            assert row["duplicate_cosine"] is None


def test_duplicates_are_drawn_again_across_shards_and_counted(whole):
    """Attempts, rejections, rounds and counts of rejections agree."""
    rows = rows_of(whole)
    rounds = json.loads((whole / "duplicates.json").read_text())["train"]
    assert len(rounds) > 1  # what was drawn again was compared again
    named = Counter(key for found in rounds for keys in found.values() for key in keys)
    listed = {row["key"]: row["rejections"].count("duplicate") for row in rows if "duplicate" in row["rejections"]}
    assert named == listed and max(row["shard"] for row in rows if row["key"] in named) > 0
    assert all(row["shard"] > 0 for row in rows if row["key"] in named)  # the first shard's come before all others
    counted = Counter()
    for path in (whole / "screening").iterdir():
        for category in json.loads(path.read_text()).values():
            counted.update(category.get("reasons", {}))
    assert counted["duplicate"] == sum(named.values())
    assert verify(whole).damaged == ()


@pytest.mark.parametrize("layout, last_resort", [("imagefolder", "drop"), ("webdataset", "keep"), ("parquet", "drop")])
@pytest.mark.usefixtures("warm_processes")
def test_other_workers_a_lost_shard_and_a_cut_short_round_end_the_same(
    config, tmp_path, layout, last_resort, monkeypatch
):
    one = replace(config, format=layout, last_resort=last_resort, max_attempts=2, output=tmp_path / "one")
    generate(one)
    rows = rows_of(tmp_path / "one")
    assert (len(rows) < 36) == (last_resort == "drop")
    two = replace(one, output=tmp_path / "two")
    cut_short(two, monkeypatch)
    generate(replace(two, workers=2 if layout == "parquet" else 1))
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    changed = max(row["shard"] for row in rows if row["attempt"])
    (tmp_path / f"two/index/train-{changed:05d}.parquet").unlink()
    assert any(name.startswith(f"train-{changed:05d}: not made") for name in verify(tmp_path / "two").damaged)
    assert verify(tmp_path / "two", repair=True).damaged == ()
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def cut_short(config: GenerateConfig, monkeypatch) -> None:
    """A run that fails while it changes the second shard of a round, the first being changed."""
    take_over, taken = Worker._take_over, []

    def fail_at_the_second(worker, in_progress):
        taken.append(in_progress.staged.number)
        if len(taken) == 2:
            raise KeyboardInterrupt
        take_over(worker, in_progress)

    with monkeypatch.context() as patched:
        patched.setattr(Worker, "_take_over", fail_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            generate(config)
    assert len(taken) == 2


@pytest.mark.parametrize("layout", ["imagefolder", "webdataset"])
def test_an_image_that_fails_another_check_when_it_is_drawn_again_leaves_nothing_behind(
    config, tmp_path, layout, monkeypatch
):
    """Second attempts are all blank here, and dropped: what is stored is what the index names, and nothing else."""
    judge = Screen.judge

    def blank_at_second(screen, images, *drawn):
        verdicts = judge(screen, images, *drawn)
        return [
            verdict._replace(reasons=("blank",)) if image.attempt else verdict
            for image, verdict in zip(images, verdicts, strict=True)
        ]

    monkeypatch.setattr(Screen, "judge", blank_at_second)
    made = replace(config, output=tmp_path / "made", format=layout, last_resort="drop", max_attempts=2, shard_size=1)
    generate(replace(made, images_per_category=2))
    rows = rows_of(tmp_path / "made")
    assert 12 <= len(rows) < 24
    stored = [path for path in (tmp_path / "made").rglob("*") if path.suffix in (".tar", ".png")]
    assert {str(path.relative_to(tmp_path / "made")) for path in stored} - {"samples.png"} == {
        row["file"] for row in rows
    }
    result = verify(tmp_path / "made")
    assert result.damaged == ()


def test_a_worker_that_finds_a_shard_already_changed_leaves_it_so(config, whole, tmp_path):
    """As after a Ray worker that died between publishing a changed shard and saying so."""
    shutil.copytree(whole, tmp_path / "copy")
    copy, before = replace(config, output=tmp_path / "copy"), contents(tmp_path / "copy")
    store = open_store(copy.output)
    plan, record = plan_dataset(copy, store)
    rounds = read_duplicate_rounds(store, copy, plan)
    draw_shards(store, copy, plan, record, sorted(rounds[-1]), rounds)
    generate(copy)
    assert contents(tmp_path / "copy") == before


def test_growth_on_a_device_that_sees_other_cosines_changes_no_image_that_is_there(config, tmp_path, monkeypatch):
    small = replace(config, output=tmp_path / "grown", images_per_category=2)
    generate(small)
    before = {row["key"]: row["sha256"] for row in rows_of(tmp_path / "grown")}
    cosines_of = deduplicate.cosines_of
    monkeypatch.setattr(deduplicate, "cosines_of", lambda *given: (cosines_of(*given) + 0.1).clip(max=1))
    generate(replace(small, images_per_category=3))
    after = {row["key"]: row["sha256"] for row in rows_of(tmp_path / "grown")}
    assert {key: after[key] for key in before} == before


def test_damage_that_the_comparison_meets_names_the_repair(config, tmp_path):
    parts = replace(config, output=tmp_path / "made", format="webdataset")
    for part in ("0/2", "1/2"):
        generate(replace(parts, shard_of=part))
    with (tmp_path / "made/train-00000.tar").open("r+b") as file:
        file.truncate(3000)
    with pytest.raises(
        UserError, match="train-00000.tar cannot be read .unexpected end of data.; run lbgen verify .* --repair"
    ):
        generate(parts)


def test_growth_changes_no_image_that_is_there(config, whole, tmp_path):
    small = replace(config, output=tmp_path / "grown", images_per_category=2)
    generate(small)
    before = {row["key"]: row for row in rows_of(tmp_path / "grown")}
    generate(replace(small, images_per_category=3))
    after = {row["key"]: row for row in rows_of(tmp_path / "grown")}
    assert len(after) == 36 and all(after[key] == row for key, row in before.items())
    assert any(row["attempt"] for key, row in after.items() if key not in before)


def test_parts_leave_the_comparison_to_a_run_of_the_whole(config, whole, tmp_path, capsys):
    """Parts may be at work at the same time; a part that changed another's shards could meet it there."""
    for part in ("0/2", "1/2"):
        generate(replace(config, output=tmp_path / "parts", shard_of=part))
    assert "run once more without --shard-of" in capsys.readouterr().out
    assert not (tmp_path / "parts/croissant.json").exists()
    assert verify(tmp_path / "parts").damaged == ()
    assert "is not described yet; run its lbgen generate once more" in capsys.readouterr().out
    generate(replace(config, output=tmp_path / "parts"))
    assert contents(tmp_path / "parts") == contents(whole)


def test_nothing_is_embedded_where_no_hashes_are_near(config, tmp_path, monkeypatch):
    monkeypatch.setattr(deduplicate, "load_semantics", lambda *_: pytest.fail("loaded"))
    generate(replace(config, output=tmp_path / "far", duplicate_bits=0, images_per_category=1))
    assert all(row["duplicate_bits"] is None for row in rows_of(tmp_path / "far"))


def test_damage_in_two_splits_is_repaired_together(config, tmp_path):
    """No split is compared, or described, while another lacks a shard."""
    made = replace(config, output=tmp_path / "made", images_per_category=2, format="webdataset")
    for split in ("train", "val"):
        generate(replace(made, split=split))
    before = contents(tmp_path / "made")
    with (tmp_path / "made/index/val-00000.parquet").open("r+b") as file:
        file.truncate(100)
    with (tmp_path / "made/train-00001.tar").open("r+b") as file:
        file.seek(700)
        file.write(b"tampered")
    assert len(verify(tmp_path / "made").damaged) == 2
    assert verify(tmp_path / "made", repair=True).damaged == ()
    assert contents(tmp_path / "made") == before


def test_distances_follow_a_hash_that_a_repair_changed(config, whole, tmp_path):
    """As by a repair on another device: two bits of an image's hash differ, and so do distances to it."""
    shutil.copytree(whole, tmp_path / "set")
    part = tmp_path / "set/index/train-00000.parquet"
    rows, containers = index.read_part(LocalStore(tmp_path / "set", "x"), "train", 0, 12)
    other = [replace(row, perceptual_hash=f"{int(row.perceptual_hash, 16) ^ 3:016x}") for row in rows]
    part.write_bytes(index.index_bytes(other, containers, 1))
    (tmp_path / "set/croissant.json").unlink()
    generate(replace(config, output=tmp_path / "set"))
    rows = rows_of(tmp_path / "set")
    for row in rows:
        earlier = [one for one in rows[: rows.index(row)] if one["id"] == row["id"] and not failed(one)]
        near = [(int(one["perceptual_hash"], 16) ^ int(row["perceptual_hash"], 16)).bit_count() for one in earlier]
        assert row["duplicate_bits"] == (min(near) if near else None) or failed(row)


def failed(row: dict) -> bool:
    return len(row["rejections"]) > row["attempt"]
