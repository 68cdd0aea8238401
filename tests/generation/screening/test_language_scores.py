"""Scores of the language space that were changed within their limits, found by `lbgen verify --check-scores`."""

import hashlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, PngImagePlugin

from lbgen.cli import main
from lbgen.datasets.layout import Stored
from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig, VerifyConfig
from lbgen.generation.run import generate
from lbgen.generation.screening.language_scores import ImagesOfOneSize, _rank_differences
from lbgen.generation.verify import verify
from lbgen.metrics.zero_shot import label_ranks
from lbgen.models.semantics import load_semantics

PART = "index/train-00000.parquet"


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> GenerateConfig:
    """The micro world, whose images all pass the checks."""
    folder = tmp_path_factory.mktemp("scored")
    (folder / "names.txt").write_text("cup\nfish\ntree\n")
    config = GenerateConfig(
        writers=1, output=str(folder / "made"), vocabulary=str(folder / "names.txt"), generator="microworld",
        scheduler="ddim", steps=2, images_per_category=4, batch_size=4, shard_size=12, label_top_k=3, least_quality=1.0,
        screen=("label", "quality", "unsafe"), screen_semantics="microworld",
    )  # fmt: skip
    generate(config)
    return config


def changed(folder: Path, column: str, change: Callable[[dict], float]) -> str:
    """Change the score of the image that the label check is least sure of; returns its key."""
    path = folder / PART
    table = pq.read_table(path)
    rows = table.to_pylist()
    row = min(rows, key=lambda row: row["label_probability"])
    row[column] = change(row)
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    return row["key"]


def test_scores_that_are_computed_again_are_those_of_the_index(config):
    assert verify(config.output, check_scores=True).damaged == ()


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("label_probability", lambda row: row["label_probability"] * 0.97),
        ("label_rank", lambda row: row["label_rank"] % 3 + 1 if row["label_probability"] < 0.33 else 2.0),
        ("quality", lambda row: row["quality"] + 0.05),
        ("unsafe", lambda row: row["unsafe"] - 0.001),
    ],
)
def test_a_changed_score_is_found_and_repaired(config, tmp_path, column, change, capsys):
    folder = Path(shutil.copytree(config.output, tmp_path / "received"))
    before = (folder / PART).read_bytes()
    key = changed(folder, column, change)
    assert verify(folder).damaged == ()
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(folder), "--check-scores"])
    assert ended.value.code == 3
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"train-00000: {PART} contradicts its images: {column} of {key}",
        f"0 of 1 shards of {folder} are whole",
    ]
    assert verify(folder, repair=True, check_scores=True).damaged == ()
    assert (folder / PART).read_bytes() == before


@pytest.mark.parametrize("image_format", ["png", "jpeg"])
def test_a_changed_cosine_of_near_duplicates_is_found_and_repaired(config, tmp_path, image_format):
    """Of stored images, so in every format."""
    made = replace(
        config, output=str(tmp_path / "made"), screen=("duplicate",), duplicate_bits=24, duplicate_cosine=0.98,
        image_format=image_format, images_per_category=6, shard_size=9,
    )  # fmt: skip
    generate(made)
    assert verify(made.output, check_scores=True).damaged == ()
    path = Path(made.output, PART)
    table, before = pq.read_table(path), path.read_bytes()
    rows = table.to_pylist()
    with_cosine = [row for row in rows if row["duplicate_cosine"] is not None]
    assert len(with_cosine) > 1
    for change in (0.005, -0.005):
        row = with_cosine[-1]
        was, row["duplicate_cosine"] = row["duplicate_cosine"], row["duplicate_cosine"] + change
        pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
        row["duplicate_cosine"] = was
        assert verify(made.output).damaged == ()
        (line,) = verify(made.output, check_scores=True).damaged
        assert line == f"train-00000: {PART} contradicts its images: duplicate_cosine of {row['key']}"
    assert verify(made.output, check_scores=True, repair=True).damaged == ()
    assert path.read_bytes() == before


def test_recorded_cosines_are_those_of_the_nearest_pairs(config, tmp_path):
    """Written out: hashes of the index, features of the stored files, one pair after the other."""
    made = replace(
        config, output=str(tmp_path / "made"), screen=("duplicate",), duplicate_bits=24, duplicate_cosine=0.98
    )
    generate(made)
    rows = pq.read_table(Path(made.output, PART)).to_pylist()
    space = load_semantics("microworld")
    for number, row in enumerate(rows):
        before = [each for each in rows[:number] if each["id"] == row["id"]]
        bits = [bin(int(each["perceptual_hash"], 16) ^ int(row["perceptual_hash"], 16)).count("1") for each in before]
        near = [each for each, apart in zip(before, bits, strict=True) if apart == row["duplicate_bits"]]
        if row["duplicate_cosine"] is None:
            assert not near or row["duplicate_bits"] > 24
            continue
        pictures = [np.asarray(Image.open(Path(made.output, each["file"]))) for each in (row, *near)]
        features = space.embed_images(torch.tensor(np.stack(pictures)).permute(0, 3, 1, 2) / 255)
        assert min(abs(features[1:] @ features[0] - row["duplicate_cosine"])) < 1e-5


