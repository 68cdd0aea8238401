"""The two exceptions that end a run on purpose (anything else that escapes is our bug), and text for messages."""

LONGEST_MESSAGE = 1000
"""Longest message in characters; the middle of a longer one, which quotes a stored text, is cut out."""


def printable(text: str) -> str:
    """The text with invalid characters and control characters, which could control a terminal, escaped."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


class UserError(ValueError):
    """The user's mistake: one line that names the file or flag, what is wrong with it and what to do.

    The command line prints it as `lbgen: message` and exits with code 2. The message may quote texts that come from
    someone else, so line ends and control characters in it are escaped, and its length is bounded.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        """field: of a configuration, if its value is refused; the message begins with its flag."""
        self.field = field
        text = printable(" ".join(message.splitlines()))
        half = LONGEST_MESSAGE // 2
        super().__init__(text if len(text) <= LONGEST_MESSAGE else f"{text[:half]} ... {text[-half:]}")


class Interrupted(BaseException):
    """A signal ended the run. `message` states what was saved.

    Like KeyboardInterrupt, it passes every `except Exception`. The command line exits with code 128 + signum.
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum
