"""The committed studies: the page is what they make, and their runs unpack and pack without loss."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.slow


def python(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, *map(str, arguments)], check=True, timeout=300, cwd=BENCHMARKS)


def test_the_committed_page_is_that_of_the_committed_study() -> None:
    before = (BENCHMARKS / "ablations.md").read_bytes()
    try:
        python("ablations.py")
        assert (BENCHMARKS / "ablations.md").read_bytes() == before
    finally:
        (BENCHMARKS / "ablations.md").write_bytes(before)


@pytest.mark.parametrize("name", ["ablations", "ablations-far"])
def test_a_study_unpacks_to_its_runs_and_packs_to_itself(name: str, tmp_path: Path) -> None:
    sweep, study, again = BENCHMARKS / f"{name}.yaml", BENCHMARKS / "results" / f"{name}.json", tmp_path / "again.json"
    python("study.py", "unpack", sweep, tmp_path / "runs", study)
    python("study.py", "pack", sweep, tmp_path / "runs", again)
    assert again.read_bytes() == study.read_bytes()