def exchanged(folder: Path, change: Callable[[bytes], bytes]) -> str:
    """Give the first image other bytes, with their hash in the index; returns its key."""
    table = pq.read_table(folder / PART)
    rows = table.to_pylist()
    file = folder / rows[0]["file"]
    file.write_bytes(change(file.read_bytes()))
    rows[0]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    pq.write_table(pa.Table.from_pylist(rows, table.schema), folder / PART)
    return rows[0]["key"]


def saved_again(change: Callable[[Image.Image], Image.Image], **options: Any) -> Callable[[bytes], bytes]:
    """Another image with the same metadata."""

    def changed(content: bytes) -> bytes:
        stream = io.BytesIO()
        with Image.open(io.BytesIO(content)) as image:
            text = PngImagePlugin.PngInfo()
            for key, value in image.text.items():
                text.add_text(key, value)
            change(image).save(stream, "png", pnginfo=text, **options)
        return stream.getvalue()

    return changed


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda content: content[:-20] + b"\xff" + content[-19:], "pixels"),
        (saved_again(lambda image: image.resize((32, 32))), "size"),
        (saved_again(lambda image: image.resize((64, 640))), "size"),
    ],
)
def test_images_that_cannot_be_judged_are_named(config, tmp_path, change, fault):
    """Plain verify reads no pixels of this dataset, because none of its checks follows from them alone."""
    folder = Path(shutil.copytree(config.output, tmp_path / "received"))
    key = exchanged(folder, change)
    assert verify(folder).damaged == ()
    (line,) = verify(folder, check_scores=True).damaged
    assert line == f"train-00000: {PART} contradicts its images: {fault} of {key}"
    assert verify(folder, check_scores=True, repair=True).damaged == ()


@pytest.mark.parametrize(
    "change",
    [
        saved_again(lambda image: image.convert("RGBA")),
        saved_again(lambda image: image.convert("L")),
        saved_again(lambda image: image, transparency=(0, 0, 0)),
        saved_again(lambda image: image, save_all=True, append_images=[Image.new("RGB", (64, 64))]),
    ],
)
def test_images_that_readers_show_differently_are_damage(config, tmp_path, change):
    """Transparency, other colours and several frames: no run writes such files."""
    folder = Path(shutil.copytree(config.output, tmp_path / "received"))
    key = exchanged(folder, change)
    assert verify(folder).damaged == (f"train-00000: 1 of 12 images missing or changed ({key})",)


