"""Test renders, each against what the renderer says is true of it."""

import numpy as np
from PIL import Image

from lbgen.microworld.scenes import BIASED, home_values, render
from lbgen.microworld.world import CATEGORIES, FACTORS
from lbgen.reproduction import held_out
from lbgen.reproduction.dense.renders import write_renders

EVERY = np.arange(4800) % len(CATEGORIES)
ONE = np.full(400, 7)


def test_frequencies_are_those_of_the_biased_corpus():
    """Counted in 400 of its renders of one category: three standard errors are below 0.06."""
    drawn = render(ONE, 5, BIASED)
    for factor in ("scene", "style", "colour"):
        values = np.arange(len(FACTORS[factor]))
        counts = np.bincount(drawn.factors[factor], minlength=len(values)) / len(ONE)
        expected = held_out.frequency(np.full(len(values), 7), factor, values, BIASED)
        assert np.abs(counts - expected).max() < 0.06
        assert abs(expected.sum() - 1) < 1e-12


def test_as_many_images_have_no_attribute_one_and_the_other_and_both_uncommon():
    test = held_out.context_test(96)
    assert (
        test.uncommon.tolist()
        == [[False, False]] * 24 + [[False, True]] * 24 + [[True, False]] * 24 + [[True] * 2] * 24
    )
    assert np.bincount(test.labels).tolist() == [8] * 12


def test_exchanged_backgrounds_leave_the_object_as_it_is():
    test = held_out.background_test(36)
    objects = render(test.labels, held_out.SEED + 20, held_out.PHOTOS)
    outside = ~objects.masks
    for images in (test.same, test.random):
        assert np.array_equal(images[objects.masks], objects.images[objects.masks])
        assert (images[outside] != objects.images[outside]).any(-1).mean() > 0.9
    assert (test.same[outside] != test.random[outside]).any(-1).mean() > 0.9


def test_mixed_same_is_on_home_scenes_as_often_as_the_biased_corpus():
    """Nine times in ten; a random category's scene is the object's own one time in six."""
    rng = np.random.default_rng(0)
    homes = home_values(EVERY, "scene")
    assert abs((held_out.biased_scenes(EVERY, rng) == homes).mean() - 0.9) < 0.02
    others = rng.permutation(EVERY)
    assert abs((held_out.biased_scenes(others, rng) == homes).mean() - 1 / 6) < 0.03


def test_shape_and_texture_are_of_different_categories():
    test = held_out.cue_conflict_test(36)
    objects = render(test.shape, held_out.SEED + 30, held_out.PHOTOS)
    assert (test.texture != home_values(test.shape, "scene")).all()
    assert set(test.texture) == set(range(6))
    assert (test.images[~objects.masks] == held_out.GREY).all()
    assert (test.images[objects.masks] != held_out.GREY).any(-1).mean() > 0.95


def test_unseen_categories_have_three_splits_without_a_common_image(tmp_path):
    held_out.write_unseen(tmp_path, 5)
    files = {split: sorted((tmp_path / split).rglob("*.png")) for split in ("train", "val", "test")}
    assert {split: len(found) for split, found in files.items()} == {"train": 50, "val": 20, "test": 100}
    names = {path.parent.name for path in files["train"]}
    assert len(names) >= 8 and not names & set(CATEGORIES)
    content = [path.read_bytes() for found in files.values() for path in found]
    assert len(set(content)) == len(content)


def test_boxes_and_masks_are_those_of_the_renderer(tmp_path):
    """Read by pycocotools, and as pixels; every image of train and test is another one."""
    from pycocotools.coco import COCO

    for method in ("detection", "segmentation"):
        write_renders(method, tmp_path / method, 48)
    pictures = [path.read_bytes() for path in (tmp_path / "detection").glob("*/*.png")]
    assert len(pictures) == len(set(pictures)) == 72
    for number, (split, ade) in enumerate((("train", "training"), ("val", "validation"))):
        drawn = render(EVERY[: 48 >> number], held_out.SEED + 50 + number, held_out.PHOTOS)
        index = COCO(tmp_path / f"detection/annotations/instances_{split}2017.json")
        assert [each["name"] for each in index.dataset["categories"]] == list(CATEGORIES)
        assert len(index.dataset["images"]) == len(drawn.images)
        for image, pixels, mask, category in zip(
            index.dataset["images"], drawn.images, drawn.masks, drawn.categories, strict=True
        ):
            place = tmp_path / f"detection/{split}2017" / image["file_name"]
            assert np.array_equal(Image.open(place), pixels)
            (instance,) = index.imgToAnns[image["id"]]
            assert np.array_equal(index.annToMask(instance), mask) and instance["category_id"] == category + 1
            x, y, width, height = instance["bbox"]
            inside = np.zeros_like(mask)
            inside[y : y + height, x : x + width] = True
            assert not mask[~inside].any() and mask[:, [x, x + width - 1]].any(0).all()
            assert mask[[y, y + height - 1]].any(1).all() and instance["area"] == mask.sum()
        labels = np.stack(
            [Image.open(path) for path in sorted((tmp_path / f"segmentation/annotations/{ade}").iterdir())]
        )
        assert np.array_equal(labels, np.where(drawn.masks, drawn.categories[:, None, None] + 1, 13))
