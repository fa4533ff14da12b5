"""The layouts pairs are published in, what each gives, and what in a row is refused."""

from __future__ import annotations

import json
import unicodedata
from itertools import combinations
from pathlib import Path

import datasets
import pytest
from datasets import Features, List, Value
from pair_sources import COLOURS, IMAGES, Row, found, image_folder, jsonl, keep_to_itself, parquet, stored

from stepalign.data.pairs import BadRow, ImagePair, Unlabelled, read
from stepalign.data.rows import Layout
from stepalign.data.sources import open_pairs

GOOD = {"prompt": "a cat", "image_0": "images/red.png", "image_1": "images/blue.png", "label": 1}
PICK = {"caption": "a cat", "jpg_0": "images/red.png", "jpg_1": "images/blue.png", "label_0": 1, "label_1": 0}
TWO = {"prompt": "a cat", "image_path": ["images/red.png", "images/blue.png"]}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_to_itself(tmp_path / "cache", monkeypatch)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "images")


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
    images: Path, line: Row, expected: tuple[str, float | None, float]
) -> None:
    text = json.dumps(line).replace('"R"', '"images/red.png"').replace('"B"', '"images/blue.png"')
    source = open_pairs(jsonl(images, text))
    assert source.num_rows == 1
    assert found(source) == [("pairs.jsonl line 1", "a cat", *expected)]


