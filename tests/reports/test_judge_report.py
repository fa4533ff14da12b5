"""The page of a judge's training: what it shows, that it shows it safely, and that it needs nothing but itself."""

from __future__ import annotations

import base64
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pages import Page, assert_self_contained, decoded, levels, some_images

from stepalign.reports.judge import MOST_POINTS, JudgedPair, JudgedStep, write_judge_report

NAN = float("nan")


def measured(accuracy: float, low: float, high: float) -> dict[str, Any]:
    return {"accuracy": accuracy, "interval": [low, high]}


def compared(timestep: int, difference: float, low: float, high: float) -> dict[str, Any]:
    start, judge = measured(0.884, 0.869, 0.898), measured(0.859, 0.842, 0.875)
    return {"timestep": timestep, "start": start, "judge": judge, "difference": difference, "interval": [low, high]}


def reliable(error: float, *frequencies: float) -> dict[str, Any]:
    bins = [
        {"low": 0.5, "high": 0.55, "probability": 0.524, "frequency": f, "interval": [f - 0.04, f + 0.04], "pairs": 9}
        for f in frequencies
    ]
    return {"error": error, "bins": bins}


SUMMARY: dict[str, Any] = {
    "recipe": "spm-miniature",
    "seed": 0,
    "base": "miniature",
    "start": "a CLIP",
    "judge": "step-aware",
    "num_pairs": 30000,
    "num_pairs_drawn": 96000,
    "num_held_out": 2000,
    "num_decided": 1915,
    "accuracy": [compared(0, -0.025, -0.035, -0.012), compared(500, 0.05, 0.02, 0.07), compared(999, 0.0, -0.1, 0.1)],
    "reliability": {"start": reliable(0.031, 0.56), "judge": reliable(0.012, 0.53)},
    "data": {
        "pairs": "pairs.parquet",
        "held_out": "a tenth of them",
        "num_rows": 30010,
        "num_skipped": 21,
        "skipped": [{"where": f"row {row}", "reason": "the caption is empty"} for row in range(20)],
        "cache_bytes": 64_000_000,
    },
    "steps": 1500,
    "final_loss": 0.41,
    "seconds": 512.3,
    "calls": {"base_passes": 123456},
    "device": "CPU",
    "versions": {"torch": "2.13.0"},
}


def row(step: int, **values: float | None) -> dict[str, Any]:
    numbers = {"loss": 0.5, "accuracy": 0.75, "learning_rate": 3e-6, "grad_norm": 1.5, "seconds": 0.1 * step}
    return {"step": step, **numbers, **values}


def pair(prompt: str = "a red ring", label: float = 1.0, start: float = 0.25, judge: float = 0.875) -> JudgedPair:
    images = some_images(2, 2, 3, 32, 32)
    return JudgedPair(prompt, label, [JudgedStep(0, images[0], start, judge), JudgedStep(500, images[1], 0.5, 0.5)])


@pytest.fixture
def page(tmp_path: Path):
    """A function that writes a report of what it is given, and nothing else, and reads it back."""

    def write(**given: Any) -> Page:
        path = tmp_path / "report.html"
        empty = {"title": "A judge", "recipe": "", "rows": [], "examples": [], "summary": {"recipe": "spm"}}
        write_judge_report(path, **{**empty, **given})
        return Page(path.read_text(encoding="utf-8"))

    return write


def plots(result: Page) -> list[str]:
    """The text of each plot on a light page, then on a dark one."""
    urls = [image["src"] or "" for image in result.named("img") if "svg" in (image["src"] or "")]
    urls += [source["srcset"] or "" for source in result.named("source", media="dark)")]
    found = []
    for url in urls:
        kind, data = url.split(",", 1)
        assert kind == "data:image/svg+xml;base64"
        found.append(" ".join(ElementTree.fromstring(base64.b64decode(data)).itertext()))
    return found


