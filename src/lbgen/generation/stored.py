"""The images of a finished shard, read back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from lbgen.dataset import Row
from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig
from lbgen.generation.layouts import LAYOUTS
from lbgen.generation.layouts.layout import Stored
from lbgen.storage import Store


def stored_images(store: Store, config: GenerateConfig, rows: Sequence[Row]) -> Iterator[Stored]:
    """These images of one shard, in the order of its files; UserError where one is not what the index says."""
    wanted = {row.key: row.sha256 for row in rows}
    for row in {row.file: row for row in rows}.values():
        for stored in LAYOUTS[config.format].read(store.fetch(row.file), row):
            if stored.key not in wanted:
                continue
            if hashlib.sha256(stored.content).hexdigest() != wanted[stored.key]:
                raise UserError(f"{store}/{row.file}: {stored.key} was changed; run lbgen verify {store} --repair")
            yield stored
