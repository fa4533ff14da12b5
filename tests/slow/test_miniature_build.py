"""The build of the miniature's judges, from pairs to folders, with few steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from stepalign import miniature
from stepalign.judges.spm import StepAwarePreferenceModel
from stepalign.miniature.preferences import build_judges
from stepalign.scorers.pickscore import PickScore


@pytest.mark.slow
def test_both_judges_are_built_over_a_base_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stepalign.miniature.preferences.NUM_TRAINING_PAIRS", 16)
    monkeypatch.setattr("stepalign.miniature.preferences.NUM_HELD_OUT_PAIRS", 4)
    steps: list[tuple[str, int]] = []
    figures = build_judges(
        miniature.MODEL,
        tmp_path / "pickscore",
        tmp_path / "spm",
        seed=0,
        steps=(1, 1, 2),
        progress=lambda name, step, total, loss: steps.append((name, step)),
    )
    assert steps == [("clip", 1), ("pickscore", 1), ("spm", 1), ("spm", 2)]
    assert [row["timestep"] for row in figures["accuracy"]] == [0, 251, 501, 701, 951]
    PickScore.from_pretrained(str(tmp_path / "pickscore"))
    StepAwarePreferenceModel.from_pretrained(tmp_path / "spm")