def test_the_lead_tells_the_training(page) -> None:
    text = page(summary=SUMMARY).text
    assert "A step-aware judge was trained with the recipe spm-miniature in 1,500 steps (8 min 32 s)," in text
    assert "on 30,000 labelled pairs of images, each seen 3.2 times, and tested" in text
    assert "on 48 of 30,000 labelled pairs" in page(summary={**SUMMARY, "num_pairs_drawn": 48}).text
    assert "1,915 held-out pairs" in text
    assert "Training begins with a CLIP . The base model" in text
    assert "A judge without timesteps was trained" in page(summary={**SUMMARY, "judge": "without timesteps"}).text


def test_the_table_shows_both_models_their_difference_and_a_verdict(page) -> None:
    text = page(summary=SUMMARY).text
    both = "88.4 % 86.9 to 89.8 85.9 % 84.2 to 87.5"
    assert f"timestep 0 {both} −2.5 −3.5 to −1.2 worse" in text
    assert f"timestep 500 {both} +5.0 +2.0 to +7.0 better" in text
    assert f"timestep 999 {both} +0.0 −10.0 to +10.0 not significant" in text


def test_the_differences_of_a_table_share_a_scale(page) -> None:
    bars = page(summary=SUMMARY).named("rect", **{"class": "bar"})
    small, large, none = (float(bar["width"] or NAN) for bar in bars)
    assert large == pytest.approx(2 * small, rel=0.01)
    assert none == 0


def test_the_plots_hold_the_numbers_in_both_colour_schemes_and_in_words(page) -> None:
    result = page(summary=SUMMARY)
    accuracy, reliability, *dark = plots(result)
    assert len(dark) == 2
    assert "chance" in accuracy
    assert "start, calibration error 3.1 %" in reliability
    assert "judge, calibration error 1.2 %" in reliability
    words = [image["alt"] or "" for image in result.named("img")]
    assert "judge: 85.9 % at timestep 0, 85.9 % at timestep 500" in words[0]
    assert "start, calibration error 3.1 %: 56.0 % at 52.4 %; judge" in words[1]


def test_curves_are_drawn_over_steps_with_round_marks(page) -> None:
    result = page(rows=[row(step, loss=1 / step) for step in range(1, 151)])
    titles = [(svg["aria-label"] or "").split(", from ")[0] for svg in result.named("svg", **{"class": "chart"})]
    assert titles == ["Loss", "Accuracy", "Gradient norm", "Learning rate"]
    assert len(result.named("circle")) == 4 * 150
    assert "50 100 150 step" in result.text
    assert "rows of the log" not in result.text


def test_a_long_training_is_thinned_out_to_means(page) -> None:
    num = 3 * MOST_POINTS - 1
    result = page(rows=[row(step, loss=float(step % 3), accuracy=None, grad_norm=NAN) for step in range(1, num + 1)])
    assert len(result.named("circle")) == 2 * MOST_POINTS
    assert "Each point is the mean of 3 rows of the log." in result.text
    assert f"Loss, from step 3: 1.00 to step {num}: 1.50" in result.source
    assert "Accuracy, from" not in result.source


def test_pairs_show_what_the_models_say_and_what_is_labelled(page) -> None:
    shown = [pair(label=1.0), pair("b", 0.0), pair("c", 0.5), pair("d", NAN)]
    result = page(examples=shown)
    for words in ("The first is labelled", "The second is labelled", "Labelled as a tie", "not known"):
        assert result.text.count(words) == 1
    assert "start 25 % judge 88 % start 75 % judge 12 %" in result.text
    best = [figure.get("class") for figure in result.named("figure")]
    assert best == ["best", None] * 2 + [None, "best"] * 2 + [None] * 8
    assert len(result.named("dd", **{"class": "leads"})) == 2 * 4, "even odds lead nowhere"
    wanted = [levels(image) for step in shown[0].steps for image in step.images]
    for image, pixels in zip(result.named("img"), wanted, strict=False):
        np.testing.assert_array_equal(decoded(image), pixels)


