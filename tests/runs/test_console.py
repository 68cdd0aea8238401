"""What runs print: lines, progress off and in a terminal, and how much of it."""

import ast
import errno
import fcntl
import io
import os
import pty
import shlex
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

import lbgen
from lbgen.errors import Interrupted, UserError
from lbgen.runs import console
from lbgen.runs.console import Progress, Verbosity, say, showing, table, tracked, warn
from lbgen.runs.storage import storage_errors

PACKAGE = Path(lbgen.__file__).parent


def test_no_other_file_has_a_bar_of_its_own():
    """Read from the source: one place decides what is shown."""
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom) and "tqdm" in ast.dump(node)
    }
    assert users == {"runs/console.py"}


@pytest.mark.parametrize("told", [say, console.result])
def test_lines_obey_nobody_but_line_ends(told, capsys):
    """Names from files and folders may hold what a terminal obeys."""
    told("first\nsecond \033[31m\r")
    assert capsys.readouterr().out == "first\nsecond \\x1b[31m\n"


class Failing(io.StringIO):
    """A stream that takes nothing."""

    def __init__(self, fault: OSError) -> None:
        super().__init__()
        self.fault = fault

    def write(self, text: str) -> int:
        raise self.fault


@pytest.mark.parametrize(
    "fault, raised, message",
    [
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), Interrupted, "nobody reads standard output"),
        (OSError(errno.ENOSPC, "No space left on device"), UserError, "standard output: No space left on device;"),
    ],
)
def test_a_fault_of_standard_output_is_not_taken_for_one_of_the_folder(monkeypatch, fault, raised, message):
    """Within `storage_errors`, which turns every OSError into one of the folder that a run writes to."""
    monkeypatch.setattr(sys, "stdout", Failing(fault))
    with pytest.raises(raised, match=message), storage_errors("data/animals"):
        say("a line")


def test_a_run_goes_on_where_standard_error_takes_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Failing(OSError(errno.ENOSPC, "No space left on device")))
    warn("a warning")
    with showing(Verbosity.VERBOSE):
        assert list(tracked(range(3), "draw", 3, "images")) == [0, 1, 2]


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand; [0] is the time in seconds."""
    now = [1000.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", "caf\\xe9 \\u9375\n"), ("latin-1", "café \\u9375\n")])
def test_characters_that_a_streams_encoding_lacks_are_escaped(monkeypatch, encoding, shown):
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    console.say("café 鍵")
    console.warn("café 鍵")
    assert streams["stdout"].buffer.getvalue().decode(encoding) == shown
    assert streams["stderr"].buffer.getvalue().decode(encoding) == f"lbgen: {shown}"


def test_a_program_without_a_console_sees_nothing(monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    console.say("a line")
    console.warn("a line")
    with console.Progress("work", 3, "steps") as progress:
        progress.advance()


def test_off_a_terminal_lines_come_at_pauses_that_double_up_to_five_minutes(clock, capsys):
    """2,000 steps of a second: the moments by hand, 5, 15, 35, 75, 155 and 315 s, then every 300 s, and the end."""
    with Progress("draw", 2000, "images") as progress:
        for _ in range(2000):
            clock[0] += 1
            progress.advance(note="loss 1.5")
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    expected = [5, 15, 35, 75, 155, 315, 615, 915, 1215, 1515, 1815]
    assert [int(line.split()[1].replace(",", "")) for line in lines] == [*expected, 2000]
    assert lines[2] == "draw: 35 of 2,000 images, 32.8 minutes left, loss 1.5"
    assert lines[-1] == "draw: 2,000 of 2,000 images, in 33.3 minutes, loss 1.5"
    assert "\r" not in shown.err and shown.out == ""


def test_a_run_that_goes_on_counts_its_own_pace(clock, capsys):
    """6 steps in 6 seconds, 4 still to go: 4 seconds, whatever an earlier run had made."""
    with showing(Verbosity.VERBOSE), Progress("draw", 100, "images", done=90) as progress:
        for _ in range(6):
            clock[0] += 1
            progress.advance()
    assert capsys.readouterr().err.splitlines()[5] == "draw: 96 of 100 images, 4 seconds left"


def test_steps_of_an_earlier_run_that_are_found_on_the_way_are_no_pace_of_this_one(clock, capsys):
    """Eight are found at once; then one takes ten seconds, so the last one will too."""
    with Progress("generate", 10, "images") as progress:
        progress.skip(8)
        clock[0] += 10
        progress.advance()
        assert capsys.readouterr().err == "generate: 9 of 10 images, 10 seconds left\n"
        progress.advance()


def test_a_short_task_an_empty_one_and_an_interrupted_one_say_nothing(clock, capsys):
    assert list(tracked(range(3), "short", 3, "steps")) == [0, 1, 2]
    assert list(tracked([], "empty", 0, "steps")) == []
    with pytest.raises(KeyboardInterrupt), Progress("cut", 9, "steps"):
        clock[0] += 100
        raise KeyboardInterrupt
    assert capsys.readouterr() == ("", "")


def test_a_number_of_steps_that_is_not_known_is_not_invented(clock, capsys):
    with Progress("read", None, "images") as progress:
        clock[0] += 5
        progress.advance(7)
    assert capsys.readouterr().err.splitlines()[0] == "read: 7 images"


def test_quiet_leaves_results_and_warnings(clock, capsys):
    with showing(Verbosity.QUIET, "heading"):
        say("said")
        warn("warned")
        console.result("found")
        with Progress("draw", 5, "images") as progress:
            clock[0] += 1000
            progress.advance(3)
    assert capsys.readouterr() == ("found\n", "lbgen: warned\n")


def test_the_heading_comes_once_before_the_first_line(capsys):
    with showing(Verbosity.NORMAL, "lbgen align"):
        say("a")
        say("b\nc")
    say("d")
    assert capsys.readouterr().out == "lbgen align\na\nb\nc\nd\n"


def test_what_a_terminal_would_obey_is_escaped(capsys):
    say("a\033[31m\nb")
    assert capsys.readouterr().out == "a\\x1b[31m\nb\n"


def test_columns_line_up():
    assert table([("a", "1"), ("long", "2")]) == "a     1\nlong  2"


PROGRAM = """
from lbgen.runs.console import Progress, say
with Progress("draw", 3, "images") as progress:
    for _ in range(3):
        progress.advance()
