"""torchvision's ImageFolder: SPLIT/<id>/<key>.png."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from lbgen.datasets.index import Row
from lbgen.datasets.layout import Layout, Stored


class ImageFolder(Layout):
    container = False

    def file(self, split: str, shard: int, category_id: str, key: str, suffix: str) -> str:
        return f"{split}/{category_id}/{key}.{suffix}"

    def pack(self, rows: Sequence[Row], staged: Path, suffix: str, category_ids: Sequence[str]) -> dict[str, Path]:
        return {row.file: staged / row.key for row in rows}

    def read(self, path: Path, row: Row) -> Iterator[Stored]:
        yield Stored(row.key, path.read_bytes(), None)
