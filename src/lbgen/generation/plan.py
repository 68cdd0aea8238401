"""Which images are drawn together: fixed by the configuration, so that a continued run repeats the same batches."""

from collections.abc import Iterator
from dataclasses import dataclass

from lbgen.vocabulary import Category, Vocabulary


@dataclass(frozen=True)
class PlannedImage:
    category: Category
    index: int
    """Position among the images of its category."""

    @property
    def key(self) -> str:
        return f"{self.category.id}_{self.index:05d}"


@dataclass(frozen=True)
class Plan:
    """All images of a run, category after category, cut into shards (units of work) and these into batches."""

    vocabulary: Vocabulary
    images_per_category: int
    images_per_shard: int
    batch_size: int

    @property
    def images(self) -> int:
        return len(self.vocabulary) * self.images_per_category

    @property
    def shards(self) -> int:
        return -(-self.images // self.images_per_shard)

    def shard(self, number: int) -> range:
        """The positions, among all images, of one shard's."""
        start = number * self.images_per_shard
        return range(start, min(start + self.images_per_shard, self.images))

    def batches(self, number: int) -> Iterator[list[PlannedImage]]:
        positions = self.shard(number)
        for start in range(0, len(positions), self.batch_size):
            yield [self._image(position) for position in positions[start : start + self.batch_size]]

    def _image(self, position: int) -> PlannedImage:
        category, index = divmod(position, self.images_per_category)
        return PlannedImage(self.vocabulary[category], index)
