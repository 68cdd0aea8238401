"""Where a dataset lives: a folder of this machine or an fsspec address, whose files appear whole or not at all.

Names are relative and checked here, at every use: none leaves the folder, and none passes through a link.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from lbgen.runs import atomic
from lbgen.errors import UserError

STAGING = ".staging"
LOCK = ".lock"
"""In a local dataset's folder; it stays there, unless nothing else does (lbgen.runs.lock)."""
WHOLE_UPLOADS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "hf")
"""Protocols whose uploads appear as a whole or not at all, which a marker must."""


CLIENTS = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "huggingface_hub", "httpx", "httpx2", "azure")
"""Packages behind fsspec whose errors (no credentials, no connection) are no OSErrors."""


class Unreachable(Exception):
    """A storage did not answer as it should. No OSError, which may also come of a file's content: that is damage."""


class Store(ABC):
    """A tree of files by relative name, with forward slashes. What is staged in `staging` is published at once."""

    address: str
    worker: str

    def __init__(self, address: str, worker: str) -> None:
        self.address, self.worker = address, worker

    def __str__(self) -> str:
        return self.address

    @property
    @abstractmethod
    def local_folder(self) -> Path:
        """A folder of this machine, safe to write to, for the lock and for files that are not finished."""

    @property
    def lock_file(self) -> Path:
        """Held by whoever writes to this store from this machine."""
        return self.local_folder / LOCK

    @property
    def staging(self) -> Path:
        """A local folder for files that are not finished, of this worker alone; made by `stage`."""
        return atomic.inside(self.local_folder, f"{STAGING}/{self.worker}")

    @abstractmethod
    def names(self, folder: str = "") -> set[str]:
        """The names of what is in a folder; none where there is no such folder."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A file's content; FileNotFoundError where there is none."""

    @abstractmethod
    def publish(self, staged: Mapping[str, Path]) -> None:
        """Put staged files, by their final names, in place; each appears whole, and all are safe on return."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    @abstractmethod
    def fetched(self, name: str) -> AbstractContextManager[Path]:
        """Within the context, a local path with the file's content: for readers that need one. Not to be written to."""

    def exists(self, name: str) -> bool:
        folder, _, last = name.rpartition("/")
        return last in self.names(folder)

    def write(self, name: str, content: bytes) -> None:
        staged = self.stage() / name.replace("/", "-")
        atomic.write_new(staged, content)
        self.publish({name: staged})

    def stage(self, name: str = "") -> Path:
        """The staging folder, or an empty one of this name inside it."""
        folder = self.staging
        if name:
            folder = folder / name
            shutil.rmtree(folder, ignore_errors=True)  # of a worker of this name that was killed
        make_folder(folder)
        return folder

    def clear_staging(self, every: bool = False) -> None:
        """Leave nothing unfinished behind: of this worker and its processes, or of every one of this machine."""
        staging = self.staging
        for path in [staging.parent] if every else [staging, *staging.parent.glob(f"{staging.name}.*")]:
            shutil.rmtree(path, ignore_errors=True)  # which removes links, and never what they point to
        with suppress(OSError):  # another worker's part is in it, or it is gone
            staging.parent.rmdir()


class LocalStore(Store):
    def __init__(self, root: Path, worker: str) -> None:
        super().__init__(str(root), worker)
        self.root = root

    @property
    def local_folder(self) -> Path:
        return self.root

    def names(self, folder: str = "") -> set[str]:
        try:
            return set(os.listdir(atomic.inside(self.root, folder) if folder else self.root))
        except (FileNotFoundError, NotADirectoryError):
            return set()

    def read(self, name: str) -> bytes:
        return atomic.inside(self.root, name).read_bytes()

    def publish(self, staged: Mapping[str, Path]) -> None:
        targets = {atomic.inside(self.root, name): path for name, path in staged.items()}
        for path in targets.values():
            atomic.flush(path)
        folders = {target.parent for target in targets}
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for target, path in targets.items():
            os.replace(path, target)
        for folder in folders:
            atomic.flush(folder)

    def remove(self, name: str) -> None:
        path = atomic.inside(self.root, name)
        if path.exists():
            path.unlink(missing_ok=True)
            atomic.flush(path.parent)

    @contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        yield atomic.inside(self.root, name)


class RemoteStore(Store):
    """A file system of fsspec's, one of WHOLE_UPLOADS."""

    def __init__(self, address: str, worker: str) -> None:
        super().__init__(address, worker)
        self._system, self.root = _file_system(address)

    @property
    def local_folder(self) -> Path:
        return private_folder() / hashlib.sha256(self.address.encode()).hexdigest()[:16]

    @property
    def system(self) -> Any:
        """fsspec's file system, which is to remember no listing: others write there, too."""
        self._system.invalidate_cache()
        return self._system

    def _path(self, name: str) -> str:
        atomic.ensure_relative(self.address, name)
        return f"{self.root}/{name}"

    def names(self, folder: str = "") -> set[str]:
        try:
            paths = self.system.ls(self._path(folder) if folder else self.root, detail=False)
        except FileNotFoundError:
            return set()
        return {path.rstrip("/").rpartition("/")[2] for path in paths}

    def read(self, name: str) -> bytes:
        with _reaching():
            content = self.system.cat_file(self._path(name))
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
            with _reaching():
                self.system.get_file(self._path(name), str(local))
            yield local
        finally:
            local.unlink(missing_ok=True)


def private_folder() -> Path:
    """This user's own folder in the system's temporary one, where others cannot plant anything."""
    folder = Path(tempfile.gettempdir()) / f"lbgen-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise UserError(f"{folder}: it is not a folder that only you can write to; remove it, or set TMPDIR to another")
    return folder


@contextmanager
def _reaching() -> Iterator[None]:
    """A file that is not there is FileNotFoundError, what else keeps it from being read is Unreachable."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unreachable(error) from error


def make_folder(path: Path) -> None:
    """Make a staging folder, though another part of the run may remove the empty one around it at the same moment."""
    while not path.is_dir():
        with suppress(FileNotFoundError):
            path.mkdir(parents=True, exist_ok=True)


def is_remote(address: str) -> bool:
    return "://" in address


def without_scheme(address: str) -> str:
    """file:///data/set is the folder /data/set; other addresses stay as they are."""
    return address.removeprefix("file://")


def open_store(address: str, worker: str = "all") -> Store:
    """The store at a local path or an fsspec address; `worker` names the part of the staging folder that is its own."""
    if is_remote(address):
        return RemoteStore(address.rstrip("/"), worker)
    return LocalStore(Path(address), worker)


def _file_system(address: str) -> tuple[Any, str]:
    """fsspec's file system and the path within it; credentials and endpoints come from its own configuration."""
    from fsspec.core import url_to_fs

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


@contextmanager
def storage_errors(output: str) -> Iterator[None]:
    """What keeps a file from being written, as one line."""
    try:
        yield
    except BrokenProcessPool:
        raise UserError(
            f"{output}: a writer process was killed; if memory ran out, give fewer --writers or a smaller "
            "--batch-size; nothing is lost, start again"
        ) from None
    except OSError as error:
        raise UserError(disk_message(output, error)) from error
    except Exception as error:
        if not isinstance(error, Unreachable) and type(error).__module__.partition(".")[0] not in CLIENTS:
            raise
        raise UserError(f"{output}: {' '.join(str(error).split())}; mend it and start again") from error


def disk_message(output: str, error: OSError) -> str:
    """One line for a file that could not be read or written."""
    where = f" ({error.filename})" if error.filename and str(error.filename) != output else ""
    return f"{output}: {error.strerror or error}{where}; nothing is lost, mend it and start again"
