"""Reading state dictionaries from torch files, which are untrusted: no code in them is run."""

import pickle
import struct
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

DAMAGE = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, EOFError, pickle.UnpicklingError)
"""Exceptions for state dictionaries that are damaged, of another shape, or contain code."""


def load_tensors(path: Path, device: "torch.device | str") -> Any:
    """Read a file of `torch.save`, only tensors and plain values. Raises one of DAMAGE.

    torch.save does not compress, so a compressed archive is refused: it could expand to any size. The same holds for
    the file format before archives.
    """
    import torch  # late: faults of a run folder are reported without it

    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is compressed")
        return torch.load(path, map_location=device, weights_only=True)
    except (OSError, zipfile.BadZipFile, struct.error, ArithmeticError) as error:
        raise ValueError(str(error)) from error
