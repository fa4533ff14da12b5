"""What a run shows: lines where there is no terminal, and nothing that a file could make the terminal do."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from stepalign.cli.console import PHASES, RoundBars, progress_bars, show_accuracy, show_results, show_scores
from stepalign.cli.progress_lines import ProgressLines

EVIL = "[bold]x[/] [/nothing] [link=http://x]y\x1b[31m\x07"
SHOWN = "[bold]x[/] [/nothing] [link=http://x]y\\x1b[31m\\x07"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def lines(clock: Clock, log: io.StringIO) -> ProgressLines:
    return ProgressLines(Console(file=log, width=300), PHASES, clock=clock)


def test_every_round_is_a_line_with_score_kept_share_and_time_left(
    lines: ProgressLines, clock: Clock, log: io.StringIO
) -> None:
    rows: list[tuple[float | None, float | None]] = [(0.5, 0.75), (None, None), (1.25, 1.0)]
    for number, (score, kept) in enumerate(rows, 3):
        clock.now += 10
        lines.round({"round": number, "judge_score": score, "kept": kept}, 16)
    assert log.getvalue().splitlines() == [
        "round 3 of 16: judge score 0.500, kept 75%",
        "round 4 of 16, 0:02:00 left",
        "round 5 of 16: judge score 1.250, kept 100%, 0:01:50 left",
    ]


def test_within_a_round_there_is_a_line_every_half_minute(lines: ProgressLines, clock: Clock, log: io.StringIO) -> None:
    for done in range(1, 8):
        lines.phase("sample", done, 8)
        clock.now += 10
    assert log.getvalue().splitlines() == ["sampling: 4 of 8, 0:00:40 left", "sampling: 7 of 8, 0:00:10 left"]


def test_steps_share_lines_and_the_last_has_one(lines: ProgressLines, clock: Clock, log: io.StringIO) -> None:
    for step in range(1, 101):
        clock.now += 0.5
        lines.round({"step": step, "loss": 0.25}, 100)
    assert log.getvalue().splitlines() == ["step 60 of 100: loss 0.250, 0:00:20 left", "step 100 of 100: loss 0.250"]


def test_work_of_no_time_is_silent_and_the_end_of_longer_work_is_not(
    lines: ProgressLines, clock: Clock, log: io.StringIO
) -> None:
    lines.phase("inspect", 1, 1)
    for done in range(4):
        lines.phase("score", done + 1, 4)
        clock.now += 1
    assert log.getvalue().splitlines() == ["scoring: 4 of 4"]


def test_bars_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(progress_bars(), ProgressLines)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert isinstance(progress_bars(), RoundBars)


@pytest.mark.parametrize("kind", ["bars", "lines"])
def test_notes_are_not_read_as_markup(kind: str, log: io.StringIO) -> None:
    console = Console(file=log, width=300)
    watcher: Any = RoundBars(console) if kind == "bars" else ProgressLines(console, PHASES)
    watcher.note("[bold]x[/] [/nothing]")
    assert log.getvalue() == "[bold]x[/] [/nothing]\n"


def test_tables_show_names_as_they_are(log: io.StringIO) -> None:
    console = Console(file=log, width=300)
    row = {"base": 0.0, "aligned": 0.0, "difference": 0.0, "interval": [0.0, 0.0], "mean": 0.0}
    show_scores({"recipe": EVIL, "seed": 0, "num_prompts": 2, "scores": {EVIL: row}}, console)
    show_accuracy({"recipe": EVIL, "seed": 0, "num_decided": 2, "accuracy": []}, console)
    show_results({"name": EVIL, "num_images": 2, "num_prompts": 2, "scores": {EVIL: row}}, console)
    assert log.getvalue().count(SHOWN) == 5
