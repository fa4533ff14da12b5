"""Whatever ends a command is one line and a status; only what nobody expected writes a file."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stepalign.cli import main
from stepalign.cli.table import find_command
from stepalign.support.errors import UsageError, one_line, report
from stepalign.support.stopping import Stopped


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of 23.68 GiB"
ALLOCATOR = "[enforce fail at alloc_cpu.cpp:128] data. DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"
WRITER = "[enforce fail at inline_container.cc:603] . unexpected pos 64 vs 0"
EXPECTED = [
    ("train", ValueError("prompts: none"), 1, "stepalign: prompts: none"),
    ("train", UsageError("no such word"), 2, "stepalign: no such word"),
    ("train", PermissionError(errno.EACCES, "Permission denied", "x/y"), 1, "cannot read or write x/y: Permission"),
    (
        "train",
        Stopped(signal.SIGTERM, "round 2 is saved"),
        143,
        "by SIGTERM; round 2 is saved; the same command resume",
    ),
    ("train", Stopped(signal.SIGHUP), 129, "stopped by SIGHUP; the same command resumes"),
    ("compare", Stopped(signal.SIGINT), 130, "stopped by SIGINT; give the same command again"),
    ("generate", KeyboardInterrupt(), 130, "stopped; the same command resumes"),
    ("generate", MemoryError(), 1, "memory ran out (MemoryError); try a smaller --batch_size, --base.max_batch 1 or"),
    ("generate", RuntimeError(ALLOCATOR), 1, "DefaultCPUAllocator: can't allocate memory: you tried 9 bytes); try a s"),
    ("train", torch.OutOfMemoryError(CUDA), 1, "--base.gradient_checkpointing true"),
    ("train-judge", RuntimeError("CUDA error: out of memory"), 1, "--training.micro_batch"),
    ("evaluate", caused(ValueError("x is no image"), MemoryError()), 1, "--scoring-batch"),
    ("sweep", OSError(errno.ENOMEM, "Cannot allocate memory"), 1, "training.train_batch"),
    ("convert-judge", RuntimeError("can't start new thread"), 1, "memory ran out"),
    (
        "train",
        OSError(errno.ENOSPC, "No space left on device", "r/checkpoint.pt"),
        1,
        "write r/checkpoint.pt: no space",
    ),
    ("train", caused(RuntimeError(WRITER), OSError(errno.ENOSPC, "No space left on device")), 1, "MB are free at"),
    ("train", RuntimeError(WRITER), 1, "no space left on the disk"),
    ("generate", RuntimeError("I/O error: No space left on device (os error 28)"), 1, "no space left on the disk"),
    ("train", RecursionError("maximum recursion depth exceeded"), 1, "is nested too deeply"),
]


@pytest.mark.parametrize(("command", "error", "status", "said"), EXPECTED, ids=lambda value: repr(value)[:40])
def test_what_can_go_wrong_is_one_line_and_writes_nothing(
    command: str, error: BaseException, status: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text("", encoding="utf-8")
    known = find_command(command)
    given = {"resumable": known.resumable, "memory_advice": known.memory_advice}
    assert report(error, output=tmp_path, **given) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("stepalign: ")
    assert said in err
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_an_unexpected_error_leaves_its_traceback_in_a_directory_of_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text("", encoding="utf-8")
    with pytest.raises(TypeError) as raised:
        raise TypeError("of a new kind \ud83d")
    assert report(raised.value, output=tmp_path) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert f"unexpected TypeError: of a new kind \\ud83d; the traceback is in {tmp_path / 'traceback.txt'}" in line
    assert "`stepalign env`" in line
    text = (tmp_path / "traceback.txt").read_text(encoding="utf-8")
    assert "Traceback" in text
    assert "test_errors.py" in text


def test_elsewhere_the_traceback_is_in_a_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "thesis").mkdir()
    for output in (None, tmp_path / "thesis", tmp_path / "absent"):
        assert report(KeyError("x"), output=output) == 1
        assert f"the traceback is in {tmp_path / 'stepalign-'}" in capsys.readouterr().err
    assert list((tmp_path / "thesis").iterdir()) == []


def test_a_line_has_nothing_in_it_that_a_terminal_acts_on() -> None:
    assert one_line("a\n\n  b\x1b[31m\x07\ud83d ü 🙂") == "a b\\x1b[31m\\x07\\ud83d ü 🙂"
    assert len(one_line("x" * 10_000)) < 1300


def test_nobody_is_told_to_run_what_a_file_holds() -> None:
    told = "judge.bin: Weights only load failed. (1) In PyTorch 2.6 set weights_only=False\n but only from"
    assert one_line(told) == "judge.bin: the file holds more than tensors"


@pytest.mark.parametrize(("rank", "said"), [("0", "another process of this command ended"), ("1", "")])
def test_a_process_that_loses_another_says_so_once(
    rank: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    lost = RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:3581")
    assert report(lost, output=None) == 1
    assert said in capsys.readouterr().err


# The program itself


def test_words_that_are_no_text_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "gradspo-miniature", "--prompts", os.fsdecode(b"\xff.txt")]) == 2
    assert capsys.readouterr().err == "stepalign: '\\udcff.txt' is not UTF-8 text; give another name or value\n"


def program(*words: str, before: str = "", **options: object) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own."""
    code = f"import sys\n{before}\nfrom stepalign.cli import main\nsys.exit(main(sys.argv[1:]))"
    return subprocess.run([sys.executable, "-c", code, *words], text=True, check=False, timeout=60, **options)


