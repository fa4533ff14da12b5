"""Scores are of these very images by this very scorer, by content: anything else is scored again, or refused."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from compared import gained, level, save_folder
from drawn import an_image
from scored import FILES, Notes, evaluate, save_images, spies
from transformers import CLIPModel, CLIPTokenizer

from stepalign.data.manifest import EVALUATION, read_manifest
from stepalign.evaluation.compare import compare_folders, write_comparison
from stepalign.evaluation.scoring import Scoring, evaluate_folder
from stepalign.support.claim import locked
from stepalign.support.digests import ordered_files_digest
from stepalign.support.file_record import check_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images of each of three prompts."""
    save_images(tmp_path / "images")
    return tmp_path / "images"


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def test_weights_are_known_by_content_not_by_path(
    folder: Path, tmp_path: Path, tiny_clip: CLIPModel, tokenizer: CLIPTokenizer
) -> None:
    """Elsewhere or in another format they have scored before; with one number changed, or another tokenizer, not."""

    def save(name: str, *, pickled: bool = False, add: float = 0.0, length: int | None = None) -> str:
        model, words = copy.deepcopy(tiny_clip), copy.deepcopy(tokenizer)
        with torch.no_grad():
            model.visual_projection.weight[0, 0] += add
        words.model_max_length = length or words.model_max_length
        model.save_pretrained(tmp_path / name)
        words.save_pretrained(tmp_path / name)
        if pickled:
            torch.save(model.state_dict(), tmp_path / name / "pytorch_model.bin")
            (tmp_path / name / "model.safetensors").unlink()
        return f"pickscore={tmp_path / name}"

    def notes(entry: str) -> list[str]:
        watcher = Notes()
        evaluate_folder(folder, Scoring((entry,)), watcher=watcher)
        return [note for note in watcher.notes if "scored before" in note]

    assert notes(save("a")) == []
    assert notes(save("b")) == notes(save("c", pickled=True)) == ["pickscore: scored before"]
    again = ["pickscore: scored before by another scorer (its content differs); scoring again"]
    assert notes(save("a", add=0.01)) == again
    assert notes(save("a", add=0.01, length=5)) == again


def test_a_record_from_before_contents_were_kept_is_known_by_its_files(folder: Path) -> None:
    with spies():
        evaluate(folder, "pickscore")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    del results["scorers"]["pickscore"]["content"], results["scores_sha256"]
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    with spies() as found:
        evaluate(folder, "pickscore")
        evaluate(folder, "pickscore=owner/another")
    assert found.scored == {"pickscore=owner/another": 6}


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_a_score(path: Path) -> None:
    path.write_text(
        re.sub(r'"pickscore": (\d)', r'"pickscore": 1\1', path.read_text(encoding="utf-8"), count=1), "utf-8"
    )


@pytest.mark.parametrize(
    ("name", "spoil"),
    [("results.json", cut_short), ("scores.jsonl", cut_short), ("scores.jsonl", change_a_score)],
)
def test_damaged_scores_are_made_again(name: str, spoil: Callable[[Path], None], folder: Path) -> None:
    with spies():
        evaluate(folder, "pickscore")
    before = contents(folder)
    spoil(folder / name)
    with spies() as found:
        evaluate(folder, "pickscore")
    assert found.scored == {"pickscore": 6}
    assert contents(folder) == before


# Comparing


def compared(folder: Path, **changes: object) -> list[Path]:
    """Two evaluated folders, the second's evaluation with changes."""
    paths = [save_folder(folder / name, scores={"s": score}) for name, score in (("a", level), ("b", gained))]
    for path in paths:
        images = ordered_files_digest([path / row.file for row in read_manifest(path)])
        results = json.loads((path / EVALUATION).read_text(encoding="utf-8"))
        results["scorers"]["s"]["content"] = "cd" * 32
        (path / EVALUATION).write_text(json.dumps(results | {"images_sha256": images}), encoding="utf-8")
    results["scorers"]["s"] |= changes
    (paths[1] / EVALUATION).write_text(json.dumps(results | {"images_sha256": images}), encoding="utf-8")
    return paths


def test_scorers_are_compared_by_what_was_loaded_not_by_their_files(tmp_path: Path) -> None:
    assert compare_folders(compared(tmp_path / "files", sha256="ef" * 32)).num_prompts == 6
    with pytest.raises(ValueError, match=r"its content is 'cdcd.*' in a and '0000.*' in b; numbers of different"):
        compare_folders(compared(tmp_path / "content", content="00" * 32))


def test_images_that_changed_since_they_were_scored_are_not_compared(tmp_path: Path) -> None:
    paths = compared(tmp_path)
    an_image(8, 8, seed=99).save(paths[1] / "images/00002-0.png")
    with pytest.raises(ValueError, match=r"b: its images are not those that were scored; run `stepalign evaluate`"):
        compare_folders(paths)


def test_scores_that_were_changed_are_not_compared(folder: Path, tmp_path: Path) -> None:
    save_images(tmp_path / "other")
    with spies():
        evaluate(folder, "pickscore")
        evaluate(tmp_path / "other", "pickscore")
    change_a_score(folder / "scores.jsonl")
    with pytest.raises(ValueError, match=r"its scores by pickscore are not those that were written; run `stepalign"):
        compare_folders([folder, tmp_path / "other"])


# One job at a time


def test_no_two_jobs_score_a_folder_at_once(folder: Path) -> None:
    with (
        spies(),
        locked(folder),
        pytest.raises(ValueError, match=r"^output: another job is at work in .*images"),
    ):
        evaluate(folder, "pickscore")
    assert not any((folder / name).exists() for name in FILES)
    with spies():
        assert evaluate(folder, "pickscore")["num_images"] == 6
    assert not (folder / ".lock").exists()


def test_a_comparison_takes_the_place_of_one_before_and_of_nothing_else(tmp_path: Path) -> None:
    """An older version's had no marker."""
    comparison, output = compare_folders(compared(tmp_path / "folders")), tmp_path / "comparison"
    write_comparison(comparison, output)
    (output / "stepalign.json").unlink()
    write_comparison(comparison, output)
    assert check_files(output) == {}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/report.html").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match=r"^output: .*mine holds files of something else; give a new or empty"):
        write_comparison(comparison, tmp_path / "mine")
    assert [path.read_text(encoding="utf-8") for path in (tmp_path / "mine").iterdir()] == ["mine"]
