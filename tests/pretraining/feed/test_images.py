"""Batches of images: which pixels they hold, in every format, and what is done about broken files."""

import dataclasses
import io
import random

import datasets
import numpy as np
import pytest
import torch
from audited import photographs, png, write_image_folder, write_parquet, write_webdataset
from PIL import Image

from lbgen.errors import UserError
from lbgen.microworld.world import CATEGORIES
from lbgen.pretraining.config import PretrainConfig
from lbgen.pretraining.feed.catalogue import is_held_out, read_catalogue, read_sources
from lbgen.pretraining.feed.images import MOST_BROKEN, Feed, Images, Request
from lbgen.pretraining.loop import Faults

AS_STORED = {"image_size": 64, "crop_share": 1.0, "flip": 0.0, "crop_area": (1.0, 1.0), "crop_ratio": (1.0, 1.0)}
GREY = ((0.5,) * 3, (0.5,) * 3)


@pytest.fixture(scope="module")
def scenes():
    return photographs(30, seed=4)


def images_of(*folders, held_out=0.0, **settings) -> Images:
    sources = read_sources(folders, None, None, held_out)
    return Images(sources, PretrainConfig(**{**AS_STORED, **settings}), *GREY)


def everything(images: Images, epoch: int = 0) -> Request:
    return Request(np.arange(images.total), epoch)


def save_to_disk(folder, scenes):
    """Arrow files, as the datasets library keeps a set on disk."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CATEGORIES))})
    rows = {"image": [{"bytes": png(image), "path": None} for image in scenes.images], "label": scenes.categories}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder)
    return folder


@pytest.mark.parametrize("write", [write_image_folder, write_webdataset, write_parquet, save_to_disk])
def test_every_format_gives_the_pixels_and_labels_that_were_written(tmp_path, scenes, write):
    """Against the renders, each once."""
    images = images_of(write(tmp_path / "set", scenes))
    batch = images[everything(images)]
    wanted = sorted((CATEGORIES[label], image.tobytes()) for label, image in zip(*labelled(scenes), strict=True))
    names = images.sources.names
    found = [(names[label], image.permute(1, 2, 0).numpy().tobytes()) for image, label in zip(*batch[:2], strict=True)]
    assert sorted(found) == wanted and batch.faults == ()


@pytest.mark.parametrize("workers", [0, 1])
def test_images_come_in_the_layout_of_the_model(tmp_path, scenes, workers):
    """With the channels last in memory too, where the model has them there; the pixels are the same."""
    folder = write_image_folder(tmp_path / "set", scenes)
    plain, last = images_of(folder), images_of(folder, channels_last=True)
    feed = Feed(last, workers, pinned=False)
    with feed.working():
        (batch,) = feed.batches([everything(last)])
    assert batch.images.is_contiguous(memory_format=torch.channels_last) and not batch.images.is_contiguous()
    assert torch.equal(batch.images, plain[everything(plain)].images)


def labelled(scenes):
    return scenes.categories, scenes.images


def test_folders_of_several_formats_share_the_labels_of_equal_ids(tmp_path, scenes):
    """The folder has all categories, the tables three of them: 30 and 6 images."""
    some = scenes.categories < 3
    part = dataclasses.replace(
        scenes, images=scenes.images[some], categories=scenes.categories[some], factors={}, masks=scenes.masks[some]
    )
    images = images_of(write_image_folder(tmp_path / "a", scenes), write_parquet(tmp_path / "b", part))
    batch = images[everything(images)]
    assert images.sources.categories == tuple(sorted(CATEGORIES))
    for number, label in enumerate([*scenes.categories[np.argsort(folder_order(scenes))], *part.categories]):
        assert images.sources.names[batch.labels[number]] == CATEGORIES[label]


def folder_order(scenes) -> list[tuple[str, int]]:
    """Rank of each image in the order of its category's folder and its name."""
    keys = [(CATEGORIES[label], number) for number, label in enumerate(scenes.categories)]
    ranks = {key: rank for rank, key in enumerate(sorted(keys))}
    return [ranks[key] for key in keys]


def test_augmentation_follows_from_seed_epoch_and_image_alone(tmp_path, scenes):
    """The same in another batch, another place and another process; another in the next epoch and for another seed."""
    folder = write_image_folder(tmp_path / "set", scenes)
    lively = {"crop_area": (0.1, 0.9), "flip": 0.5, "auto_augment": "rand-m9-mstd0.5-inc1", "color_jitter": 0.4}
    images, other = images_of(folder, **lively), images_of(folder, seed=1, **lively)
    batch = images[everything(images)].images
    random.random(), torch.rand(1), np.random.rand()
    shuffled = images[Request(np.arange(30)[::-1].copy(), 0)].images
    assert torch.equal(batch, shuffled.flip(0))
    for different in (images[everything(images, 1)], other[everything(other)], images[Request(np.arange(30) + 30, 0)]):
        assert all(not torch.equal(a, b) for a, b in zip(batch, different.images, strict=True))
    (from_worker,) = Feed(images, 1, False).batches([everything(images)])
    assert torch.equal(from_worker.images, batch)


