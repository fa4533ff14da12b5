"""How images were sampled, beside every table: the words, and what a record of other hands may hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from compared import save_folder

from stepalign.evaluation.compare import compare_folders
from stepalign.evaluation.generation_settings import Generation
from stepalign.evaluation.result_card import card
from stepalign.reports.comparison import comparison_markdown
from stepalign.reports.sampling_record import sampling_of_generation, sampling_record, sampling_words
from stepalign.runs.recipes import FrozenModel
from stepalign.support.config import to_plain

WORDS = "20 steps, eta 0, guidance 7.5, seed 3, 768 × 512 pixels"


def record_of(**changes: Any) -> dict[str, Any]:
    """generation.json, as far as it matters here."""
    choice = Generation("sdxl", base=FrozenModel(guidance_scale=7.5), seed=3)
    return {"settings": to_plain(replace(choice, **changes)), "resolution": [512, 768]}


def test_a_runs_settings_in_words() -> None:
    record = sampling_record(num_steps=20, eta=0.0, guidance_scale=7.5, seed=3, resolution=(512, 768))
    assert sampling_words(record) == WORDS
    assert sampling_of_generation(record_of()) == record


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (None, ""),
        ({}, ""),
        ({"settings": "none"}, ""),
        ({"settings": {"num_steps": "<b>", "eta": 0.5, "base": [1]}, "resolution": "512"}, "eta 0.5"),
        ({"settings": {"base": {"resolution": [640]}}}, "640 × 640 pixels"),
    ],
)
def test_what_is_not_known_is_left_out(record: Any, words: str) -> None:
    assert sampling_words(sampling_of_generation(record)) == words


def test_a_comparison_and_a_card_say_how_their_images_were_sampled(tmp_path: Path) -> None:
    for name, eta in (("a", 0.0), ("b", 1.0), ("c", 0.0)):
        save_folder(tmp_path / name, scores={"s": lambda number, _: float(number)}, generation=record_of(eta=eta))
    same, other = (
        comparison_markdown(compare_folders([tmp_path / "a", tmp_path / name]).summary()) for name in ("c", "b")
    )
    assert f"\nImages: {WORDS}.\n" in same
    assert f"\na: {WORDS}.\nb: {WORDS.replace('eta 0', 'eta 1')}.\n" in other
    results = {"name": "x", "num_images": 1, "num_prompts": 1, "scores": {}, "scorers": {}, "style": {}}
    results |= {"prompts_sha256": "", "images_sha256": "", "device": "", "versions": {}}
    assert f"\nSampled with {WORDS}.\n" in card(results | {"generation": record_of()})
    assert "Sampled with" not in card(results | {"generation": None})
