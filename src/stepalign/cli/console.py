"""Terminal output: progress bars while a command works, tables of its scores when it is done.

Names come from untrusted files, so nothing in them is read as rich's markup or reaches the terminal as a control
character.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from stepalign.cli.progress_lines import ProgressLines
from stepalign.support.errors import one_line

PHASES = {"sample": "  sampling", "train": "  training", "evaluate": "evaluating", "prepare": "encoding rows"}
PHASES |= {"inspect": "reading images", "score": "   scoring", "draw": "generating"}


def show_scores(summary: dict[str, Any], console: Console) -> None:
    """The scores of a finished run as a table, if it has any."""
    if not summary["scores"]:
        return
    recipe = escape(one_line(summary["recipe"]))
    table = Table(title=f"{recipe}, seed {summary['seed']}: {summary['num_prompts']} held-out prompts")
    for heading in ("score", "base", "aligned", "difference", "95 % interval"):
        table.add_column(heading, justify="left" if heading == "score" else "right")
    for name, row in summary["scores"].items():
        low, high = row["interval"]
        table.add_row(
            escape(one_line(name)),
            f"{row['base']:.4f}",
            f"{row['aligned']:.4f}",
            f"{row['difference']:+.4f}",
            f"{low:+.4f} to {high:+.4f}",
        )
    console.print(table)


class RoundBars:
    """Progress bars over rounds and within them: judge score, time left."""

    def __init__(self, console: Console, *, rounds: bool = True) -> None:
        columns = (TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console)
        self._rounds = self._progress.add_task("rounds", total=None, visible=rounds)
        self._phase = self._progress.add_task("", total=None)
        self._loss = 0.0
        """Loss of a judge's training, averaged over about 50 steps."""

    def __enter__(self) -> RoundBars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress.live.is_started:
            self._progress.stop()

    def phase(self, name: str, done: int, total: int) -> None:
        """Move the lower bar; the first call shows both, so that a run that cannot start prints its error alone."""
        self._progress.start()
        description = PHASES[name]
        if self._progress.tasks[self._phase].description != description:
            self._progress.reset(self._phase)
        self._progress.update(self._phase, description=description, completed=done, total=total)

    def round(self, row: dict[str, Any], total: int) -> None:
        """Move the upper bar and show the round's judge score, or the loss of a judge's training."""
        self._progress.start()
        if "step" in row:
            if row["loss"] is not None:  # of a step that was not skipped
                self._loss += 0.02 * (row["loss"] - self._loss) if self._loss else row["loss"]
            done, described = row["step"], f"steps (loss {self._loss:.3f})"
        else:
            score = row["judge_score"]
            done, described = row["round"], "rounds" if score is None else f"rounds (judge score {score:.3f})"
        self._progress.update(self._rounds, completed=done, total=total, description=described)

    def note(self, message: str) -> None:
        """Print a line above the bars."""
        self._progress.console.print(message, highlight=False, markup=False, soft_wrap=True)


def show_accuracy(summary: dict[str, Any], console: Console) -> None:
    """The held-out accuracy of a trained judge as a table."""
    recipe = escape(one_line(summary["recipe"]))
    title = f"{recipe}, seed {summary['seed']}: accuracy on {summary['num_decided']} held-out pairs"
    table = Table(title=title)
    for heading in ("timestep", "before", "trained", "difference", "95 % interval"):
        table.add_column(heading, justify="right")
    for row in summary["accuracy"]:
        if row["difference"] is None:
            continue
        before, after = (f"{row[which]['accuracy']:.3f}" for which in ("start", "judge"))
        low, high = row["interval"]
        table.add_row(str(row["timestep"]), before, after, f"{row['difference']:+.3f}", f"{low:+.3f} to {high:+.3f}")
    console.print(table)


def show_results(results: dict[str, Any], console: Console) -> None:
    """The mean scores of a folder as a table."""
    name = escape(one_line(results["name"]))
    table = Table(title=f"{name}: {results['num_images']} images of {results['num_prompts']} prompts")
    for heading in ("score", "mean", "95 % interval"):
        table.add_column(heading, justify="left" if heading == "score" else "right")
    for name, row in results["scores"].items():
        interval = "–" if row["interval"] is None else f"{row['interval'][0]:.4f} to {row['interval'][1]:.4f}"
        table.add_row(escape(one_line(name)), f"{row['mean']:.4f}", interval)
    console.print(table)


def quieten() -> None:
    """Keep the libraries from printing between the bars."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()


def progress_bars(*, rounds: bool = True) -> RoundBars | ProgressLines:
    """Bars on the standard error of the main process, or lines without a terminal; `rounds` adds one over rounds."""
    from stepalign.support.parallel import processes

    console = Console(stderr=True, quiet=not processes().is_main_process)
    return RoundBars(console, rounds=rounds) if console.is_terminal else ProgressLines(console, PHASES)