def test_strips_are_not_enlarged(config, tmp_path):
    """A generator makes none, and the language space would enlarge each to 3,000 times its width."""
    folder = Path(shutil.copytree(config.output, tmp_path / "received"))
    table = pq.read_table(folder / PART)
    rows = table.to_pylist()
    for row in rows:
        file = folder / row["file"]
        file.write_bytes(saved_again(lambda image: image.resize((1, 3000)))(file.read_bytes()))
        row["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    pq.write_table(pa.Table.from_pylist(rows, table.schema), folder / PART)
    (line,) = verify(folder, check_scores=True).damaged
    assert "size of " in line and line.endswith("and 11 more")


def test_another_processors_rounding_is_no_fault(config):
    """Its other instructions; near 1 the last digit of a probability is worth much of a logit."""
    command = [sys.executable, "-m", "lbgen", "verify", config.output, "--check-scores"]
    subprocess.run(command, env=os.environ | {"ATEN_CPU_CAPABILITY": "default"}, check=True)


def test_a_shift_of_all_scores_as_of_another_precision_is_no_fault(config, tmp_path):
    """Cosines that 16 bits move by some 3e-4; a score that differs from its image's by ten times more is found."""
    folder, path = Path(shutil.copytree(config.output, tmp_path / "other")), f"{tmp_path}/other/{PART}"
    table, rng = pq.read_table(path), np.random.default_rng(0)
    rows = table.to_pylist()
    scale = load_semantics("microworld").logit_scale
    for row in rows:
        margin = np.log((row["quality"] - 1) / (5 - row["quality"])) + scale * rng.uniform(2e-4, 4e-4)
        row["quality"] = 1 + 4 / (1 + np.exp(-margin))
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    assert verify(folder, check_scores=True).damaged == ()
    key = changed(folder, "quality", lambda row: row["quality"] - 0.5)
    assert f"quality of {key}" in verify(folder, check_scores=True).damaged[0]


def test_scores_wait_for_whole_shards(config, tmp_path, capsys):
    folder = Path(shutil.copytree(config.output, tmp_path / "received"))
    changed(folder, "quality", lambda row: row["quality"] + 0.05)
    next((folder / "train").rglob("*.png")).unlink()
    assert "missing or changed" in verify(folder, check_scores=True).damaged[0]
    assert "scores are compared when all shards are whole" in capsys.readouterr().out


def test_large_images_are_read_in_smaller_batches_and_huge_ones_not_at_all(monkeypatch):
    def stored(side: int) -> Iterator[Stored]:
        for number in range(5):
            stream = io.BytesIO()
            Image.new("RGB", (side, side)).save(stream, "png")
            yield Stored(str(number), stream.getvalue(), 0)

    monkeypatch.setattr("lbgen.generation.screening.language_scores.MOST_PIXELS", 2 * 16 * 16)
    found = [(keys, pixels.shape) for keys, pixels in ImagesOfOneSize().batches(stored(16))]
    assert found[0][1] == (2, 16, 16, 3) and [keys for keys, _ in found] == [["0", "1"], ["2", "3"], ["4"]]
    assert [*ImagesOfOneSize().batches(stored(32))] == []


def test_what_cannot_be_computed_again_is_refused(config, tmp_path, tiny_clip_folder):
    def refusal(**settings) -> str:
        made = replace(config, output=str(tmp_path / f"made-{len(list(tmp_path.iterdir()))}"), **settings)
        generate(made)
        with pytest.raises(UserError) as refused:
            verify(made.output, check_scores=True)
        return str(refused.value)

    assert "only PNG in the size of the generator holds the pixels that were judged" in refusal(image_format="jpeg")
    assert "only PNG in the size of the generator holds the pixels that were judged" in refusal(stored_size=(16, 16))
    assert "it has none" in refusal(screen=("blank",))
    made = replace(config, output=str(tmp_path / "made"), screen=("quality",))
    generate(made)
    with pytest.raises(UserError, match="was screened by another language space than --screen-semantics"):
        verify(VerifyConfig(made.output, check_scores=True, screen_semantics=str(tiny_clip_folder)))


def test_labels_of_a_vocabulary_that_grew_are_left_out(config, tmp_path, capsys):
    """Probabilities were computed among fewer categories; quality does not depend on them."""
    folder = Path(shutil.copytree(config.output, tmp_path / "grown"))
    (tmp_path / "names.txt").write_text("cup\nfish\ntree\nkey\n")
    generate(replace(config, output=str(folder), vocabulary=str(tmp_path / "names.txt")))
    assert verify(folder, check_scores=True).damaged == ()
    left_out = (
        "scores of label and unsafe cannot be compared: they depend on the categories, of which some were added later"
    )
    assert left_out in capsys.readouterr().err
    key = changed(folder, "quality", lambda row: row["quality"] + 0.05)
    assert key in verify(folder, check_scores=True).damaged[0]


def test_a_dataset_from_someone_else_names_no_space_that_is_loaded(config, tmp_path, monkeypatch, tiny_clip_folder):
    made = replace(config, output=str(tmp_path / "made"), screen=("quality",), screen_semantics=str(tiny_clip_folder))
    generate(made)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    with pytest.raises(UserError, match="you did not make this dataset.* give --screen-semantics"):
        verify(made.output, check_scores=True)
    assert verify(made.output, check_scores=True, screen_semantics=str(tiny_clip_folder)).damaged == ()


def test_a_rank_is_right_where_it_takes_no_move_of_the_own_cosine():
    cosines = torch.rand(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own = torch.arange(40) % 6
    right = 1 + label_ranks(cosines, own).numpy()
    for rank in range(1, 8):
        moves = _rank_differences(cosines.numpy(), own.numpy(), np.full(40, float(rank)))
        assert ((moves == 0) == (right == rank)).all()
        assert np.isinf(moves).all() == (rank == 7)

    # By hand: 0.3 is the third of these; to be the first it would have to rise by 0.4, to be the fourth to fall by 0.1.
    by_hand = np.array([[0.3, 0.7, 0.5, 0.2]] * 3)
    moves = _rank_differences(by_hand, np.zeros(3), np.array([1.0, 3.0, 4.0]))
    np.testing.assert_allclose(moves, [0.4, 0.0, 0.1])
