"""Reading and writing numpy files; they are untrusted, so no code in them is run."""

import io
import tokenize
import zipfile
import zlib
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lbgen.runs import atomic

DAMAGE = (OSError, ValueError, LookupError, EOFError, RuntimeError, MemoryError, SyntaxError, tokenize.TokenError,
          zipfile.BadZipFile, zlib.error)  # fmt: skip
"""Exceptions for files that are damaged or declare wrong sizes."""
PIECE = 2**20
"""Number of bytes that are hashed at a time."""
LARGEST_ARRAY = 2**30
"""Largest array in an archive, in bytes; it may be compressed."""


def write_npy(path: Path, array: NDArray) -> None:
    """Write an .npy file, followed by the SHA-256 of its content; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    atomic.write_bytes(path, stream.getvalue() + sha256(stream.getbuffer()).digest())


def read_npy(path: Path) -> NDArray | None:
    """The array of a file of `write_npy`, mapped into memory; None if the file is missing or damaged.

    Files of earlier versions have no hash.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # refuses wrong sizes and Python objects
        end = array.offset + array.nbytes
        with path.open("rb") as stream:
            digest = sha256()
            for start in range(0, end, PIECE):
                digest.update(stream.read(min(PIECE, end - start)))
            return array if stream.read() in (b"", digest.digest()) else None
    except DAMAGE:
        return None


def read_npz(path: Path, name: str) -> NDArray:
    """An array of an .npz file; raises ValueError if it cannot be read."""
    try:
        with zipfile.ZipFile(io.BytesIO(atomic.read_bytes(path))) as archive:
            member = archive.getinfo(f"{name}.npy")
            if member.file_size > LARGEST_ARRAY:
                raise ValueError(f"it has {member.file_size:,} bytes")
            return np.lib.format.read_array(io.BytesIO(archive.read(member)), allow_pickle=False)
    except DAMAGE as error:
        raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from error
