"""The argparse parser of lbgen: one line per mistake, one line of usage, and colours in a terminal."""

import argparse
import difflib
import os
import re
import sys
import textwrap
from collections.abc import Sequence
from typing import IO, Any, NoReturn

from lbgen.errors import UserError


class HelpFormatter(argparse.HelpFormatter):
    """As wide as the terminal; names such as clip-vit-l-14 are not broken at a hyphen."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


class Parser(argparse.ArgumentParser):
    """Accepts no abbreviated flags; reports a wrong command line as a UserError, like any other mistake."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=HelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")

    def refuse_unknown(self, arguments: Sequence[str]) -> NoReturn:
        """Reject unknown arguments, and suggest the closest flag."""
        close = difflib.get_close_matches(arguments[0].partition("=")[0], self._option_string_actions, n=1)
        hint = f"did you mean {close[0]}?" if close else f"see {self.prog} --help"
        raise UserError(f"unrecognized arguments: {' '.join(arguments)}; {hint}")

    def format_help(self) -> str:
        """The help with one line of usage, because all flags are listed below it."""
        places = [
            f"{action.metavar}{' ...' if action.nargs in ('+', '*') else ''}"
            for action in self._get_positional_actions()
        ]
        self.usage = " ".join(["%(prog)s", *places, "[flags]"])
        return super().format_help()

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print a message; unlike argparse, report a full disk or a closed pipe."""
        file = file or sys.stderr
        file.write(coloured(message) if shows_colour(file) else message)


def shows_colour(file: IO[str]) -> bool:
    """Whether the file is a terminal whose user wants colours (https://no-color.org)."""
    return file.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def coloured(text: str) -> str:
    """The help with bold headings and cyan flags; unchanged if argparse has coloured it (from Python 3.14 on)."""
    if "\033" in text:
        return text
    text = re.sub(r"^(\S.*:)$", "\033[1m\\1\033[0m", text, flags=re.MULTILINE)
    return re.sub(r"(?<![\w-])(--?[a-z][\w-]*)", "\033[36m\\1\033[0m", text)
