"""The program `stepalign`: run a command, and turn every error into one line and an exit status.

Nothing is imported here but the reporting of errors, so that ctrl-C is answered while everything else is loaded.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from stepalign.support.errors import MEMORY_ADVICE, UsageError, prepare_output, report
from stepalign.support.stopping import Stopped, stop_on_signals

if TYPE_CHECKING:
    from stepalign.cli.command import Command

QUIET = {"TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
QUIET |= {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "DATASETS_VERBOSITY": "error"}


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status: 0; 1 for a failure; 2 for a command line that makes no sense; 128 + n
    where signal n stopped it."""
    if argv is None and os.name == "posix" and sys.getfilesystemencoding() != "utf-8" and sys.executable:
        # Paths in our files are UTF-8, and only a new interpreter can look for files by it.
        os.execv(sys.executable, [sys.executable, "-X", "utf8", "-m", "stepalign", *sys.argv[1:]])
    words = list(sys.argv[1:] if argv is None else argv)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    prepare_output()
    command: Command | None = None
    output: Path | None = None
    try:
        with stop_on_signals():
            _refuse_broken_text(words)
            from stepalign.cli.table import find_command, overview

            if not words:
                raise UsageError("a command is required; `stepalign --help` lists the commands")
            if words[0] in ("-h", "--help"):
                print(overview())
                return 0
            command = find_command(words[0])
            arguments = command.parse(words[1:])
            if arguments is None:  # --help was printed
                return 0
            output = command.output(arguments)
            status = command.run(arguments)
            sys.stdout.flush()
            return status
    except (Exception, KeyboardInterrupt, Stopped) as error:
        return report(
            error,
            output=output,
            resumable=command is not None and command.resumable,
            memory_advice=MEMORY_ADVICE if command is None else command.memory_advice,
        )


def _refuse_broken_text(words: list[str]) -> None:
    """Refuse words that are no text: Python reads bytes that are not UTF-8 as halves of characters.

    Where the platform's encoding is another, UTF-8 is read so too, and paths are found by it.
    """
    for word in words if sys.getfilesystemencoding() == "utf-8" else []:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{word!r} is not UTF-8 text; give another name or value") from None
