"""The plan: every image once, every shard a fair sample, nothing moved when it grows."""

import hashlib
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbgen.errors import UserError
from lbgen.generation.plan import Plan
from lbgen.generation.targets import StoredTarget, Target, extended, from_json, refuse_shared_names, to_json
from lbgen.runs.parsing import parse_json
from lbgen.vocabulary.vocabulary import Category


def target(ids: str, images: int, split: str = "train") -> Target:
    return Target(split, images, tuple(Category(id, f"name of {id}", "a test") for id in ids))


def through_a_file(targets: tuple[Target, ...]) -> tuple[Target, ...]:
    return from_json(parse_json(json.dumps(to_json(targets)), list[StoredTarget]), "a test")


def all_images(plan: Plan, split: str = "train") -> list[list[tuple[str, int]]]:
    """(id, index) of every image, by shard."""
    return [
        [(image.category.id, image.index) for image in plan.shard(split, shard)] for shard in range(plan.shards(split))
    ]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_grown_plan_holds_every_image_once_and_keeps_the_shards_before(data):
    """Against sets, for random histories of growth."""
    size, seed = data.draw(st.integers(1, 20)), data.draw(st.integers(0, 3))
    ids, images, targets, before = 2, 1, (), []
    wanted = set()
    for _ in range(data.draw(st.integers(1, 4))):
        ids += data.draw(st.integers(0, 4))
        images += data.draw(st.integers(0, 5))
        targets = extended(targets, target("abcdefghijklmnopqrst"[:ids], images), "there")
        shards = all_images(Plan(targets, seed, size))
        wanted |= {(id, index) for id in "abcdefghijklmnopqrst"[:ids] for index in range(images)}
        assert shards[: len(before)] == before
        flat = [image for shard in shards for image in shard]
        assert len(flat) == len(set(flat)) and set(flat) == wanted
        assert [len(shard) for shard in shards] == [
            Plan(targets, seed, size).shard_images("train", shard) for shard in range(len(shards))
        ]
        before = shards


def test_a_dataset_with_underscores_in_its_names_grows_with_them():
    """Earlier versions kept them; the new images have the prompts of the old ones."""
    first, more = (
        Target("train", images, (Category("a", "apple_pie", ""), Category("b", "b", ""))) for images in (1, 2)
    )
    now = Target("train", 2, (Category("a", "apple pie", ""), Category("b", "b", "")))
    assert extended((first,), now, "there") == (first, more)
    with pytest.raises(UserError, match='id "b" is "c" here and "b" in there'):
        extended((first,), Target("train", 2, (*now.categories[:1], Category("b", "c", ""))), "there")


def test_every_shard_is_a_fair_sample():
    """Each category's count in a shard stays within one and a half of its share (an unmixed plan would hold one)."""
    plan = Plan((target("abcdefghij", 100),), seed=0, shard_size=50)
    for shard in all_images(plan):
        counts = Counter(id for id, _ in shard)
        assert max(abs(counts[id] - 5) for id in "abcdefghij") <= 1.5
    one = [id for id, _ in all_images(plan)[3]]
    assert sum(first == second for first, second in zip(one, one[1:], strict=False)) < 15  # mixed within it as well


def split_mix(key: int, index: int) -> float:
    """SplitMix64 in Python's own integers."""
    mask = 2**64 - 1
    z = key + (index + 1) * 0x9E3779B97F4A7C15 & mask
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
    return (z ^ z >> 31) / 2**64


