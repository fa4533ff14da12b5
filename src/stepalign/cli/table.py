"""The table of commands, in the order in which `stepalign --help` lists them."""

from __future__ import annotations

from itertools import groupby

from stepalign.cli.command import Command
from stepalign.cli.compare import COMPARE
from stepalign.cli.convert_judge import CONVERT_JUDGE
from stepalign.cli.demo import DEMO
from stepalign.cli.env import ENV
from stepalign.cli.evaluate import EVALUATE
from stepalign.cli.generate import GENERATE
from stepalign.cli.plot import PLOT
from stepalign.cli.push_judge import PUSH_JUDGE
from stepalign.cli.sweep import SWEEP
from stepalign.cli.train import TRAIN
from stepalign.cli.train_judge import TRAIN_JUDGE
from stepalign.support.errors import UsageError, nearest

COMMANDS = (
    *(DEMO, TRAIN, SWEEP),
    *(TRAIN_JUDGE, CONVERT_JUDGE, PUSH_JUDGE),
    *(GENERATE, EVALUATE, COMPARE),
    *(PLOT, ENV),
)
"""Grouped by the part of the work that a command belongs to."""


def find_command(name: str) -> Command:
    """The command of this name; raises UsageError, naming the nearest, where there is none."""
    for command in COMMANDS:
        if command.name == name:
            return command
    hint = nearest(name, [command.name for command in COMMANDS])
    raise UsageError(f"there is no command {name!r}{hint}; `stepalign --help` lists the commands")


def overview() -> str:
    """The text of `stepalign --help`."""
    lines = ["usage: stepalign COMMAND ...", ""]
    lines += ["Align text-to-image diffusion models with preferences, step by step.", ""]
    for group, commands in groupby(COMMANDS, lambda command: command.group):
        lines += [f"{group}:", *(f"  {command.name:<15}{command.help}" for command in commands), ""]
    return "\n".join([*lines, "`stepalign COMMAND --help` lists the arguments of a command."])
