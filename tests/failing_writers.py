"""What writer processes are made to do instead of encoding; imports nothing heavy, since each of them imports it."""

import errno
import os
import signal


def full_disk(work, rows, pixels, staged):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def die(work, rows, pixels, staged):
    os.kill(os.getpid(), signal.SIGKILL)
