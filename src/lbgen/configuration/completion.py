"""Shell completion: a script made from the parser, for `eval "$(lbgen --print-completion bash)"`."""

import argparse
import sys
from collections.abc import Iterator
from typing import Any

SCRIPT = """\
_lbgen() {{
  local words previous="${{COMP_WORDS[COMP_CWORD-1]}}"
  [[ $previous == "=" ]] && previous="${{COMP_WORDS[COMP_CWORD-2]}}"
  [[ $COMP_CWORD == 1 ]] && previous="lbgen" || previous="${{COMP_WORDS[1]}} ${{COMP_WORDS[2]}} $previous"
  case "$previous" in
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]#=}}"))
}}
complete -o default -F _lbgen lbgen
"""
"""Script for bash: offers the words that may follow the verb, its form and the previous word. File names are completed
where no word fits."""
VALUES = "values"
"""Name of an attribute of a parser's action, which holds the values to complete."""
ZSH = "autoload -U compinit bashcompinit && compinit && bashcompinit\n"
"""Makes zsh accept bash's script."""


class PrintCompletion(argparse.Action):
    """Prints the script for a shell, and exits."""

    def __init__(self, option_strings: list[str], dest: str) -> None:
        text = 'print a completion script and exit; put eval "$(lbgen --print-completion bash)" into ~/.bashrc'
        shells = ("bash", "zsh")
        super().__init__(option_strings, dest, default=argparse.SUPPRESS, choices=shells, help=text)

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, shell: Any, option: Any = None) -> None:
        print(ZSH * (shell == "zsh") + SCRIPT.format(cases="\n".join(_cases(parser))), end="")
        sys.exit(0)


def _cases(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Lines of the script's case: the values of each flag, the flags of each verb or form of a verb, the verbs."""
    verbs = _choices(parser)
    for verb, verb_parser in verbs.items():
        forms = _choices(verb_parser)
        if forms:
            yield f'    "{verb} "*" {verb}") words="{" ".join(forms)}" ;;'
        for form, form_parser in forms.items():
            yield from _cases_of(f'"{verb} {form}"', form_parser)
        yield from _cases_of(f'"{verb} "', verb_parser)
    yield f'    *) words="{" ".join([*verbs, *_flags(parser)])}" ;;'


def _cases_of(typed: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """typed: the beginning of the command line."""
    words = [*_choices(parser), *_flags(parser)]
    for action in parser._actions:
        values = getattr(action, VALUES, [])
        if not action.option_strings:
            words += values
        elif action.nargs != 0 and not isinstance(action, argparse.BooleanOptionalAction):
            yield f'    {typed}*" {action.option_strings[0]}") words="{" ".join(values)}" ;;'
    yield f'    {typed}*) words="{" ".join(words)}" ;;'


def _choices(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Each word that may follow -> its parser."""
    found = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(*found)


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    return [flag for action in parser._actions for flag in action.option_strings]