"""


def test_in_a_terminal_steps_of_an_earlier_run_are_no_pace_of_this_one(monkeypatch):
    """800 of 1,000 steps are found at once, then two take a tenth of a second each: 20 seconds are left, not none."""
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with os.fdopen(terminal, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        with Progress("draw", 1000, "images") as progress:
            progress.skip(800)
            for _ in range(2):
                time.sleep(0.1)
                progress.advance()
            rate = progress.bar.format_dict["rate"]
    os.close(main)
    assert 1 < rate < 11


def test_in_a_terminal_there_is_a_bar():
    """A terminal of the system's; the bar overwrites itself, which a carriage return does."""
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    subprocess.run([sys.executable, "-c", PROGRAM], stderr=terminal, check=True)
    os.close(terminal)
    shown = os.read(main, 100_000).decode()
    os.close(main)
    assert "\r" in shown and "draw: 100%" in shown and "3/3" in shown


DESCRIPTORS = """
import os, sys
from lbgen.runs.console import prepare_streams
prepare_streams()
opened = os.open(sys.argv[1], os.O_RDONLY)
null = os.stat(os.devnull)
are_null = [os.fstat(n).st_rdev == null.st_rdev and os.get_inheritable(n) for n in range(3)]
os.write(int(sys.argv[2]), repr([opened, *are_null]).encode())
"""


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path):
    """In a process that was started without any of the three; what it finds comes through a pipe of another number."""
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    command = [sys.executable, "-c", DESCRIPTORS, __file__, str(writing)]
    closing = " ".join(["exec", shlex.join(command), "<&-", ">&-", "2>&-"])
    subprocess.run(["bash", "-c", closing], pass_fds=[writing], check=True)
    os.close(writing)
    opened, *are_null = ast.literal_eval(os.read(reading, 1000).decode())
    os.close(reading)
    assert opened > 2 and are_null == [True] * 3
