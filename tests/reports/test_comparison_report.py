"""The page of a comparison: its tables, which images it holds, that it is safe and needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compared import gained, level, save_folder, three
from pages import Page, assert_self_contained
from PIL import Image

from stepalign.evaluation.compare import compare_folders, write_comparison
from stepalign.reports.comparison import ComparedPrompt, gallery
from stepalign.reports.comparison.gallery import choose_prompts, thumbnail
from stepalign.reports.comparison.tables import best_models, histogram, p_text
from stepalign.support.shares import wilson_interval

ATTACK = "</script><script>alert(1)</script> \"'><img src=x onerror=alert(2)> {{ 7 * 7 }} & ünïcode"


def page(folders: list[Path], output: Path, **given: Any) -> Page:
    write_comparison(compare_folders(folders, **given), output)
    return Page((output / "report.html").read_text(encoding="utf-8"))


def two(tmp_path: Path, **given: Any) -> list[Path]:
    folders = (("base", level, 1), ("tuned", gained, 2))
    return [save_folder(tmp_path / name, scores={"s": score}, colour=n, **given) for name, score, n in folders]


def pixels(image: dict[str, str | None]) -> np.ndarray:
    kind, data = (image["src"] or "").split(",", 1)
    assert kind == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_the_page_needs_nothing_from_outside_and_runs_its_own_script_only(tmp_path: Path) -> None:
    result = page(two(tmp_path), tmp_path / "out")
    assert_self_contained(result)
    policy = result.named("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"] or ""
    (script,) = re.findall(r"<script>(.*?)</script>", result.source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert len(result.named("script")) == 1
    assert not [name for _, attributes in result.elements for name in attributes if name.startswith("on")]


def test_any_text_is_shown_as_text(tmp_path: Path) -> None:
    given = {"prompt": lambda number: f"{ATTACK} {number}", "category": lambda number: ATTACK}
    folders = [
        save_folder(tmp_path / name, scores={ATTACK: level}, generation={ATTACK: f"{ATTACK}{name}"}, **given)
        for name in "abc"
    ]
    result = page(folders, tmp_path / "out", names=[f"{ATTACK}{name}" for name in "abc"])
    assert len(result.named("script")) == 1
    assert not [name for _, attributes in result.elements for name in attributes if name.startswith("on")]
    assert all((image["src"] or "").startswith("data:") for image in result.named("img"))
    assert ATTACK in result.text
    data = json.loads(result.named("ul", id="prompts")[0]["data-page"] or "")
    assert data["scorers"] == [ATTACK]
    assert data["models"] == [f"{ATTACK}{name}" for name in "abc"]


def test_every_prompt_has_its_images_side_by_side(tmp_path: Path) -> None:
    """The first pixel says which model, prompt and image it is."""
    result = page(two(tmp_path, num_images=2), tmp_path / "out")
    shown = [pixels(image)[0, 0].tolist() for image in result.named("img")]
    assert shown == [[model, number, image] for number in range(6) for image in range(2) for model in (1, 2)]
    assert [card["data-number"] for card in result.named("li", **{"class": "card"})] == [str(n) for n in range(6)]
    assert all(image.get("alt") for image in result.named("img"))
    assert "All 6 prompts are shown, with all 2 images of each model." in result.text


def test_cards_tell_scores_and_differences(tmp_path: Path) -> None:
    result = page(two(tmp_path, category=lambda number: "photo"), tmp_path / "out")
    assert "prompt 2 photo · s +0.9 base s 22.0 tuned s 22.9 ▴ up" in result.text
    assert "prompt 4 photo · s −0.6 base s 24.0 tuned s 23.4 ▾ down" in result.text
    assert "prompt 3 photo · s +0.0 base s 23.0 tuned s 23.0 prompt 4" in result.text
    assert [card["data-means"] for card in result.named("li", **{"class": "card"})][1] == "[[21.0, 20.875]]"


def test_tables_say_what_the_numbers_are(tmp_path: Path) -> None:
    result = page(two(tmp_path), tmp_path / "out")
    assert "tuned against base" in result.text
    low, high = wilson_interval(3.5, 6)
    assert f"s 22.5 22.8 58.3 % {100 * low:.1f} to {100 * high:.1f}" in result.text
    assert "0.38 alone 0.38 +0.3 −0.4 to +1.0 not significant" in result.text
    assert not result.named("section", **{"aria-labelledby": "ranking"}), "two models need no ranking"


def test_three_models_have_a_ranking_and_a_choice_of_pairs(tmp_path: Path) -> None:
    result = page(three(tmp_path), tmp_path / "out")
    assert result.named("section", **{"aria-labelledby": "ranking"})
    values = [option["value"] for option in result.named("option")]
    assert values == ["0", "1", "0 1", "0 2", "1 2", "extremes", "gains", "losses", "original", "random"]


def test_settings_are_told_apart_from_those_in_common(tmp_path: Path) -> None:
    folders = [
        save_folder(tmp_path / name, scores={"s": level}, generation={"settings": {"num_steps": 20, "model": name}})
        for name in "ab"
    ]
    result = page(folders, tmp_path / "out")
    assert "Setting a b settings model a b Settings that the models share settings num steps 20" in result.text
    assert "not recorded" in page(two(tmp_path), tmp_path / "bare").text


def test_warnings_and_what_was_left_out_come_first(tmp_path: Path) -> None:
    base = save_folder(tmp_path / "base", scores={"s": level, "t": level}, libraries={"torch": "2.6"})
    result = page([base, save_folder(tmp_path / "tuned", scores={"s": gained}, seed=1)], tmp_path / "out")
    before, _ = result.text.split("Scores The mean")
    assert "torch is 2.6 in base and 2.13.0 in tuned" in before
    assert "6 of 6 images were generated from other seeds" in before
    assert "t is left out: only base has been scored by it." in before


# Which prompts


def prompts(gains: list[float], *, models: int = 2, images: int = 1) -> list[ComparedPrompt]:
    """Prompts of which the last model gains so much on the others."""
    return [
        ComparedPrompt(
            number=10 * index,
            prompt=f"prompt {index}",
            category=None,
            files=[[Path("x.png")] * images] * models,
            scores={"s": [[0.0] * images] * (models - 1) + [[gain] * images]},
        )
        for index, gain in enumerate(gains)
    ]


def test_few_prompts_are_all_shown_and_random_order_is_one_of_them_all() -> None:
    chosen = choose_prompts(prompts([0.0] * 7, images=3), [(0, 1)])
    assert [prompt.number for prompt in chosen.prompts] == [0, 10, 20, 30, 40, 50, 60]
    assert sorted(chosen.ranks.values()) == list(range(7))
    assert list(chosen.ranks) != sorted(chosen.ranks)
    assert chosen.num_images >= 3


def test_of_many_prompts_half_are_drawn_at_random_and_the_others_are_extremes(monkeypatch) -> None:
    monkeypatch.setattr(gallery, "MOST_PROMPTS", 20)
    gains = np.random.default_rng(0).permutation(500).astype(float).tolist()
    chosen = choose_prompts(prompts(gains), [(0, 1)])
    assert len(chosen.prompts) == 20
    assert len(chosen.ranks) == 10
    extremes = {gains[prompt.number // 10] for prompt in chosen.prompts if prompt.number not in chosen.ranks}
    assert extremes == {0, 1, 2, 3, 4, 495, 496, 497, 498, 499}
    assert 100 < np.mean([gains[number // 10] for number in chosen.ranks]) < 400
    assert choose_prompts(prompts(gains), [(0, 1)], seed=1).ranks != chosen.ranks


def test_many_images_and_many_models_leave_room_for_fewer(monkeypatch) -> None:
    monkeypatch.setattr(gallery, "MOST_IMAGES", 60)
    assert choose_prompts(prompts([0.0] * 10, images=4), [(0, 1)]).num_images == 3
    assert len(choose_prompts(prompts([0.0] * 50, models=6), [(0, 5)]).prompts) == 10


def test_the_page_says_how_many_it_shows_of_how_many(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(gallery, "MOST_PROMPTS", 4)
    monkeypatch.setattr(gallery, "MOST_IMAGES", 8)
    result = page(two(tmp_path, num_images=2), tmp_path / "out")
    assert "4 of 6 prompts are shown: 2 chosen at random" in result.text
    assert "with 1 of the 2 images of each model" in result.text
    cards = result.named("li", **{"class": "card"})
    assert sorted(card["data-random"] or "" for card in cards) == ["", "", "0", "1"]


def test_large_images_shrink_and_tiny_ones_keep_every_pixel(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(256, size=(40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "tiny.png")
    Image.new("RGBA", (2048, 1024), "red").save(tmp_path / "large.png")
    tiny, large = (thumbnail(tmp_path / f"{name}.png") for name in ("tiny", "large"))
    np.testing.assert_array_equal(pixels({"src": tiny["source"]}), noise)
    assert (tiny["small"], large["small"]) == (True, False)
    assert (large["width"], large["height"]) == (512, 256)
    assert pixels({"src": large["source"]}).shape == (256, 512, 3)


def test_a_damaged_image_is_named_and_leaves_the_old_page(tmp_path: Path) -> None:
    folders = two(tmp_path)
    before = page(folders, tmp_path / "out").source
    (folders[1] / "images/00002-0.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"00002-0\.png is no image that can be read"):
        page(folders, tmp_path / "out")
    assert (tmp_path / "out/report.html").read_text(encoding="utf-8") == before


# Numbers


def ranked(*rows: tuple[str, float], intervals: dict[tuple[str, str], list[float]]) -> dict[str, Any]:
    pairs = [{"scorer": "s", "base": a, "other": b, "interval": ends} for (a, b), ends in intervals.items()]
    return {"scores": {"s": {name: {"mean": mean} for name, mean in rows}}, "pairs": pairs}


@pytest.mark.parametrize(
    ("upper", "lower", "leaders"),
    [
        ([0.1, 0.3], [0.2, 0.4], ["b", "a"]),
        ([0.1, 0.3], [-0.1, 0.4], ["b"]),
        ([-0.1, 0.3], [0.2, 0.4], []),
        ([0.0, 0.3], [0.2, 0.4], []),
    ],
)
def test_the_best_are_marked_only_where_an_interval_supports_it(
    upper: list[float], lower: list[float], leaders: list[str]
) -> None:
    """b beats a beats c; the pair of a and c is told the other way round."""
    turned = [-lower[1], -lower[0]]
    intervals = {("a", "b"): upper, ("a", "c"): turned, ("b", "c"): [-9.0, -8.0]}
    assert best_models(ranked(("a", 1.0), ("b", 1.2), ("c", 0.7), intervals=intervals), "s") == leaders


def test_bars_count_prompts_around_round_numbers() -> None:
    """The largest is 1.1, so a bar is .1 wide; .04 is about 0, .06 is about .1."""
    found = histogram("s", [0.04, -0.04, 0.06, 0.1, -0.26, 1.1], 2)
    bars = [(round((index + 0.5 - found["zero"]) * 0.1, 6), count, side) for index, count, side, _ in found["bars"]]
    assert bars == [(-0.3, 1, "down"), (0, 2, "none"), (0.1, 2, "up"), (1.1, 1, "up")]
    assert found["note"] == "higher on 4, equal on 0, lower on 2 of 6 prompts"
    assert found["ends"] == ["−0.30", "+1.10"]
    assert found["mean"] == "+0.17"
    assert (found["mean_place"] - found["zero"]) * 0.1 == pytest.approx(1 / 6)


@pytest.mark.parametrize("gains", [[0.0, 0.0], [1e-9, -1e-9], [5000.0, 1.0], [-2.0]])
def test_any_differences_have_a_histogram_with_zero_in_it(gains: list[float]) -> None:
    found = histogram("s", gains, 2)
    assert sum(count for _, count, _, _ in found["bars"]) == len(gains)
    assert 0 < found["zero"] < found["num"] <= 26
    assert 0 <= found["mean_place"] <= found["num"]


@pytest.mark.parametrize(("p", "text"), [(0.0004, "< 0.001"), (0.001, "0.001"), (0.0234, "0.023"), (0.456, "0.46")])
def test_p_values_have_the_digits_that_matter(p: float, text: str) -> None:
    assert p_text(p) == text
