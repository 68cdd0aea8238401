"""The command line: verb -> (config dataclass, function), and how a run ends.

A new stage is a folder with a config.py and a run.py, two lines in lbgen.PUBLIC and one line in VERBS
(docs/extend.md).

Exit codes: 0 done, 2 the user's mistake or a full disk (one line on stderr), 3 a damaged dataset (verify), 130, 141
and 143 stopped by Ctrl-C, a closed pipe and SIGTERM, 1 our bug.
"""

import errno
import os
import signal
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import lbgen
from lbgen.configuration.completion import PrintCompletion
from lbgen.configuration.flags import MOST_USED, add_arguments, flag, group
from lbgen.configuration.parser import Parser
from lbgen.configuration.recipes import DELETED, built_in_recipes, deleted_fields, resolve
from lbgen.errors import Interrupted, UserError, printable

OF_THE_SYSTEM = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EIO,
)
"""Errors that a full disk, a missing permission, or a folder in the place of a file raises."""

PASSIVE_THREADS = ("OMP_WAIT_POLICY", "PASSIVE")
"""Read by OpenMP when torch is loaded, here and in the processes started from here: threads that wait sleep. By default
they spin, and on cores that do other work too everything then takes up to twenty times as long."""


class Verb(NamedTuple):
    """Names of `lbgen`'s public config class and function; the function's module is imported when the verb runs."""

    config_class: str
    function: str
    summary: str
    takes_recipes: bool = True


VERBS = {
    "align": Verb("AlignConfig", "align", "fine-tune a text-to-image generator from category names alone"),
    "generate": Verb("GenerateConfig", "generate", "generate a labelled image dataset"),
    "plan": Verb("GenerateConfig", "plan", "show what generate would make with these flags, and what it would cost"),
    "quickstart": Verb("QuickstartConfig", "quickstart", "run all stages once, on the built-in micro world"),
    "audit": Verb(
        "AuditConfig",
        "audit",
        "find shortcuts in labelled image datasets (cues other than the object that predict the label), and compare "
        "the datasets",
        False,
    ),
    "export": Verb(
        "ExportConfig", "export_microworld", "write a built-in model's folders, for diffusers and transformers", False
    ),
    "verify": Verb(
        "VerifyConfig", "verify", "compare a generated dataset with its index; exit code 3 if it is damaged", False
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one verb; UserError, signals and a full disk become a line on stderr and an exit code; else a traceback."""
    os.environ.setdefault(*PASSIVE_THREADS)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        try:
            _run(sys.argv[1:] if argv is None else argv)
        finally:
            sys.stdout.flush()
    except UserError as error:
        _exit(2, str(error))
    except Interrupted as interrupt:
        _exit(128 + interrupt.signum, str(interrupt))
    except KeyboardInterrupt:
        _exit(128 + signal.SIGINT, "interrupted")
    except BrokenPipeError:  # the reader of `lbgen ... | head` has enough
        _discard_output()
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno not in OF_THE_SYSTEM:
            raise
        _discard_output()
        _exit(2, f"{error.filename or 'standard output'}: {error.strerror}; make room, or choose another place")


def _run(argv: Sequence[str]) -> None:
    result = _parse(argv)()
    if getattr(result, "damaged", ()):  # of verify
        sys.exit(3)


def _terminate(signum: int, frame: Any) -> NoReturn:
    raise Interrupted(signum, "terminated")


def _discard_output() -> None:
    """Drop what standard output still holds, which Python would otherwise try to write when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _exit(code: int, message: str) -> NoReturn:
    print(f"lbgen: {printable(' '.join(message.splitlines()))}", file=sys.stderr)
    sys.exit(code)


# ---- from the command line to a call ----


def _parse(argv: Sequence[str]) -> Callable[[], object]:
    """The command line as a call to make."""
    parser, verbs = _parsers(argv)
    if not argv:
        parser.print_help(sys.stderr)
        sys.exit(2)
    parsed, unknown = parser.parse_known_args(argv)
    arguments = vars(parsed)
    name = arguments.pop("verb")
    if unknown:
        _refuse_unknown(unknown, verbs[name], _config_class(VERBS[name]))
    return _call(name, arguments)


def _parsers(argv: Sequence[str]) -> tuple[Parser, dict[str, Parser]]:
    """The program's parser and that of each verb. Only the verbs that `argv` names get their flags: it saves time."""
    parser = Parser(prog="lbgen", description="Category names in, a low-bias, annotated image dataset out.")
    parser.add_argument("--version", action="version", version=f"lbgen {lbgen.__version__}")
    parser.add_argument("--print-completion", action=PrintCompletion)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, title="verbs")
    for name, verb in VERBS.items():
        verb_parser = verbs.add_parser(name, help=verb.summary, description=verb.summary)
        if name in argv or "--print-completion" in argv:
            _add_verb_arguments(verb_parser, verb)
    return parser, verbs.choices


def _add_verb_arguments(parser: ArgumentParser, verb: Verb) -> None:
    if verb.function == "audit":
        parser.add_argument("directories", nargs="+", metavar="DIR", help="image folders, WebDatasets or parquet")
    if verb.takes_recipes:
        recipes = _recipes(verb)
        text = "YAML file of defaults for all other flags" + (f", or one of lbgen's: {recipes}" if recipes else "")
        group(parser, MOST_USED).add_argument("--recipe", metavar="NAME|PATH" if recipes else "PATH", help=text)
    add_arguments(parser, _config_class(verb))


def _call(name: str, arguments: dict[str, Any]) -> Callable[[], object]:
    """The verb's function, with the config that defaults, recipe and flags make."""
    verb, recipe = VERBS[name], arguments.pop("recipe", None)
    owner = built_in_recipes().get(recipe)
    if owner and VERBS[owner].config_class != verb.config_class:
        has = f"lbgen {name} has {_recipes(verb) or 'none'}"
        raise UserError(f"--recipe {recipe}: it belongs to lbgen {owner}; {has}")
    directories = [arguments.pop("directories")] if name == "audit" else []
    config: Any = resolve(_config_class(verb), recipe, arguments)
    return lambda: getattr(lbgen, verb.function)(*directories, config)


def _refuse_unknown(arguments: Sequence[str], parser: Parser, config_class: type) -> NoReturn:
    """Reject a flag that the verb does not have, or no longer has."""
    given = arguments[0].partition("=")[0]
    if given in map(flag, deleted_fields(config_class)):
        raise UserError(f"{given}: {DELETED}; remove it")
    parser.refuse_unknown(arguments)


def _config_class(verb: Verb) -> type:
    return getattr(lbgen, verb.config_class)


def _recipes(verb: Verb) -> str:
    """The built-in recipes for the verb's configuration."""
    owners = built_in_recipes().items()
    return ", ".join(recipe for recipe, owner in owners if VERBS[owner].config_class == verb.config_class)
