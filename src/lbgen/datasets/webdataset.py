"""WebDataset: SPLIT-00000.tar with <key>.png, <key>.cls and <key>.json for each image."""

import json
import tarfile
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

from lbgen.datasets.index import Row, shard_name
from lbgen.datasets.layout import Layout, Stored


class WebDataset(Layout):
    container = True

    def file(self, split: str, shard: int, category_id: str, key: str, suffix: str) -> str:
        return f"{shard_name(split, shard)}.tar"

    def pack(self, rows: Sequence[Row], staged: Path, suffix: str, category_ids: Sequence[str]) -> dict[str, Path]:
        path = staged / "shard.tar"
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
            for row in rows:
                name = member_name(row.key)
                _add(archive, f"{name}.{suffix}", (staged / row.key).read_bytes())
                _add(archive, f"{name}.cls", str(row.label).encode())
                _add(archive, f"{name}.json", json.dumps(row.facts(), ensure_ascii=False).encode())
        return {rows[0].file: path} if rows else {}

    def read(self, path: Path, row: Row) -> Iterator[Stored]:
        key, image = "", b""
        with tarfile.open(path) as archive:
            for member in archive:
                stream = archive.extractfile(member)
                content = stream.read() if stream else b""
                name, _, suffix = member.name.partition(".")
                if suffix == "cls":
                    yield Stored(key, image, int(content))
                elif suffix != "json":
                    key, image = key_of(name), content


def member_name(key: str) -> str:
    """Readers take all behind the first dot for the extension, so an id's dots are written as %2E."""
    return key.replace("%", "%25").replace(".", "%2E")


def key_of(name: str) -> str:
    return name.replace("%2E", ".").replace("%25", "%")


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # no time, no owner: equal images give equal archives
    member.size = len(content)
    archive.addfile(member, BytesIO(content))
