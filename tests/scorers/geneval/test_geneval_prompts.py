"""GenEval's prompts and classes: what is understood, and what is refused and where."""

from __future__ import annotations

from typing import Any

import pytest

from stepalign.data.prompt_sets import load_prompt_set
from stepalign.scorers.geneval.rules import CLASSES, TASKS, class_index, parse_prompt


def test_every_published_prompt_is_understood() -> None:
    rows = load_prompt_set("geneval").metadata or []
    prompts = [parse_prompt(row, "geneval") for row in rows]
    assert {prompt.tag for prompt in prompts} == set(TASKS)
    for row, prompt in zip(rows, prompts, strict=True):
        assert [CLASSES[part.class_index] for part in prompt.include] == [part["class"] for part in row["include"]]
        assert [part.colour for part in prompt.include] == [part.get("color") for part in row["include"]]


def test_classes_are_cocos_by_number_and_answer_to_both_names() -> None:
    assert len(set(CLASSES)) == 80
    assert [CLASSES.index(name) for name in ("person", "stop sign", "zebra", "tie", "toothbrush")] == [
        0,
        11,
        22,
        27,
        79,
    ]
    for coco, geneval, index in (("mouse", "computer mouse", 64), ("remote", "tv remote", 65)):
        assert class_index(coco, "") == class_index(geneval, "") == index
    assert class_index("keyboard", "") == 66


def above(**changes: Any) -> dict[str, Any]:
    """A row whose second object is changed."""
    second = {"class": "dog", "count": 1, "position": ["above", 0]} | changes
    return {"tag": "position", "prompt": "a dog above a cat", "include": [{"class": "cat", "count": 1}, second]}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"tag": "colors", "include": []}, "row 3 has no text under 'prompt'"),
        ({"tag": "color", "prompt": "a"}, r"row 3: tag must be one of single_object, .*; got 'color'"),
        ({"tag": "colors", "prompt": "a", "include": {}}, "row 3: include must be a list"),
        ({"tag": "colors", "prompt": "a", "include": []}, "row 3: include names no object"),
        (above(**{"class": "doge"}), r"row 3: there is no class 'doge' among COCO's 80 \(nearest: dog"),
        (above(**{"class": None}), "row 3: there is no class None"),
        (above(count=0), "row 3: count must be a whole number from 1, got 0"),
        (above(count=True), "row 3: count must be a whole number from 1, got True"),
        (above(color="crimson"), "row 3: color must be one of red, .*; got 'crimson'"),
        (above(position=["over", 0]), r"row 3: position must be \[one of left of, .*got \['over', 0\]"),
        (above(position="above"), "row 3: position must be"),
        (above(position=["above", 1]), "row 3: position must refer to an object before it, .*got 1"),
        (above(position=["above", -1]), "row 3: position must refer to an object before it"),
    ],
)
def test_other_rows_are_refused_saying_where(row: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_prompt(row, "row 3")
