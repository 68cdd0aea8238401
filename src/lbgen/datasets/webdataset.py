"""WebDataset: tar shards in which the files of one sample share a key and follow each other.

Written: SPLIT-00000.tar with <key>.png, <key>.cls (the label's number) and <key>.json (the index row), and with
--localize <key>.mask.png.
Read: *.tar or <any>/*.tar; each sample has an image, a .cls or a .json with a `label`, and optionally a .mask.png.
_info.json names the splits.
"""

import io
import json
import os
import re
import tarfile
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from itertools import islice
from pathlib import Path

from lbgen.datasets.files.local import LARGEST_FILE
from lbgen.datasets.index import Row, shard_name
from lbgen.datasets.layout import Layout, Stored, mask_name
from lbgen.datasets.records import (
    IMAGE_SUFFIXES,
    LONGEST_LABEL,
    ImageLocation,
    ImageRecord,
    ShardReader,
    valid_text,
)
from lbgen.errors import UserError
from lbgen.runs import atomic
from lbgen.runs.parsing import Name, Text, Whole, parse_json, read_json

FIRST_MEMBERS = 100
"""Number of members at the start of a shard that are searched for a .cls."""

DOTTED = "an image with a further dot in its name: readers take all from the first dot on for the extension"
"""Reason for skipping an image that other readers of WebDatasets do not find either."""

Sample = dict[str, tarfile.TarInfo]
"""Extension (with its dot) -> the sample's member with this extension."""


# ---- reading a tar ----


@contextmanager
def opened_tar(path: Path) -> Iterator[tarfile.TarFile]:
    """Open an archive; raises tarfile.ReadError at the end if reading stopped at a damaged header.

    tarfile itself treats a damaged header like the block of zeros that ends an archive.
    """
    with BoundedFile(path) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
        yield archive
        stream.seek(archive.offset)
        if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError("a damaged header")


class BoundedFile(io.BufferedReader):
    """A file whose reads allocate no more memory than its size, because a tar header may declare any size."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.length = path.stat().st_size

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self.length - self.tell())
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > LARGEST_FILE:
            raise tarfile.ReadError(f"{wanted:,} bytes in one piece, more than the {LARGEST_FILE:,} that are read")
        return super().read(wanted)


def members(archive: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Sample key, extension and member of each regular file, in the order of the archive."""
    for member in archive:
        if member.isfile():
            yield *split_name(member.name), member


def split_name(member: str) -> tuple[str, str]:
    """`folder/0001.mask.png` -> (`folder/0001`, `.mask.png`): the extension starts at the file name's first dot."""
    folder, slash, file = member.rpartition("/")
    stem, dot, extension = file.partition(".")
    return f"{folder}{slash}{stem}", f"{dot}{extension}".lower()


