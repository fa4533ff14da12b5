"""One command of the program: its name and help, its arguments, and the function that runs it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from stepalign.support.errors import MEMORY_ADVICE, UsageError

Group = Literal["align", "judge", "evaluate", "tools"]


@dataclass(frozen=True, slots=True)
class Command:
    """A command as a row of the table that `main` looks up; nothing in it imports torch before `run` is called."""

    name: str
    group: Group
    help: str
    """One line, in lower case."""
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    """Returns the exit status; raises ValueError for arguments that cannot be used."""
    output: Callable[[argparse.Namespace], Path | None] = lambda arguments: None
    """The directory that the arguments name: an unexpected error's traceback is written there."""
    takes_fields: bool = False
    """Whether `--field value` of a recipe or of other settings may follow; `arguments.fields` has these words."""
    resumable: bool = False
    """Whether the same command continues what an interruption left."""
    memory_advice: str = MEMORY_ADVICE
    """Settings that save memory, named after "try" when it runs out."""

    def parse(self, words: list[str]) -> argparse.Namespace | None:
        """The words after the command's name as arguments, None where `--help` among them has printed the help; raises
        UsageError for words that the command does not take."""
        parser = Parser(
            prog=f"stepalign {self.name}",
            description=f"{self.help[0].upper()}{self.help[1:]}.",
            allow_abbrev=False,
            conflict_handler="resolve",  # a command may have a --help of its own
        )
        self.add_arguments(parser)
        try:
            arguments, rest = parser.parse_known_args(words)
        except SystemExit:
            return None
        if rest and not self.takes_fields:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        arguments.fields = rest
        return arguments


class Parser(argparse.ArgumentParser):
    """A parser whose errors are raised, so that they end in one line like all others."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; `{self.prog} --help` lists what there is")
