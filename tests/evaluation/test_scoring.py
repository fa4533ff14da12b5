"""Folders of images scored: every image once by every scorer, nothing twice, and nothing that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from drawn import an_image
from PIL import Image
from scored import FILES, PROMPTS, Notes, evaluate, level, save_images, spies, value
from transformers import CLIPModel, CLIPTokenizer

from stepalign.data.manifest import ImageRow, read_manifest, read_scores, write_manifest
from stepalign.evaluation import scoring
from stepalign.evaluation.scoring import Scoring, evaluate_folder, inspect
from stepalign.scorers.style import style_of, wrong_prompts
from stepalign.support.watcher import NullWatcher


@pytest.fixture
def rows(tmp_path: Path) -> list[ImageRow]:
    """Two images of each of three prompts in the folder `images`."""
    return save_images(tmp_path / "images")


@pytest.fixture
def folder(tmp_path: Path, rows: list[ImageRow]) -> Path:
    return tmp_path / "images"


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


# Scores


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_every_image_is_scored_once_with_its_prompt(batch_size: int, folder: Path, rows: list[ImageRow]) -> None:
    with spies() as found:
        results = evaluate(folder, "pickscore", "aesthetic", batch_size=batch_size)
    assert [entry for entry, _ in found.loaded] == [*results["scores"]] == ["pickscore", "aesthetic"]
    levels = [level(Image.open(folder / row.file)) for row in rows]
    for name, spy in found.loaded:
        assert spy.shown == list(zip(levels, [row.prompt for row in rows], strict=True))
        assert max(spy.batches) == min(batch_size, len(rows))
        scores = [row.scores[name] for row in read_scores(folder)]
        assert scores == pytest.approx([value(spy.record.needs_prompt, *pair) for pair in spy.shown], rel=1e-6)
    assert [(row.key, row.prompt) for row in read_scores(folder)] == [(row.key, row.prompt) for row in rows]


def test_wrong_prompts_fill_columns_of_scorers_that_need_a_prompt(folder: Path, rows: list[ImageRow]) -> None:
    with spies() as found:
        results = evaluate(folder, "pickscore", "aesthetic", "clip-score", wrong_prompts=True)
    assert [entry for entry, _ in found.loaded] == ["pickscore", "aesthetic", "clip-score"]
    columns = ["pickscore", "aesthetic", "clip-score", "pickscore-wrong-prompt", "clip-score-wrong-prompt"]
    assert [*results["scores"]] == [*results["scorers"]] == [*read_scores(folder)[0].scores] == columns
    assert found.scored == {"pickscore": 12, "aesthetic": 6, "clip-score": 12}
    own = [row.prompt for row in rows]
    others = wrong_prompts(own, seed=0)
    shown = [[prompt for _, prompt in spy.shown] for _, spy in found.loaded]
    assert shown == [own + others, own, own + others]
    assert all(one != other for one, other in zip(own, others, strict=True))


def test_the_watcher_is_told_of_every_image(folder: Path) -> None:
    watcher = Notes()
    with spies():
        evaluate_folder(folder, Scoring(("pickscore",), 4), watcher=watcher)
    assert watcher.phases == [*(("inspect", n, 6) for n in range(1, 7)), ("score", 4, 6), ("score", 6, 6)]


def test_prompts_of_any_script_and_images_of_any_mode(tmp_path: Path) -> None:
    rows = save_images(tmp_path / "images")
    an_image(8, 8).convert("L").save(tmp_path / "images" / rows[0].file)
    an_image(9, 5).convert("RGBA").save(tmp_path / "images" / rows[1].file)
    with spies():
        results = evaluate(tmp_path / "images", "pickscore")
    assert results["num_images"] == 6
    text = (tmp_path / "images/scores.jsonl").read_text(encoding="utf-8")
    assert all(prompt in text for prompt in PROMPTS)


# Again


def test_nothing_is_scored_twice(folder: Path) -> None:
    watcher = Notes()
    with spies():
        first = evaluate(folder, "pickscore", "aesthetic", wrong_prompts=True)
    before = contents(folder)
    with spies() as found:
        again = evaluate_folder(folder, Scoring(("pickscore", "aesthetic"), wrong_prompts=True), watcher=watcher)
    assert found.scored == {}
    assert again == json.loads(json.dumps(first))
    assert contents(folder) == before
    assert watcher.notes == [f"{name}: scored before" for name in ("pickscore", "pickscore-wrong-prompt", "aesthetic")]


def test_a_new_scorer_is_added_to_those_before(folder: Path) -> None:
    with spies():
        evaluate(folder, "pickscore")
    with spies() as found:
        results = evaluate(folder, "aesthetic", "pickscore")
    assert found.scored == {"aesthetic": 6}
    assert [*results["scores"]] == ["pickscore", "aesthetic"]
    with spies() as found:
        assert [*evaluate(folder, "clip-score")["scores"]] == ["pickscore", "aesthetic", "clip-score"]
    assert found.scored == {"clip-score": 6}


def other_image(folder: Path) -> None:
    an_image(8, 8, seed=99).save(folder / "images/1-0.png")


def other_prompt(folder: Path) -> None:
    rows = [replace(row, prompt="three boats") if row.prompt_index == 0 else row for row in read_manifest(folder)]
    write_manifest(folder, rows)


def other_order(folder: Path) -> None:
    write_manifest(folder, read_manifest(folder)[::-1])


def fewer(folder: Path) -> None:
    write_manifest(folder, read_manifest(folder)[:4])


def other_numbers(folder: Path) -> None:
    write_manifest(folder, [replace(row, prompt_index=row.prompt_index + 1) for row in read_manifest(folder)])


@pytest.mark.parametrize("change", [other_image, other_prompt, other_order, fewer, other_numbers])
def test_what_has_changed_is_scored_again(change: Callable[[Path], None], folder: Path, tmp_path: Path) -> None:
    """And nothing of before is left: the files are those of a folder that was like this from the start."""
    with spies():
        evaluate(folder, "pickscore", "aesthetic")
    change(folder)
    with spies() as found:
        results = evaluate(folder, "pickscore")
    assert found.scored == {"pickscore": len(read_manifest(folder))}
    assert [*results["scores"]] == ["pickscore"]
    assert [(row.key, row.prompt) for row in read_scores(folder)] == [
        (row.key, row.prompt) for row in read_manifest(folder)
    ]
    before = contents(folder)
    for name in FILES:
        (folder / name).unlink()
    with spies():
        evaluate(folder, "pickscore")
    assert contents(folder) == before


def test_other_weights_score_again_in_their_column(folder: Path) -> None:
    with spies():
        evaluate(folder, "pickscore", "aesthetic")
    with spies() as found:
        evaluate(folder, "pickscore=owner/another", "aesthetic")
    assert found.scored == {"pickscore=owner/another": 6}


@pytest.mark.parametrize(
    ("place", "call", "again"),
    [
        ("write_scores", 2, {"aesthetic": 6, "clip-score": 6}),
        ("write_results", 2, {"aesthetic": 6, "clip-score": 6}),
        ("_score", 2, {"aesthetic": 6, "clip-score": 6}),
        ("_score", 3, {"clip-score": 6}),
        ("write_results", 1, {"pickscore": 6, "aesthetic": 6, "clip-score": 6}),
    ],
)
def test_a_stop_loses_only_the_scorer_at_work(place: str, call: int, again: dict[str, int], folder: Path) -> None:
    scorers = ("pickscore", "aesthetic", "clip-score")
    function, calls = getattr(scoring, place), []

    def stopping(*given: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return function(*given, **options)

    with spies(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, place, stopping)
        with pytest.raises(KeyboardInterrupt):
            evaluate(folder, *scorers)
    with spies() as found:
        results = evaluate(folder, *scorers)
    assert found.scored == again
    assert tuple(results["scores"]) == scorers


def test_a_stop_while_a_column_is_replaced_leaves_no_score_under_anothers_name(folder: Path) -> None:
    with spies():
        evaluate(folder, "pickscore")
    with spies(), pytest.MonkeyPatch.context() as patch:
        real = scoring.write_scores
        patch.setattr(scoring, "write_scores", lambda *given: real(*given) or (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            evaluate(folder, "pickscore=owner/another")
    with spies() as found:
        evaluate(folder, "pickscore")
    assert found.scored == {"pickscore": 6}


def test_the_digest_of_the_images_is_of_their_bytes_in_order(folder: Path, rows: list[ImageRow]) -> None:
    digest, style = inspect(folder, rows, NullWatcher())
    assert style == [style_of(Image.open(folder / row.file)) for row in rows]
    assert inspect(folder, rows, NullWatcher())[0] == digest
    assert inspect(folder, rows[::-1], NullWatcher())[0] != digest
    other_image(folder)
    assert inspect(folder, rows, NullWatcher())[0] != digest


# Scorers as they are


def test_no_path_of_this_machine_is_written(
    folder: Path, tmp_path: Path, tiny_clip: CLIPModel, tokenizer: CLIPTokenizer
) -> None:
    weights = tmp_path / "private" / "my-clip"
    tiny_clip.save_pretrained(weights)
    tokenizer.save_pretrained(weights)
    results = evaluate(folder, f"pickscore={weights}", wrong_prompts=True)
    assert results["scorers"]["pickscore"]["weights"] == "my-clip"
    for content in contents(folder).values():
        assert b"private" not in content
        assert str(tmp_path).encode() not in content
