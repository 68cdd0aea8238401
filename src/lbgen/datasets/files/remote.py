"""The files of a dataset on object storage (S3, Google, Azure, the Hugging Face Hub), read through fsspec when needed.

A local folder represents the dataset: it has every file with its name and size, but as a sparse file without content,
so that it takes no disk space. The readers list it like any other folder; the few files that describe a dataset are
complete. Images are read as byte ranges of their shards; a shard is local as a whole only while it is indexed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PosixPath
from typing import Any

from lbgen.datasets.files.local import LARGEST_FILE, LocalFiles, Span
from lbgen.datasets.tables.pages import spans_of
from lbgen.errors import UserError
from lbgen.runs import atomic
from lbgen.runs.remote import WHOLE_UPLOADS, Unreachable, private_folder, reading

DESCRIPTIONS = ("labels.json", "_info.json", "metadata.csv", "metadata.jsonl")
"""Files that describe a dataset, in its folder or in the folders inside it."""
MOST_AHEAD = 2**28
"""Most bytes of images that a process reads ahead, for one batch."""


class Address(PosixPath):
    """A folder or file on object storage, written protocol://...; local file operations do not find it."""

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)

    def resolve(self, strict: bool = False) -> Address:
        return self


class RemoteFiles(LocalFiles):
    def __init__(self, address: Address) -> None:
        """List the dataset. Raises UserError if there is none, or if the storage does not answer."""
        self.address = address
        self._opened: tuple[int, Any, str] | None = None
        self._ahead: dict[Span, bytes | BaseException] = {}
        self._whole: set[Path] = set()
        made = Path(tempfile.mkdtemp(prefix="reading-", dir=private_folder()))
        weakref.finalize(self, _remove, made, os.getpid())
        self.folder, self.parts = made / "dataset" / address.name, made / "parts"
        """The local folder that represents the dataset, and the folder of the row groups being read."""
        self.parts.mkdir()
        with self.errors():
            self._list()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None, "_ahead": {}}

    def _system(self) -> tuple[Any, str]:
        """The fsspec file system of this process (a fork cannot use its parent's) and the dataset's path in it."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), *file_system(self.address))
        return self._opened[1:]

    def _there(self, path: Path) -> str:
        return f"{self._system()[1]}/{path.relative_to(self.folder).as_posix()}"

    def _list(self) -> None:
        system, root = self._system()
        sizes: dict[str, int] = {}
        with suppress(FileNotFoundError), reading():
            system.invalidate_cache()
            found = system.find(root, detail=True)
            sizes = {name: entry["size"] for name, entry in found.items() if entry["type"] == "file" and name != root}
        if not sizes:
            raise UserError(f"{self.address}: there are no files; give the address of a dataset")
        try:
            self._place(sizes, root)
        except OSError as error:
            raise UserError(
                f"{self.address}: {error.strerror} ({error.filename}); set TMPDIR to another disk"
            ) from error

    def _place(self, sizes: dict[str, int], root: str) -> None:
        """Create sparse files with these names and sizes."""
        for name, size in sizes.items():
            place = name.removeprefix(f"{root}/")
            atomic.ensure_relative(str(self.address), place)
            path = self.folder / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(exist_ok=False)
            os.truncate(path, size)
            if path.name in DESCRIPTIONS and place.count("/") < 2 and size <= atomic.LARGEST_FILE:
                path.write_bytes(self.read_span(path, 0, size))

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Name the dataset by its address, and turn Unreachable into a UserError."""
        try:
            yield
        except UserError as error:
            raise UserError(str(error).replace(str(self.folder), str(self.address))) from error
        except Unreachable as error:
            raise UserError(f"{self.address}: {error}; start again") from error

    # ---- reading ----

    def read(self, path: Path) -> bytes:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise atomic.Unreadable.at(path, f"it has {size:,} bytes, more than the {LARGEST_FILE:,} that are read")
        return self.read_span(path, 0, size)

    def read_span(self, path: Path, start: int, size: int) -> bytes:
        if not size:
            return b""
        with reading():
            found = self._ahead.pop((path, start, size), None)
            if found is None:
                found = self._system()[0].cat_file(self._there(path), start=start, end=start + size)
        if isinstance(found, BaseException):
            with reading():
                raise found
        return bytes(found)

    def prefetch(self, spans: Iterable[Span]) -> None:
        """Fetch the parts, in parallel if the file system supports it."""
        wanted, size = [], 0
        for span in dict.fromkeys(spans):
            size += span[2]
            if size > MOST_AHEAD:
                break
            if span[2]:
                wanted.append(span)
        places = [self._there(path) for path, _, _ in wanted]
        starts, ends = [start for _, start, _ in wanted], [start + size for _, start, size in wanted]
        with reading():
            contents = self._system()[0].cat_ranges(places, starts, ends, on_error="return") if wanted else []
        self._ahead = dict(zip(wanted, contents, strict=True))

    @contextmanager
    def whole(self, path: Path) -> Iterator[Path]:
        if path in self._whole:
            yield path
            return
        size, free = path.stat().st_size, shutil.disk_usage(self.folder).free
        if size > free:
            raise UserError(
                f"{self.address / path.relative_to(self.folder)}: it has {size:,} bytes, {self.folder} has room for "
                f"{free:,}; make room, or set TMPDIR to a larger disk"
            )
        self._whole.add(path)
        try:
            with reading():
                self._system()[0].get_file(self._there(path), str(path))
            if (came := path.stat().st_size) != size:
                raise Unreachable(f"{path.name} had {size:,} bytes when it was listed, {came:,} came")
            yield path
        finally:
            self._whole.discard(path)
            write_sparse(path, size, footer_of(path, size))

    @contextmanager
    def row_group(self, path: Path, group: int) -> Iterator[Path]:
        spans = spans_of(path)[group]
        start, end = min(start for start, _ in spans), max(end for _, end in spans)
        size = path.stat().st_size
        if not 0 <= start < end <= size or end - start > LARGEST_FILE:
            raise ValueError(f"row group {group} has {end - start:,} bytes, the file {size:,}")
        content = self.read_span(path, start, end - start)
        with tempfile.NamedTemporaryFile(dir=self.parts, suffix=path.suffix) as part:
            write_sparse(Path(part.name), size, {start: content, **footer_of(path, size)})
            yield Path(part.name)


