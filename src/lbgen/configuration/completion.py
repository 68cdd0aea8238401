"""Shell completion: a script made from the parser, for `eval "$(lbgen --print-completion bash)"`."""

import argparse
import sys
from collections.abc import Iterator
from typing import Any

SCRIPT = """\
_lbgen() {{
  local words
  case "${{COMP_WORDS[1]}} ${{COMP_WORDS[COMP_CWORD-1]}}" in
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _lbgen lbgen
"""
"""For bash: the words that may follow a verb and the word before. File names are completed where no word fits."""
ZSH = "autoload -U compinit bashcompinit && compinit && bashcompinit\n"
"""Makes zsh accept bash's script."""


class PrintCompletion(argparse.Action):
    """Print the script for a shell, and exit."""

    def __init__(self, option_strings: list[str], dest: str) -> None:
        text = 'print a completion script and exit; put eval "$(lbgen --print-completion bash)" into ~/.bashrc'
        shells = ("bash", "zsh")
        super().__init__(option_strings, dest, default=argparse.SUPPRESS, choices=shells, help=text)

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, shell: Any, option: Any = None) -> None:
        print(ZSH * (shell == "zsh") + SCRIPT.format(cases="\n".join(_cases(parser))), end="")
        sys.exit(0)


def _cases(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Lines of the script's case: the values of each flag with a choice, the flags of each verb, the verbs."""
    (verbs,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for verb, verb_parser in verbs.choices.items():
        words: list[str] = []
        for action in _actions(verb_parser):
            words += action.option_strings or action.choices or ()
            if action.option_strings and str(action.metavar).startswith("{"):
                choices = str(action.metavar).strip("{}").replace(",", " ")
                yield f'    "{verb} {action.option_strings[0]}") words="{choices}" ;;'
        yield f'    "{verb} "*) words="{" ".join(words)}" ;;'
    yield f'    *) words="{" ".join(verbs.choices)}" ;;'


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Of a verb and of the forms that its first word chooses."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for form in action.choices.values():
                yield from _actions(form)
