"""What is written of scored images: the same numbers in every file, and their intervals over prompts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scored import PROMPTS, evaluate, save_images, spies

from stepalign.data.manifest import ImageRow, read_manifest, read_scores
from stepalign.evaluation.result_card import Scored, card, mean_over_prompts, write_results
from stepalign.support.digests import values_digest
from stepalign.support.environment import device_name, versions
from stepalign.support.statistics import mean_interval


def row(prompt: int, image: int = 0, category: str | None = None) -> ImageRow:
    return ImageRow(prompt, image, f"prompt {prompt}", f"{prompt}-{image}.png", 0, category)


RECORD = {"weights": "owner/model", "sha256": "0123456789abcdef" * 4, "preprocessing": "RGB", "scale": "cosine"}


def written(folder: Path, rows: list[ImageRow], columns: dict[str, list[float]], **given: Any) -> dict[str, Any]:
    """The results of columns, all by one scorer, for images of one style."""
    scored = Scored(columns, {name: dict(RECORD) for name in columns})
    style = [{"high_frequency_share": float(index)} for index in range(len(rows))]
    return write_results(folder, rows, scored, style, **{"images": "digest", "name": None, "device": "cpu"}, **given)


# Means


def test_a_mean_is_over_prompts_and_so_is_its_interval() -> None:
    """Prompt 4 has the images 1 and 3, prompt 2 has 8, prompt 9 has 0, 3 and 6: means 2, 8 and 3."""
    rows = [row(4, 0), row(2), row(4, 1), row(9, 0), row(9, 1), row(9, 2)]
    found = mean_over_prompts(rows, [1.0, 8.0, 3.0, 0.0, 3.0, 6.0])
    assert (found["mean"], found["num_prompts"]) == (pytest.approx(13 / 3), 3)
    assert found["interval"] == list(mean_interval(np.array([8.0, 2.0, 3.0])))
    assert found["interval"][0] < found["mean"] < found["interval"][1]


def test_prompts_with_one_text_are_one_prompt() -> None:
    """Prompts 0 and 2 have the text "a": 1, 3 and 5 are averaged to 3 before "b", 9, comes in."""
    rows = [replace(row(number), prompt=text) for number, text in ((0, "a"), (1, "b"), (2, "a"), (2, "a"))]
    found = mean_over_prompts(rows, [1.0, 9.0, 3.0, 5.0])
    assert found == {"mean": 6.0, "interval": list(mean_interval(np.array([3.0, 9.0]))), "num_prompts": 2}


def test_one_prompt_has_a_mean_and_no_interval() -> None:
    assert mean_over_prompts([row(3, 0), row(3, 1)], [1.0, 2.0]) == {"mean": 1.5, "interval": None, "num_prompts": 1}


def test_categories_have_means_of_their_own(tmp_path: Path) -> None:
    rows = [row(0, 0, "warm"), row(1, 0, "cold"), row(2, 0, "warm"), row(3)]
    results = written(tmp_path, rows, {"one": [1.0, 2.0, 5.0, 100.0]})
    assert [*results["by_category"]] == ["cold", "warm"]
    cold, warm = (results["by_category"][name]["one"] for name in ("cold", "warm"))
    assert cold == {"mean": 2.0, "interval": None, "num_prompts": 1}
    assert warm == {"mean": 3.0, "interval": list(mean_interval(np.array([1.0, 5.0]))), "num_prompts": 2}
    assert results["scores"]["one"]["mean"] == 27.0
    assert "by_category" not in written(tmp_path, [row(0), row(1)], {"one": [1.0, 2.0]})


# Files


@pytest.fixture
def evaluated(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path / "boats and cats"
    save_images(folder, categories=["water", "feet", "water"])
    with spies():
        return folder, evaluate(folder, "pickscore", "aesthetic", wrong_prompts=True)


def test_all_files_hold_the_same_numbers(evaluated: tuple[Path, dict[str, Any]]) -> None:
    folder, results = evaluated
    rows, scored = read_manifest(folder), read_scores(folder)
    table = pq.read_table(folder / "scores.parquet").to_pylist()
    assert table == [asdict(one) | two.scores for one, two in zip(rows, scored, strict=True)]
    assert json.loads((folder / "results.json").read_text(encoding="utf-8")) == results
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary.items() <= results.items()
    assert [*summary] == ["name", "num_prompts", "num_images", "scores", "style", "by_category"]
    columns = ["pickscore", "aesthetic", "pickscore-wrong-prompt"]
    for part in ("scores", "scorers", "scores_sha256"):
        assert [*results[part]] == columns
    for name in columns:
        values = np.array([line.scores[name] for line in scored]).reshape(3, 2).mean(1)
        found = results["scores"][name]
        assert found["mean"] == pytest.approx(values.mean())
        assert found["interval"] == pytest.approx(mean_interval(values))
    assert len(results["style"]) == 6


def test_the_results_say_what_was_scored_on_what(evaluated: tuple[Path, dict[str, Any]]) -> None:
    folder, results = evaluated
    assert (results["name"], results["num_prompts"], results["num_images"]) == ("boats and cats", 3, 6)
    assert results["prompts_sha256"] == hashlib.sha256(json.dumps(PROMPTS).encode()).hexdigest()
    digests = [hashlib.sha256((folder / line.file).read_bytes()).digest() for line in read_manifest(folder)]
    assert results["images_sha256"] == hashlib.sha256(b"".join(digests)).hexdigest()
    assert (results["device"], results["versions"]) == (device_name(torch.device("cpu")), versions())
    assert results["generation"] is None
    scores = [line.scores["pickscore-wrong-prompt"] for line in read_scores(folder)]
    assert results["scores_sha256"]["pickscore-wrong-prompt"] == values_digest(scores)
    assert results["scorers"]["aesthetic"]["needs_prompt"] is False


def test_what_drew_the_images_and_what_else_was_measured_are_in_the_results(tmp_path: Path) -> None:
    drift = {"reference": "base", "num_images": 4, "cmmd": {"value": 0.5, "features": RECORD}}
    drew = {"settings": {"model": "Füße", "seed": 3}}
    (tmp_path / "generation.json").write_text(json.dumps(drew), encoding="utf-8")
    results = written(tmp_path, [row(0), row(1)], {"one": [1.0, 2.0]}, more={"drift": drift})
    assert (results["generation"], results["drift"]) == (drew, drift)
    assert "## Distance from base\n\n4 images.\n\n- CMMD 0.5000, of " in (tmp_path / "results.md").read_text("utf-8")
    assert '"model": "Füße"' in (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "drift" not in json.loads((tmp_path / "summary.json").read_text())


def test_a_name_can_be_given(tmp_path: Path) -> None:
    with spies():
        save_images(tmp_path / "folder")
        assert evaluate(tmp_path / "folder", "pickscore", name="GradSPO")["name"] == "GradSPO"
    assert (tmp_path / "folder/results.md").read_text().startswith("# GradSPO\n\n6 images of 3 prompts.\n")


def test_the_card_has_every_number_and_how_to_get_it(tmp_path: Path) -> None:
    results = written(tmp_path, [row(0), row(1), row(1, 1)], {"one": [1.0, 2.0, 4.0], "two": [5.0, 5.0, 5.0]})
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert text == card(results)
    low, high = results["scores"]["one"]["interval"]
    assert f"| one | 2.0000 ({low:.4f} to {high:.4f}) | cosine |\n" in text
    assert "| two | 5.0000 (5.0000 to 5.0000) | cosine |\n" in text
    assert "| one | owner/model | `0123456789abcdef` | RGB |\n" in text
    assert "| high frequency share | 0.7500 (" in text
    assert "- prompts, SHA-256: `" in text
    assert "- images: `digest`" in text
    assert f"Scored on {device_name(torch.device('cpu'))} with stepalign " in text
    assert "```json" not in text


def test_the_card_of_one_prompt_has_no_intervals(tmp_path: Path) -> None:
    written(tmp_path, [row(0)], {"one": [1.25]})
    text = (tmp_path / "results.md").read_text()
    assert "| one | 1.2500 | cosine |\n" in text
    assert " to " not in text.partition("## Images")[0].replace("how to", "")