def test_large_images_shrink(page) -> None:
    step = JudgedStep(0, torch.zeros(2, 3, 300, 600), 0.5, 0.5)
    images = page(examples=[JudgedPair("", 0.5, [step])]).named("img")
    assert [decoded(image).shape for image in images] == [(128, 256, 3)] * 2


def test_data_and_work_are_told_in_readable_numbers(page) -> None:
    text = page(summary=SUMMARY).text
    for words in (
        "Training pairs come from pairs.parquet",
        "Held-out pairs without a tie 1,915",
        "Rows skipped 21",
        "Cache 64.0 MB",
        "row 7: the caption is empty",
        "and 1 more",
        "Base passes 123,456",
        "Final loss 0.4100",
        "Device CPU",
    ):
        assert words in text


def test_any_text_is_shown_as_text(page) -> None:
    attack = "<script>alert(1)</script> \"'><img src=x onerror=alert(2)> {{ 7 * 7 }} & ünïcode"
    words = dict.fromkeys(["recipe", "base", "start", "judge", "device"], attack)
    data = {**dict.fromkeys(["pairs", "held_out"], attack), "skipped": [{"where": attack, "reason": attack}]}
    summary = {**SUMMARY, **words, "data": data, "calls": {attack: 1}, "versions": {attack: attack}}
    result = page(title=attack, recipe=attack, summary=summary, examples=[pair(attack)], rows=[row(1)])
    assert not result.named("script")
    assert not [name for _, attributes in result.elements for name in attributes if name.startswith("on")]
    assert all((image["src"] or "").startswith("data:") for image in result.named("img"))
    assert result.text.count(attack) >= 10
    assert any(attack in (image["alt"] or "") for image in result.named("img"))


def test_the_page_needs_nothing_from_outside(page) -> None:
    assert_self_contained(page(summary=SUMMARY, rows=[row(1)], examples=[pair()]))


def test_everything_drawn_has_words(page) -> None:
    result = page(summary=SUMMARY, rows=[row(1)], examples=[pair(""), pair()])
    assert all(image.get("alt") for image in result.named("img"))
    assert all(svg.get("aria-label") and svg.get("role") == "img" for svg in result.named("svg"))


def test_a_run_of_nothing_says_so(page) -> None:
    result = page()
    for words in (
        "No step",
        "No accuracy",
        "Nothing was measured",
        "no curves",
        "No example pairs",
        "Nothing was",
        "No work",
    ):
        assert words in result.text
    assert not result.named("svg")
    assert not result.named("img")


@pytest.mark.parametrize("nothing", [None, NAN])
def test_what_was_not_measured_is_a_dash_or_left_out(page, nothing: float | None) -> None:
    def blank(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: 0 if key in ("timestep", "seed") else blank(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [blank(inner) for inner in value]
        return nothing if isinstance(value, int | float) else value

    result = page(summary=blank(SUMMARY), rows=[row(1, loss=nothing)], examples=[pair(start=NAN, judge=NAN)])
    assert "timestep 0 – – – – to – not significant" in result.text
    assert "start – judge –" in result.text
    assert "Nothing was measured that could be plotted." in result.text
    assert "nan" not in result.text.lower().split()
    assert "None" not in result.text.split()


def test_a_missing_interval_leaves_a_bare_value(page) -> None:
    accuracy = [{"timestep": 0, "start": {"accuracy": 0.5, "interval": None}, "judge": None, "difference": None}]
    reliability = {"start": {"error": None, "bins": []}, "judge": reliable(NAN, 0.6, NAN)}
    result = page(summary={"recipe": "spm", "accuracy": accuracy, "reliability": reliability})
    assert "timestep 0 50.0 % – – – to – not significant" in result.text
    assert len(plots(result)) == 4
    assert "judge: nothing measured" in (result.named("img")[0]["alt"] or "")
    assert "calibration error" not in plots(result)[1]


def test_the_same_run_gives_the_same_bytes(page, tmp_path: Path) -> None:
    given: dict[str, Any] = {"summary": SUMMARY, "rows": [row(1), row(2)], "examples": [pair()]}
    assert page(**given).source == page(**given).source
