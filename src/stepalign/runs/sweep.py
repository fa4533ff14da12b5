"""Many runs from one file (`sweep_file.py`), and their results in tables (`sweep_results.py`).

The same command resumes; of a finished run it needs summary.json and scores.jsonl. A run that fails is recorded, the
others continue, and the sweep ends with an error that names it.
"""

from __future__ import annotations

from pathlib import Path

import torch

from stepalign.reports.summaries import load_run_summary
from stepalign.runs.assemble import assemble
from stepalign.runs.held_out_rows import read_held_out
from stepalign.runs.job import run
from stepalign.runs.recipes import Recipe
from stepalign.runs.run import Run, open_run
from stepalign.runs.run_directory import CHECKPOINT, PREVIOUS
from stepalign.runs.sweep_file import Sweep
from stepalign.runs.sweep_results import Results, collect_results, results_page
from stepalign.support.claim import LOCK
from stepalign.support.config import require, to_plain
from stepalign.support.digests import Identity, refuse_differences, values_digest
from stepalign.support.file_record import FILE_RECORD, check_files
from stepalign.support.files import write_text
from stepalign.support.json_text import to_json
from stepalign.support.marker import MARKER, Owner, identity_of
from stepalign.support.parallel import processes
from stepalign.support.stopping import Stopped
from stepalign.support.watcher import NullWatcher, Watcher

RESULTS, PAGE = "sweep.json", "sweep.md"


def run_sweep(
    sweep: Sweep,
    output: Path,
    *,
    only: str = "",
    share: tuple[int, int] = (1, 1),
    watcher: Watcher | None = None,
) -> Results:
    """Do the runs of a sweep and collect the results of all that are done.

    The runs are those of tables whose names contain `only`, and of these every n-th from the i-th where `share` is
    (i, n). Raises ValueError at the end, with the results written, when a run has failed.
    """
    part, parts = share
    require(1 <= part <= parts, "share", f"{part}/{parts}", "i/n with i from 1 to n")
    tables = {table: rows for table, rows in sweep.tables.items() if only.lower() in table.lower()}
    require(bool(tables), "only", repr(only), f"part of a table's name: {', '.join(sweep.tables)}")
    runs = list(Sweep(sweep.seeds, tables).runs().items())[part - 1 :: parts]
    for path in (output, *output.parents):
        require(path.is_dir() or not path.exists(), "output", path, "a directory, not a file")
    watcher, lock = watcher or NullWatcher(), LOCK if parts == 1 else f"{LOCK}-{part}-of-{parts}"
    with open_run(output, _owner(sweep), files=(PAGE,), watcher=watcher, lock=lock) as job:
        failures = _do_runs(job, runs)
        results = _write_results(job, sweep, failures)
    failed = [
        f"{row['row']}, seed {seed} ({reason})"
        for table in tables
        for row in results[table]
        for seed, reason in row["failed"].items()
    ]
    if failed:
        raise ValueError(
            f"runs of the sweep failed: {'; '.join(failed)}; {output / PAGE} has the results of the others"
        )
    return results


def _do_runs(job: Run, runs: list[tuple[str, Recipe]]) -> dict[str, str]:
    """Do the runs that are not done; returns, by directory, why runs have failed.

    A failure that the next run would meet too, such as a full disk, ends the sweep, and so does any failure of several
    processes, since it may be that of one process alone.
    """
    identities: dict[str, Identity] = {}
    failures: dict[str, str] = {}
    for number, (name, recipe) in enumerate(runs):
        try:
            if not _is_done(recipe, job.output / name, identities):
                job.watcher.note(f"{number + 1} of {len(runs)}: {name}")
                run(recipe, job.output / name, watcher=job.watcher)
        except Stopped as stopped:
            done = f"{number} of {len(runs)} runs of the sweep are done"
            stopped.saved = f"{done}; of the next, {stopped.saved}" if stopped.saved else done
            raise
        except (ValueError, torch.OutOfMemoryError) as error:
            if processes().num_processes > 1 or isinstance(error.__cause__, OSError):
                raise
            failures[name] = str(error) or type(error).__name__
            job.watcher.note(f"{name} failed: {failures[name]}")
    return failures


def _owner(sweep: Sweep) -> Owner:
    """The owner of a sweep's directory: it holds the runs of any tables, each in a directory of its recipe."""
    names = (RESULTS, *sweep.runs())
    return Owner("sweep", {}, legacy=lambda output: {} if any((output / name).exists() for name in names) else None)


def _is_done(recipe: Recipe, folder: Path, identities: dict[str, Identity]) -> bool:
    """Whether a run is finished and its results are as they were written, checkpoints aside.

    A run with neither marker nor record of files is one of which only the results were kept (`benchmarks/study.py`).
    Raises ValueError where its parts have other content now. `identities` keeps the digests of parts that several rows
    share, so that they are computed once.
    """
    if (folder / MARKER).is_file() != (folder / FILE_RECORD).is_file():
        return False
    try:
        if load_run_summary(folder) is None or check_files(folder).keys() - {CHECKPOINT, PREVIOUS}:
            return False
        read_held_out(folder)
    except ValueError:  # the run names the damaged file, and makes it again
        return False
    theirs = identity_of(folder)
    if theirs:
        values = to_plain(recipe)
        named = values_digest([values[name] for name in ("model", "base", "judge", "prompts", "evaluation", "guard")])
        if named not in identities:
            identities[named] = assemble(recipe).identity
        refuse_differences(identities[named], theirs, whose=f"{folder} was run with")
    return True


def _write_results(job: Run, sweep: Sweep, failures: dict[str, str]) -> Results:
    """Write the tables, on the main process."""
    results = collect_results(sweep, job.output, failures)
    if processes().is_main_process:
        write_text(job.output / PAGE, results_page(results))
        job.finish(RESULTS, to_json(results, indent=1) + "\n")
    return results
