"""Which datasets this user has made: of those alone a repair takes the models from the record.

A dataset's record names its models, and a repair would load what it names: from a hub, or from a folder of this
machine. In a dataset from someone else that is the sender's choice. So every record that this user's own flags agreed
with is remembered here by the hash of its content, in the user's state folder (XDG_STATE_HOME).
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from lbgen.generation.record import RECORD
from lbgen.runs.storage import Store


def remember(store: Store) -> None:
    """Note that this user's flags made, or agreed with, the dataset's record as it is now."""
    mark = _mark(store)
    with suppress(OSError):  # without a home folder a repair asks for the models by flag
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def is_made_here(store: Store) -> bool:
    with suppress(OSError):
        return _mark(store).exists()
    return False


def _mark(store: Store) -> Path:
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return state / "lbgen" / "datasets" / hashlib.sha256(store.read(RECORD)).hexdigest()
