"""Comparisons of evaluated folders: the numbers, by hand, and the files they are written to."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compared import GAINS, gained, level, save_folder, three

from stepalign.data.manifest import read_manifest, read_scores, write_manifest, write_scores
from stepalign.evaluation.compare import Comparison, compare_folders, write_comparison
from stepalign.support.shares import wilson_interval, win_rate
from stepalign.support.statistics import holm, mean_interval, sign_flip_p_value


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """A base and another that gains `GAINS`."""
    base = save_folder(tmp_path / "base", scores={"pickscore": level}, colour=1)
    return [base, save_folder(tmp_path / "tuned", scores={"pickscore": gained}, colour=2)]


def test_two_models_by_hand(two: list[Path]) -> None:
    """Means 22.5 and 22.8125; differences as given."""
    found = compare_folders(two)
    assert (found.models, found.baseline, found.num_prompts, found.num_images) == (["base", "tuned"], "base", 6, 6)
    assert found.scores["pickscore"]["base"].mean == pytest.approx(22.5)
    assert found.scores["pickscore"]["tuned"].mean == pytest.approx(22.8125)
    assert found.scores["pickscore"]["base"].interval == mean_interval(np.arange(20.0, 26.0))
    (pair,) = found.pairs
    assert (pair.scorer, pair.base, pair.other) == ("pickscore", "base", "tuned")
    assert pair.difference == pytest.approx(0.3125)
    assert pair.interval == mean_interval(np.array(GAINS))
    assert (pair.wins, pair.ties, pair.losses) == (3, 1, 2)
    assert pair.win_rate == pytest.approx(3.5 / 6)
    assert pair.win_interval == pytest.approx(wilson_interval(3.5, 6))
    assert pair.p_value == pair.p_holm == sign_flip_p_value(np.array(GAINS))
    assert found.strengths == {}
    assert found.warnings == []


def test_images_are_averaged_within_their_prompt(tmp_path: Path) -> None:
    """Prompt p gains p on one image and 0 on another: p/2 on average, and wins half, but for prompt 0, which ties."""
    given = {"num_prompts": 5, "num_images": 2}
    base = save_folder(tmp_path / "base", scores={"s": lambda number, image: 0.0}, **given)
    other = save_folder(tmp_path / "other", scores={"s": lambda number, image: float(number * image)}, **given)
    (pair,) = compare_folders([base, other]).pairs
    assert pair.difference == pytest.approx(1.0)
    assert pair.interval == mean_interval(np.arange(5) / 2)
    assert (pair.wins, pair.ties, pair.losses) == (4, 6, 0)
    assert (
        pair.win_interval == win_rate(np.array([0.0, 0, 0, 1, 0, 2, 0, 3, 0, 4]), np.repeat(np.arange(5), 2)).interval
    )


def test_the_first_model_comes_first_in_every_pair_and_holm_counts_all_tests(tmp_path: Path) -> None:
    found = compare_folders(three(tmp_path), names=["A", "B", "C"])
    assert found.baseline == "A"
    assert [(row.scorer, row.base, row.other) for row in found.pairs] == [
        (scorer, base, other) for base, other in (("A", "B"), ("A", "C"), ("B", "C")) for scorer in ("first", "second")
    ]
    assert [row.p_holm for row in found.pairs] == holm([row.p_value for row in found.pairs])
    assert found.pairs[0].difference == pytest.approx(0.3125)


def test_three_models_are_ranked(tmp_path: Path) -> None:
    found = compare_folders(three(tmp_path))
    ranked = found.strengths["first"]
    assert ranked["c"].strength > ranked["b"].strength > ranked["a"].strength
    assert sum(row.strength for row in ranked.values()) == pytest.approx(0, abs=1e-9)


def test_categories_have_their_own_differences(tmp_path: Path) -> None:
    """Prompts 0 to 4 are photos, prompt 5 a painting, which alone has no interval."""
    kinds = {"category": lambda number: "photo" if number < 5 else "painting"}
    base = save_folder(tmp_path / "base", scores={"s": level}, **kinds)
    found = compare_folders([base, save_folder(tmp_path / "tuned", scores={"s": gained}, **kinds)])
    painting, photo = found.categories
    assert (painting.category, painting.num_prompts, painting.interval) == ("painting", 1, None)
    assert painting.difference == pytest.approx(1.25)
    assert (photo.category, photo.num_prompts) == ("photo", 5)
    assert photo.interval == mean_interval(np.array(GAINS[:5]))


def test_prompts_with_one_text_are_one_prompt(tmp_path: Path) -> None:
    """Six prompts, each listed three times: intervals and p-values of six, a warning, and every row in the page."""
    texts = {"prompt": lambda number: f"prompt {number % 6}"}
    levels = {"base": lambda number, image: level(number % 6, image), "tuned": lambda n, image: gained(n % 6, image)}
    once = [save_folder(tmp_path / f"{name} once", scores={"s": rule}) for name, rule in levels.items()]
    thrice = [
        save_folder(tmp_path / name, scores={"s": rule}, num_prompts=18, **texts) for name, rule in levels.items()
    ]
    (few,), found = compare_folders(once, names=["a", "b"]).pairs, compare_folders(thrice, names=["a", "b"])
    (many,) = found.pairs
    assert (many.difference, many.p_value) == (pytest.approx(few.difference), few.p_value)
    assert many.interval == pytest.approx(few.interval)
    assert np.ptp(many.win_interval) > 0.9 * np.ptp(few.win_interval)
    assert found.scores["s"]["a"].interval == pytest.approx(
        compare_folders(once, names=["a", "b"]).scores["s"]["a"].interval
    )
    assert found.warnings[0].startswith("18 prompts have 6 different texts: the same text is one prompt in")
    assert (found.num_prompts, len(found.prompts)) == (18, 18)


def test_prompts_keep_their_images_and_scores(two: list[Path]) -> None:
    last = compare_folders(two).prompts[-1]
    assert (last.number, last.prompt, last.category) == (5, "prompt 5", None)
    assert last.files == [[folder / "images/00005-0.png"] for folder in two]
    assert last.scores == {"pickscore": [[25.0], [pytest.approx(26.25)]]}


def test_rows_may_come_in_any_order(two: list[Path]) -> None:
    before = compare_folders(two)
    write_manifest(two[1], read_manifest(two[1])[::-1])
    write_scores(two[1], sorted(read_scores(two[1]), key=lambda row: -row.prompt_index % 3))
    assert compare_folders(two) == before


# What is written


def written(folders: list[Path], output: Path, **given: Any) -> tuple[Comparison, dict[str, Any], str]:
    comparison = compare_folders(folders, **given)
    write_comparison(comparison, output)
    text = (output / "comparison.md").read_text(encoding="utf-8")
    return comparison, json.loads((output / "comparison.json").read_text(encoding="utf-8")), text


def test_the_json_holds_all_numbers(tmp_path: Path) -> None:
    folders = three(tmp_path, category=lambda number: "photo", generation={"model": "sdxl"})
    comparison, values, _ = written(folders, tmp_path / "out")
    assert values["models"] == ["a", "b", "c"]
    assert values["scorers"]["first"] == asdict(comparison.scorers["first"])
    assert values["pairs"][0]["difference"] == comparison.pairs[0].difference
    assert values["pairs"][0]["interval"] == list(comparison.pairs[0].interval)
    assert values["strengths"]["first"]["c"]["strength"] == comparison.strengths["first"]["c"].strength
    assert values["categories"][0]["num_prompts"] == 6
    assert values["generation"]["a"] == {"model": "sdxl"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "comparison.json",
        "comparison.md",
        "files.json",
        "report.html",
        "stepalign.json",
    ]


def test_the_markdown_is_the_papers_table_with_what_the_intervals_allow(tmp_path: Path) -> None:
    _, _, text = written(three(tmp_path), tmp_path / "out", names=["base", "b|c", "best"])
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert table[0] == "|  | first | second |"
    assert table[4] == "| best | **30.0** (30.0 to 30.0) | 22.5 (20.5 to 24.5) |"
    assert "**" not in table[2] + table[3], "one lies within the interval of the other"
    assert table[3].startswith("| b\\|c | 22.8 (")
    assert "## b\\|c against base" in text
    assert "| first | 22.5 | 22.8 | +0.3 |" in text
