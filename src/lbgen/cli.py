"""The command line: verb -> (config dataclass, function), and how a run ends.

Exit codes: 0 done, 2 the user's mistake (one line on stderr), 3 a damaged dataset (verify), 130 and 143 stopped by
Ctrl-C and SIGTERM, 1 our bug.
"""

import argparse
import difflib
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import lbgen
from lbgen.configuration.flags import add_arguments, built_in_recipes, resolve
from lbgen.errors import Interrupted, UserError


class Verb(NamedTuple):
    """Names of `lbgen`'s public config class and function; the function's module is imported when the verb runs."""

    config_class: str
    function: str
    summary: str


VERBS = {
    "align": Verb("AlignConfig", "align", "fine-tune a text-to-image generator from category names alone"),
    "generate": Verb("GenerateConfig", "generate", "generate a labelled image dataset"),
    "plan": Verb("GenerateConfig", "plan", "what generate would make with these flags, and what it would cost"),
    "quickstart": Verb("QuickstartConfig", "quickstart", "the whole street, once, on the embedded micro world"),
}

AUDIT = "say what besides the object tells the label in labelled image datasets, and compare them"


REPAIRED_WITH = {
    "generator": "the generator",
    "adapter": "the adapter folder",
    "attributes": "the file of balanced attributes",
    "screen_semantics": "the language space",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one verb; UserError and signals become a line on stderr and an exit code, anything else a traceback."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        run = _parse(sys.argv[1:] if argv is None else argv)
        run()
    except UserError as error:
        _exit(2, str(error))
    except Interrupted as interrupt:
        _exit(128 + interrupt.signum, str(interrupt))
    except KeyboardInterrupt:
        _exit(128 + signal.SIGINT, "interrupted")


def _terminate(signum: int, frame: Any) -> NoReturn:
    raise Interrupted(signum, "terminated")


def _exit(code: int, message: str) -> NoReturn:
    print(f"lbgen: {' '.join(message.splitlines())}", file=sys.stderr)
    sys.exit(code)


class _Parser(argparse.ArgumentParser):
    """Flags in full only; a wrong command line is a UserError like any other mistake."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def _parse(argv: Sequence[str]) -> Callable[[], object]:
    """The command line as a call to make."""
    parser = _Parser(prog="lbgen", description="Category names in, a low-bias annotated image dataset out.")
    parser.add_argument("--version", action="version", version=f"lbgen {lbgen.__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        _add_verb_arguments(verbs.add_parser(name, help=verb.summary, description=verb.summary), verb)
    audit = verbs.add_parser("audit", help=AUDIT, description=AUDIT)
    audit.add_argument("directories", type=Path, nargs="+", metavar="DIR", help="image folders, WebDatasets, parquet")
    add_arguments(audit, lbgen.AuditConfig)
    export = verbs.add_parser("export", help="write a built-in model's folders, for diffusers and transformers")
    export.add_argument("model", choices=["microworld"])
    export.add_argument("directory", type=Path, metavar="DIR")
    verify = verbs.add_parser("verify", help="compare a generated dataset with its index; exit code 3 if it is damaged")
    verify.add_argument("directory", metavar="DIR")
    verify.add_argument("--repair", action="store_true", help="make the damaged shards again, and those alone")
    for name, what in REPAIRED_WITH.items():
        path = name in ("adapter", "attributes")
        text = f"with --repair: {what} that the dataset was made with; needed where you have not made it yourself"
        verify.add_argument(
            f"--{name.replace('_', '-')}", type=Path if path else str, help=text, metavar="PATH" if path else "TEXT"
        )
    parsed, unknown = parser.parse_known_args(argv)
    arguments = vars(parsed)
    if unknown:
        _refuse_unknown(unknown, verbs.choices[arguments["verb"]])
    name = arguments.pop("verb")
    match name:
        case "export":
            return lambda: lbgen.export_microworld(arguments["directory"])
        case "verify":
            return _verify_call(**arguments)
        case "audit":
            return _audit_call(arguments)
    return _verb_call(name, arguments)


def _refuse_unknown(unknown: Sequence[str], parser: argparse.ArgumentParser) -> NoReturn:
    """A flag that the verb has not, and perhaps the one that was meant."""
    close = difflib.get_close_matches(unknown[0].partition("=")[0], parser._option_string_actions, n=1)
    hint = f"did you mean {close[0]}?" if close else f"see {parser.prog} --help"
    raise UserError(f"unrecognized arguments: {' '.join(unknown)}; {hint}")


def _add_verb_arguments(parser: argparse.ArgumentParser, verb: Verb) -> None:
    recipes = _recipes(verb)
    help_text = "YAML file of defaults for the flags below" + (f", or one of lbgen's: {recipes}" if recipes else "")
    parser.add_argument("--recipe", metavar="NAME|PATH" if recipes else "PATH", help=help_text)
    add_arguments(parser, getattr(lbgen, verb.config_class))


def _recipes(verb: Verb) -> str:
    """The built-in ones that are for its configuration."""
    owners = built_in_recipes().items()
    return ", ".join(recipe for recipe, owner in owners if VERBS[owner].config_class == verb.config_class)


def _verb_call(name: str, arguments: dict[str, Any]) -> Callable[[], object]:
    verb, recipe = VERBS[name], arguments.pop("recipe")
    owner = built_in_recipes().get(recipe)
    if owner and VERBS[owner].config_class != verb.config_class:
        has = f"lbgen {name} has {_recipes(verb) or 'none'}"
        raise UserError(f"--recipe {recipe}: it belongs to lbgen {owner}; {has}")
    config = resolve(getattr(lbgen, verb.config_class), recipe, arguments)
    return lambda: getattr(lbgen, verb.function)(config)


def _audit_call(arguments: dict[str, Any]) -> Callable[[], object]:
    directories, config = arguments.pop("directories"), resolve(lbgen.AuditConfig, None, arguments)
    return lambda: lbgen.audit(directories, config)


def _verify_call(directory: str, repair: bool, **models: Any) -> Callable[[], object]:
    def call() -> None:
        if lbgen.verify(directory, repair, **models).damaged:
            sys.exit(3)

    return call
