"""Scores with other prompts' texts: a diagnostic under its scorer, with no place among scores, p-values and ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
from compared import save_folder

from stepalign.evaluation.compare import Comparison, compare_folders, write_comparison
from stepalign.support.statistics import holm

NOISE = [0.25, -0.25, 0.5, -0.5, 0.125, -0.125]


def folders(tmp_path: Path, *, gain: float = 4.0, wrong: float = 2.0, names: str = "ab") -> list[Path]:
    """Every model is `gain` better than the one before with its own prompts, `wrong` with others; 6 prompts."""
    return [
        save_folder(
            tmp_path / name,
            scores={
                "clip": lambda number, _, place=place: 20.0 + number + place * gain + NOISE[number] * place,
                "clip-wrong-prompt": lambda number, _, place=place: 5.0 + place * wrong - NOISE[number] * place,
            },
        )
        for place, name in enumerate(names)
    ]


def test_half_of_a_gain_is_independent_of_the_prompt(tmp_path: Path) -> None:
    """4 better with its own prompts, 2 with others'."""
    found = compare_folders(folders(tmp_path))
    (row,) = found.any_text
    assert (row.scorer, row.base, row.other) == ("clip", "a", "b")
    assert (row.difference, row.share) == (pytest.approx(2), pytest.approx(0.5))
    assert row.interval[0] < 2 < row.interval[1]


@pytest.mark.parametrize(("gain", "wrong"), [(4.0, 0.0), (0.0, 2.0), (4.0, -2.0), (-4.0, 2.0)])
def test_a_share_needs_two_clear_changes_of_one_sign(gain: float, wrong: float, tmp_path: Path) -> None:
    (row,) = compare_folders(folders(tmp_path, gain=gain, wrong=wrong)).any_text
    assert row.share is None
    assert row.difference == pytest.approx(wrong)


def test_a_loss_can_be_independent_of_the_prompt_too(tmp_path: Path) -> None:
    found = compare_folders(folders(tmp_path, gain=-2.0, wrong=-2.0))
    assert found.any_text[0].share == pytest.approx(1)
    assert "clip: all of the loss is independent of the prompt" in written(found, tmp_path)[0]


def test_a_diagnostic_has_no_place_among_the_scores(tmp_path: Path) -> None:
    """Three models: three pairs, three p-values, and no strength of the diagnostic."""
    found = compare_folders(folders(tmp_path, names="abc"))
    assert [*found.scorers] == [*found.scores] == [*found.strengths] == ["clip"]
    assert [row.scorer for row in found.pairs] == ["clip"] * 3
    assert [row.p_holm for row in found.pairs] == holm([row.p_value for row in found.pairs])
    assert [(row.base, row.other) for row in found.any_text] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert all([*prompt.scores] == ["clip"] for prompt in found.prompts)


def test_the_pages_say_it_under_the_score(tmp_path: Path) -> None:
    markdown, page = written(compare_folders(folders(tmp_path)), tmp_path)
    told = "clip: half of the gain is independent of the prompt: with other prompts’ texts it is +2.00 ("
    assert f"\n- {told}" in markdown
    assert f"<li>{told}" in page
    assert "wrong-prompt" not in markdown + page
    lone, _ = written(compare_folders(folders(tmp_path / "lone", wrong=0.0)), tmp_path / "lone")
    assert "\n- clip: with other prompts’ texts the difference is not significant: +0.00 (−" in lone


def test_diagnostics_alone_are_no_scores(tmp_path: Path) -> None:
    paths = [save_folder(tmp_path / name, scores={"clip-wrong-prompt": lambda n, _: float(n)}) for name in "ab"]
    with pytest.raises(ValueError, match=r"^scorers must be more than diagnostics with other prompts' texts"):
        compare_folders(paths)


def written(comparison: Comparison, tmp_path: Path) -> tuple[str, str]:
    output = tmp_path / "out"
    output.mkdir(exist_ok=True)
    write_comparison(comparison, output)
    return (output / "comparison.md").read_text(encoding="utf-8"), (output / "report.html").read_text(encoding="utf-8")