def test_a_broken_image_is_left_out_and_named(tmp_path, scenes):
    """In training the next one takes its place, so that batches keep their size; in validation it does not count."""
    folder = write_image_folder(tmp_path / "set", scenes)
    broken = folder / "train/boat/0008.png"
    broken.write_bytes(broken.read_bytes()[:100])
    images = images_of(folder)
    batch = images[everything(images)]
    assert torch.equal(batch.images[0], batch.images[1]) and len(batch.images) == 30
    assert len(batch.faults) == 1 and batch.faults[0].startswith(f"{broken}: ")
    validated = Images(images.sources._replace(validation=images.sources.training), PretrainConfig(**AS_STORED), *GREY)
    assert validated[Request(np.arange(30), None)].labels.tolist().count(-1) == 1


def test_a_dataset_of_broken_images_ends_the_run_in_one_line(tmp_path, scenes, capsys):
    folder = write_image_folder(tmp_path / "set", scenes)
    for path in folder.rglob("*.png"):
        path.write_bytes(b"no image")
    images = images_of(folder)
    faults = images[everything(images)].faults
    assert len(faults) >= MOST_BROKEN
    with pytest.raises(
        UserError, match=r"0008.png: its format is not known; too many images in one batch cannot be decoded"
    ):
        Faults().add(faults)
    few = Faults()
    few.add(faults[:5])
    few.say()
    assert capsys.readouterr().err.count("it is left out") == 3


def test_a_large_photograph_is_decoded_whole_upright_and_in_colour(tmp_path):
    """Modes and orientation, against Pillow's own conversion."""
    picture = Image.fromarray(photographs(1, 0).images[0])
    for name, image, options in (
        ("a", picture.convert("L"), {}),
        ("b", picture.convert("P"), {}),
        ("a", picture.transpose(Image.Transpose.ROTATE_90), {"exif": exif(6)}),
    ):
        path = tmp_path / f"set/{name}/{len(options)}{image.mode}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **options)
    images = images_of(tmp_path / "set")
    batch = images[everything(images)].images
    stored = np.asarray(picture.convert("L"))
    assert np.array_equal(batch[0, 0], stored) and torch.equal(batch[0, 0], batch[0, 2])
    assert np.array_equal(batch[1].permute(1, 2, 0), np.asarray(picture))
    assert np.array_equal(batch[2].permute(1, 2, 0), np.asarray(picture.convert("P").convert("RGB")))


def exif(orientation: int) -> bytes:
    stream = io.BytesIO()
    found = Image.new("RGB", (1, 1)).getexif()
    found[274] = orientation
    Image.new("RGB", (1, 1)).save(stream, "PNG", exif=found)
    return Image.open(io.BytesIO(stream.getvalue())).info["exif"]


# ---- what is held out, and which split is read ----


def test_a_share_is_held_out_by_names_alone(tmp_path):
    """The same images whatever lies beside them; about the share; against a binomial's spread."""
    keys = np.random.default_rng(0).integers(0, 2**63, 4000).astype(np.uint64)
    out = is_held_out(keys, 0.1)
    assert abs(out.sum() - 400) < 4 * np.sqrt(360)
    assert np.array_equal(is_held_out(keys[::-1], 0.1), out[::-1])
    assert not is_held_out(keys, 0).any() and (is_held_out(keys, 0.2) >= out).all()
    more = read_sources([write_image_folder(tmp_path / "more", photographs(60, seed=5))], None, None, 0.3)
    less = read_sources([write_image_folder(tmp_path / "less", photographs(40, seed=5))], None, None, 0.3)
    places = [{at.file for each in s.validation for at in map(each.location, range(len(each)))} for s in (more, less)]
    assert places[1] < places[0] and len(more.validation[0]) + len(more.training[0]) == 60


def test_imagenet_as_it_lies_on_disks_is_trained_on_its_training_split_and_validated_on_the_other(tmp_path, scenes):
    """train/<synset>/*.JPEG and val/<synset>/*.JPEG in one folder, given twice."""
    synsets = ("n01440764", "n02102040", "n04591713")
    for split, count in (("train", 9), ("val", 6)):
        for number in range(count):
            path = tmp_path / f"ImageNet/{split}/{synsets[number % 3]}/x_{split}_{number}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(scenes.images[number]).save(path, quality=95)
    sources = read_sources([tmp_path / "ImageNet"], None, tmp_path / "ImageNet", 0.5)
    assert [len(each) for each in (*sources.training, *sources.validation)] == [9, 6]
    assert sources.categories == synsets and sources.names[0] == "tench"
    apart = read_sources([tmp_path / "ImageNet/train"], None, tmp_path / "ImageNet/val", 0.5)
    assert [len(each) for each in (*apart.training, *apart.validation)] == [9, 6]
    assert (apart.training[0].label == sources.training[0].label).all()


def test_the_identity_of_a_dataset_follows_its_content_and_not_its_place(tmp_path, scenes):
    first, second = (read_catalogue(write_image_folder(tmp_path / name / "s", scenes), None, ()) for name in "ab")
    assert first.sha256 == second.sha256
    changed = tmp_path / "b/s/train/boat/0008.png"
    changed.write_bytes(changed.read_bytes() + b"\0")
    assert read_catalogue(tmp_path / "b/s", None, ()).sha256 != first.sha256