def test_order_is_the_same_on_every_machine():
    """Against the definition, in Python's own arithmetic: shards of one dataset may be made years apart."""
    plan = Plan((target("abc", 4), target("abcd", 6)), seed=7, shard_size=5)

    def ordered(images: list[tuple[str, int]], start: dict[str, int], stop: int) -> list[tuple[str, int]]:
        def place(image):
            id, index = image
            key = int.from_bytes(hashlib.sha256(f"order\0{7}\0train\0{id}".encode()).digest()[:8], "little")
            return (index - start[id] + split_mix(key, index)) / (stop - start[id])

        return sorted(images, key=place)

    first = ordered([(id, n) for id in "abc" for n in range(4)], dict.fromkeys("abc", 0), 4)
    start = {"a": 4, "b": 4, "c": 4, "d": 0}
    second = ordered([(id, n) for id in "abcd" for n in range(start[id], 6)], start, 6)
    shards = [part[at : at + 5] for part in (first, second) for at in range(0, 12, 5)]
    assert all_images(plan) == shards


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 5), st.integers(1, 70), st.integers(1, 12), st.integers(1, 40), st.integers(1, 30))
def test_a_shard_is_a_part_of_the_whole_order(seed, old, more, images, size):
    """Against all images in one sort, for shards far smaller and larger than the number of categories, and growth."""
    ids = [f"c{number}" for number in range(old + more)]
    categories = tuple(Category(id, f"name of {id}", "a test") for id in ids)
    first = Target("train", 3, categories[: max(2, old)])
    wanted = Target("train", 3 + images, categories)
    plan = Plan((first, wanted), seed, size)
    starts = {id: 3 if number < max(2, old) else 0 for number, id in enumerate(ids)}

    def place(image: tuple[str, int]) -> float:
        id, index = image
        key = int.from_bytes(hashlib.sha256(f"order\0{seed}\0train\0{id}".encode()).digest()[:8], "little")
        uniform = np.floor(split_mix(key, index) * 2.0**53) / 2.0**53
        return (index - starts[id] + uniform) / (3 + images - starts[id])

    whole = sorted(((id, index) for id in ids for index in range(starts[id], 3 + images)), key=place)
    parts = [whole[at : at + size] for at in range(0, len(whole), size)]
    assert all_images(plan)[-len(parts) :] == parts


def test_seeds_and_splits_order_differently():
    plans = [
        Plan((target("abcdefgh", 8, split),), seed, 64) for seed, split in ((0, "train"), (1, "train"), (0, "val"))
    ]
    orders = [str(all_images(plan, plan.targets[0].split)) for plan in plans]
    assert len(set(orders)) == 3


def test_places_are_uniform_within_their_stratum():
    """Over many seeds the first image of a category lands anywhere in the first n-th of the order."""
    places = []
    for seed in range(200):
        order = all_images(Plan((target("abcde", 4),), seed, 20))[0]
        places.append(order.index(("c", 0)))
    counts = np.bincount(places, minlength=7)
    assert set(places) <= set(range(7)) and counts[:5].min() > 20


def test_labels_are_kept_when_categories_are_added():
    targets = extended((target("zm", 2),), target("azm", 2), "there")
    assert Plan(targets, 0, 10).labels == {"z": 0, "m": 1, "a": 2}
    assert [category.id for category in Plan(targets, 0, 10).categories] == ["z", "m", "a"]


def test_targets_survive_their_file():
    targets = (target("ab", 2), target("abc", 5), target("ab", 1, "val"))
    assert through_a_file(targets) == targets


def test_a_file_with_a_target_that_adds_nothing_is_refused():
    """No run writes one: it is what the targets before it ask for."""
    first = target("abc", 4)
    with pytest.raises(UserError, match=r"\[2\]: it adds nothing to the earlier targets"):
        through_a_file((first, target("abc", 4, "val"), first))


def test_a_file_in_which_a_target_shrinks_a_category_is_refused():
    """No run writes one: a growth would have a negative number of images."""
    with pytest.raises(UserError, match=r"a test, \[1\].images_per_category: fewer than in an earlier target"):
        through_a_file((target("ab", 10), target("acd", 5)))


@pytest.mark.parametrize(
    "wanted, message",
    [
        (target("ab", 3), 'holds "c", which this vocabulary lacks'),
        (target("abc", 2), "images_per_category 3, this run asks for 2"),
        (
            Target("train", 3, (Category("a", "other", "names.txt, line 1"),)),
            'names.txt, line 1: id "a" is "other" here',
        ),
    ],
)
def test_what_would_shrink_or_rename_is_refused(wanted, message):
    with pytest.raises(UserError, match=message):
        extended((target("abc", 3),), wanted, "there")


