"""Refusing texts that are longer than a text encoder reads."""

from collections.abc import Callable

from lbgen.errors import UserError, printable

SHOWN = 60
"""Number of characters of a text that a message shows."""


def refuse_long_text(
    text: str, count_tokens: Callable[[str], int], limit: int, *, source: str, remedy: str = "shorten it"
) -> None:
    """Raise UserError if `text` has more than `limit` tokens, including the start and end tokens.

    source: where the text was written, for the message.  remedy: what the user should shorten.
    """
    if (tokens := count_tokens(text)) > limit:
        raise UserError(
            f'{source}: "{on_one_line(text)}" is {tokens} tokens long, the text encoder reads {limit}; {remedy}'
        )


def on_one_line(text: str) -> str:
    """The text with its control characters escaped, cut to `SHOWN` characters."""
    shown = printable(text)
    return shown if len(shown) <= SHOWN else shown[: SHOWN - 3] + "..."
