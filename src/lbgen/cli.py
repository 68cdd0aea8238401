"""The command line: verb -> (config dataclass, function), and how a run ends.

A new stage is a folder with a config.py and a run.py, two lines in lbgen.PUBLIC and one line in VERBS
(docs/extend.md).

Exit codes: 0 done, 2 the user's mistake or a full disk (one line on stderr), 3 a damaged dataset (verify), 130, 141
and 143 stopped by Ctrl-C, a closed pipe and SIGTERM, 1 our bug.
"""

import errno
import gc
import os
import signal
import sys
import traceback
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

import lbgen
from lbgen.configuration import saved
from lbgen.configuration.completion import VALUES, PrintCompletion
from lbgen.configuration.flags import MOST_USED, add_arguments, flag, group
from lbgen.configuration.parser import Parser
from lbgen.configuration.recipes import DELETED, built_in_recipes, deleted_fields, resolve
from lbgen.configuration.yaml_lines import yaml_text
from lbgen.errors import Interrupted, UserError, printable
from lbgen.runs import console
from lbgen.runs.console import Verbosity, is_verbose, say, showing
from lbgen.runs.processes.waiting import short_waiting
from lbgen.training.processes import is_first

OF_THE_SYSTEM = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EIO,
)
"""Error numbers of a full disk, a limit, a missing permission, or a folder where a file is expected."""

COLLECTED_EVERY = 10_000
"""New objects between two runs of Python's garbage collector; with the default, 700, it takes 20% of the start-up."""


class Operands(NamedTuple):
    """The arguments of a verb besides flags: one or several texts, which its function gets before the config."""

    metavar: str
    help: str


DATASETS = Operands("DIR", "image folders, WebDatasets or parquet")
BACKBONES = Operands("BACKBONE", "runs of lbgen pretrain, names or folders of timm, ARCHITECTURE:FILE.safetensors")


class Verb(NamedTuple):
    """Names of `lbgen`'s public config class and function; the function's module is imported when the verb runs."""

    config_class: str
    function: str
    summary: str
    takes_recipes: bool = True
    plan: str | None = None
    """The function of --plan, if the verb has it."""
    operands: Operands | None = None
    """The arguments of its function before the config, if any."""
    given: Mapping[str, Any] = {}
    """Fields without an argument, because an earlier word of the command line sets them."""
    forms: Mapping[str, "Verb"] = {}
    """Word after the verb -> the form that it selects; empty for a verb without forms."""
    resumes: bool = False
    """Whether finished work is kept, so that the same command can be given again."""


EXPORTS = {
    "adapter": Verb(
        "ExportAdapterConfig", "export_adapter", "write a run's adapter as a file for other programs", False
    ),
    "merged": Verb(
        "ExportMergedConfig", "export_merged", "write a run's generator with the adapter merged, for diffusers", False
    ),
    "microworld": Verb(
        "ExportConfig",
        "export_microworld",
        "write the built-in models' folders, for diffusers and transformers",
        False,
        given={"model": "microworld"},
    ),
}
"""Word after `lbgen export` -> the form that it selects."""

