"""Prompts longer than a text encoder reads are counted, noted and recorded by whatever cuts them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from judge_runs import recipe_of, words, write_pairs
from scored import Notes, save_images, spies

from stepalign import run_judge
from stepalign.data.prompts_cut import count_cut
from stepalign.evaluation.scoring import Scoring, evaluate_folder
from stepalign.models.base import BaseModel, text_readers
from stepalign.support.config import change

LONG = "a ring " * 100


def test_distinct_prompts_are_counted_and_each_reader_that_cuts_any_is_noted() -> None:
    readers = {
        "one": lambda prompts: sum(len(prompt) > 3 for prompt in prompts),
        "other": lambda prompts: 0,
    }
    notes = Notes()
    found = count_cut(readers, ["a cat", "a", "a cat", "a dog"], notes, which="held-out")
    assert found == {"num_prompts": 3, "cut": {"one": 2, "other": 0}}
    assert notes.notes == ["2 of 3 held-out prompts are longer than one reads, and are cut"]
    assert count_cut(readers, [], notes) == {"num_prompts": 0, "cut": {"one": 0, "other": 0}}


def test_sdxls_encoders_are_counted_apart(tiny_sdxl: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_sdxl.pipeline.tokenizer_2, "model_max_length", 3)
    cut = {name: reader(["ring", "ring ring", LONG]) for name, reader in text_readers(tiny_sdxl.pipeline).items()}
    assert cut == {"text_encoder": 1, "text_encoder_2": 2}


def test_a_scorers_count_stands_in_every_form_of_the_results(tmp_path: Path) -> None:
    """`pickscore` reads 100 characters here; the images of one prompt count once."""
    save_images(tmp_path / "images", ["a cat", LONG])
    notes = Notes()
    with spies():
        results = evaluate_folder(
            tmp_path / "images", Scoring(("pickscore", "aesthetic"), wrong_prompts=True), watcher=notes
        )
        again = evaluate_folder(tmp_path / "images", Scoring(("pickscore", "aesthetic")))
    assert notes.notes == ["1 of 2 prompts are longer than pickscore reads, and are cut"]
    for found in (results, again, json.loads((tmp_path / "images/results.json").read_text())):
        cut = {name: record["prompts_cut"] for name, record in found["scorers"].items()}
        assert cut["pickscore"] == {"num_prompts": 2, "cut": {"pickscore": 1}}
        assert cut["pickscore-wrong-prompt"] == cut["pickscore"]
        assert cut["aesthetic"] == {"num_prompts": 2, "cut": {"aesthetic": 0}}
    lines = (tmp_path / "images/results.md").read_text().splitlines()
    assert "- 1 of 2 prompts are longer than pickscore reads, and are cut" in lines
    assert sum("are cut" in line for line in lines) == 1


def test_a_judges_training_counts_for_the_base_model_and_the_judge(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = write_pairs(tmp_path / "pairs", num_prompts=8)
    pairs.write_text(pairs.read_text().replace("a ring, number 3", LONG))
    command = words(
        tmp_path_factory,
        f"--data.pairs {pairs} --data.num_rows None --evaluation.pairs None --evaluation.share 0.25 "
        "--data.relabel_with miniature --training.num_steps 1 --evaluation.timesteps 501",
    )
    monkeypatch.setattr("stepalign.runs.judge_job.write_judge_report", lambda *_, **__: None)
    notes = Notes()
    cut = run_judge(change(recipe_of(command), {}), tmp_path / "run", watcher=notes)["prompts_cut"]
    assert [cut[which]["num_prompts"] for which in ("training", "held-out")] == [6, 2]
    total = {name: cut["training"]["cut"][name] + cut["held-out"]["cut"][name] for name in cut["training"]["cut"]}
    assert total == {"text_encoder": 1, "the judge": 1, "data.relabel_with": 1}
    assert json.loads((tmp_path / "run/summary.json").read_text())["prompts_cut"] == cut
    which, num = ("training", 6) if cut["training"]["cut"]["the judge"] else ("held-out", 2)
    assert [note for note in notes.notes if "are cut" in note] == [
        f"1 of {num} {which} prompts are longer than {reader} reads, and are cut" for reader in total
    ]