def content_of(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if fault := fault_of(member):
        raise tarfile.ReadError(f"{member.name!r:.80}: {fault}")
    stream = archive.extractfile(member)
    assert stream is not None, "samples have regular files only"
    return stream.read()


def fault_of(member: tarfile.TarInfo, most: int = LARGEST_FILE) -> str:
    """Why a member's content is not read; empty if it is."""
    if member.issparse():  # it may declare any number of zeros
        return "it is a sparse file"
    return f"it has {member.size:,} bytes, more than the {most:,} that are read" if member.size > most else ""


# ---- lbgen's own shards ----


class WebDatasetLayout(Layout):
    container = True

    def file(self, split: str, shard: int, category_id: str, key: str, suffix: str) -> str:
        return f"{shard_name(split, shard)}.tar"

    def pack(self, rows: Sequence[Row], staged: Path, suffix: str, category_ids: Sequence[str]) -> dict[str, Path]:
        path = staged / "shard.tar"
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
            for row in rows:
                name = escaped(row.key)
                _add(archive, f"{name}.{suffix}", (staged / row.key).read_bytes())
                _add(archive, f"{name}.cls", str(row.label).encode())
                _add(archive, f"{name}.json", json.dumps(row.to_plain(), ensure_ascii=False).encode())
                if row.mask_sha256 is not None:
                    _add(archive, f"{name}.mask.png", (staged / mask_name(row.key)).read_bytes())
        return {rows[0].file: path} if rows else {}

    def read(self, path: Path, row: Row) -> Iterator[Stored]:
        with opened_tar(path) as archive:
            parts = ((key, extension, content_of(archive, member)) for key, extension, member in _files(archive))
            masks = [] if row.mask_sha256 is None else [parts]
            for (key, suffix, image), label, line, *mask in zip(parts, parts, parts, *masks, strict=True):
                beside = [(key, ".cls"), (key, ".json")] + [(key, ".mask.png")] * len(masks)
                if suffix not in IMAGE_SUFFIXES or [each[:2] for each in (label, line, *mask)] != beside:
                    raise ValueError(
                        f"{path}: {key!r:.80} is not an image with its {', '.join(end for _, end in beside)}"
                    )
                number = int(label[2])
                if str(number).encode() != label[2]:
                    raise ValueError(f"{path}: the label of {key!r:.80} is not written as a number")
                stored = Stored(unescaped(key), image, number, parse_json(line[2]), suffix=suffix[1:])
                yield stored._replace(mask=mask[0][2]) if mask else stored


def _files(archive: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """`members` of an archive that holds only regular files; raises ValueError for any other member."""
    for member in archive:
        if not member.isfile():
            raise ValueError(f"{member.name!r:.80} is not a regular file")
        yield *split_name(member.name), member


def escaped(key: str) -> str:
    """A member's name for a key. Readers treat everything after the first dot as the extension, so dots become %2E."""
    return key.replace("%", "%25").replace(".", "%2E")


def unescaped(name: str) -> str:
    return name.replace("%2E", ".").replace("%25", "%")


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # no time and owner, so that equal images give equal archives
    member.size = len(content)
    archive.addfile(member, BytesIO(content))


# ---- anyone's shards ----


@dataclass(frozen=True)
class StoredSplit:
    filenames: set[Text]
    shard_lengths: list[Whole] | None = None
    """Number of images in each file."""


@dataclass(frozen=True)
class StoredInfo:
    """The content of _info.json."""

    splits: dict[Name, StoredSplit]


class WebDatasetReader(ShardReader):
    @cached_property
    def _info(self) -> dict[str, StoredSplit]:
        """The splits in _info.json; empty if there is no such file."""
        path = self.folder / "_info.json"
        return (
            read_json(atomic.read_bytes(path), StoredInfo, str(path), "repair or remove it").splits
            if path.is_file()
            else {}
        )

    @property
    def count(self) -> int | None:
        lengths = [split.shard_lengths or [] for split in self._info.values()]
        return sum(map(sum, lengths)) if lengths and all(lengths) else None

    def _records(self, wanted: Container[str] | None) -> Iterator[ImageRecord]:
        self._skip_other_shards()
        self._skip_missing_shards()
        for shard in self.shards:
            place = shard.relative_to(self.folder).as_posix()
            listed = (name for name, info in self._info.items() if {place, shard.name} & info.filenames)
            split = valid_text(next(listed, None) or split_of(shard, self.folder))
            try:
                with self.storage.whole(shard) as whole, opened_tar(whole) as archive:
                    for sample in self._samples(archive, place):
                        if record := self._record(archive, shard, sample, split, wanted):
                            yield record
            except UserError:
                raise
            except (tarfile.TarError, OSError, EOFError, ValueError) as error:
                fault = valid_text(f"the shard cannot be read to its end ({error})")
                yield ImageRecord(valid_text(place), "", split, None, fault=fault)

    def read(self, location: ImageLocation) -> bytes:
        if location.size > LARGEST_FILE:
            raise ValueError(f"it has {location.size:,} bytes, more than the {LARGEST_FILE:,} that are read")
        content = self.storage.read_span(self.folder / location.file, location.start, location.size)
        if len(content) < location.size:
            raise ValueError("the shard ends before the end of the image")
        return content

    def _skip_missing_shards(self) -> None:
        """Count the shards that _info.json lists but the folder lacks."""
        found = {name for shard in self.shards for name in (shard.name, shard.relative_to(self.folder).as_posix())}
        for info in self._info.values():
            for name in sorted(info.filenames - found):
                self.skipped.add("a shard that _info.json lists and that is missing", name)

    def _samples(self, archive: tarfile.TarFile, place: str) -> Iterator[Sample]:
        """The members of each sample: consecutive members with the same key."""
        sample: Sample = {}
        current: str | None = None
        for member in archive:
            if not member.isfile():
                if not member.isdir():
                    self.skipped.add("a link or a special file in an archive", f"{place}/{member.name}")
                continue
            key, extension = split_name(member.name)
            if key != current and sample:
                yield sample
                sample = {}
            current = key
            if extension in sample and extension in IMAGE_SUFFIXES:
                self.skipped.add("an image of a sample that has two of this name", f"{place}/{sample[extension].name}")
            sample[extension] = member
        if sample:
            yield sample

    def _image_of(self, sample: Sample, place: str) -> str | None:
        """The extension of the sample's first image; its other images are skipped."""
        images = [extension for extension in sample if extension in IMAGE_SUFFIXES]
        for extension in images[1:]:
            self.skipped.add("an image of a sample that has another", f"{place}/{sample[extension].name}")
        dotted = [name for name in sample if name.endswith(IMAGE_SUFFIXES) and name not in (*images, ".mask.png")]
        for extension in dotted:
            self.skipped.add(DOTTED, f"{place}/{sample[extension].name}")
        if not images and not dotted:
            self.skipped.add("a sample without an image", f"{place}/{next(iter(sample.values())).name}")
        return images[0] if images else None

    @property
    def _json_key(self) -> str:
        return self.label_column or "label"

    def _label_of(self, sample: Sample) -> tarfile.TarInfo | None:
        """The member that holds the label: the .cls, or the .json if there is no .cls or if a key is given."""
        names = (".json",) if self.label_column else (".cls", ".json")
        return next((sample[name] for name in names if name in sample), None)

    def _label_text(self, content: bytes, name: str) -> str:
        """The label in a .cls or a .json, a text or an integer; empty if there is none."""
        if not name.lower().endswith(".json"):
            return content.decode("utf-8", "replace").strip()
        try:
            stored = parse_json(content)
        except ValueError:
            return ""
        value = stored.get(self._json_key) if isinstance(stored, dict) else None
        return valid_text(str(value)).strip() if isinstance(value, str | int) else ""

    def _record(
        self, archive: tarfile.TarFile, shard: Path, sample: Sample, split: str, wanted: Container[str] | None
    ) -> ImageRecord | None:
        """The record of a sample; None for a sample without an image."""
        place = shard.relative_to(self.folder).as_posix()
        extension = self._image_of(sample, place)
        if extension is None:
            return None
        image, label, mask = sample[extension], self._label_of(sample), sample.get(".mask.png")
        key = valid_text(f"{place}/{image.name}")
        if label is None:
            return ImageRecord(key, "", split, None, fault="there is no .cls or .json beside it")
        faults = [fault_of(image), fault_of(mask) if mask else "", fault_of(label, LONGEST_LABEL)]
        if fault := next(filter(None, faults), None):
            return ImageRecord(key, "", split, None, fault=fault)
        text = self._label_text(content_of(archive, label), label.name)
        if not text:
            kind = "its .cls is empty" if label is sample.get(".cls") else f"its .json has no label `{self._json_key}`"
            return ImageRecord(key, "", split, None, fault=kind)
        category = self.category_of(text)
        if wanted is not None and key not in wanted:
            location = ImageLocation(os.fspath(shard.relative_to(self.folder)), image.offset_data, image.size)
            return ImageRecord(key, category, split, None, location=location)
        return ImageRecord(
            key, category, split, content_of(archive, image), content_of(archive, mask) if mask else None
        )


def holds_labels(shard: Path) -> bool:
    """Whether there is a .cls among the first members; an archive beside an image folder has none."""
    try:
        with BoundedFile(shard) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            return any(split_name(member.name)[1] == ".cls" for member in islice(archive, FIRST_MEMBERS))
    except (tarfile.TarError, OSError, EOFError):
        return False


def split_of(shard: Path, folder: Path) -> str:
    """`train-00003.tar`, `train-00003-of-00007.parquet` -> train; `train/00003.tar`, `train/data-0.arrow` -> train."""
    match = re.match(r"(.+?)[-_.]\d+", shard.name)
    split = match[1] if match else shard.stem
    if split.isdigit() or shard.suffix == ".arrow":  # the folder names the split
        return shard.parent.name if shard.parent != folder else "all"
    return split