def test_plan_of_a_million_images_is_made_in_moderate_memory():
    plan = Plan((Target("train", 1300, tuple(Category(str(n), str(n), "") for n in range(1000))),), 0, 1000)
    counts = Counter(image.category.id for image in plan.shard("train", 700))
    assert len(counts) > 600 and max(counts.values()) <= 3
    assert (plan.images("train"), plan.shards("train")) == (1_300_000, 1300)


def of_ids(*ids: str, split: str = "train") -> Target:
    return Target(split, 3, tuple(Category(id, f"name of {id}", f"more.txt, line {n}") for n, id in enumerate(ids, 1)))


@pytest.mark.parametrize(
    "earlier, new, what",
    [
        ("a", "A", "case"),
        ("stra\u00dfe", "strasse", "case"),
        ("caf\u00e9", "cafe\u0301", "Unicode form"),
        ("\uff21", "a", "case and Unicode form"),  # a letter as wide as Chinese ones
    ],
)
def test_ids_and_splits_differ_by_more_than_case_and_form(earlier, new, what):
    """Across targets of one split and of several; a file system of Windows or macOS keeps one folder of the two."""
    for split in ("train", "val"):
        with pytest.raises(UserError) as caught:
            extended((of_ids(earlier, "b"),), of_ids("b", new, split=split), "there")
        assert str(caught.value) == (
            f'more.txt, line 2: id "{new}" and "{earlier}" in there differ in {what} alone; write it in the same way, '
            "or choose another --output"
        )
    with pytest.raises(UserError, match=f'--split {new}: there holds "{earlier}", which differs in {what} alone'):
        extended((of_ids("a", "b", split=earlier),), of_ids("a", "b", split=new), "there")


@pytest.mark.parametrize("split", ["con", "Con", "lpt1", "INDEX", "Data", "ALL", "masks", "__train", "x" * 121])
def test_a_new_split_has_a_name_that_may_be_a_folder(split):
    with pytest.raises(UserError, match=f"--split {split}: .*; "):
        extended((), of_ids("a", "b", split=split), "there")
    with pytest.raises(UserError, match=f"--split {split}: "):
        extended((of_ids("a", "b"),), of_ids("a", "b", split=split), "there")


def test_a_dataset_that_an_earlier_version_made_with_such_names_goes_on():
    """Its plan is read, and what it holds is no news; more images of it are asked for as before."""
    made = (of_ids("a", "b", split="con"), of_ids("A", "b", split="Con"))
    assert to_json(through_a_file(made)) == to_json(made)
    for target in made:
        assert extended(made, target, "there") == made
        assert len(extended(made, Target(target.split, 4, target.categories), "there")) == 3


def test_names_of_other_ids_are_refused_across_targets_as_in_one_vocabulary():
    """Unless shared names are wanted; what the dataset holds already is no news."""
    house, home = (Category(id, "House", f"{id}.txt, line 1") for id in ("a", "h"))
    made = (Target("train", 1, (house, Category("b", "tree", "a.txt, line 2"))),)
    other = Target("val", 1, (Category("b", "tree", "h.txt, line 2"), home))
    with pytest.raises(UserError, match='h.txt, line 1: the name "House" is also that of id "a" in there; add a word'):
        refuse_shared_names(made, other, "there")
    refuse_shared_names((*made, other), other, "there")


def test_more_shards_than_a_folder_can_list_are_refused():
    """A received record may say so: 10^8 images in shards of one."""
    assert Plan((target("ab", 50_000),), 0, 100).shards("train") == 1000
    with pytest.raises(UserError, match="--shard-size 1: more than 1000000 shards; give a larger one"):
        Plan((target("ab", 50_000_000),), 0, 1)
