"""The page of a run: what it shows, that it shows it safely, and that it needs nothing but itself."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pages import RUN_SUMMARY, Page, assert_self_contained, decoded, levels, score, some_images

from stepalign.reports import run as report
from stepalign.reports.page import LEFT, RIGHT, WIDTH, Panel
from stepalign.sources.settings import Candidates, CleanGradient, Sources

NAN = float("nan")


def example(prompt: str = "a red ring", size: int = 32) -> report.Example:
    base, aligned = some_images(2, 3, size, size)
    return report.Example(prompt, base, aligned, {"judge": 21.0}, {"judge": 22.0})


def step(*, best: int = 0, worst: int = 2, followed: int = 0, trained: bool = True) -> report.TrajectoryStep:
    return report.TrajectoryStep(701, some_images(3, 3, 32, 32), [21.5, 21.0, 20.5], best, worst, followed, trained)


@pytest.fixture
def page(tmp_path: Path):
    """A function that writes a report of what it is given, and nothing else, and reads it back."""

    def write(**given: Any) -> Page:
        path = tmp_path / "report.html"
        empty = {"title": "A run", "recipe": "", "rounds": [], "examples": [], "prompt": "", "trajectory": []}
        empty["source"] = Candidates()
        report.write_report(path, **{**empty, "summary": RUN_SUMMARY, **given})
        return Page(path.read_text(encoding="utf-8"))

    return write


def curve_titles(page: Page) -> list[str]:
    return [(svg["aria-label"] or "").split(", from ")[0] for svg in page.named("svg", **{"class": "chart"})]


def test_any_text_is_shown_as_text(page) -> None:
    attack = "<script>alert(1)</script> \"'><img src=x onerror=alert(2)> {{ 7 * 7 }} & ünïcode"
    summary = {**RUN_SUMMARY, "recipe": attack, "scores": {attack: score(1, 2, 0.5, 1.5)}, "versions": {attack: attack}}
    summary["calls"] = {attack: 1}
    shown = report.Example(attack, *some_images(2, 3, 4, 4), {attack: 1.0}, {attack: 2.0})
    result = page(title=attack, recipe=attack, summary=summary, examples=[shown], prompt=attack, trajectory=[step()])
    assert not result.named("script")
    assert not [name for _, attributes in result.elements for name in attributes if name.startswith("on")]
    assert all((image["src"] or "").startswith("data:") for image in result.named("img"))
    assert attack in result.text
    assert any(attack in (image["alt"] or "") for image in result.named("img"))


def test_a_lone_surrogate_in_a_prompt_does_not_stop_the_report(page) -> None:
    assert "a \ufffd ring" in page(examples=[example("a \ud800 ring")]).text


def test_the_page_needs_nothing_from_outside(page) -> None:
    rows = [{"round": 1, "loss": 0.7, "rms_delta_by_timestep": {"751": 0.1, "1": 0.2}}]
    result = page(rounds=rows, examples=[example()], trajectory=[step()])
    assert_self_contained(result)


def test_images_decode_to_the_given_pixels(page) -> None:
    shown, branching = example(), step()
    images = [decoded(image) for image in page(examples=[shown], trajectory=[branching]).named("img")]
    expected = [levels(an_image) for an_image in (shown.base, shown.aligned, *branching.images)]
    assert len(images) == len(expected)
    for image, wanted in zip(images, expected, strict=True):
        np.testing.assert_array_equal(image, wanted)


def test_images_are_rounded_and_clamped(page) -> None:
    an_image = torch.tensor([[-0.5, 0.999], [1.5, 0.001], [NAN, 1.0]]).reshape(3, 1, 2)
    shown = report.Example("", an_image, an_image.bfloat16(), {}, {})
    for image in page(examples=[shown]).named("img"):
        assert decoded(image).tolist() == [[[0, 255, 0], [255, 0, 255]]]


@pytest.mark.parametrize(("size", "kind"), [(127, "small"), (128, None)])
def test_only_tiny_images_get_hard_pixel_edges(page, size: int, kind: str | None) -> None:
    assert {image.get("class") for image in page(examples=[example(size=size)]).named("img")} == {kind}


def test_only_the_trajectory_shrinks_large_images(page) -> None:
    candidates = report.TrajectoryStep(1, some_images(1, 3, 300, 600), [1.0], 0, 0, 0, True)
    images = page(examples=[example(size=300)], trajectory=[candidates]).named("img")
    assert [decoded(image).shape for image in images] == [(300, 300, 3), (300, 300, 3), (128, 256, 3)]


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.1, 0.3, "better"),
        (1, 3, "better"),
        (-0.3, -0.1, "worse"),
        (-0.1, 0.3, "not significant"),
        (0.0, 0.3, "not significant"),
        (-0.3, 0.0, "not significant"),
        (NAN, NAN, "not significant"),
        (0.1, NAN, "not significant"),
    ],
)
def test_the_verdict_follows_from_the_interval(page, low: float, high: float, word: str) -> None:
    result = page(summary={**RUN_SUMMARY, "scores": {"judge": score(1.0, 1.2, low, high)}})
    cell = re.search(r'class="badge">([^<]*)<', result.source)
    assert cell is not None
    assert cell[1] == word


def test_the_whisker_lies_on_its_side_of_zero(page) -> None:
    scores = {"up": score(1, 3, 1, 3), "down": score(3, 1, -3, -1), "flat": score(1, 1, 0, 0)}
    result = page(summary={**RUN_SUMMARY, "scores": scores})
    bars = [(float(bar["x"] or NAN), float(bar["width"] or NAN)) for bar in result.named("rect", **{"class": "bar"})]
    assert len(bars) == 2, "a difference of exactly 0 has no scale to draw"
    assert bars[0][0] == 50
    assert bars[1][0] + bars[1][1] == pytest.approx(50)
    assert bars[0][1] == pytest.approx(bars[1][1])


def test_scores_show_the_decimals_that_the_interval_resolves(page) -> None:
    scores = {"judge": score(21.0, 21.9, 0.7, 1.1), "aesthetic": score(0.41, 0.4, -0.012, -0.008)}
    scores["same"] = score(1.0, 1.0 - 1e-9, -0.2, 0.2)
    text = page(summary={**RUN_SUMMARY, "scores": scores}, examples=[example()]).text
    assert "21.00 21.90 +0.90 +0.70 to +1.10" in text
    assert "0.4100 0.4000 −0.0100 −0.0120 to −0.0080" in text
    assert "1.00 1.00 +0.00 −0.20 to +0.20" in text
    assert "22.00 ▴ up" in text


def test_absent_and_empty_keys_have_no_curve(page) -> None:
    rows = [{"round": 1, "loss": 0.7, "accuracy": None, "kept": NAN}, {"round": 2, "loss": 0.6, "judge_score": 21.0}]
    assert curve_titles(page(rounds=rows)) == ["Judge score", "Loss"]


def test_every_known_key_has_a_curve(page) -> None:
    keys = ["judge_score", "loss", "accuracy", "rms_delta", "outside", "grad_norm", "kept"]
    row = {"round": 1, **dict.fromkeys(keys, 0.5), "margin": 1.0, "rms_delta_by_timestep": {"751": 0.1, "1": 0.2}}
    titles = curve_titles(page(rounds=[row]))
    assert len(titles) == len(keys) + 1
    assert titles[-1] == "RMS delta by timestep"


@pytest.mark.parametrize("gap", [NAN, None, float("inf")])
def test_a_gap_breaks_the_line_and_is_bridged(page, gap: float | None) -> None:
    values = [1.0, 0.9, gap, gap, 0.6, 0.5]
    result = page(rounds=[{"round": index, "loss": value} for index, value in enumerate(values, start=1)])
    runs = [(run["points"] or "").split() for run in result.named("polyline")]
    assert [len(run) for run in runs] == [2, 2]
    assert len(result.named("circle")) == 4
    (bridge,) = result.named("path", **{"class": "bridge"})
    start, end = (point.replace(" ", ",") for point in (bridge["d"] or "")[1:].split("L"))
    assert (start, end) == (runs[0][-1], runs[1][0])
    assert not re.search(r"\b(nan|inf|None)\b", result.source)


@pytest.mark.parametrize(
    "values", [[21.0], [0.0, 0.0], [-3.0, -3.0], [1e-9, 3e-9], [-1e7, 1e7], [5.0, 5.0 + 1e-12], [1, 3], [0.4, 0.1, 0.9]]
)
def test_curves_stay_inside_their_frame(page, values: list[float]) -> None:
    rows = [{"round": index, "loss": value} for index, value in enumerate(values, start=1)]
    result = page(rounds=rows)
    dots = [(float(dot["cx"] or NAN), float(dot["cy"] or NAN)) for dot in result.named("circle")]
    heights = [float(text["y"] or NAN) - 4 for text in result.named("text", **{"text-anchor": "end"})][:-1]
    assert len(dots) == len(values)
    assert 2 <= len(heights) <= 7
    assert all(LEFT <= x <= WIDTH - RIGHT for x, _ in dots)
    assert all(min(heights) <= y <= max(heights) for _, y in dots)
    assert max(dots, key=lambda dot: dot[1])[1] == dots[values.index(min(values))][1], "the least value lies lowest"


def test_timesteps_run_from_high_noise_to_low(page) -> None:
    rows = [{"rms_delta_by_timestep": {"1": 9.0}}, {"rms_delta_by_timestep": {"51": 0.2, "751": 0.1, "101": None}}]
    result = page(rounds=rows)
    assert "RMS delta by timestep, from timestep 751: 0.100 to timestep 51: 0.200" in result.source
    assert float(result.named("circle")[0]["cx"] or NAN) < float(result.named("circle")[1]["cx"] or NAN)


def test_candidates_carry_their_marks(page) -> None:
    steps = [step(best=0, worst=2, followed=1), step(best=1, worst=0, followed=1, trained=False)]
    result = page(trajectory=steps, prompt="a red ring")
    assert [figure["class"] for figure in result.named("figure", **{"class": "candidate"})] == [
        *("candidate best", "candidate followed", "candidate worst"),
        *("candidate worst", "candidate best followed", "candidate "),
    ]
    assert "21.50 best 21.00 continued from here 20.50 worst" in result.text
    assert result.text.count("Trained on: best against worst.") == 1
    assert result.text.count("Dropped: the judge's scores of the candidates were too close.") == 1
    assert "“a red ring”" in result.text


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (Candidates(pairing="all-k"), "Trained on: all candidates, weighted by their scores."),
        (Candidates(pairing="two-random"), "Trained on: two random candidates."),
        (CleanGradient(), "Not trained on: this run learns from the judge's gradient."),
    ],
)
def test_a_step_says_what_the_run_trained_on(page, source: Sources, words: str) -> None:
    text = page(trajectory=[step()], source=source).text.replace("’", "'")
    assert words in text
    assert "best against worst" not in text


def test_what_a_reader_must_know_first_is_at_the_top(page) -> None:
    signs = [{"name": "a", "round": 0, "message": "the judge <b>"}, {"name": "b", "round": 3, "message": "no pairs"}]
    cut = {"training": {"num_prompts": 4, "cut": {"text_encoder": 2, "the judge": 0}}}
    text = page(summary={**RUN_SUMMARY, "watch": signs, "failed": "no policy", "prompts_cut": cut}).text
    words = "no policy the judge <b> After round 3: no pairs 2 of 4 training prompts are longer than text_encoder reads"
    assert words in text
    assert text.index("no policy") < text.index("Both models generate")
    assert "the judge reads" not in text
    assert "Warnings" not in page().text


def test_work_is_told_in_readable_numbers(page) -> None:
    text = page().text
    assert "3 min 11 s" in text
    assert "Comparisons trained on 9,123" in text
    assert "Network calls, sampling: the averaged model 123,456" in text
    assert "Network calls, training: the trained model 5" in text
    assert "Images scored by the judge 6" in text
    assert "Something new 7" in text


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (3600 * 2 + 299, "2 h 4 min")])
def test_durations(page, seconds: float, words: str) -> None:
    assert f"Time {words}" in page(summary={**RUN_SUMMARY, "seconds": seconds}).text


def test_a_run_of_nothing_says_so(page) -> None:
    result = page(summary={"recipe": "gradspo"})
    for words in ("No round", "No scores", "No examples", "no curves", "No trajectory", "No work"):
        assert words in result.text
    assert not result.named("svg")
    assert not result.named("img")


def test_everything_drawn_has_words(page) -> None:
    result = page(rounds=[{"loss": 0.7}], examples=[example(""), example("a ring")], trajectory=[step()])
    assert all(image.get("alt") for image in result.named("img"))
    assert all(svg.get("aria-label") and svg.get("role") == "img" for svg in result.named("svg"))


def test_a_failed_write_leaves_the_old_page_and_no_scraps(page, tmp_path: Path, monkeypatch) -> None:
    before = page(title="the old page").source

    def fail(source: Path, target: Path) -> None:
        assert Path(source).parent == Path(target).parent, "a move between file systems is not atomic"
        assert "the new page" in Path(source).read_text(encoding="utf-8")
        assert Path(target).read_text(encoding="utf-8") == before
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        page(title="the new page")
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == before


def test_the_figures_are_in_the_page_and_gains_come_and_are_replaced_later(page, tmp_path: Path) -> None:
    weights = Panel(
        "Weights", "of timesteps", "words", "data:image/svg+xml;base64,aaaa", "data:image/svg+xml;base64,bbbb"
    )
    first = page(weights=[weights], weighting="min-snr")
    assert [image["src"] for image in first.named("img")] == [weights.light]
    assert [source["srcset"] for source in first.named("source")] == [weights.dark], "for a dark page"
    assert "trained with min-snr" in first.text
    assert "adds the change by timestep here" in first.text
    for gains in (replace(weights, light="data:,1", title="a < b"), replace(weights, light="data:,2")):
        report.add_gains(tmp_path / "report.html", [gains])
        result = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
        assert [image["src"] for image in result.named("img")] == [weights.light, gains.light]
        assert gains.title in result.text
        assert "drawn here by" not in result.text
        assert "Work done" in result.text


def test_gains_need_a_page_with_room_for_them(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("<html></html>")
    with pytest.raises(ValueError, match=r"report\.html has no place for the figure of gains"):
        report.add_gains(tmp_path / "report.html", [])
    assert (tmp_path / "report.html").read_text() == "<html></html>"
