"""Directories: whose they are, who works there, and what is left of jobs that fail or die."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from stepalign.support import claim as claiming
from stepalign.support.claim import LOCK, Claim, claim
from stepalign.support.marker import MARKER, Owner, marker_of

OWNER = Owner("train", {"seed": 0, "training": {"rate": 0.1}}, {"seed": 0, "training": {"rate": 1.0}, "clip": None})


def begun(output: Path, owner: Owner = OWNER, notes: list[str] | None = None) -> Claim:
    """A claim of a directory that was given back, after some work."""
    with claim(output, owner, note=(notes if notes is not None else []).append) as claimed:
        (output / "work.txt").write_text("work")
    return claimed


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def refusal(output: Path, owner: Owner = OWNER) -> str:
    """Why a directory cannot be claimed; it stays as it was."""
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"^output: ") as error, claim(output, owner):
        pytest.fail("it was claimed")
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    return str(error.value)


def test_a_marker_is_there_before_anything_else_and_the_lock_only_during_the_job(tmp_path: Path) -> None:
    with claim(tmp_path / "new/run", OWNER):
        assert names(tmp_path / "new/run") == [LOCK, MARKER]
        marker = marker_of(tmp_path / "new/run")
    assert marker is not None
    assert (marker["kind"], marker["settings"], marker["identity"]) == ("train", OWNER.settings, {})
    assert names(tmp_path / "new/run") == [MARKER]


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_job_that_fails_before_it_did_anything_leaves_nothing(
    existing: bool, error: type[BaseException], tmp_path: Path
) -> None:
    output = tmp_path / "folder/run"
    if existing:
        output.mkdir(parents=True)
    with pytest.raises(error), claim(output, OWNER):
        raise error
    assert names(tmp_path) == (["folder", "folder/run"] if existing else [])


def test_a_job_that_fails_later_leaves_what_the_same_one_recognises(tmp_path: Path) -> None:
    def fail() -> None:
        with claim(tmp_path / "run", OWNER):
            (tmp_path / "run/checkpoint.pt").write_text("work")
            raise ValueError("later")

    with pytest.raises(ValueError, match="later"):
        fail()
    assert names(tmp_path / "run") == ["checkpoint.pt", MARKER]
    with claim(tmp_path / "run", OWNER):
        pass


@pytest.mark.parametrize(
    "left",
    [
        [],
        [LOCK],
        [LOCK, ".stepalign.json.123.tmp"],
        [LOCK, MARKER],
        [LOCK, MARKER, ".recipe.yaml.7.tmp", "adapter/.weights.8.tmp"],
    ],
    ids=str,
)
def test_any_moment_of_death_leaves_a_directory_that_is_recognised_and_cleaned(left: list[str], tmp_path: Path) -> None:
    output = tmp_path / "run"
    begun(output)
    marker = (output / MARKER).read_text()
    for path in (output / "work.txt", output / MARKER):
        path.unlink()
    for name in left:
        (output / name).parent.mkdir(exist_ok=True)
        (output / name).write_text(marker if name == MARKER else "half a fi")
    begun(output)
    assert [name for name in names(output) if not name.endswith("adapter")] == [MARKER, "work.txt"]


def test_leftovers_of_another_directory_below_are_left_alone(tmp_path: Path) -> None:
    begun(tmp_path, Owner("sweep", {}))
    begun(tmp_path / "run")
    (tmp_path / "run/.recipe.yaml.7.tmp").write_text("another job is writing this")
    begun(tmp_path, Owner("sweep", {}))
    assert (tmp_path / "run/.recipe.yaml.7.tmp").exists()


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    assert "holds files of something else" in refusal(tmp_path)
    (tmp_path / MARKER).write_text("{")
    assert "is damaged" in refusal(tmp_path)


def test_a_directory_of_another_command_or_other_settings_is_refused(tmp_path: Path) -> None:
    begun(tmp_path)
    assert "belongs to train, not generate" in refusal(tmp_path, replace(OWNER, kind="generate"))
    other = replace(OWNER, settings={"seed": 0, "training": {"rate": 0.2}})
    assert "is another run's: its training.rate is 0.1, this recipe's 0.2" in refusal(tmp_path, other)
    begun(tmp_path, replace(other, free=frozenset({"training.rate"})))


def test_fields_that_only_one_version_knows_make_no_other_run(tmp_path: Path) -> None:
    notes: list[str] = []
    begun(tmp_path)
    newer = {"seed": 0, "training": {"rate": 0.1}, "clip": None}
    begun(tmp_path, replace(OWNER, settings=newer), notes)
    assert notes == []
    assert "its clip is None, this recipe's 3" in refusal(tmp_path, replace(OWNER, settings=newer | {"clip": 3}))
    begun(tmp_path, replace(OWNER, settings={"training": {"speed": 0.1}}, defaults={}), notes)
    assert notes == [f"{tmp_path} is of another version: seed, training.rate of its recipe is ignored"]


def test_a_copied_or_moved_project_is_still_the_same(tmp_path: Path) -> None:
    def owner(project: Path) -> Owner:
        settings = {"prompts": f"{project}/p.txt", "scorers": [f"mine={project}/w"], "model": "/models/sd"}
        return Owner("train", settings)

    begun(tmp_path / "here/runs/1", owner(tmp_path / "here"))
    (tmp_path / "here").rename(tmp_path / "there")
    begun(tmp_path / "there/runs/1", owner(tmp_path / "there"))
    moved = tmp_path / "elsewhere/deeper/1"
    moved.parent.mkdir(parents=True)
    (tmp_path / "there/runs/1").rename(moved)
    begun(moved, owner(tmp_path / "here"))
    assert "its prompts is" in refusal(moved, owner(tmp_path / "there"))


def test_a_directory_from_before_markers_is_adopted(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("old")
    owner = replace(OWNER, legacy=lambda output: {"seed": 0} if (output / "recipe.yaml").exists() else None)
    other = replace(owner, settings={"seed": 1})
    assert "its seed is 0, this recipe's 1" in refusal(tmp_path, other)
    owner = replace(owner, settings={"seed": 0, "training": {"rate": 1.0}})
    assert [begun(tmp_path, owner).adopted for _ in range(2)] == [True, False]


def test_parts_are_known_by_their_content(tmp_path: Path) -> None:
    with claim(tmp_path / "run", OWNER) as claimed:
        claimed.identify({"judge": "a", "base": "b"})
        (tmp_path / "run/work.txt").write_text("work")
    with claim(tmp_path / "run", OWNER) as claimed:
        claimed.identify({"judge": "a", "vae": "c"})
        with pytest.raises(
            ValueError, match=r"base .b then, other now., vae .c then, other now.: not what .* was begun with"
        ):
            claimed.identify({"judge": "a", "base": "other", "vae": "other"})
    marker = marker_of(tmp_path / "run")
    assert marker is not None
    assert marker["identity"] == {"judge": "a", "base": "b", "vae": "c"}


def test_a_second_job_is_refused_in_one_line(tmp_path: Path) -> None:
    with claim(tmp_path, OWNER):
        assert f"another job is at work in {tmp_path}" in refusal(tmp_path)
    begun(tmp_path)


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: FileLock) -> None:
        raise NotImplementedError

    monkeypatch.setattr(claiming.FileLock, "acquire", missing)
    notes: list[str] = []
    begun(tmp_path, notes=notes)
    assert notes == [f"the file system of {tmp_path} has no locks: let no other job write there"]


def in_threads(num: int, work: Callable[[int], Any]) -> list[Any]:
    """What the same work returns in threads that begin together; each opens files of its own, as processes do."""
    together = threading.Barrier(num)

    def one(index: int) -> Any:
        together.wait()
        return work(index)

    with ThreadPoolExecutor(num) as pool:
        return list(pool.map(one, range(num)))


def test_of_jobs_that_start_together_one_gets_the_directory(tmp_path: Path) -> None:
    for attempt in range(30):
        output, all_tried = tmp_path / f"runs/{attempt}", threading.Barrier(8)

        def start(_: int, output: Path = output, all_tried: threading.Barrier = all_tried) -> str:
            try:
                with claim(output, OWNER):
                    (output / "work.txt").write_text("work")
                    all_tried.wait()
                    return "done"
            except ValueError as error:
                all_tried.wait()
                return str(error)

        ends = in_threads(8, start)
        refused = f"output: another job is at work in {output}; wait for it, or give another directory"
        assert sorted(ends) == ["done", *[refused] * 7]
        assert names(output) == [MARKER, "work.txt"]


def test_jobs_that_fail_at_their_start_do_not_disturb_others(tmp_path: Path) -> None:
    """Each takes its directory away when it fails, while the others try to begin there."""
    output = tmp_path / "folder/run"
    holders: list[int] = []

    def start(index: int) -> list[str]:
        ends = []
        for _ in range(20):
            try:
                with claim(output, OWNER):
                    holders.append(index)
                    assert (output / MARKER).exists()
                    assert holders == [index]
                    holders.remove(index)
                    raise ValueError("bad input")
            except ValueError as error:
                ends.append(str(error))
        return ends

    ends = {end for ends in in_threads(4, start) for end in ends}
    assert ends <= {"bad input", f"output: another job is at work in {output}; wait for it, or give another directory"}
    assert "bad input" in ends
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
