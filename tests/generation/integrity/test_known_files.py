"""Which files are a dataset's, told without a list of them."""

from itertools import product

import pytest

from lbgen.datasets.index import mask_file
from lbgen.generation.config import GenerateConfig
from lbgen.generation.integrity.strays import KnownFiles, planned_files
from lbgen.generation.plan import Plan
from lbgen.generation.targets import Target
from lbgen.vocabulary.vocabulary import Category

CATEGORIES = tuple(Category(id, id, "a test") for id in ("a", "a_00001", "É"))


@pytest.mark.parametrize("image_format", ["png", "jpeg"])
def test_the_known_files_of_an_image_folder_are_those_of_a_list(image_format):
    """Against the set of planned names without those that screening left out, over names that are like them."""
    plan = Plan((Target("train", 3, CATEGORIES[:2]), Target("val", 2, CATEGORIES)), 0, 2)
    config = GenerateConfig(format="imagefolder", image_format=image_format)
    known, names = KnownFiles(config, plan), set()
    for split in plan.splits:
        for shard in range(plan.shards(split)):
            planned = list(planned_files(config, plan, split, shard))
            kept = planned[:1] if shard == 1 else planned
            known.add_shard(split, shard, kept if shard else ())  # the part of the first one cannot be read
            names |= set(kept)
    suffix = "jpg" if image_format == "jpeg" else "png"
    numbers = ("00000", "00001", "00002", "00003", "1", "000001", "٠٠٠٠١", "-0001", "", "1" * 5000)
    ids, splits = ("a", "a_00001", "É", "E", "b", ""), ("train", "val", "test", "")
    stems = [f"{split}/{id}/{key}_{number}" for split, id, key, number in product(splits, ids, ids, numbers)]
    like = {f"{stem}.{end}" for stem in stems for end in (suffix, "gif", suffix.upper())} | {"", "train", "train/a/"}
    assert {name for name in like if name in known} == names & like == names
    assert {name for name in map(mask_file, like) if known.has_mask(name)} == set(map(mask_file, names))
    assert not known.has_mask(next(iter(names)))
