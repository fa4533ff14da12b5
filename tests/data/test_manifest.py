"""A folder's manifest and scores: what is written is what is read, what a hand may leave out, what is refused."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from stepalign.data.manifest import ImageRow, ScoredRow, read_manifest, read_scores, write_manifest, write_scores

STRANGE = [
    "two\nlines",
    'a "quoted" \\ cat',
    "ein Bär, 熊, \N{BEAR FACE}",
    "a\u2028b\u0085c",
    " spaces ",
    "tab\tbed",
    "é" * 5000,
]


def manifest(folder: Path, *rows: object, text: str | None = None) -> Path:
    """A folder whose manifest holds these rows, a line each."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n" if text is None else text, encoding="utf-8")
    return folder


def scores(folder: Path, *rows: object) -> Path:
    (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def row(prompt: str, file: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "file": file, **more}


# Round trips


@pytest.mark.parametrize("prompt", STRANGE)
def test_any_prompt_comes_back_as_it_was(prompt: str, tmp_path: Path) -> None:
    rows = [ImageRow(0, n, prompt, f"images/{n}.png", seed=3, category=prompt) for n in range(2)]
    write_manifest(tmp_path, rows)
    assert read_manifest(tmp_path) == rows
    scored = [ScoredRow(0, n, prompt, {"aesthetic": 5.25, "hps-v2.1": -0.1}) for n in range(2)]
    write_scores(tmp_path, scored)
    assert read_scores(tmp_path) == scored
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.jsonl", "scores.jsonl"]


def test_a_row_is_a_line_in_plain_words(tmp_path: Path) -> None:
    write_manifest(tmp_path, [ImageRow(12, 0, "ein Bär", "images/00012-0.png", category="animals")])
    expected = (
        '{"prompt_index": 12, "image_index": 0, "prompt": "ein Bär", "file": "images/00012-0.png", "seed": null, '
        '"category": "animals"}\n'
    )
    assert (tmp_path / "manifest.jsonl").read_text(encoding="utf-8") == expected


def test_whole_numbers_are_scores(tmp_path: Path) -> None:
    found = read_scores(scores(tmp_path, {"prompt_index": 0, "image_index": 0, "prompt": "a", "scores": {"a": 3}}))
    assert found == [ScoredRow(0, 0, "a", {"a": 3.0})]
    assert isinstance(found[0].scores["a"], float)


def test_rows_keep_their_order_and_numbers_may_have_gaps(tmp_path: Path) -> None:
    rows = [ImageRow(7, 3, "b", "b.png"), ImageRow(2, 0, "a", "a.png"), ImageRow(7, 1, "b", "c.png")]
    write_manifest(tmp_path, rows)
    assert read_manifest(tmp_path) == rows
    assert [item.key for item in rows] == [(7, 3), (2, 0), (7, 1)]


# Written by hand


def test_prompts_are_numbered_as_they_first_appear_and_images_in_their_order(tmp_path: Path) -> None:
    """Rows b, a, b, a, b: prompts 0, 1, 0, 1, 0 and images 0, 0, 1, 1, 2."""
    manifest(tmp_path, *(row(prompt, f"{n}.png") for n, prompt in enumerate("babab")))
    assert [(item.prompt, *item.key) for item in read_manifest(tmp_path)] == [
        ("b", 0, 0),
        ("a", 1, 0),
        ("b", 0, 1),
        ("a", 1, 1),
        ("b", 0, 2),
    ]


def test_the_same_words_under_two_numbers_are_two_prompts(tmp_path: Path) -> None:
    manifest(tmp_path, *(row("a cat", f"{n}.png", prompt_index=n // 2) for n in range(4)))
    assert [item.key for item in read_manifest(tmp_path)] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_blank_lines_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    manifest(tmp_path, text="\ufeff" + json.dumps(row("a", "a.png")) + "\r\n\r\n  \n" + json.dumps(row("b", "b.png")))
    assert [item.prompt for item in read_manifest(tmp_path)] == ["a", "b"]


def test_further_fields_are_for_their_writer(tmp_path: Path) -> None:
    manifest(tmp_path, row("a", "a.png", artist="me", seed=5))
    assert read_manifest(tmp_path) == [ImageRow(0, 0, "a", "a.png", seed=5)]


# Refused


@pytest.mark.parametrize(
    ("second", "complaint"),
    [
        ('{"prompt": "a"', "is not valid JSON"),
        ("[1, 2]", "is no JSON object"),
        ('"a cat"', "is no JSON object"),
        ({"file": "b.png"}, "has no prompt"),
        ({"prompt": "b"}, "has no file"),
        (row("", "b.png"), "has no prompt"),
        (row(" \n", "b.png"), "has no prompt"),
        (row("b", ""), "has no file"),
        ({"prompt": 3, "file": "b.png"}, "has no prompt"),
        ({"prompt": None, "file": "b.png"}, "has no prompt"),
        ({"prompt": "b", "file": ["b.png"]}, "has no file"),
        *(
            (row("b", "b.png", **{name: value}), f"{name} must be a whole number from 0, got ")
            for name in ("prompt_index", "image_index")
            for value in (-1, 1.0, "1", True, None, [1], {"a": 1})
        ),
        (row("b", "b.png", seed="7"), "seed must be a whole number"),
        (row("b", "b.png", seed=1.5), "seed must be a whole number"),
        (row("b", "b.png", category=3), "category must be text, got 3"),
        (row("a", "a.png"), "a.png is listed twice for prompt 0"),
    ],
)
def test_a_row_that_makes_no_sense_is_named_by_its_line(second: object, complaint: str, tmp_path: Path) -> None:
    manifest(tmp_path, row("a", "a.png"), second)
    with pytest.raises(ValueError, match=rf"manifest.jsonl line 2:? ?{complaint}"):
        read_manifest(tmp_path)


def test_the_line_is_counted_with_blank_ones(tmp_path: Path) -> None:
    manifest(tmp_path, "", row("a", "a.png"), "", "nonsense")
    with pytest.raises(ValueError, match="line 4 is not valid JSON"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("second", "complaint"),
    [
        (row("a", "b.png", prompt_index=0, image_index=0), "image 0 of prompt 0 is listed twice"),
        (row("b", "b.png", prompt_index=0, image_index=1), "prompt 0 is 'a' in one row and 'b' in another"),
    ],
)
def test_rows_that_contradict_each_other_are_refused(second: object, complaint: str, tmp_path: Path) -> None:
    manifest(tmp_path, row("a", "a.png", prompt_index=0, image_index=0), second)
    with pytest.raises(ValueError, match=complaint):
        read_manifest(tmp_path)


def test_one_image_may_stand_under_two_prompts(tmp_path: Path) -> None:
    manifest(tmp_path, row("a", "a.png"), row("b", "a.png"))
    assert [item.key for item in read_manifest(tmp_path)] == [(0, 0), (1, 0)]


def test_no_manifest_and_an_empty_one_are_told_apart(tmp_path: Path) -> None:
    advice = "write one with a row of prompt and file per image"
    with pytest.raises(ValueError, match=f"there is no .*manifest.jsonl; {advice}"):
        read_manifest(tmp_path)
    with pytest.raises(ValueError, match=f"manifest.jsonl has no rows; {advice}"):
        read_manifest(manifest(tmp_path, text=" \n\n"))
    with pytest.raises(ValueError, match=r"there is no .*scores.jsonl; run `stepalign evaluate`"):
        read_scores(tmp_path)


def test_text_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.jsonl").write_bytes('{"prompt": "Bär", "file": "a.png"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"manifest.jsonl is not UTF-8 text: .*; save it as UTF-8"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"scores": None}, "has no scores"),
        ({"scores": {}}, "has no scores"),
        ({"scores": [1.0]}, "has no scores"),
        ({"scores": {"a": "5"}}, "the score 'a' is '5', not a finite number"),
        ({"scores": {"a": True}}, "the score 'a' is True, not a finite number"),
        ({"scores": {"a": None}}, "the score 'a' is None, not a finite number"),
        ({"scores": {"a": float("nan")}}, "the score 'a' is nan, not a finite number"),
        ({"scores": {"a": 1.0, "b": float("-inf")}}, "the score 'b' is -inf, not a finite number"),
        ({"prompt_index": None}, "prompt_index must be a whole number from 0, got None"),
        ({"image_index": 0.5}, "image_index must be a whole number from 0, got 0.5"),
        ({"prompt": ""}, "has no prompt"),
    ],
)
def test_a_score_that_makes_no_sense_is_named_by_its_line(
    changes: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    first = {"prompt_index": 0, "image_index": 0, "prompt": "a", "scores": {"a": 1.0}}
    scores(tmp_path, first, first | {"image_index": 1} | changes)
    with pytest.raises(ValueError, match=rf"scores.jsonl line 2:? ?{complaint}"):
        read_scores(tmp_path)


def test_an_image_scored_twice_is_refused(tmp_path: Path) -> None:
    first = {"prompt_index": 4, "image_index": 1, "prompt": "a", "scores": {"a": 1.0}}
    with pytest.raises(ValueError, match="image 1 of prompt 4 is listed twice"):
        read_scores(scores(tmp_path, first, first))


# Files


def test_files_are_found_as_they_are_spelled_here(tmp_path: Path) -> None:
    """Rows written on Windows, and names in the other Unicode normal form."""
    name = unicodedata.normalize("NFD", "Bär.png")
    (tmp_path / "images").mkdir()
    for file in ("0.png", name):
        (tmp_path / "images" / file).touch()
    manifest(tmp_path, row("a", "images\\0.png"), row("a", "images/" + unicodedata.normalize("NFC", name)))
    assert [item.file for item in read_manifest(tmp_path)] == ["images/0.png", f"images/{name}"]
    with pytest.raises(ValueError, match=r"line 2: images/0\.png is listed twice"):
        read_manifest(manifest(tmp_path, row("a", "images/0.png"), row("a", r"images\0.png")))


@pytest.mark.parametrize("file", ["../outside.png", r"..\outside.png", "/outside.png", "C:\\outside.png", "link.png"])
def test_a_file_outside_the_folder_is_refused_unless_that_is_asked_for(file: str, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    manifest(folder, row("a", "a.png"), row("a", file))
    with pytest.raises(ValueError, match=r"manifest.jsonl line 2: file .*; paths must stay inside .*--allow-outside"):
        read_manifest(folder)
    assert len(read_manifest(folder, allow_outside=True)) == 2


@pytest.mark.parametrize(
    ("prompt", "complaint"),
    [
        ("a \ud83d b", r"the prompt holds half of a character, .ud83d"),
        ("a \0 b", "the prompt holds a NUL character"),
        ("a" * 10_001, "the prompt has 10,001 characters; at most 10,000 are read"),
    ],
)
def test_a_prompt_that_no_tokenizer_takes_is_refused(prompt: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"manifest.jsonl line 1: {complaint}"):
        read_manifest(manifest(tmp_path, row(prompt, "a.png")))
    with pytest.raises(ValueError, match=f"scores.jsonl line 1: {complaint}"):
        read_scores(scores(tmp_path, {"prompt_index": 0, "image_index": 0, "prompt": prompt, "scores": {"a": 1.0}}))


@pytest.mark.parametrize("file", ["a\0.png", "\udc80.png", "a" * 300, "b/" * 3000])
def test_a_file_that_can_be_no_path_is_named_by_its_line(file: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"manifest.jsonl line 1: file .* is no path"):
        read_manifest(manifest(tmp_path, row("a", file)))
