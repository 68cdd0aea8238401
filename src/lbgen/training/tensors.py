"""State dictionaries in files of torch, which may come from someone else: no code of them is run."""

import pickle
import struct
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

DAMAGE = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, EOFError, pickle.UnpicklingError)
"""Raised for state dictionaries that are damaged, of another shape, or hold code."""


def load_tensors(path: Path, device: "torch.device | str") -> Any:
    """What `torch.save` wrote: tensors and plain values only. Raises one of DAMAGE.

    torch.save compresses nothing, so an archive that is compressed could only claim to be larger than it is; files of
    the format before archives claim their sizes too.
    """
    import torch  # late: what is wrong with a run folder can be said without it

    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is compressed")
        return torch.load(path, map_location=device, weights_only=True)
    except (OSError, zipfile.BadZipFile, struct.error, ArithmeticError) as error:
        raise ValueError(str(error)) from error
