"""Output for the user of a run: lines on standard output, progress and warnings on standard error.

Only this module decides what is shown. --quiet leaves only requested results, warnings and errors; --verbose prints a
line for every step. Progress is a bar in a terminal; elsewhere it is plain lines at growing intervals, because a log
keeps every carriage return.
"""

from __future__ import annotations

import io
import os
import resource
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import TYPE_CHECKING, Self, TextIO, TypeVar

from tqdm import tqdm

from lbgen.errors import Interrupted, UserError, printable

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

FIRST_LINE, LONGEST_PAUSE = 5.0, 300.0
"""Seconds to the first plain line of progress, and the longest pause between two lines; the pause doubles each time."""
TIMES = {"hours": 3600.0, "minutes": 60.0, "seconds": 1.0}
SIZES = {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3}


class Verbosity(IntEnum):
    QUIET = 0
    NORMAL = 1
    VERBOSE = 2


@dataclass
class _Shown:
    verbosity: Verbosity = Verbosity.NORMAL
    heading: str = ""
    """Printed before the first line, once."""


_shown = _Shown()


@contextmanager
def showing(verbosity: Verbosity, heading: str = "") -> Iterator[None]:
    """Set the verbosity within the context; `heading` is printed before the first line of `say`."""
    before = _shown.verbosity, _shown.heading
    _shown.verbosity, _shown.heading = verbosity, heading
    try:
        yield
    finally:
        _shown.verbosity, _shown.heading = before


def is_verbose() -> bool:
    return _shown.verbosity == Verbosity.VERBOSE


# ---- lines ----


def say(text: str) -> None:
    """Print lines about the run on standard output; nothing with --quiet."""
    if _shown.verbosity == Verbosity.QUIET:
        return
    lines = [_shown.heading] * bool(_shown.heading) + text.splitlines()
    _shown.heading = ""
    _write(lines)


def result(text: str) -> None:
    """Print a requested result on standard output, such as that of a comparison, also with --quiet."""
    _write(text.splitlines())


def _write(lines: Sequence[str]) -> None:
    """Write to standard output; an error names standard output, so that it is not mistaken for one of --output."""
    try:
        _print("\n".join(map(printable, lines)), sys.stdout)
    except BrokenPipeError:
        raise Interrupted(signal.SIGPIPE, "nobody reads standard output") from None
    except OSError as error:
        raise UserError(f"standard output: {error.strerror}; make room, or choose another place") from error


def warn(text: str) -> None:
    """Print a line on standard error, also with --quiet."""
    _note(f"lbgen: {printable(text)}")


@cache
def warn_once(text: str) -> None:
    """Print a warning once per process."""
    warn(text)


def _note(line: str) -> None:
    """Print a line on standard error. If that fails (disk full, closed pipe), the run continues without it."""
    with suppress(OSError):
        _print(line, sys.stderr)


def _print(text: str, stream: TextIO | None) -> None:
    """Write lines, with escapes for characters that the stream's encoding lacks; nothing if there is no stream."""
    if stream is None:  # in a program without a console, such as a service
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    tqdm.write(text.encode(encoding, "backslashreplace").decode(encoding), file=stream)
    stream.flush()  # a log shows where the run is


def table(rows: Sequence[tuple[str, str]]) -> str:
    """A text table of two columns: names and values."""
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:{width}}{value}" for name, value in rows)


# ---- standard streams that are closed, on a full disk, of a small character set, or a pipe without a reader ----


def prepare_streams() -> None:
    """Replace each closed standard stream by /dev/null; make the others escape characters that their encoding lacks.

    Otherwise the next file that is opened, such as an image, would get the closed stream's descriptor, and libraries
    would write their messages into it.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
            os.set_inheritable(descriptor, True)
            setattr(sys, name, os.fdopen(descriptor, "w" if descriptor else "r", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError, ValueError):
                stream.reconfigure(errors="backslashreplace")


def discard(stream: TextIO) -> None:
    """Drop the stream's buffer, which Python would otherwise try to write at exit."""
    with suppress(io.UnsupportedOperation):  # the stream is not a file
        descriptor = stream.fileno()
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def flush_or_discard(stream: TextIO) -> None:
    """Write the stream's buffer; discard it if that fails, because Python would then exit with a code of its own."""
    try:
        stream.flush()
    except OSError:
        discard(stream)


