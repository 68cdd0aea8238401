"""The order in which images come, against what it promises: counted, compared and looked at image by image."""

from collections import Counter

import numpy as np
import pytest

from lbgen.pretraining.feed.order import (
    BUFFER,
    LANES,
    batch_sizes,
    buffered,
    epoch_batches,
    epoch_sequence,
    image_of,
    images_of_epoch,
    pass_order,
    read_blocks,
    updates_per_epoch,
)


def blocks(images: int, length: int = 1) -> np.ndarray:
    return np.arange(images) // length


@pytest.mark.parametrize(
    ("images", "batch", "processes"), [(50, 12, 1), (51, 7, 2), (1000, 64, 3), (9, 4, 2), (4, 4, 1)]
)
def test_every_image_comes_once_in_an_epoch_over_all_processes(images, batch, processes):
    """Counted, for numbers that divide and for those that do not, and blocks that cross the parts' borders."""
    for length in (1, 5):
        each = [epoch_batches([blocks(images, length)], [1], 3, 0, batch, p, processes) for p in range(processes)]
        assert sorted(np.concatenate([part for own in each for part in own])) == list(range(images))
        sizes = np.array([[len(part) for part in own] for own in each])  # (processes, updates)
        assert len({len(own) for own in each}) == 1 and sizes.max() <= batch
        assert np.ptp(sizes.sum(axis=0)) <= 1 and np.ptp(sizes, axis=0).max() <= 1
        assert sizes.shape[1] == -(-images // (batch * processes))


def test_each_epoch_and_each_seed_has_an_order_of_its_own():
    orders = {
        tuple(np.concatenate(epoch_batches([blocks(100)], [1], seed, epoch, 10, 0, 1)))
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(orders) == 4


def test_a_small_dataset_is_shuffled_evenly():
    """The place of an image over 400 epochs, against a uniform one: its mean and its variance."""
    places = np.array([np.argsort(pass_order(blocks(20), np.random.default_rng(seed))) for seed in range(400)])
    assert np.abs(places.mean(axis=0) - 9.5).max() < 4.5 * np.sqrt(33.25 / 400)
    assert places.var() == pytest.approx(33.25)


def test_a_weight_says_how_often_an_image_is_seen():
    """0.5 shows one half and then the other; 2 shows all twice; 1.5 goes on where the last epoch ended."""
    sizes, weights = [10, 7, 5], [0.5, 2, 1.5]
    folders = [blocks(size) for size in sizes]
    seen = []
    for epoch in (0, 1):
        batches = epoch_batches(folders, weights, 0, epoch, 8, 0, 1)
        numbers, _ = image_of(np.concatenate(batches), sum(sizes))
        seen.append(Counter(numbers.tolist()))
        assert len(numbers) == images_of_epoch(sizes, weights, epoch)
        assert len(batches) == updates_per_epoch(sizes, weights, 8)
    first, second = seen
    both = first + second
    assert [both[number] for number in range(10)] == [1] * 10 and sum(first[number] for number in range(10)) == 5
    assert all(first[number] == second[number] == 2 for number in range(10, 17))
    assert [both[number] for number in range(17, 22)] == [3] * 5


def test_an_image_that_is_seen_twice_in_an_epoch_is_told_apart():
    numbers, seen = image_of(np.concatenate(epoch_batches([blocks(6)], [2.0], 0, 0, 4, 0, 1)), 6)
    assert sorted(zip(numbers, seen, strict=True)) == [(number, time) for number in range(6) for time in (0, 1)]


def test_folders_are_mixed_throughout():
    """Of two equal folders, every tenth of the epoch has about half of each."""
    sequence = epoch_sequence([blocks(500), blocks(500)], [1, 1], 0, 0)
    shares = (sequence.reshape(10, 100) < 500).mean(axis=1)
    assert np.abs(shares - 0.5).max() < 0.2


def test_shards_are_read_in_runs_and_mixed_in_the_buffer():
    """A large sorted dataset: blocks of 16; a batch holds images of many; a lane reads few blocks at a time."""
    images = 16 * 4096
    file = np.repeat(np.arange(64), images // 64).astype(np.int32)
    own = read_blocks(file, np.zeros(images, np.int32), in_parts=False)
    assert Counter(Counter(own).values()) == {16: 4096}
    assert all(len(set(file[own == block])) == 1 for block in (0, 63, 64, 4095))
    batches = epoch_batches([own], [1], 0, 0, 256, 0, 1)
    counts = [len(set(own[batch])) for batch in batches]  # of at most (BUFFER + 256) / 16 = 80, fewer at a lane's ends
    assert min(counts) > 30 and np.median(counts) > 60
    assert min(len(set(file[batch])) for batch in batches) > 20
    lane = np.concatenate(batches[0::LANES])
    first_seen: dict[int, int] = {}
    for place, block in enumerate(own[lane]):
        first_seen.setdefault(int(block), place)
        assert place - first_seen[int(block)] < 2 * BUFFER + 16


def test_the_buffer_holds_no_more_than_it_says():
    """Against the definition: an image never comes after one that was BUFFER or more behind it."""
    order = buffered(5000, np.random.default_rng(0))
    assert sorted(order) == list(range(5000))
    overtaken = np.maximum.accumulate(order) - order
    assert 0.5 * BUFFER < overtaken.max() < BUFFER


def test_row_groups_stay_together_and_small_datasets_have_no_blocks():
    file, block = np.array([0, 0, 0, 1, 1], np.int32), np.array([0, 0, 1, 0, 1], np.int32)
    assert read_blocks(file, block, in_parts=True).tolist() == [0, 0, 1, 2, 3]
    assert read_blocks(file, block, in_parts=False).tolist() == [0, 1, 2, 3, 4]


def test_no_update_is_much_smaller_than_the_others():
    assert batch_sizes(50, 4, 2).tolist() == [[7, 6], [7, 6], [6, 6], [6, 6]]