def file_system(address: Address) -> tuple[Any, str]:
    """The fsspec file system and the path within it; credentials and endpoints come from fsspec's own configuration."""
    from fsspec.core import url_to_fs  # late: local datasets do without it, and it is slow to import

    protocol = str(address).partition("://")[0]
    if protocol not in WHOLE_UPLOADS:
        known = ", ".join(f"{name}://" for name in WHOLE_UPLOADS)
        raise UserError(f"{address}: datasets are read from folders and from {known}; copy it to one of them")
    try:
        system, path = url_to_fs(str(address))
    except (ImportError, ValueError) as error:
        raise UserError(f"{address}: {error}") from None
    return system, path.rstrip("/")


# ---- files with holes ----


def write_sparse(path: Path, size: int, parts: dict[int, bytes]) -> None:
    """Write a sparse file of this size with these parts (first byte -> content); the rest takes no disk space."""
    with path.open("wb") as stream:
        for start, content in parts.items():
            stream.seek(start)
            stream.write(content)
        stream.truncate(size)


def footer_of(path: Path, size: int) -> dict[int, bytes]:
    """First byte -> content of the footer of a Parquet file; empty for other files."""
    if path.suffix != ".parquet" or path.stat().st_size != size or size < 8:
        return {}
    with path.open("rb") as stream:
        stream.seek(size - 8)  # the footer's length and the magic bytes
        start = max(0, size - 8 - int.from_bytes(stream.read(4), "little"))
        stream.seek(start)
        return {start: stream.read()}


def _remove(folder: Path, process: int) -> None:
    """Remove the folder at exit. Forked processes call this too, but only the process that made it removes it."""
    if os.getpid() == process:
        atomic.remove_tree(folder)
