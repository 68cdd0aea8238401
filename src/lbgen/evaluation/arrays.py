"""Files of numpy, which may be damaged or come from someone else: no code of them is run."""

import io
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lbgen.runs import atomic

DAMAGE = (OSError, ValueError, LookupError, EOFError, RuntimeError, MemoryError, SyntaxError, tokenize.TokenError,
          zipfile.BadZipFile, zlib.error)  # fmt: skip
"""Raised for files that are damaged, or claim sizes that they do not have."""
LARGEST_ARRAY = 2**30
"""Bytes of an array in an archive, which may be compressed."""


def read_npy(path: Path) -> NDArray | None:
    """The array of an .npy file, mapped into memory; None where there is none that can be read."""
    try:
        return np.lib.format.open_memmap(path, mode="r")  # a wrong size and objects are refused before they are read
    except DAMAGE:
        return None


def read_npz(path: Path, name: str) -> NDArray:
    """An array of an .npz file; raises ValueError where there is none that can be read."""
    try:
        with zipfile.ZipFile(io.BytesIO(atomic.read_bytes(path))) as archive:
            member = archive.getinfo(f"{name}.npy")
            if member.file_size > LARGEST_ARRAY:
                raise ValueError(f"it has {member.file_size:,} bytes")
            return np.lib.format.read_array(io.BytesIO(archive.read(member)), allow_pickle=False)
    except DAMAGE as error:
        raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from error