@pytest.mark.parametrize("streaming", [False, True])
def test_pick_a_pic_is_read_from_parquet(tmp_path: Path, streaming: bool) -> None:
    columns = {"are_different": True, "has_label": True, "num_example_per_prompt": 2, "model_0": "x", "user_id": 3}
    rows = [
        columns | {"caption": "a cat", "jpg_0": IMAGES["red"], "jpg_1": IMAGES["blue"], "label_0": a, "label_1": b}
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
            f"row 0, images {i + 1} and {j + 1}",
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
        ("row 2, images 1 and 2", "a cow", "red blue", 1.0, 1.0),
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
        ('{"prompt": ', "the line is not valid JSON: Expecting value"),
        ("[" * 100_000, "the line is nested too deeply"),
        ('["a cat"]', "the line is a JSON list, not an object"),
        ("null", "the line is a JSON NoneType, not an object"),
        ({}, "its columns fit no layout: none"),
        ({"prompt": "a cat", "image_0": "images/red.png"}, "its columns fit no layout: prompt, image_0"),
        (GOOD | {"prompt": ""}, "the caption is empty"),
        (GOOD | {"prompt": None}, "the caption is missing"),
        (GOOD | {"image_0": "a\0.png"}, "the image 'a\\x00.png' holds a NUL character"),
        (GOOD | {"image_0": "a\ud83d.png"}, "the image 'a\\ud83d.png' holds half a character"),
        (GOOD | {"image_0": "a" * 5000}, "the image 'aaa"),
        (GOOD | {"image_0": "images/red.png/x"}, "the first image: '"),
        (GOOD | {"image_0": "../images/images/red.png"}, "the image '../images/images/red.png' has '..' in it"),
        (GOOD | {"image_0": "/etc/passwd"}, "the image '/etc/passwd' is an absolute path; paths must stay inside"),
        (GOOD | {"image_0": ["images/red.png"]}, "the first image: it is of type list"),
        (GOOD | {"image_0": {"bytes": "x", "path": 3}}, "the first image: "),
        (GOOD | {"image_0": {"path": 3}}, "the first image: it is of type int"),
        (GOOD | {"image_0": {}}, "the first image is missing"),
        (GOOD | {"image_0": "data:image/png;base64," + "A" * 5000}, "data:image/png;base64,AAA"),
        (GOOD | {"prompt": "a \ud83d"}, "the caption holds half of a character"),
        (GOOD | {"prompt": "a" * 10_001}, "the caption has 10,001 characters; at most 10,000 are read"),
        (GOOD | {"prompt": "a" * 2_000_000}, "the line is longer than the 1,048,576 bytes that are read"),
        (GOOD | {"label": 0.7}, "label 0.7 is not 0, 0.5 or 1"),
        (GOOD | {"weight": 0}, "weight 0 is not a finite number above 0"),
        (GOOD | {"weight": None}, "weight None is not a finite number above 0"),
        (GOOD | {"image_1": None}, "the second image is missing"),
        (GOOD | {"image_1": ""}, "the second image is missing"),
        (GOOD | {"image_0": 3}, "the first image: it is of type int"),
        (GOOD | {"image_0": "https://x.org/a.png"}, "https://x.org/a.png is an address; images are read from"),
        (GOOD | {"image_1": "pairs.jsonl"}, "the second image: "),
        (PICK | {"label_1": 1}, "label_0 1 and label_1 1 do not add up to 1"),
        (PICK | {"label_1": None}, "label_0 1 and label_1 None do not add up to 1"),
        (PICK | {"label_0": 0.75, "label_1": 0.25}, "label 0.75 is not 0, 0.5 or 1"),
        (PICK | {"num_example_per_prompt": 0}, "num_example_per_prompt 0 is not a number of at least 1"),
        (PICK | {"num_example_per_prompt": None}, "num_example_per_prompt None is not a number of at least 1"),
        (TWO | {"human_preference": [1, 1]}, "human_preference [1, 1] is neither [1, 0] nor [0, 1]"),
        (TWO | {"human_preference": 2}, "human_preference 2 is the number of none of 2 images, counted from 0"),
        (TWO | {"human_preference": -1}, "human_preference -1 is the number of none of 2 images"),
        (TWO | {"human_preference": True}, "human_preference True is neither [1, 0] nor [0, 1]"),
        (TWO | {"rank": [1] * 101}, "it ranks more than 100 images"),
        (TWO | {"image_path": ["a.png"] * 101, "human_preference": 3}, "it ranks more than 100 images"),
        (
            TWO | {"human_preference": [1, 0], "image_path": ["a"] * 3},
            "human_preference is between two images; there a",
        ),
        (
            TWO | {"human_preference": [1, 0], "image_path": "a.png"},
            "human_preference is between two images; there a",
        ),
        (TWO | {"rank": []}, "it has no human_preference, and rank [] is no ranking of two images or more"),
        (
            TWO | {"rank": [1], "image_path": ["images/red.png"]},
            "it has no human_preference, and rank [1] is no ranking",
        ),
        (TWO | {"rank": [1, None]}, "the ranks 1 and None are not both numbers"),
    ],
)
def test_a_bad_line_is_one_bad_row_between_good_ones(images: Path, line: object, reason: str) -> None:
    source = open_pairs(jsonl(images, GOOD, "", line, "  ", GOOD))
    assert source.num_rows == 3
    first, bad, last = found(source)
    assert first == ("pairs.jsonl line 1", "a cat", "red blue", 1.0, 1.0)
    assert last == ("pairs.jsonl line 5", "a cat", "red blue", 1.0, 1.0)
    assert bad[0].startswith("pairs.jsonl line 3")
    assert bad[1].startswith(reason)


def test_a_ranking_of_other_images_loses_all_its_pairs(images: Path) -> None:
    source = open_pairs(jsonl(images, GOOD, TWO | {"rank": [1, 2, 3]}))
    assert source.num_rows == 4
    assert found(source)[1:] == [
        (f"pairs.jsonl line 2, images {i} and {j}", "it has 3 ranks for 2 images") for i, j in ((1, 2), (1, 3), (2, 3))
    ]


