"""Runs under a guard: warned, stopped and interrupted, they end as they should, to the bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from guarded import (
    ADAPTER,
    MOMENTS,
    SCRIPT,
    TOLD,
    Notes,
    interrupt,
    parts_of,
    recipe_of,
    rows_of,
    saved,
    toy_runs,
    without_work,
)
from worlds import assert_same

from stepalign.core.seeding import Purpose
from stepalign.models.base import BaseModel
from stepalign.runs import guard, job
from stepalign.runs.guard import GuardWatch
from stepalign.runs.held_out import measure
from stepalign.support.files import RunState, load_state
from stepalign.support.watcher import NullWatcher
from stepalign.training.trainer import Trainer

Ended = tuple[Path, dict[str, Any], list[str]]
"""A run's directory, summary and notes."""

Go = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def go(tiny_sd: BaseModel) -> Iterator[Go]:
    """A function that runs a recipe in the guard's world, and returns its summary."""

    def run(output: Path, watcher: NullWatcher | None = None, **changes: Any) -> dict[str, Any]:
        return job.run(recipe_of(**changes), output, watcher=watcher)

    with toy_runs(tiny_sd):
        yield run


@pytest.fixture(scope="module")
def plain(go: Go, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Runs of so many rounds without a guard."""
    runs = {num: tmp_path_factory.mktemp("plain") / str(num) for num in (1, 3)}
    for num, output in runs.items():
        go(output, guard={"every": 0}, training={"num_rounds": num})
    return runs


@pytest.fixture(scope="module")
def stopped(go: Go, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A run that the guard stops; its directory, summary and notes."""
    output, notes = tmp_path_factory.mktemp("stopped") / "run", Notes()
    return output, go(output, notes), notes.of_guard


@pytest.fixture(scope="module")
def warned(go: Go, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    output, notes = tmp_path_factory.mktemp("warned") / "run", Notes()
    return output, go(output, notes, guard={"action": "warn"}), notes.of_guard


def test_without_a_guard_there_is_nothing_of_it(plain: dict[int, Path]) -> None:
    assert not any("guard" in path.name for path in plain[3].rglob("*"))
    summary = json.loads((plain[3] / "summary.json").read_text())
    assert "guard" not in summary
    assert not any("guard" in name for name in summary["calls"])


def test_a_warned_run_goes_on_and_only_says_so(plain: dict[int, Path], warned: Ended) -> None:
    output, summary, notes = warned
    for name in (ADAPTER, "scores.jsonl"):
        assert (output / name).read_bytes() == (plain[3] / name).read_bytes()
    assert rows_of(output, "metrics.jsonl") == rows_of(plain[3], "metrics.jsonl")
    states = [load_state(folder / "checkpoint.pt", RunState) for folder in (output, plain[3])]
    assert_same(*(state.adapter | state.ema for state in states))
    assert not (output / "guard").exists()
    assert (summary["rounds"], summary["guard"]["kept_round"]) == (3, 3)
    assert notes == [f"guard, round {number}: {TOLD[number]}" for number in (2, 3)]


def test_the_rows_hold_every_prompts_scores_from_before_the_first_round(
    warned: Ended,
) -> None:
    rows = rows_of(warned[0])
    assert [row["round"] for row in rows] == [0, 1, 2, 3]
    for number, row in enumerate(rows):
        assert [*row["scores"]][:3] == ["judge", "aesthetic", "alignment"]
        for name, script in SCRIPT.items():
            assert row["scores"][name] == [script[number], script[number] + 0.125]
        style = [name for name in row["scores"] if name.startswith("style: ")]
        assert len(style) == len(row["scores"]) - 3 == 6
        assert all(len(row["scores"][name]) == 2 for name in style)
        assert ("second" in row) == (number >= 2), "measured again where the first measurement has fallen"
    assert [rows[2]["second"][side]["judge"] for side in ("base", "model")] == [[0.0, 0.125], [2.0, 2.125]]
    assert [row["alarm"] is None for row in rows] == [True, True, False, False]


def test_the_summary_says_what_the_guard_saw(warned: Ended) -> None:
    output, summary, _ = warned
    rows, found = rows_of(output), summary["guard"]
    assert found["rounds"] == [0, 1, 2, 3]
    assert found["means"]["aesthetic"] == [value + 0.0625 for value in SCRIPT["aesthetic"]]
    assert found["means"].keys() == rows[0]["scores"].keys()
    expected = {"metric": "aesthetic", "kind": "gamed", "since": 1, "judge": 2.0, "change": -0.125, "p_value": 0.0}
    assert found["alarms"][0] == {"round": 2, "interval": [-0.125, -0.125], **expected}
    assert (found["num_prompts"], found["prompts"].split(";")[0]) == (2, "also those of the final evaluation")
    assert [entry["round"] for entry in found["alarms"]] == [2, 3]
    each = 2 * 2 * 2  # prompts, steps, guidance
    assert summary["calls"]["guard_policy"] == (4 + 2) * each, "four measurements, and two again"
    assert summary["calls"]["guard_reference"] == 2 * each


def test_a_stopped_run_ends_with_the_adapter_of_the_metrics_best_round(plain: dict[int, Path], stopped: Ended) -> None:
    output, summary, notes = stopped
    assert (output / ADAPTER).read_bytes() == (plain[1] / ADAPTER).read_bytes()
    assert (output / "scores.jsonl").read_bytes() == (plain[1] / "scores.jsonl").read_bytes()
    state, kept = (load_state(folder / "checkpoint.pt", RunState) for folder in (output, plain[1]))
    assert_same(state.adapter | state.ema, kept.adapter | kept.ema)
    assert (summary["rounds"], summary["guard"]["kept_round"], summary["guard"]["rounds"]) == (2, 1, [0, 1, 2])
    assert [row["round"] for row in rows_of(output, "metrics.jsonl")] == [1, 2]
    assert notes == [
        f"guard, round 2: {TOLD[2]}",
        "guard: training stops, and the adapter of round 1 is kept",
    ]


def test_the_average_is_kept_too(plain: dict[int, Path], stopped: Ended) -> None:
    kept = load_state(plain[1] / "checkpoint.pt", RunState)
    assert_same(saved(stopped[0])[1], {"adapter": kept.adapter, "ema": kept.ema})
    assert not all(torch.equal(kept.ema[name], tensor) for name, tensor in kept.adapter.items())


def test_only_adapters_that_an_alarm_could_go_back_to_are_kept(stopped: Ended) -> None:
    """The aesthetic's best round is 1, the alignment's 2; nothing goes back to 0."""
    assert saved(stopped[0]).keys() == {1, 2}


def test_a_round_that_is_the_best_by_no_metric_is_not_kept(
    go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge's score is what it was, so the aesthetic has collapsed."""
    monkeypatch.setitem(SCRIPT, "alignment", [0.5, 0.5, 0.5])
    monkeypatch.setitem(SCRIPT, "judge", [2.0, 1.0, 2.0])
    summary = go(tmp_path / "run", training={"num_rounds": 2})
    assert [(entry["metric"], entry["kind"]) for entry in summary["guard"]["alarms"]] == [("aesthetic", "collapsed")]
    assert saved(tmp_path / "run").keys() == {0, 1}


def test_the_guard_measures_every_so_many_rounds(go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Since its best round the aesthetic has fallen, but not below the base model's: no alarm."""
    monkeypatch.setitem(SCRIPT, "aesthetic", [0.5, 0.75, 0.625])
    summary = go(tmp_path / "run", guard={"every": 2})
    assert summary["guard"]["rounds"] == [0, 2]
    assert (summary["guard"]["alarms"], summary["guard"]["kept_round"], summary["rounds"]) == ([], 3, 3)


@pytest.mark.parametrize("export", ["policy", "ema"])
def test_what_is_measured_is_what_the_run_would_export(
    export: str, go: Go, tiny_sd: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first row is the base, the last the exported model, on the guard's own noise."""
    monkeypatch.setattr(guard, "measure", measure)
    go(tmp_path / "run", guard={"action": "warn"}, exported_role=export, training={"num_rounds": 1})
    recipe, rows = recipe_of(exported_role=export), rows_of(tmp_path / "run")
    parts, state = job.assemble(recipe), load_state(tmp_path / "run/checkpoint.pt", RunState)
    parts.policy.load(adapter=state.adapter, ema=state.ema)
    for row, role in zip(rows, ("reference", export), strict=True):
        expected = measure(parts, role, prompts=parts.guard.prompts, purpose=Purpose.GUARD, key=(0,)).scores
        for name in ("judge", "aesthetic", "alignment"):
            assert row["scores"][name] == pytest.approx(expected[name].tolist(), rel=1e-5)
    assert rows[0]["scores"]["judge"] != rows[1]["scores"]["judge"]
    evaluated = [line["base"]["judge"] for line in rows_of(tmp_path / "run", "scores.jsonl")[:2]]
    assert abs(np.subtract(rows[0]["scores"]["judge"], evaluated)).min() > 1e-3, "none of the evaluation's noise"


# Interrupted


def interrupted(go: Go, output: Path, moment: str, **changes: Any) -> None:
    """A run cut off at a moment."""
    place, name, call, after = MOMENTS[moment]
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, place, name, call, after=after)
        with pytest.raises(KeyboardInterrupt):
            go(output, **changes)
    assert not (output / "summary.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "moment", "every"),
    [
        ("warn", "round 1", 1),
        ("warn", "round 2", 2),
        ("stop", "round 2", 1),
        ("warn", "round 3", 1),
        ("warn", "round 3", 2),
        ("stop", "the guard of round 1", 2),
        ("warn", "the guard of round 2", 2),
        ("stop", "the guard of round 2", 1),
        ("stop", "before row 2", 1),
        ("warn", "after row 2", 2),
        ("stop", "after row 2", 1),
        ("stop", "before the adapter", 1),
        ("stop", "before the adapter", 3),
        ("stop", "after the adapter", 1),
        ("stop", "after the adapter", 3),
        ("stop", "before checkpoint 2", 1),
        ("warn", "after checkpoint 2", 1),
        ("warn", "before the evaluation", 1),
        ("stop", "after the evaluation", 3),
    ],
)
def test_an_interrupted_run_ends_with_the_rows_and_bits_of_one_left_alone(
    action: str, moment: str, every: int, go: Go, stopped: Ended, warned: Ended, tmp_path: Path
) -> None:
    output, changes = tmp_path / "run", {"guard": {"action": action}, "checkpoint_every": every}
    interrupted(go, output, moment, **changes)
    summary = go(output, **changes)
    alone, expected, _ = stopped if action == "stop" else warned
    assert rows_of(output) == rows_of(alone)
    assert rows_of(output, "metrics.jsonl") == rows_of(alone, "metrics.jsonl")
    for name in (ADAPTER, "scores.jsonl"):
        assert (output / name).read_bytes() == (alone / name).read_bytes()
    if action == "stop":
        assert_same(saved(output), saved(alone))
    assert without_work(summary) == without_work(expected)


@pytest.mark.parametrize("moment", [pytest.param("round 1", marks=pytest.mark.slow), "the guard of round 2"])
def test_an_interruption_loses_none_of_the_guards_work(moment: str, go: Go, warned: Ended, tmp_path: Path) -> None:
    changes = {"guard": {"action": "warn"}}
    interrupted(go, tmp_path / "run", moment, **changes)
    calls, expected = (summary["calls"] for summary in (go(tmp_path / "run", **changes), warned[1]))
    names = [name for name in expected if not name.endswith("texts")]
    assert {name: calls.get(name) for name in names} == {name: expected[name] for name in names}


def test_a_stopped_run_given_again_does_not_train_on(
    go: Go, stopped: Ended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(stopped[0], tmp_path / "run")
    (tmp_path / "run/summary.json").unlink()
    shutil.rmtree(tmp_path / "run/adapter")
    monkeypatch.setattr(Trainer, "round", lambda *_: pytest.fail("it trains"))
    monkeypatch.setattr(GuardWatch, "_measure", lambda *_: pytest.fail("it measures"))
    notes = Notes()
    summary = go(tmp_path / "run", notes)
    assert without_work(summary) == without_work(stopped[1])
    assert (tmp_path / "run" / ADAPTER).read_bytes() == (stopped[0] / ADAPTER).read_bytes()
    assert notes.of_guard == []


def test_rows_after_the_last_checkpoint_are_forgotten(
    tiny_sd: BaseModel, stopped: Ended, tmp_path: Path, go: Go
) -> None:
    shutil.copy(stopped[0] / "guard.jsonl", tmp_path)
    parts = parts_of(tiny_sd, recipe_of())
    for num_rounds, rounds, over in ((1, [0, 1], False), (2, [0, 1, 2], True)):
        parts.trainer.num_rounds = num_rounds
        watch = GuardWatch(parts, tmp_path, NullWatcher())
        assert ([row["round"] for row in watch.rows], watch.stopped) == (rounds, over)
    warned = replace(parts, recipe=recipe_of(guard={"action": "warn"}))
    assert not GuardWatch(warned, tmp_path, NullWatcher()).stopped


def test_a_damaged_adapter_that_the_guard_may_restore_is_named_before_training(
    go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    interrupted(go, output, "round 2")
    path = output / "guard/round-00001.pt"
    path.write_bytes(path.read_bytes()[:-100])
    monkeypatch.setattr(Trainer, "round", lambda *_: pytest.fail("it trains"))
    with pytest.raises(ValueError, match=r"^output: .*guard/round-00001\.pt is damaged, and the guard may have"):
        go(output)


def test_rows_of_a_guard_that_are_damaged_name_their_line(tmp_path: Path) -> None:
    (tmp_path / "guard.jsonl").write_text('{"round": 0, "scores": {}, "alarm": null}\n{"round": 1}\n')
    with pytest.raises(ValueError, match=r"guard\.jsonl line 2 is no measurement of a guard; restore the file"):
        guard.read_guard_rows(tmp_path)
