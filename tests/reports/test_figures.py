"""The figures: numbers of the method's table, and files that open."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from stepalign.cli import main
from stepalign.core.sampler import DDIM
from stepalign.reports.figures import WEIGHTINGS, gains_panels, plot_weights, timestep_weights, weights_panels
from stepalign.runs.job import run
from stepalign.runs.recipes import RECIPES
from stepalign.support.config import change


def test_the_weights_are_those_of_the_methods_table(sampler: DDIM) -> None:
    """kappa of SPO: .72 at 751, .62 at 451, 1.14 at 101, 5.43 at 51; GradSPO's falls to .04 at 1, and its a is 1."""
    weights = timestep_weights(sampler)
    at = {int(t): row for row, t in enumerate(weights["t"]["t"])}
    spo, gradspo = weights["kappa"]["spo"], weights["kappa"]["gradspo"]
    assert [round(spo[at[t]], 2) for t in (751, 451, 101, 51)] == [0.72, 0.62, 1.14, 5.43]
    assert sorted(gradspo, reverse=True) == gradspo
    assert set(weights["a"]["gradspo"]) == {1.0}
    assert all(value < 1 for value in weights["a"]["p2"])


def test_the_figure_is_an_image_and_always_the_same(sampler: DDIM) -> None:
    image = plot_weights(sampler)
    assert Image.open(io.BytesIO(image)).size == (1296, 518)
    assert plot_weights(sampler) == image


def test_the_pages_panels_show_every_weighting_in_both_colours_with_the_runs_own_first(sampler: DDIM) -> None:
    for panel in weights_panels(sampler, "min-snr"):
        assert panel.words.startswith(f"{panel.title}: min-snr from ")
        for url, colour in ((panel.light, "#2b5fc4"), (panel.dark, "#84aaf5")):
            svg = base64.b64decode(url.removeprefix("data:image/svg+xml;base64,")).decode()
            assert all(name in svg for name in WEIGHTINGS)
            assert colour in svg
            assert "fill: #ffffff" not in svg, "transparent: the page's colour shows"
    gains = {
        "judge": {
            "951": {"difference": 0.5, "interval": [0.25, 0.75]},
            "1": {"difference": 2.0, "interval": [1.0, 3.0]},
        }
    }
    (panel,) = gains_panels(gains)
    assert panel.words == "Gain in judge: judge from 0.5 at timestep 951 to 2 at 1."


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", "weights", "--num-steps", "10", "--output", str(tmp_path / "new/weights.png")]) == 0
    assert capsys.readouterr().out.strip().endswith("weights.png")
    assert (tmp_path / "new/weights.png").read_bytes().startswith(b"\x89PNG")
    assert main(["plot", "weights", "--num-steps", "0", "--output", str(tmp_path / "no.png")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "base.num_steps must be between 1 and 999" in line


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = change(
        RECIPES["gradspo-miniature"],
        {
            "base": {"num_steps": 2},
            "branching": {"num_candidates": 2, "timestep_range": [0, 999]},
            "training": {"num_rounds": 1, "prompts_per_round": 1, "learning_rate": 0.01},
            "evaluation": {"num_prompts": 2, "batch_size": 2},
        },
    )
    output = tmp_path_factory.mktemp("runs") / "run"
    run(recipe, output)
    return output


def test_the_command_draws_a_runs_gains_at_every_timestep_to_those_of_the_evaluation(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At 0 the samples are those of the run's evaluation, so that their mean scores are the summary's."""
    assert main(["plot", "gains", str(finished_run), "--num-prompts", "8"]) == 0
    assert capsys.readouterr().out.strip() == str(finished_run / "gains.png")
    assert (finished_run / "gains.png").read_bytes().startswith(b"\x89PNG")
    page = (finished_run / "report.html").read_text()
    assert page.count('<source media="(prefers-color-scheme: dark)"') == 2 + 3, "weights, and a gain in every metric"
    assert "figure 2a" in page
    assert "figure 2b" in page
    summary, found = (json.loads((finished_run / f"{name}.json").read_text()) for name in ("summary", "gains"))
    assert (found["num_prompts"], found["sampling"]) == (2, summary["sampling"])
    assert found["gains"].keys() == summary["scores"].keys() == {"judge", "aesthetic", "alignment"}
    for metric, rows in found["gains"].items():
        assert list(rows) == ["501", "1", "0"]
        assert rows["0"]["base"] == pytest.approx(summary["scores"][metric]["base"], abs=1e-5)
        assert rows["0"]["aligned"] == pytest.approx(summary["scores"][metric]["aligned"], abs=1e-5)
    assert any(row["difference"] != 0 for row in found["gains"]["judge"].values())


def test_a_directory_that_is_no_run_has_no_gains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", "gains", str(tmp_path)]) == 1
    assert "has no recipe.yaml; give the directory of a run" in capsys.readouterr().err
