"""Standard streams that are closed, full or read by nobody."""

import os
import sys
from typing import TextIO


def open_closed() -> None:
    """Open /dev/null in the place of each closed standard stream.

    Its number would else go to the next file that is opened, such as an image, and libraries would write there.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
            os.set_inheritable(descriptor, True)
            setattr(sys, name, os.fdopen(descriptor, "w" if descriptor else "r", closefd=False))


def discard(stream: TextIO) -> None:
    """Drop what the stream still holds, which Python would otherwise try to write when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def flush_or_discard(stream: TextIO) -> None:
    """Write what the stream still holds; where that fails, Python would exit with a code of its own."""
    try:
        stream.flush()
    except OSError:
        discard(stream)