def command(body: str) -> str:
    """Code that makes every command do this, without loading a library."""
    return (
        "import sys, types\n"
        "from stepalign.cli.command import Command\n"
        f"def run(arguments):\n    {body}\n"
        "module = types.ModuleType('stepalign.cli.table')\n"
        "module.find_command = lambda name: Command(name, 'tools', 'stub', lambda parser: None, run)\n"
        "module.overview = str\n"
        "sys.modules['stepalign.cli.table'] = module"
    )


def test_what_is_caught_is_caught_before_a_library_is_loaded() -> None:
    """So that ctrl-C in the seconds of loading is no traceback."""
    body = "assert not {'torch', 'rich', 'yaml'} & set(sys.modules); return 0"
    assert program("env", before=command(body)).returncode == 0


@pytest.mark.usefixtures("signals_arrive")
@pytest.mark.parametrize(
    ("loading", "number", "said"),
    [
        ("stepalign.cli.table", signal.SIGINT, "give the same command again"),
        ("torch", signal.SIGINT, "the same command resumes"),
        ("torch", signal.SIGTERM, "the same command resumes"),
    ],
)
def test_a_signal_while_libraries_load_is_one_line(loading: str, number: signal.Signals, said: str) -> None:
    before = (
        "import os, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {loading!r}: os.kill(os.getpid(), {int(number)})\n"
        "sys.meta_path.insert(0, Finder())"
    )
    done = program("train", "gradspo-miniature", before=before, stderr=subprocess.PIPE)
    assert done.returncode == 128 + number
    assert done.stderr == f"stepalign: stopped by {number.name}; {said}\n"


def test_a_reader_that_has_seen_enough_is_no_fault() -> None:
    code = command("print('x' * 100_000); return 0") + "\nfrom stepalign.cli import main\nsys.exit(main(['env']))"
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""


@pytest.mark.slow
def test_paths_are_utf8_whatever_the_locale(tmp_path: Path) -> None:
    """What a recipe names is found where the platform's encoding lacks its letters."""
    environment = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    words = [sys.executable, "-m", "stepalign.cli", "sweep", "Bücher.yaml"]
    (tmp_path / "Bücher.yaml").write_text("a: [1", encoding="utf-8")
    done = subprocess.run(
        [os.fsencode(word) for word in words], env=environment, cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 1
    assert "Bücher.yaml is not valid YAML" in done.stderr.decode()


def test_an_encoding_without_our_signs_changes_what_is_printed_and_nothing_else() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    before = command("print('Bücher'); raise ValueError('Bücher')")
    done = program("env", before=before, env=environment, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "B\\xfccher\n", "stepalign: B\\xfccher\n")
