"""Exceptions as one line and an exit status: 1 failure, 2 invalid command line, 128 + n stopped by signal n.

Errors that a user, a file, a disk or memory can cause are explained; the traceback of any other goes to a file.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from stepalign.support.stopping import Stopped, reports_end

TRACEBACK = "traceback.txt"
MARKERS = ("stepalign.json", "recipe.yaml", "generation.json")
"""Files that mark a directory as an output of stepalign; a traceback is written only there or in a temporary file."""
LONGEST = 1200
"""Most characters of a message; a prompt or a list of tensors can have any length."""
CAUSE = 200
"""Characters of a cause in parentheses."""
MEMORY_ADVICE = "free some, or use a machine with more of it"
"""Advice where a command has no settings that lower its use of memory."""
OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|not enough memory|unable to mmap|bad_alloc|"
    r"can't start new thread|ALLOC_FAILED|os error 12\b|failed to allocate",
    re.IGNORECASE,
)
DISK_FULL = re.compile(
    r"no space left|disk quota exceeded|os error 28\b|os error 122\b|PytorchStreamWriter failed|iostream error|"
    r"file write failed|inline_container\.cc.*unexpected pos",
    re.IGNORECASE,
)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LOST_PROCESS = re.compile(
    r"connection (closed|reset) by peer|gloo|nccl|broken pipe|timed? ?out waiting|barrier|socket|TCPStore",
    re.IGNORECASE,
)
UNSAFE_ADVICE = re.compile(r"Weights only load failed.*", re.DOTALL)
"""torch's advice to load a file with the code in it."""


class UsageError(Exception):
    """A command line without a known command, or with words that its command does not take."""


def report(
    error: BaseException, *, output: Path | None, resumable: bool = False, memory_advice: str = MEMORY_ADVICE
) -> int:
    """Print an error as one line and return the exit status; only an unexpected error writes a file.

    `output` is the command's directory, `resumable` states whether the same command continues what it left there.
    """
    if isinstance(error, BrokenPipeError):
        return _broken_pipe()
    again = "the same command resumes" if resumable else "give the same command again"
    line, status = _explain(error, output, again, memory_advice)
    if line is None:
        place = _write_traceback(error, output)
        where = f"the traceback is in {place}" if place else "its traceback could not be written"
        line = (
            f"unexpected {type(error).__name__}: {str(error) or 'no message'}; {where}; please report it with the "
            "output of `stepalign env`"
        )
    if reports_end() or (not isinstance(error, Stopped) and not _lost_process(error)):
        say(line)
    return status


def say(line: str) -> None:
    """Print one line on standard error, without control characters."""
    rank = "" if _is_main_process() else f" (process {os.environ['RANK']})"
    with suppress(OSError):  # the terminal may be closed
        print(f"stepalign{rank}: {one_line(line)}", file=sys.stderr, flush=True)


def nearest(word: str, known: Iterable[str]) -> str:
    """ " (nearest: ...)" with the known words most like this one, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f" (nearest: {', '.join(close)})" if close else ""


def one_line(text: str) -> str:
    """Text as one line of bounded length, with escapes for characters that cannot be printed."""
    text = " ".join(UNSAFE_ADVICE.sub("the file holds more than tensors", text).split())
    shown = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)
    half = LONGEST // 2
    return shown if len(shown) <= LONGEST else f"{shown[:half]} ... {shown[-half:]}"


def prepare_output() -> None:
    """Let standard output and error escape characters that their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # replaced or closed by whoever runs us
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _explain(error: BaseException, output: Path | None, again: str, memory_advice: str) -> tuple[str | None, int]:
    """The line for an error that can be expected, None for any other, and the exit status."""
    if isinstance(error, UsageError):
        return str(error), 2
    if isinstance(error, Stopped):
        return "; ".join(filter(None, (str(error), error.saved, again))), error.status
    if isinstance(error, KeyboardInterrupt):
        return f"stopped; {again}", 130
    for cause in _causes(error):  # also under a message about the file that was being read
        if _is_out_of_memory(cause):
            return f"memory ran out ({first_line(cause)[:CAUSE]}); try {memory_advice}", 1
        if _is_disk_full(cause):
            return f"{_disk_full(cause, output)}; free some; {again}", 1
    if _lost_process(error):
        return f"another process of this command ended ({first_line(error)[:CAUSE]}); {again}", 1
    if isinstance(error, RecursionError):
        return f"a file is nested too deeply ({first_line(error)[:CAUSE]})", 1
    if type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "requests", "urllib3"):
        return f"the Hugging Face hub cannot be reached ({first_line(error)[:CAUSE]})", 1
    if isinstance(error, ValueError):
        return str(error), 1
    if isinstance(error, OSError):
        return f"cannot read or write {error.filename or 'a file'}: {error.strerror or error}", 1
    return None, 1


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and the errors that caused it."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return not isinstance(error, ValueError) and bool(OUT_OF_MEMORY.search(str(error)))


def _is_disk_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in NO_ROOM
    return not isinstance(error, ValueError) and bool(DISK_FULL.search(str(error)))


def _lost_process(error: BaseException) -> bool:
    """Whether an error of torch.distributed reports that another process has ended."""
    if "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        return False
    return isinstance(error, RuntimeError) and bool(LOST_PROCESS.search(f"{type(error).__name__} {error}"))


def _disk_full(error: BaseException, output: Path | None) -> str:
    name = error.filename if isinstance(error, OSError) else None
    free = ""
    if output is not None:
        with suppress(OSError):
            place = next(path for path in (output, *output.absolute().parents) if path.is_dir())
            free = f", {shutil.disk_usage(place).free / 1e6:,.0f} MB are free at {place}"
    return f"cannot write {name or 'a file'}: no space left on the disk{free}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _write_traceback(error: BaseException, output: Path | None) -> Path | None:
    """The file with an error's traceback: in the command's output directory if it is ours, else a temporary file."""
    text = "".join(traceback.format_exception(error))
    encoded = text.encode("utf-8", "backslashreplace")
    if output is not None and any((output / marker).is_file() for marker in MARKERS):
        with suppress(OSError):
            (output / TRACEBACK).write_bytes(encoded)
            return output / TRACEBACK
    with suppress(OSError):
        descriptor, name = tempfile.mkstemp(prefix="stepalign-", suffix=".txt")
        with os.fdopen(descriptor, "wb") as file:
            file.write(encoded)
        return Path(name)
    return None


def _broken_pipe() -> int:
    """The status after the reader of our output has closed it; nothing more is printed, not even at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
    return 128 + 13


def _is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"
