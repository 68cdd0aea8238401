"""The interface of a store, a tree of files with relative names and atomic writes, and a store in a local folder.

Every operation checks its name: no name may leave the folder or pass through a link.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from lbgen.runs import atomic

STAGING = ".staging"
UNFINISHED = "unfinished"
"""Folder in the staging folder, beside the workers' folders: unfinished files of interrupted runs, by shard."""
LOCK = ".lock"
"""Lock file in the folder of a local dataset. It is removed only if the folder is otherwise empty (lbgen.runs.lock)."""


class Store(ABC):
    """Files with relative names and forward slashes. Files are prepared in `staging` and then published."""

    address: str
    worker: str

    def __init__(self, address: str, worker: str) -> None:
        """worker: the name of the worker's own subfolder of the staging folder."""
        self.address, self.worker = address, worker

    def __str__(self) -> str:
        return self.address

    @property
    @abstractmethod
    def local_folder(self) -> Path:
        """A folder on this machine that is safe to write to; it holds the lock and the staging folder."""

    @property
    def lock_file(self) -> Path:
        """The lock file that every run on this machine holds while it writes to this store."""
        return self.local_folder / LOCK

    @property
    def staging(self) -> Path:
        """The local folder for unfinished files of this worker only; `stage` creates it."""
        return atomic.inside(self.local_folder, f"{STAGING}/{self.worker}")

    @abstractmethod
    def names(self, folder: str = "") -> set[str]:
        """The names of the entries of a folder; empty if there is no such folder."""

    @abstractmethod
    def folders(self, folder: str = "") -> set[str]:
        """The names of the entries of a folder that are folders themselves, or links to one."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The content of a file; raises FileNotFoundError if there is none."""

    @abstractmethod
    def publish(self, staged: Mapping[str, Path]) -> None:
        """Move staged files to their final names, given as name -> staged file.

        Each file appears whole, and all of them are safely stored when the call returns.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file if it exists."""

    def remove_if_empty(self, folder: str) -> None:
        """Remove a folder if it has no entries; does nothing on object storage, which has no empty folders."""
        return

    @abstractmethod
    def fetched(self, name: str) -> AbstractContextManager[Path]:
        """A local path to the file's content, valid within the context and read-only."""

    def exists(self, name: str) -> bool:
        folder, _, last = name.rpartition("/")
        return last in self.names(folder)

    def write(self, name: str, content: bytes) -> None:
        """Publish a single file with this content."""
        staged = self.stage() / name.replace("/", "-")
        atomic.write_new(staged, content)
        self.publish({name: staged})

    def stage(self, name: str = "") -> Path:
        """The staging folder or, given a name, a new empty folder of this name inside it.

        Raises FileExistsError if leftovers cannot be removed, because writing could then follow a link among them.
        """
        folder = self.staging
        if name:
            folder = folder / name
            atomic.remove_tree(folder)  # left by a killed worker of the same name
        create_staging_folder(folder, new=bool(name))
        return folder

    def clear_staging(self, every: bool = False) -> None:
        """Remove unfinished files of this worker and of its processes, or, with `every`, of all workers."""
        staging = self.staging
        for path in [staging.parent] if every else [staging, *staging.parent.glob(f"{staging.name}.*")]:
            atomic.remove_tree(path)
        for folder in (staging.parent / UNFINISHED, staging.parent):
            with suppress(OSError):  # it holds files of another worker, or no longer exists
                folder.rmdir()


def create_staging_folder(path: Path, new: bool = False) -> None:
    """Create a folder; try again if another part of the run removes its empty parent at the same moment.

    new: the folder must not exist yet.
    """
    while new or not path.is_dir():
        with suppress(FileNotFoundError):
            path.mkdir(parents=True, exist_ok=not new)
            return


class LocalStore(Store):
    """A store in a folder on this machine."""

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

    def folders(self, folder: str = "") -> set[str]:
        path = atomic.inside(self.root, folder) if folder else self.root
        return {name for name in self.names(folder) if os.path.isdir(path / name)}

    def read(self, name: str) -> bytes:
        return atomic.read_bytes(atomic.inside(self.root, name))

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

    def remove_if_empty(self, folder: str) -> None:
        with suppress(OSError):
            atomic.inside(self.root, folder).rmdir()

    @contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        yield atomic.inside(self.root, name)
