"""A store on object storage (S3, Google, Azure, the Hugging Face Hub), through fsspec."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lbgen.errors import UserError
from lbgen.runs import atomic
from lbgen.runs.store import Store

WHOLE_UPLOADS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "hf")
"""Protocols whose uploads are atomic: a file appears whole or not at all. Marker files rely on that."""
CLIENTS = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "huggingface_hub", "httpx", "httpx2", "azure")
"""Packages that fsspec uses and whose errors (no credentials, no connection) are not OSErrors."""


class Unreachable(Exception):
    """The storage failed to answer a request.

    It is not an OSError, because readers raise OSError when the content of a file is damaged.
    """


class RemoteStore(Store):
    """A store at an fsspec address with one of the WHOLE_UPLOADS protocols."""

    def __init__(self, address: str, worker: str) -> None:
        super().__init__(address, worker)
        self._system, self.root = _file_system(address)

    @property
    def local_folder(self) -> Path:
        return private_folder() / hashlib.sha256(self.address.encode()).hexdigest()[:16]

    @property
    def system(self) -> Any:
        """The fsspec file system, with its cache of listings cleared, since other workers write there too."""
        self._system.invalidate_cache()
        return self._system

    def _path(self, name: str) -> str:
        atomic.ensure_relative(self.address, name)
        return f"{self.root}/{name}"

    def names(self, folder: str = "") -> set[str]:
        return {_last(entry["name"]) for entry in self._entries(folder)}

    def folders(self, folder: str = "") -> set[str]:
        return {_last(entry["name"]) for entry in self._entries(folder) if entry["type"] == "directory"}

    def _entries(self, folder: str) -> list[dict[str, Any]]:
        try:
            entries: list[dict[str, Any]] = self.system.ls(self._path(folder) if folder else self.root, detail=True)
        except FileNotFoundError:
            return []
        return entries

    def read(self, name: str) -> bytes:
        with reading():
            system, path = self.system, self._path(name)
            size = system.info(path)["size"]
            if size > atomic.LARGEST_FILE:
                raise UserError(
                    f"{self}/{name}: it has {size:,} bytes, more than the {atomic.LARGEST_FILE:,} that are read"
                )
            content = system.cat_file(path, start=0, end=size) if size else b""
        assert isinstance(content, bytes)
        return content

    def publish(self, staged: Mapping[str, Path]) -> None:
        self.system.put([str(path) for path in staged.values()], [self._path(name) for name in staged])
        for path in staged.values():
            path.unlink()

    def remove(self, name: str) -> None:
        if self.exists(name):
            self.system.rm_file(self._path(name))

    @contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        local = self.stage() / name.replace("/", "-")
        try:
            with reading():
                system, path = self.system, self._path(name)
                size, free = system.info(path)["size"], shutil.disk_usage(local.parent).free
                if size > free:
                    raise UserError(
                        f"{self}/{name}: it has {size:,} bytes, {local.parent} has room for {free:,}; make room, or "
                        "set TMPDIR to a larger disk"
                    )
                system.get_file(path, str(local))
            yield local
        finally:
            local.unlink(missing_ok=True)


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def private_folder() -> Path:
    """This user's own folder inside the system's temporary folder, in which no other user can create files."""
    folder = Path(tempfile.gettempdir()) / f"lbgen-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise UserError(f"{folder}: it is not a folder that only you can write to; remove it, or set TMPDIR to another")
    return folder


@contextmanager
def reading() -> Iterator[None]:
    """Pass on FileNotFoundError for a missing file; raise Unreachable for any other failure to read it."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in CLIENTS:
            raise
        raise Unreachable(" ".join(str(error).split()) or type(error).__name__) from error


def _file_system(address: str) -> tuple[Any, str]:
    """The fsspec file system and the path within it; credentials and endpoints come from fsspec's own configuration."""
    from fsspec.core import url_to_fs  # late: slow to import, and local datasets do not need it

    protocol = address.partition("://")[0]
    if protocol not in WHOLE_UPLOADS:
        raise UserError(
            f"--output {address}: a file there could be seen half-written; give a folder, or an address of "
            f"{', '.join(f'{name}://' for name in WHOLE_UPLOADS)}"
        )
    try:
        system, path = url_to_fs(address)
    except ImportError as error:
        raise UserError(f"--output {address}: {error}") from None
    return system, path.rstrip("/")
