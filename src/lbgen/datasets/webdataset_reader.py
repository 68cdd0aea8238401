"""Datasets packed into larger files: what these have in common, and WebDataset's tar shards (tables.py: others)."""

import json
import re
import tarfile
from collections.abc import Container, Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from lbgen.datasets.records import IMAGE_SUFFIXES, Label, Record, Source, listed_labels
from lbgen.errors import UserError

FIRST_MEMBERS = 100
"""Of a shard, among which a label must be if there are any."""


class Packed(Source):
    def __init__(self, folder: Path, shards: list[Path]) -> None:
        super().__init__(folder)
        self.shards = shards

    @cached_property
    def _listed(self) -> list[Label]:
        return listed_labels(self.folder)

    def labels(self) -> dict[str, Label]:
        return {label.id: label for label in self._listed}

    def _category(self, value: str) -> str:
        """The id behind a label's number, where a list of labels says so."""
        listed = self._listed
        return listed[int(value)].id if value.isascii() and value.isdigit() and int(value) < len(listed) else value


class WebDataset(Packed):
    @cached_property
    def _info(self) -> dict[str, Any]:
        """`split -> {"filenames", "shard_lengths"}`, of _info.json."""
        path = self.folder / "_info.json"
        try:
            splits = json.loads(path.read_text(encoding="utf-8"))["splits"] if path.is_file() else {}
            return {name: {**split, "filenames": set(split["filenames"])} for name, split in splits.items()}
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError(f"{path}: no splits with filenames in it; repair or remove it") from None

    @property
    def count(self) -> int | None:
        lengths = [split.get("shard_lengths") for split in self._info.values()]
        return sum(map(sum, lengths)) if lengths and all(lengths) else None

    def records(self, wanted: Container[str] | None = None) -> Iterator[Record]:
        for shard in self.shards:
            place = shard.relative_to(self.folder).as_posix()
            listed = (name for name, info in self._info.items() if {place, shard.name} & info["filenames"])
            split = next(listed, None) or split_of(shard, self.folder)
            try:
                yield from self._shard_records(shard, split, wanted)
            except (tarfile.TarError, OSError, EOFError) as error:
                yield Record(place, "", split, None, fault=f"the shard cannot be read to its end ({error})")

    def _shard_records(self, shard: Path, split: str, wanted: Container[str] | None) -> Iterator[Record]:
        with tarfile.open(shard, "r:") as archive:
            sample: dict[str, tarfile.TarInfo] = {}
            stem: str | None = None
            for member in archive:
                if not member.isfile():
                    continue
                key, suffix = split_key(member.name)
                if key != stem and sample:
                    yield from self._record(archive, shard, sample, split, wanted)
                    sample = {}
                stem = key
                sample[suffix] = member
            if sample:
                yield from self._record(archive, shard, sample, split, wanted)
            _ensure_ended(archive, shard)

    def _record(
        self,
        archive: tarfile.TarFile,
        shard: Path,
        sample: dict[str, tarfile.TarInfo],
        split: str,
        wanted: Container[str] | None,
    ) -> Iterator[Record]:
        """The sample's record; none where it holds no image."""
        suffix = next((suffix for suffix in sample if suffix in IMAGE_SUFFIXES), None)
        if suffix is None:
            return
        key = f"{shard.relative_to(self.folder).as_posix()}/{sample[suffix].name}"
        if ".cls" not in sample:
            yield Record(key, "", split, None, fault="there is no .cls beside it")
            return
        category = self._category(_read(archive, sample[".cls"]).decode("utf-8", "replace").strip())
        if wanted is not None and key not in wanted:
            yield Record(key, category, split, None)
            return
        mask = sample.get(".mask.png")
        yield Record(key, category, split, _read(archive, sample[suffix]), _read(archive, mask) if mask else None)


def holds_labels(shard: Path) -> bool:
    """Whether a .cls is among its first files: an archive that lies beside an image folder has none."""
    try:
        with tarfile.open(shard, "r:") as archive:
            return any(split_key(member.name)[1] == ".cls" for member in islice(archive, FIRST_MEMBERS))
    except (tarfile.TarError, OSError, EOFError):
        return False


def _ensure_ended(archive: tarfile.TarFile, shard: Path) -> None:
    """tarfile takes a damaged header for the archive's end, which is a block of zeros."""
    with shard.open("rb") as stream:
        stream.seek(archive.offset)
        if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError("a damaged header")


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    assert stream is not None
    return stream.read()


def split_key(member: str) -> tuple[str, str]:
    """`dir/0001.jpg` -> (`dir/0001`, `.jpg`): the extension begins at the first dot of the last part."""
    folder, _, file = member.rpartition("/")
    stem, dot, extension = file.partition(".")
    return f"{folder}/{stem}", f"{dot}{extension}".lower()


def split_of(shard: Path, folder: Path) -> str:
    """`train-00003.tar`, `train-00003-of-00007.parquet` -> train; `train/00003.tar`, `train/data-0.arrow` -> train."""
    match = re.match(r"(.+?)[-_.]\d+", shard.name)
    split = match[1] if match else shard.stem
    if split.isdigit() or shard.suffix == ".arrow":  # of one split a folder
        return shard.parent.name if shard.parent != folder else "all"
    return split
