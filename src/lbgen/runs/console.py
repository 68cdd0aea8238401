"""What a run tells its user: lines on standard output, progress and warnings on standard error.

This is the one place that decides what is shown. With --quiet there are only results that were asked for, warnings and
errors; with --verbose there is a line for every step. Progress is a bar in a terminal, and elsewhere plain lines at
growing intervals, because a log keeps every carriage return.
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
"""Seconds to the first plain line of progress; the pause between lines doubles from there up to the longest."""
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
    """Show this much within the context; `heading` comes before the first line that is said."""
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
    """Lines on standard output about the run; none with --quiet."""
    if _shown.verbosity == Verbosity.QUIET:
        return
    lines = [_shown.heading] * bool(_shown.heading) + text.splitlines()
    _shown.heading = ""
    _write(lines)


def result(text: str) -> None:
    """Lines on standard output that were asked for, also with --quiet: what a comparison found."""
    _write(text.splitlines())


def _write(lines: Sequence[str]) -> None:
    """A fault of standard output names it: the run's folder, which the caller writes to, has nothing to do with it."""
    try:
        _print("\n".join(map(printable, lines)), sys.stdout)
    except BrokenPipeError:
        raise Interrupted(signal.SIGPIPE, "nobody reads standard output") from None
    except OSError as error:
        raise UserError(f"standard output: {error.strerror}; make room, or choose another place") from error


def warn(text: str) -> None:
    """A line on standard error, also with --quiet."""
    _note(f"lbgen: {printable(text)}")


@cache
def warn_once(text: str) -> None:
    """The same, once in each process."""
    warn(text)


def _note(line: str) -> None:
    """A line on standard error. Where that is full or read by nobody, the run goes on without it."""
    with suppress(OSError):
        _print(line, sys.stderr)


def _print(text: str, stream: TextIO | None) -> None:
    """Write lines, with escapes for characters that the stream's encoding lacks; nothing where there is no stream."""
    if stream is None:  # of a program without a console, such as a service
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    tqdm.write(text.encode(encoding, "backslashreplace").decode(encoding), file=stream)
    stream.flush()  # a log shows where the run is


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Names in a column, what they are beside it."""
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:{width}}{value}" for name, value in rows)


# ---- standard streams that are closed, full, of an encoding with few characters, or read by nobody ----


def prepare_streams() -> None:
    """Open /dev/null in the place of each closed standard stream; escape characters that the others' encodings lack.

    The number of a closed one would else go to the next file that is opened, such as an image, and libraries would
    write there.
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
    """Drop what the stream still holds, which Python would otherwise try to write when it exits."""
    with suppress(io.UnsupportedOperation):  # of a stream that is no file
        descriptor = stream.fileno()
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def flush_or_discard(stream: TextIO) -> None:
    """Write what the stream still holds; where that fails, Python would exit with a code of its own."""
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
        """unit: what is counted, in the plural.  leave: whether the end is shown; off a terminal a short task shows
        nothing.  shown: whether anything is.
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
        """Count steps; `note` says more of where the run is, until the next one."""
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
            self.bar.initial += number
        self.bar.update(number)

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
    """The steps, one after the other, with their progress."""
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
    """Most bytes that this process has had on a GPU since its counter was set back, or in all on a CPU."""
    import torch  # late: slow

    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