# Without a label


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("missing", [None, float("nan")])
def test_rows_without_a_label_are_no_faults_whatever_else_they_lack(
    tmp_path: Path, streaming: bool, missing: float | None
) -> None:
    """Of Pick-a-Pic some rows have no label, and neither images nor captions any more."""
    full = {"caption": "a cat", "jpg_0": IMAGES["red"], "jpg_1": IMAGES["blue"], "label_0": 1.0, "label_1": 0.0}
    full |= {"has_label": True, "num_example_per_prompt": 1}
    bare = dict.fromkeys(full) | {"has_label": False, "label_0": missing, "label_1": missing}
    rows = [full, bare, bare | {"has_label": None}, bare | {"has_label": True}, full | {"jpg_1": b"junk"}]
    source = open_pairs(parquet(tmp_path / "a.parquet", rows), streaming=streaming)
    kinds = [type(read(row)) for row in source.rows()]
    assert kinds == [ImagePair, Unlabelled, Unlabelled, Unlabelled, BadRow]


@pytest.mark.parametrize(
    "line",
    [
        {"prompt": None, "image_0": None, "image_1": "a\0", "label": None},
        {"prompt": "a cat", "image_0": "nowhere.png", "image_1": "nowhere.png"},
        {"prompt": "a cat", "images": None, "human_preference": None, "rank": None},
        {"caption": None, "jpg_0": 3, "jpg_1": "/etc/passwd", "label_0": 1, "label_1": 1, "has_label": False},
    ],
)
def test_lines_without_a_label_are_no_faults(images: Path, line: Row) -> None:
    kinds = [type(read(row)) for row in open_pairs(jsonl(images, GOOD, line)).rows()]
    assert kinds == [ImagePair, Unlabelled]


# HPD v1


@pytest.mark.parametrize("kind", ["pairs.jsonl", "preference_train.json", "a.parquet", "a.parquet streamed"])
def test_the_best_of_several_is_preferred_to_each_of_the_others(images: Path, kind: str) -> None:
    """HPD v1 (tgxs002/align_sd): human_preference is the number of the best image, from 0."""
    paths = [f"images/{colour}.png" for colour in COLOURS[:3]]
    row = {"human_preference": 1, "prompt": "a cat", "id": 7, "user_hash": "x", "contain_name": False}
    rows = [row | {"file_path": paths}, row | {"file_path": paths[:2], "human_preference": 0}]
    name = kind.removesuffix(" streamed")
    if name == "a.parquet":
        path, lines = parquet(images / name, rows), ["row 0", "row 1"]
    elif name == "pairs.jsonl":
        path, lines = jsonl(images, *rows), ["pairs.jsonl line 1", "pairs.jsonl line 2"]
    else:
        path = jsonl(images, json.dumps(rows), name=name)
        lines = ["preference_train.json entry 1", "preference_train.json entry 2"]
    source = open_pairs(path, streaming=kind.endswith("streamed"))
    assert source.num_rows == (None if kind.endswith("streamed") else 3)
    assert found(source) == [
        (f"{lines[0]}, images 1 and 2", "a cat", "red blue", 0.0, 0.5),
        (f"{lines[0]}, images 2 and 3", "a cat", "blue lime", 1.0, 0.5),
        (lines[1], "a cat", "red blue", 1.0, 1.0),
    ]
    assert found(source, 1) == found(source)[1:]


# Paths


def test_paths_are_found_with_backslashes_and_in_either_unicode_form(images: Path) -> None:
    (images / "images/red.png").rename(images / "images" / unicodedata.normalize("NFD", "rét.png"))
    line = GOOD | {"image_0": "images\\" + unicodedata.normalize("NFC", "rét.png"), "image_1": "images\\blue.png"}
    assert found(open_pairs(jsonl(images, line))) == [("pairs.jsonl line 1", "a cat", "red blue", 1.0, 1.0)]


def test_paths_out_of_the_folder_are_read_where_that_is_asked_for(images: Path, tmp_path: Path) -> None:
    line = GOOD | {"image_0": str(images / "images/red.png"), "image_1": "../images/images/blue.png"}
    for path in (jsonl(tmp_path / "other", line), parquet(tmp_path / "other/a.parquet", [line])):
        refused, allowed = open_pairs(path), open_pairs(path, allow_outside=True)
        assert all("is an absolute path; paths must stay inside" in reason for _, reason in found(refused))
        assert [row[2] for row in found(allowed)] == ["red blue"]
        assert refused.fingerprint != allowed.fingerprint
