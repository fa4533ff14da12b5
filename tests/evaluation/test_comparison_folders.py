"""What folders are called, and everything that makes them incomparable, each named."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from compared import RECORD, gained, level, save_evaluation, save_folder

from stepalign.data.manifest import read_manifest, read_scores, write_manifest, write_scores
from stepalign.evaluation.compare import compare_folders


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """A base and another that gains `GAINS`; 3 wins, a tie, 2 losses."""
    base = save_folder(tmp_path / "base", scores={"pickscore": level}, colour=1)
    return [base, save_folder(tmp_path / "tuned", scores={"pickscore": gained}, colour=2)]


@pytest.mark.parametrize(
    ("evaluated", "names", "expected"),
    [
        (("SDXL", "SPO"), None, ["SDXL", "SPO"]),
        (("same", "same"), None, ["base", "tuned"]),
        ((None, "SPO"), None, ["base", "tuned"]),
        (("SDXL", "SPO"), ["x", "y"], ["x", "y"]),
    ],
)
def test_models_are_called_what_was_asked_for(
    tmp_path: Path, evaluated: tuple[str | None, ...], names: list[str] | None, expected: list[str]
) -> None:
    folders = [
        save_folder(tmp_path / place, scores={"s": level}, name=name)
        for place, name in zip(("base", "tuned"), evaluated, strict=True)
    ]
    assert compare_folders(folders, names=names).models == expected


def test_folders_that_are_called_the_same_need_names(tmp_path: Path) -> None:
    folders = [save_folder(tmp_path / place / "images", scores={"s": level}) for place in "ab"]
    with pytest.raises(ValueError, match="named images; give every folder a name"):
        compare_folders(folders)
    assert compare_folders(folders, names=["a", "b"]).models == ["a", "b"]


@pytest.mark.parametrize("names", [["a"], ["a", "a"], ["a", " "], ["a", "b", "c"]])
def test_names_that_do_not_fit_are_refused(two: list[Path], names: list[str]) -> None:
    with pytest.raises(ValueError, match="names must be 2 different names"):
        compare_folders(two, names=names)


def test_one_folder_or_one_twice_is_no_comparison(two: list[Path]) -> None:
    with pytest.raises(ValueError, match="folders must be at least two"):
        compare_folders(two[:1])
    with pytest.raises(ValueError, match="folders must be all different"):
        compare_folders([two[0], two[0] / "." / "images" / ".."])


def change_rows(folder: Path, change: Any) -> None:
    """Rewrite a folder's scores with a change of each row's values; None drops the row."""
    rows = [change(row) for row in read_scores(folder)]
    write_scores(folder, [row for row in rows if row is not None])


def test_another_prompt_is_named(two: list[Path], tmp_path: Path) -> None:
    other = save_folder(
        tmp_path / "x", scores={"pickscore": level}, prompt=lambda number: f"prompt {number + (number > 3) * 10}"
    )
    with pytest.raises(ValueError, match=r"2 of 6 prompts in base differ: prompt 4 is 'prompt 4' in base"):
        compare_folders([two[0], other])


def test_the_same_prompts_in_another_order_are_told_apart(two: list[Path], tmp_path: Path) -> None:
    other = save_folder(tmp_path / "x", scores={"pickscore": level}, prompt=lambda number: f"prompt {5 - number}")
    with pytest.raises(
        ValueError, match=r"prompt 0 is 'prompt 0' in base and 'prompt 5' in x.* and 3 more; .*another order"
    ):
        compare_folders([two[0], other])


def test_a_missing_prompt_is_counted_and_named(two: list[Path], tmp_path: Path) -> None:
    fewer = save_folder(tmp_path / "few", scores={"pickscore": level}, num_prompts=2)
    said = "6 prompts in base, 2 prompts in few: few lacks prompt 2 'prompt 2', 3 'prompt 3', 4 'prompt 4' and 1 more"
    with pytest.raises(ValueError, match=said):
        compare_folders([two[0], fewer])
    with pytest.raises(ValueError, match="2 prompts in few, 6 prompts in base: few lacks prompt 2"):
        compare_folders([fewer, two[0]])


def test_a_missing_image_is_counted_and_named(two: list[Path], tmp_path: Path) -> None:
    more = save_folder(tmp_path / "more", scores={"pickscore": level}, num_images=2)
    with pytest.raises(ValueError, match=r"6 images in base, 12 in more: base lacks image 1 of prompt 0.* and 3 more"):
        compare_folders([two[0], more])


def test_an_image_without_a_file_or_a_score_is_counted_and_named(two: list[Path]) -> None:
    (two[1] / "images/00003-0.png").unlink()
    with pytest.raises(ValueError, match=r"tuned: files that are missing \(1\): images/00003-0.png; put it back"):
        compare_folders(two)
    change_rows(two[1], lambda row: None if row.prompt_index < 4 else row)
    said = r"scores.jsonl: images without scores \(4\): image 0 of prompt 0, .* and 1 more; run `stepalign evaluate`"
    with pytest.raises(ValueError, match=said):
        compare_folders(two)


def test_a_score_without_an_image_is_named(two: list[Path]) -> None:
    write_manifest(two[1], read_manifest(two[1])[:-1])
    with pytest.raises(ValueError, match=r"manifest.jsonl: scored, but not listed \(1\): image 0 of prompt 5"):
        compare_folders(two)


def test_an_image_scored_for_another_prompt_is_named(two: list[Path]) -> None:
    change_rows(two[1], lambda row: replace(row, prompt="another") if row.prompt_index == 2 else row)
    with pytest.raises(ValueError, match=r"scored for another prompt than the manifest's \(1\): image 0 of prompt 2"):
        compare_folders(two)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_named(two: list[Path], wrong: float) -> None:
    path = two[1] / "scores.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows[1]["scores"]["pickscore"] = wrong
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")  # as other programs write it
    with pytest.raises(ValueError, match=rf"tuned.scores.jsonl line 2: the score 'pickscore' is {wrong}"):
        compare_folders(two)


def test_a_row_without_a_scorer_and_a_scorer_without_a_record_are_named(two: list[Path]) -> None:
    change_rows(two[1], lambda row: replace(row, scores={"other": 1.0}) if row.prompt_index == 4 else row)
    with pytest.raises(ValueError, match=r"scorers without a record in results.json \(1\): other"):
        compare_folders(two)
    save_evaluation(two[1], scorers={scorer: asdict(RECORD) for scorer in ("pickscore", "other")})
    with pytest.raises(ValueError, match=r"images without a score by pickscore \(1\): image 0 of prompt 4"):
        compare_folders(two)


@pytest.mark.parametrize(
    ("field", "value"),
    [("sha256", "cd" * 32), ("preprocessing", "squashed"), ("scale", "cos"), ("needs_prompt", False)],
)
def test_another_scorer_under_the_same_name_is_refused(two: list[Path], field: str, value: Any) -> None:
    save_evaluation(two[1], scorers={"pickscore": {**asdict(RECORD), field: value}})
    with pytest.raises(ValueError, match=f"pickscore: its {field} is .* in base and {value!r} in tuned"):
        compare_folders(two)


def test_other_libraries_and_another_name_of_the_weights_are_no_obstacle(two: list[Path]) -> None:
    save_evaluation(two[1], scorers={"pickscore": {**asdict(RECORD), "weights": "mine", "libraries": {"torch": "2.6"}}})
    (warning,) = compare_folders(two).warnings
    assert warning.startswith("torch is 2.13.0 in base and 2.6 in tuned: scores by pickscore may differ")


def test_a_scorer_of_one_folder_only_is_left_out_by_name(tmp_path: Path) -> None:
    base = save_folder(tmp_path / "base", scores={"s": level, "t": level})
    found = compare_folders([base, save_folder(tmp_path / "tuned", scores={"s": gained, "u": level})])
    assert found.left_out == {"t": ["base"], "u": ["tuned"]}
    assert list(found.scores) == list(found.scorers) == ["s"]
    with pytest.raises(ValueError, match="no scorer has scored all folders: base has s, t; other has v"):
        compare_folders([base, save_folder(tmp_path / "other", scores={"v": level})])


def test_other_seeds_are_warned_of(tmp_path: Path) -> None:
    folders = [save_folder(tmp_path / name, scores={"s": level}, seed=seed) for name, seed in (("a", 0), ("b", 1))]
    (warning,) = compare_folders(folders).warnings
    assert warning.startswith("6 of 6 images were generated from other seeds by b than by a")


def test_a_prompt_of_two_categories_is_named(two: list[Path], tmp_path: Path) -> None:
    first = save_folder(tmp_path / "x", scores={"pickscore": level}, category=lambda number: "photo")
    second = save_folder(tmp_path / "y", scores={"pickscore": level}, category=lambda number: "art")
    with pytest.raises(ValueError, match="prompt 0 has the category 'art' in y, and 'photo' elsewhere"):
        compare_folders([first, second])
    assert compare_folders([two[0], first]).prompts[0].category == "photo"


def test_one_prompt_is_too_few(tmp_path: Path) -> None:
    folders = [save_folder(tmp_path / name, scores={"s": level}, num_prompts=1) for name in "ab"]
    with pytest.raises(ValueError, match="prompts must be at least two"):
        compare_folders(folders)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not valid JSON"),
        ("[]", "has no scorers"),
        ('{"scorers": {}}', "has no scorers"),
        ('{"scorers": {"s": {"name": "s"}}}', "the record of s cannot be read: it has no weights"),
        (
            json.dumps({"scorers": {"s": asdict(RECORD)}, "generation": 3}),
            "generation must be an object or null, got 3",
        ),
    ],
)
def test_a_damaged_evaluation_is_refused(two: list[Path], text: str, said: str) -> None:
    (two[1] / "results.json").write_text(text)
    with pytest.raises(ValueError, match=f"results.json.*{said}"):
        compare_folders(two)
    (two[1] / "results.json").unlink()
    with pytest.raises(ValueError, match=r"there is no .*results.json; run `stepalign evaluate`"):
        compare_folders(two)
