"""The figures: numbers of the method's table, and files that open."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from stepalign.cli import main
from stepalign.figures import plot_weights, timestep_weights
from stepalign.sampler import DDIM


def test_the_weights_are_those_of_the_methods_table(sampler: DDIM) -> None:
    """kappa of SPO: .72 at 751, .62 at 451, 1.14 at 101, 5.43 at 51; GradSPO's falls to .04 at 1, and its a is 1."""
    weights = timestep_weights(sampler)
    at = {int(t): row for row, t in enumerate(weights["t"]["t"])}
    spo, gradspo = weights["kappa"]["spo"], weights["kappa"]["gradspo"]
    assert [round(spo[at[t]], 2) for t in (751, 451, 101, 51)] == [0.72, 0.62, 1.14, 5.43]
    assert sorted(gradspo, reverse=True) == gradspo
    assert set(weights["a"]["gradspo"]) == {1.0}
    assert all(value < 1 for value in weights["a"]["p2"])


def test_the_figure_is_a_picture_and_always_the_same(sampler: DDIM) -> None:
    picture = plot_weights(sampler)
    assert Image.open(io.BytesIO(picture)).size == (1296, 518)
    assert plot_weights(sampler) == picture


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", "weights", "--num-steps", "10", "--output", str(tmp_path / "new/weights.png")]) == 0
    assert capsys.readouterr().out.strip().endswith("weights.png")
    assert (tmp_path / "new/weights.png").read_bytes().startswith(b"\x89PNG")
    assert main(["plot", "weights", "--num-steps", "0", "--output", str(tmp_path / "no.png")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "base.num_steps must be between 1 and 999" in line
