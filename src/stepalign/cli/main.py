"""The program `stepalign`: run a command, and answer whatever ends it with one line and an exit status.

Only what answers is imported here; the commands load libraries for seconds, and ctrl-C may come before they are there.
"""

from __future__ import annotations

import os
import sys
from itertools import pairwise
from pathlib import Path

from stepalign.support.errors import UsageError, prepare_output, report
from stepalign.support.stopping import Stopped, stop_on_signals


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 for one that failed, 2 for one that makes no sense, 128 + n for
    one that signal n stopped."""
    if argv is None and os.name == "posix" and sys.getfilesystemencoding() != "utf-8" and sys.executable:
        # Paths in our files are UTF-8, and only a new interpreter can look for files by it.
        os.execv(sys.executable, [sys.executable, "-X", "utf8", "-m", "stepalign.cli", *sys.argv[1:]])
    words = list(sys.argv[1:] if argv is None else argv)
    command, output = next(iter(words), ""), _output_of(words)
    prepare_output()
    try:
        with stop_on_signals():
            _refuse_broken_text(words)
            from stepalign.cli.command_line import run_command

            status = run_command(words)
            sys.stdout.flush()
            return status
    except (Exception, KeyboardInterrupt, Stopped) as error:
        return report(error, command=command, output=output)


def _output_of(words: list[str]) -> Path | None:
    """The directory that a command line names, which its command may not have understood yet."""
    for word, following in pairwise([*words, ""]):
        if word == "--output" and following:
            return Path(following)
        if word.startswith("--output="):
            return Path(word.removeprefix("--output="))
    match words:
        case ["demo", *_]:
            return Path("runs/demo")
        case ["train" | "train-judge" | "sweep", str(name), *_]:
            return Path("runs") / Path(name).stem
        case ["evaluate", str(name), *_] | ["plot", "gains", str(name), *_]:
            return Path(name)
    return None


def _refuse_broken_text(words: list[str]) -> None:
    """Refuse words that are no text: Python reads bytes that are not UTF-8 as halves of characters.

    Where the platform's encoding is another, UTF-8 is read so too, and paths are found by it.
    """
    for word in words if sys.getfilesystemencoding() == "utf-8" else []:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{word!r} is not UTF-8 text; give another name or value") from None
