"""Opening the store at a folder or an fsspec address, and reporting storage failures in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lbgen.errors import UserError
from lbgen.runs.remote import CLIENTS, RemoteStore, Unreachable
from lbgen.runs.store import LocalStore, Store

__all__ = ["LocalStore", "Store", "is_remote", "open_store", "storage_errors", "without_scheme"]


def is_remote(address: str) -> bool:
    return "://" in address


def without_scheme(address: str) -> str:
    """The path of a file:// address (file:///data/set is the folder /data/set); other addresses unchanged."""
    return address.removeprefix("file://")


def open_store(address: str, worker: str = "all") -> Store:
    """The store at a local path or an fsspec address; `worker` names its own subfolder of the staging folder."""
    if is_remote(address):
        return RemoteStore(address.rstrip("/"), worker)
    return LocalStore(Path(address), worker)


@contextmanager
def storage_errors(output: str) -> Iterator[None]:
    """Turn failures to read or write `output` into a UserError of one line."""
    try:
        yield
    except MemoryError:
        raise UserError(
            f"{output}: memory ran out; give fewer --writers or a smaller --batch-size; nothing is lost, start again"
        ) from None
    except OSError as error:
        raise UserError(_message(output, error)) from error
    except Exception as error:
        if not isinstance(error, Unreachable) and type(error).__module__.partition(".")[0] not in CLIENTS:
            raise
        raise UserError(f"{output}: {' '.join(str(error).split())}; fix it and start again") from error


def _message(output: str, error: OSError) -> str:
    file = f" ({error.filename})" if error.filename and str(error.filename) != output else ""
    return f"{output}: {error.strerror or error}{file}; nothing is lost, fix it and start again"