# ---- progress ----


class Progress:
    """Progress through a number of steps: a bar in a terminal, plain lines at growing intervals elsewhere."""

    def __init__(
        self, name: str, total: int | None, unit: str, *, done: int = 0, leave: bool = True, shown: bool = True
    ) -> None:
        """unit: the counted thing, in the plural.  leave: keep the bar or print a last line at the end (outside a
        terminal, only after `FIRST_LINE` seconds).  shown: whether to show anything at all.
        """
        self.name, self.total, self.unit, self.done, self.leave = name, total, unit, done, leave
        self.shown = shown and _shown.verbosity > Verbosity.QUIET and (total is None or done < total)
        in_terminal = sys.stderr is not None and sys.stderr.isatty()
        self.plain = self.shown and not in_terminal
        self.bar = tqdm(
            desc=name, total=total, initial=done, unit=f" {unit}", dynamic_ncols=True, leave=leave,
            disable=not self.shown or not in_terminal,
        )  # fmt: skip
        self.began, self.first, self.note = time.monotonic(), done, ""
        self.pause = FIRST_LINE
        self.next_line = self.began + self.pause

    def advance(self, number: int = 1, note: str = "") -> None:
        """Count steps; `note` is shown after the count until another note replaces it."""
        self.done, self.note = self.done + number, note or self.note
        if note:
            self.bar.set_postfix_str(note, refresh=False)
        self.bar.update(number)
        now = time.monotonic()
        if self.plain and (is_verbose() or now >= self.next_line) and self.done != self.total:
            self._print_line(now)
            self.pause = min(2 * self.pause, LONGEST_PAUSE)
            self.next_line = now + self.pause

    def skip(self, number: int) -> None:
        """Count steps that an earlier run took; the estimate of the time left goes without them."""
        self.done, self.first = self.done + number, self.first + number
        if not self.bar.disable:  # else it has no counters
            self.bar.initial, self.bar.n = self.bar.initial + number, self.bar.n + number
            self.bar.last_print_n += number  # so that its average leaves them out

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.bar.close()
        now = time.monotonic()
        if self.plain and self.leave and kind is None and (is_verbose() or now - self.began >= FIRST_LINE):
            self._print_line(now)

    def _print_line(self, now: float) -> None:
        total = "" if self.total is None else f" of {self.total:,}"
        parts = [f"{self.name}: {self.done:,}{total} {self.unit}"]
        seconds, made = now - self.began, self.done - self.first
        if made > 0 and self.total is not None and self.done < self.total:
            parts.append(f"{in_units(seconds / made * (self.total - self.done), TIMES)} left")
        elif self.done == self.total:
            parts.append(f"in {in_units(seconds, TIMES)}")
        _note(printable(", ".join([*parts, self.note] if self.note else parts)))


def tracked(
    steps: Iterable[T], name: str, total: int | None, unit: str, *, leave: bool = True, shown: bool = True
) -> Iterator[T]:
    """Yield the steps and show their progress."""
    with Progress(name, total, unit, leave=leave, shown=shown) as progress:
        for step in steps:
            yield step
            progress.advance()


# ---- numbers for people ----


def in_units(value: float, units: Mapping[str, float]) -> str:
    """Three significant digits in the largest unit that gives 1 or more, otherwise in the smallest unit."""
    name, size = next((pair for pair in units.items() if value >= pair[1]), list(units.items())[-1])
    number = value / size
    shown = f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
    return f"{shown} {name.removesuffix('s') if shown == '1' else name}"


def counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


# ---- the device ----


def device_name(device: torch.device | str) -> str:
    import torch  # late: slow

    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {counted(torch.get_num_threads(), 'thread')}"


def peak_memory(device: torch.device) -> int:
    """Peak memory of this process in bytes: on a GPU since the counter was reset, on a CPU since the process began."""
    import torch  # late: slow

    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