VERBS = {
    "align": Verb(
        "AlignConfig",
        "align",
        "fine-tune a text-to-image generator from category names alone",
        plan="plan_align",
        resumes=True,
    ),
    "generate": Verb("GenerateConfig", "generate", "generate a labelled image dataset", plan="plan", resumes=True),
    "plan": Verb("GenerateConfig", "plan", "show what generate would make with these flags, and what it would cost"),
    "quickstart": Verb(
        "QuickstartConfig", "quickstart", "run all stages once, on the built-in micro world", resumes=True
    ),
    "audit": Verb(
        "AuditConfig",
        "audit",
        "find shortcuts in labelled image datasets (cues other than the object that predict the label), and compare "
        "the datasets",
        operands=DATASETS,
        resumes=True,
    ),
    "pretrain": Verb(
        "PretrainConfig",
        "pretrain",
        "train a backbone of timm on labelled image datasets, generated or real",
        plan="plan_pretrain",
        operands=DATASETS,
        resumes=True,
    ),
    "transfer": Verb(
        "TransferConfig",
        "transfer",
        "measure how backbones transfer: linear probe, fine-tuning, few-shot, detection, segmentation",
        operands=BACKBONES,
        resumes=True,
    ),
    "compare": Verb(
        "CompareConfig",
        "compare",
        "put the backbones of several transfers side by side, with paired tests",
        False,
        operands=Operands("FILE", "transfer.json of one or several transfers; the first backbone is the reference"),
    ),
    "bias": Verb(
        "BiasConfig",
        "bias",
        "measure what image classifiers lean on: shape, texture, context, background",
        False,
        resumes=True,
    ),
    "reproduce": Verb(
        "ReproduceConfig",
        "reproduce",
        "the paper's tables in small, on the built-in micro world: what a backbone learned from each set is worth",
        resumes=True,
    ),
    "export": Verb(
        "ExportConfig",
        "export_microworld",
        "write an adapter for other programs, a generator with an adapter merged, or the built-in models",
        False,
        forms=EXPORTS,
    ),
    "verify": Verb(
        "VerifyConfig", "verify", "compare a generated dataset with its index; exit code 3 if it is damaged", False
    ),
    "recipes": Verb("RecipesConfig", "recipes", "list the built-in recipes, or show one", False),
    "doctor": Verb(
        "DoctorConfig",
        "doctor",
        "say what this machine has and lacks for a run: libraries, device, models, disk; exit code 2 if it lacks some",
        False,
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one verb; UserError, signals and a full disk become a line on stderr and an exit code, bugs a traceback."""
    argv = sys.argv[1:] if argv is None else argv
    console.prepare_streams()
    os.environ |= short_waiting()
    gc.set_threshold(COLLECTED_EVERY)
    verb = VERBS.get(argv[0]) if argv else None
    going_on = "; give the same command again to go on" if verb and verb.resumes else ""

    def terminate(signum: int, frame: Any) -> NoReturn:
        raise Interrupted(signum, f"terminated{going_on}")

    signal.signal(signal.SIGTERM, terminate)
    try:
        try:
            _run(argv)
        finally:
            sys.stdout.flush()
    except UserError as error:
        _exit(2, str(error))
    except Interrupted as interrupt:
        if interrupt.signum == signal.SIGPIPE:
            _end_quietly()
        _exit(128 + interrupt.signum, str(interrupt))
    except KeyboardInterrupt:
        _exit(128 + signal.SIGINT, f"interrupted{going_on}")
    except BrokenPipeError:  # the reader has ended, as in `lbgen ... | head`
        _end_quietly()
    except OSError as error:
        if error.errno not in OF_THE_SYSTEM:
            raise
        console.discard(sys.stdout)
        where = error.filename or "standard output or a file"  # a failed write has no file name
        _exit(2, f"{where}: {error.strerror}; make room, or choose another place")
    finally:
        console.flush_or_discard(sys.stderr)


def _run(argv: Sequence[str]) -> None:
    call, verbosity, heading = _parse(argv)
    if verbosity == Verbosity.QUIET:  # read by huggingface_hub when it is imported, which is later
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with showing(verbosity, heading):
        try:
            result = call()
        except UserError:
            if is_verbose():
                with suppress(OSError):
                    traceback.print_exc()
            raise
        if is_first():
            if following := getattr(result, "next_command", ""):
                say(f"next: {following}")
            if isinstance(summary := getattr(result, "summary", None), str):  # a quickstart's is a file
                say(summary)
    if getattr(result, "damaged", ()):  # of verify
        sys.exit(3)


def _end_quietly() -> NoReturn:
    """End like a program whose output pipe was closed."""
    console.discard(sys.stdout)
    sys.exit(128 + signal.SIGPIPE)


def _exit(code: int, message: str) -> NoReturn:
    with suppress(OSError):
        print(f"lbgen: {printable(' '.join(message.splitlines()))}", file=sys.stderr)
    sys.exit(code)


# ---- from the command line to a call ----


class Call(NamedTuple):
    """The call that a command line stands for, and the verbosity and heading of its output."""

    function: Callable[[], object]
    verbosity: Verbosity
    heading: str


def _parse(argv: Sequence[str]) -> Call:
    parser, verbs = _parsers(argv)
    if not argv:
        with suppress(OSError):
            parser.print_help(sys.stderr)
        sys.exit(2)
    parsed, unknown = parser.parse_known_args(argv)
    arguments = vars(parsed)
    name = arguments.pop("verb")
    verb, verb_parser = VERBS[name], verbs[name]
    if verb.forms:
        form = arguments.pop("form")
        name, verb, verb_parser = f"{name} {form}", verb.forms[form], _forms_of(verb_parser)[form]
    if unknown:
        _refuse_unknown(unknown, verb_parser, _config_class(verb))
    verbosity = arguments.pop("verbosity", Verbosity.NORMAL)
    recipe = arguments.get("recipe")
    heading = f"lbgen {name}, recipe {recipe}" if recipe else f"lbgen {name}"
    return Call(_function(verb, arguments), verbosity, heading)


def _parsers(argv: Sequence[str]) -> tuple[Parser, dict[str, Parser]]:
    """The program's parser and the parser of each verb. To save time, only verbs named in `argv` get their flags."""
    parser = Parser(prog="lbgen", description="Category names in, a low-bias, annotated image dataset out.")
    parser.add_argument("--version", action="version", version=f"lbgen {lbgen.__version__}")
    parser.add_argument("--print-completion", action=PrintCompletion)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, title="verbs")
    for name, verb in VERBS.items():
        verb_parser = verbs.add_parser(name, help=verb.summary, description=verb.summary)
        if name in argv or "--print-completion" in argv:
            _add_verb_arguments(verb_parser, verb)
    return parser, verbs.choices


def _add_verb_arguments(parser: Parser, verb: Verb) -> None:
    if verb.forms:
        forms = parser.add_subparsers(dest="form", metavar="WHAT", required=True, title="what")
        for name, form in verb.forms.items():
            _add_verb_arguments(forms.add_parser(name, help=form.summary, description=form.summary), form)
        _add_display_arguments(parser, verb)
        return
    if verb.operands:
        parser.add_argument("operands", nargs="+", **verb.operands._asdict())
    if verb.takes_recipes:
        recipes = _recipes(verb)
        known = f", or one of lbgen's: {', '.join(recipes)}" if recipes else ""
        text, metavar = f"YAML file of defaults for all other flags{known}", "NAME|PATH" if recipes else "PATH"
        added = group(parser, MOST_USED).add_argument("--recipe", metavar=metavar, help=text)
        setattr(added, VALUES, recipes)
    add_arguments(parser, _config_class(verb), without=verb.given)
    _add_display_arguments(parser, verb)


def _forms_of(parser: Parser) -> Mapping[str, Parser]:
    """Word that selects a form of a verb -> the form's parser."""
    (forms,) = (action for action in parser._actions if action.dest == "form")
    return forms.choices  # type: ignore[return-value]


def _add_display_arguments(parser: ArgumentParser, verb: Verb) -> None:
    """Add the flags that are not fields of a config: for the output, and for only printing settings or a plan."""
    shown = parser.add_argument_group("what is shown")
    for name, level, text in (
        ("--quiet", Verbosity.QUIET, "show results that were asked for, warnings and errors only"),
        ("--verbose", Verbosity.VERBOSE, "show every setting, a line for every step, and the traceback of an error"),
    ):
        options: dict[str, Any] = {"action": "store_const", "const": level, "default": SUPPRESS, "help": text}
        shown.add_argument(name, dest="verbosity", **options)
    if verb.takes_recipes:
        text = "print the settings as YAML, which is itself a recipe, and exit"
        shown.add_argument("--print-config", action="store_true", default=SUPPRESS, help=text)
    if verb.plan:
        text = "show what would be made and what it costs, by a short calibration, and exit; nothing is written"
        shown.add_argument("--plan", action="store_true", default=SUPPRESS, help=text)


def _function(verb: Verb, arguments: dict[str, Any]) -> Callable[[], object]:
    """The verb's function, bound to the config from defaults, recipe and flags."""
    recipe = arguments.pop("recipe", None)
    prints, plans = arguments.pop("print_config", False), arguments.pop("plan", False)
    operands = [arguments.pop("operands")] if verb.operands else []
    config: Any = resolve(_config_class(verb), recipe, {**verb.given, **arguments})
    if prints:
        return lambda: print(yaml_text(saved.plain(config)), end="")
    function = verb.plan if plans and verb.plan else verb.function
    return lambda: getattr(lbgen, function)(*operands, config)


def _refuse_unknown(arguments: Sequence[str], parser: Parser, config_class: type) -> NoReturn:
    """Reject an unknown flag, or one that was deleted."""
    given = arguments[0].partition("=")[0]
    if given in map(flag, deleted_fields(config_class)):
        raise UserError(f"{given}: {DELETED}; remove it")
    parser.refuse_unknown(arguments)


def _config_class(verb: Verb) -> type:
    return getattr(lbgen, verb.config_class)


def _recipes(verb: Verb) -> list[str]:
    """The built-in recipes for the verb's configuration."""
    owners = built_in_recipes().items()
    return [recipe for recipe, owner in owners if VERBS[owner].config_class == verb.config_class]
