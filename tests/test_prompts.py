"""Prompt files that are read, those that are refused and why, and the order prompts come in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stepalign.prompts import PromptStream, load_prompts
from stepalign.seeding import EpochOrder, Purpose


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# Files


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lines.txt", "a cat\n\n  a dog  \nein Fuß, 猫\n"),
        ("LINES.TXT", "a cat\r\na dog\r\nein Fuß, 猫"),
        ("strings.json", '["a cat", "a dog", "ein Fuß, 猫"]'),
        ("prompts.json", '[{"prompt": "a cat"}, {"caption": "a dog"}, "ein Fuß, 猫"]'),
        ("rows.jsonl", '{"prompt": "a cat", "id": 1}\n\n{"caption": "a dog"}\n"ein Fu\\u00df, 猫"\n'),
        ("both.jsonl", '{"prompt": "a cat", "caption": "no"}\n"a dog"\n{"caption": "ein Fuß, 猫"}'),
    ],
)
def test_accepted_files_give_their_prompts_in_order(tmp_path: Path, name: str, text: str) -> None:
    assert load_prompts(written(tmp_path, name, text)) == ["a cat", "a dog", "ein Fuß, 猫"]
    assert load_prompts(str(tmp_path / name)) == ["a cat", "a dog", "ein Fuß, 猫"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("empty.txt", "", r"empty\.txt is empty; give at least one prompt"),
        ("blank.txt", " \n\n\t\n", r"blank\.txt is empty"),
        ("empty.json", "", r"empty\.json is empty"),
        ("none.json", "[]", r"none\.json is empty"),
        ("empty.jsonl", "\n\n", r"empty\.jsonl is empty"),
        ("broken.json", '["a cat",', r"broken\.json is not valid JSON"),
        ("broken.jsonl", '{"prompt": "a cat"}\n\n{"prompt":', r"broken\.jsonl line 3 is not valid JSON"),
        ("object.json", '{"prompt": "a cat"}', r"object\.json holds a JSON dict; a list of prompts is expected"),
        ("text.json", '"a cat"', r"text\.json holds a JSON str"),
        ("wrong.json", '["a cat", {"text": "a dog"}]', r"wrong\.json entry 2 has no text under 'prompt' or 'caption'"),
        ("number.jsonl", '{"prompt": 3}', r"number\.jsonl line 1 has no text"),
        ("blank.jsonl", '{"prompt": "a"}\n{"prompt": "  "}', r"blank\.jsonl line 2 has no text"),
        ("list.json", '[["a cat"]]', r"list\.json entry 1 has no text"),
        ("null.json", "[null]", r"null\.json entry 1 has no text"),
        ("prompts.csv", "a cat\n", r"prompts\.csv ends in '\.csv'; \.txt, \.json and \.jsonl are read"),
        ("prompts", "a cat\n", r"prompts ends in ''; \.txt"),
    ],
)
def test_files_of_another_shape_are_refused_saying_where(tmp_path: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(ValueError, match="^prompts: .*" + words):
        load_prompts(written(tmp_path, name, text))


@pytest.mark.parametrize("name", ["nowhere.txt", "."])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"^prompts: there is no file '.*'"):
        load_prompts(tmp_path / name)


@pytest.mark.parametrize("name", ["latin.txt", "latin.json", "latin.jsonl"])
def test_a_file_in_another_encoding_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes('["ein Fuß"]'.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"^prompts: .*{name}"):
        load_prompts(tmp_path / name)


def test_a_byte_order_mark_is_no_part_of_the_first_prompt(tmp_path: Path) -> None:
    (tmp_path / "bom.txt").write_bytes("a cat\n".encode("utf-8-sig"))
    (tmp_path / "bom.json").write_bytes(json.dumps(["a cat"]).encode("utf-8-sig"))
    assert load_prompts(tmp_path / "bom.txt") == ["a cat"]
    assert load_prompts(tmp_path / "bom.json") == ["a cat"]


def test_lines_end_where_lines_end_and_not_at_rare_separators(tmp_path: Path) -> None:
    text = json.dumps({"prompt": "one\u2028line\u0085"}, ensure_ascii=False)
    assert load_prompts(written(tmp_path, "separators.jsonl", f"{text}\n{text}\n")) == ["one\u2028line\u0085"] * 2


# Order


def epoch(stream: PromptStream, number: int) -> list[str]:
    size = len(stream.prompts)
    return [stream[position] for position in range(number * size, (number + 1) * size)]


def test_every_epoch_has_every_prompt_once_in_an_order_of_its_own() -> None:
    prompts = [str(number) for number in range(20)]
    stream = PromptStream(prompts, seed=0)
    epochs = [epoch(stream, number) for number in range(4)]
    assert all(sorted(order) == sorted(prompts) for order in epochs)
    assert len({tuple(order) for order in [prompts, *epochs]}) == 5


def test_the_order_is_decided_by_the_seed() -> None:
    prompts = [str(number) for number in range(20)]
    orders = [epoch(PromptStream(prompts, seed=seed), 1) for seed in (3, 3, 4)]
    assert orders[0] == orders[1] != orders[2]


def test_the_order_does_not_depend_on_what_was_read_before() -> None:
    prompts = [str(number) for number in range(20)]
    onward, jumping = PromptStream(prompts, seed=0), PromptStream(prompts, seed=0)
    for number in range(3):
        epoch(onward, number)
    assert [jumping[position] for position in (79, 5, 61, 60)] == [onward[position] for position in (79, 5, 61, 60)]


def test_a_stream_of_no_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match="prompts: none were given"):
        PromptStream([], seed=0)


def test_an_order_of_rows_is_an_endless_row_of_epochs_that_seed_and_purpose_decide() -> None:
    """The ninth epoch of seven rows is the same whether others were asked for before or not."""
    order = EpochOrder(7, seed=0, purpose=Purpose.JUDGE_ORDER)
    epochs = [[order[position] for position in range(start, start + 7)] for start in range(0, 63, 7)]
    assert all(sorted(rows) == list(range(7)) for rows in epochs)
    assert len({tuple(rows) for rows in epochs}) > 7
    jumping = EpochOrder(7, seed=0, purpose=Purpose.JUDGE_ORDER)
    assert [jumping[position] for position in (56, 3, 62, 0)] == [
        epochs[8][0],
        epochs[0][3],
        epochs[8][6],
        epochs[0][0],
    ]
    for seed, purpose in ((1, Purpose.JUDGE_ORDER), (0, Purpose.PROMPT_ORDER)):
        other = EpochOrder(7, seed=seed, purpose=purpose)
        assert [[other[position] for position in range(start, start + 7)] for start in range(0, 63, 7)] != epochs


def test_prompts_come_in_the_order_of_their_rows() -> None:
    order = EpochOrder(20, seed=5, purpose=Purpose.PROMPT_ORDER)
    stream = PromptStream([str(number) for number in range(20)], seed=5)
    assert [stream[position] for position in range(45)] == [str(order[position]) for position in range(45)]
