"""The layouts pairs are published in, what each gives, and what in a row is refused."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import datasets
import pytest
from datasets import Features, List, Value
from pair_sources import COLOURS, PICTURES, Row, found, jsonl, keep_to_itself, parquet, picture_folder, stored

from stepalign.data.rows import Layout
from stepalign.data.sources import open_pairs

GOOD = {"prompt": "a cat", "image_0": "images/red.png", "image_1": "images/blue.png", "label": 1}
PICK = {"caption": "a cat", "jpg_0": "images/red.png", "jpg_1": "images/blue.png", "label_0": 1, "label_1": 0}
TWO = {"prompt": "a cat", "image_path": ["images/red.png", "images/blue.png"]}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_to_itself(tmp_path / "cache", monkeypatch)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return picture_folder(tmp_path / "pictures")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ({"caption": "a cat", "jpg_0": "R", "jpg_1": "B", "label_0": 1, "label_1": 0}, ("red blue", 1.0, 1.0)),
        ({"caption": "a cat", "jpg_0": "R", "jpg_1": "B", "label_0": 0.0, "label_1": 1.0}, ("red blue", 0.0, 1.0)),
        (
            {"caption": "a cat", "jpg_0": "B", "jpg_1": "R", "label_0": 0.5, "label_1": 0.5, "has_label": True},
            ("blue red", 0.5, 1.0),
        ),
        (
            {"caption": "a cat", "jpg_0": "R", "jpg_1": "B", "label_0": 0, "label_1": 0, "has_label": False},
            ("red blue", None, 1.0),
        ),
        ({"caption": "a cat", "jpg_0": "R", "jpg_1": "B", "label_0": None, "label_1": None}, ("red blue", None, 1.0)),
        (
            {"caption": "a cat", "jpg_0": "R", "jpg_1": "B", "label_0": 1, "label_1": 0, "num_example_per_prompt": 4},
            ("red blue", 1.0, 0.25),
        ),
        ({"prompt": "a cat", "chosen": "R", "rejected": "B"}, ("red blue", 1.0, 1.0)),
        ({"caption": "a cat", "chosen": "B", "rejected": "R", "weight": 0.5}, ("blue red", 1.0, 0.5)),
        ({"prompt": "a cat", "image_path": ["R", "B"], "human_preference": [1, 0]}, ("red blue", 1.0, 1.0)),
        ({"prompt": "a cat", "images": ["R", "B"], "human_preference": [0, 1]}, ("red blue", 0.0, 1.0)),
        ({"prompt": "a cat", "file_path": ["R", "B"], "human_preference": [1, 0], "rank": []}, ("red blue", 1.0, 1.0)),
        (
            {"prompt": "a cat", "image_path": ["nowhere"] * 2, "image": ["B", "R"], "human_preference": [0, 1]},
            ("blue red", 0.0, 1.0),
        ),
        ({"prompt": "a cat", "image_0": "R", "image_1": "B", "label": 1}, ("red blue", 1.0, 1.0)),
        ({"prompt": "a cat", "image_0": "R", "image_1": "B", "label": 0, "weight": 3}, ("red blue", 0.0, 3.0)),
        ({"caption": "a cat", "image_0": "R", "image_1": "B", "label": 0.5}, ("red blue", 0.5, 1.0)),
        ({"prompt": "a cat", "image_0": "R", "image_1": "B", "label": None}, ("red blue", None, 1.0)),
        ({"prompt": "a cat", "image_0": "R", "image_1": "B"}, ("red blue", None, 1.0)),
        ({"prompt": "a cat", "path1": "R", "path2": "B", "confidence": 0.9}, ("red blue", 1.0, 1.0)),
    ],
)
def test_every_layout_is_recognised_by_its_columns(
    pictures: Path, line: Row, expected: tuple[str, float | None, float]
) -> None:
    text = json.dumps(line).replace('"R"', '"images/red.png"').replace('"B"', '"images/blue.png"')
    source = open_pairs(jsonl(pictures, text))
    assert source.num_rows == 1
    assert found(source) == [("pairs.jsonl line 1", "a cat", *expected)]


@pytest.mark.parametrize("streaming", [False, True])
def test_pick_a_pic_is_read_from_parquet(tmp_path: Path, streaming: bool) -> None:
    columns = {"are_different": True, "has_label": True, "num_example_per_prompt": 2, "model_0": "x", "user_id": 3}
    rows = [
        columns | {"caption": "a cat", "jpg_0": PICTURES["red"], "jpg_1": PICTURES["blue"], "label_0": a, "label_1": b}
        for a, b in ((1.0, 0.0), (0.5, 0.5), (0.0, 1.0))
    ]
    rows[2]["has_label"] = False
    source = open_pairs(parquet(tmp_path / "a.parquet", rows), streaming=streaming)
    assert found(source) == [
        ("row 0", "a cat", "red blue", 1.0, 0.5),
        ("row 1", "a cat", "red blue", 0.5, 0.5),
        ("row 2", "a cat", "red blue", None, 0.5),
    ]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_ranking_becomes_all_its_pairs(tmp_path: Path, streaming: bool) -> None:
    """Ranks 2, 1, 2, 0: of the six pairs the lower rank is preferred, the equal ones tie, and each weighs 1/6."""
    rank = [2, 1, 2, 0]
    expected = [
        (
            f"row 0, pictures {i + 1} and {j + 1}",
            "a cat",
            f"{COLOURS[i]} {COLOURS[j]}",
            0.5 if rank[i] == rank[j] else float(rank[i] < rank[j]),
            1 / 6,
        )
        for i, j in combinations(range(4), 2)
    ]
    assert [label for *_, label, _ in expected] == [0.0, 0.5, 0.0, 1.0, 0.0, 0.0]
    features = Features(
        {"prompt": Value("string"), "image": List(datasets.Image()), "rank": List(Value("float32"))}
        | {"human_preference": List(Value("int64")), "image_path": List(Value("string"))}
    )
    rows = [
        {"prompt": "a cat", "image": [stored(colour) for colour in COLOURS], "rank": rank, "human_preference": []},
        {"prompt": "a dog", "image": [stored("red"), stored("blue")], "rank": [], "human_preference": [0, 1]},
        {"prompt": "a cow", "image": [stored("red"), stored("blue")], "rank": [3, 4], "human_preference": None},
    ]
    rows = [row | {"image_path": []} for row in rows]
    source = open_pairs(parquet(tmp_path / "a.parquet", rows, features), streaming=streaming)
    assert source.num_rows == (None if streaming else 8)
    assert found(source) == [
        *expected,
        ("row 1", "a dog", "red blue", 0.0, 1.0),
        ("row 2, pictures 1 and 2", "a cow", "red blue", 1.0, 1.0),
    ]


def test_columns_of_no_layout_are_named_with_the_layouts_known(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [{"caption": "a cat", "jpg_0": b"", "label_0": 1}])
    with pytest.raises(ValueError, match=r"^data\.pairs: the columns of .*a\.parquet fit no layout") as caught:
        open_pairs(path)
    with pytest.raises(ValueError, match=r"^data\.pairs: no line of .*: its columns fit no layout") as caught_too:
        open_pairs(jsonl(tmp_path, {"caption": "a cat", "jpg_0": "", "label_0": 1}))
    for text in (str(caught.value), str(caught_too.value)):
        assert "layout: caption, jpg_0, label_0; known are caption, jpg_0, jpg_1, label_0, label_1 and opt" in text
        assert all(layout.value in text for layout in Layout)


@pytest.mark.parametrize("missing", ["prompt", "chosen", "rejected"])
def test_a_layout_needs_all_its_columns(tmp_path: Path, missing: str) -> None:
    line = {"prompt": "a cat", "chosen": "a.png", "rejected": "b.png"}
    del line[missing]
    with pytest.raises(ValueError, match="fit no layout"):
        open_pairs(jsonl(tmp_path, line))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt": ', "the line is no JSON: Expecting value"),
        ("[" * 100_000, "the line is no JSON: "),
        ('["a cat"]', "the line is a JSON list, not an object"),
        ("null", "the line is a JSON NoneType, not an object"),
        ({}, "its columns fit no layout: none"),
        ({"prompt": "a cat", "image_0": "images/red.png"}, "its columns fit no layout: prompt, image_0"),
        (GOOD | {"prompt": ""}, "the caption is empty"),
        (GOOD | {"prompt": None}, "the caption is missing"),
        (GOOD | {"label": 0.7}, "label 0.7 is not 0, 0.5 or 1"),
        (GOOD | {"weight": 0}, "weight 0 is not a finite number above 0"),
        (GOOD | {"weight": None}, "weight None is not a finite number above 0"),
        (GOOD | {"image_1": None}, "the second image is missing"),
        (GOOD | {"image_1": ""}, "the second image is missing"),
        (GOOD | {"image_0": 3}, "the first image: it is of type int"),
        (GOOD | {"image_0": "https://x.org/a.png"}, "https://x.org/a.png is an address; pictures are read from"),
        (GOOD | {"image_1": "pairs.jsonl"}, "the second image: "),
        (PICK | {"label_1": 1}, "label_0 1 and label_1 1 do not add up to 1"),
        (PICK | {"label_1": None}, "label_0 1 and label_1 None do not add up to 1"),
        (PICK | {"label_0": None, "label_1": None, "has_label": True}, "label_0 None and label_1 None do not add up"),
        (PICK | {"label_0": 0.75, "label_1": 0.25}, "label 0.75 is not 0, 0.5 or 1"),
        (PICK | {"num_example_per_prompt": 0}, "num_example_per_prompt 0 is not a number of at least 1"),
        (PICK | {"num_example_per_prompt": None}, "num_example_per_prompt None is not a number of at least 1"),
        (TWO | {"human_preference": [1, 1]}, "human_preference [1, 1] is neither [1, 0] nor [0, 1]"),
        (TWO | {"human_preference": 1}, "human_preference 1 is neither [1, 0] nor [0, 1]"),
        (
            TWO | {"human_preference": [1, 0], "image_path": ["a"] * 3},
            "human_preference is between two pictures; there a",
        ),
        (
            TWO | {"human_preference": [1, 0], "image_path": "a.png"},
            "human_preference is between two pictures; there a",
        ),
        (TWO | {"rank": []}, "it has no human_preference, and rank [] is no ranking of two pictures or more"),
        (
            TWO | {"rank": [1], "image_path": ["images/red.png"]},
            "it has no human_preference, and rank [1] is no ranking",
        ),
        (TWO | {"rank": [1, None]}, "the ranks 1 and None are not both numbers"),
    ],
)
def test_a_bad_line_is_one_bad_row_between_good_ones(pictures: Path, line: object, reason: str) -> None:
    source = open_pairs(jsonl(pictures, GOOD, "", line, "  ", GOOD))
    assert source.num_rows == 3
    first, bad, last = found(source)
    assert first == ("pairs.jsonl line 1", "a cat", "red blue", 1.0, 1.0)
    assert last == ("pairs.jsonl line 5", "a cat", "red blue", 1.0, 1.0)
    assert bad[0].startswith("pairs.jsonl line 3")
    assert bad[1].startswith(reason)


def test_a_ranking_of_other_pictures_loses_all_its_pairs(pictures: Path) -> None:
    source = open_pairs(jsonl(pictures, GOOD, TWO | {"rank": [1, 2, 3]}))
    assert source.num_rows == 4
    assert found(source)[1:] == [
        (f"pairs.jsonl line 2, pictures {i} and {j}", "it has 3 ranks for 2 pictures")
        for i, j in ((1, 2), (1, 3), (2, 3))
    ]
