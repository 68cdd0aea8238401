"""The images of a finished shard, read back."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator, Sequence

from lbgen.dataset import Row
from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig
from lbgen.generation.layouts import LAYOUTS
from lbgen.generation.layouts.layout import Stored
from lbgen.storage import LocalStore, Store


def stored_images(store: Store, config: GenerateConfig, rows: Sequence[Row]) -> Iterator[Stored]:
    """These images of one shard, in the order of its files; UserError where one is not what the index says."""
    wanted = {row.key: row.sha256 for row in rows}
    for row in {row.file: row for row in rows}.values():
        found = 0
        try:
            path = store.fetch(row.file)
            for stored in LAYOUTS[config.format].read(path, row):
                if hashlib.sha256(stored.content).hexdigest() == wanted.get(stored.key):
                    found += 1
                    yield stored
        except (FileNotFoundError, ValueError, KeyError, TypeError, tarfile.TarError):
            found = -1
        if found != sum(one.file == row.file for one in rows):
            raise UserError(f"{store}/{row.file} was changed; run lbgen verify {store} --repair, then start again")
        if not isinstance(store, LocalStore):
            path.unlink()
