"""Files of prompts that are read, and those that are refused and why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stepalign.data.prompt_files import load_prompts, read_prompt_file


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lines.txt", "a cat\n\n  a dog  \nein Fuß, 猫\n"),
        ("LINES.TXT", "a cat\r\na dog\r\nein Fuß, 猫"),
        ("strings.json", '["a cat", "a dog", "ein Fuß, 猫"]'),
        ("prompts.json", '[{"prompt": "a cat"}, {"caption": "a dog"}, "ein Fuß, 猫"]'),
        ("rows.jsonl", '{"prompt": "a cat", "id": 1}\n\n{"caption": "a dog"}\n"ein Fu\\u00df, 猫"\n'),
        ("texts.json", '[{"text": "a cat"}, {"Prompt": "a dog"}, {"Caption": "ein Fuß, 猫"}]'),
        ("own.csv", 'tag,prompt\nx,a cat\n\ny,"a dog"\nz,"ein Fuß, 猫"\n'),
        ("OWN.CSV", 'Caption,Tag\r\na cat,x\r\na dog,x\r\n"ein Fuß, 猫"\r\n'),
        ("parti.tsv", "Prompt\tCategory\na cat\tArts\na dog\tArts\nein Fuß, 猫\t\n"),
        ("one.csv", 'text\na cat\na dog\n"ein Fuß, 猫"'),
        ("bom.csv", '\ufeffprompt\na cat\na dog\n"ein Fuß, 猫"'),
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
        ("wrong.json", '["a cat", {"words": "a dog"}]', r"wrong\.json entry 2 has no text under any of 'prompt', 'cap"),
        ("number.jsonl", '{"prompt": 3}', r"number\.jsonl line 1 has no text"),
        ("blank.jsonl", '{"prompt": "a"}\n{"prompt": "  "}', r"blank\.jsonl line 2 has no text"),
        ("list.json", '[["a cat"]]', r"list\.json entry 1 has no text"),
        ("null.json", "[null]", r"null\.json entry 1 has no text"),
        (
            "prompts.xlsx",
            "a cat\n",
            r"prompts\.xlsx ends in '\.xlsx'; \.txt, \.json, \.jsonl, \.csv and \.tsv",
        ),
        ("prompts", "a cat\n", r"prompts has no ending; \.txt"),
        ("deep.json", "[" * 100_000, r"deep\.json is nested too deeply"),
        ("half.jsonl", '"a"\n"b \\ud83d"', r"half\.jsonl line 2 holds half of a character, .ud83d at position 2"),
        ("half.json", '["b \\ud83d"]', r"half\.json entry 1 holds half of a character"),
        ("nul.txt", "a\nb\0\n", r"nul\.txt line 2 holds a NUL character"),
        ("nul.json", '["a\\u0000"]', r"nul\.json entry 1 holds a NUL character"),
        ("long.txt", "a" * 10_001, r"long\.txt line 1 has 10,001 characters; at most 10,000 are read"),
        ("empty.csv", "", r"empty\.csv is empty"),
        ("head.csv", "prompt,tag\n\n", r"head\.csv is empty"),
        (
            "bare.csv",
            "a cat\na dog\n",
            r"bare\.csv has no column prompt, caption or text in its first line, but",
        ),
        (
            "semi.csv",
            "prompt;tag\na;b\n",
            r"semi\.csv has no column .* but 'prompt;tag'; columns are",
        ),
        (
            "tabs.tsv",
            "prompt,tag\na,b\n",
            r"tabs\.tsv has no column .* but 'prompt,tag'; columns are",
        ),
        (
            "more.csv",
            "prompt,tag\na, b, c\n",
            r"more\.csv line 2 has 3 values for 2 columns; is there a comma",
        ),
        ("more.tsv", "prompt\na\tb\n", r"more\.tsv line 2 has 2 values for 1 columns; is there a tab, in a prompt"),
        ("none.csv", "prompt,tag\na,b\n,c\n", r"none\.csv line 3 has no text under any of"),
        ("open.csv", 'prompt\n"a cat\n', r"open\.csv line 2 is no table: unexpected end of data"),
        ("wide.csv", "prompt\n" + "a" * 200_000, r"wide\.csv line 2 is no table: field larger than field limit"),
    ],
)
def test_files_of_another_shape_are_refused_saying_where(tmp_path: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(ValueError, match="^prompts: .*" + words):
        load_prompts(written(tmp_path, name, text))


@pytest.mark.parametrize("name", ["nowhere.txt", "nowhere.tsv", "folder.txt"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(ValueError, match=rf"^prompts: (there is no file )?'.*{name}'"):
        load_prompts(tmp_path / name)


@pytest.mark.parametrize("name", ["latin.txt", "latin.json", "latin.jsonl", "latin.csv", "latin.tsv"])
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


def test_quotation_marks_belong_to_the_prompts_of_a_tsv_and_not_of_a_csv(tmp_path: Path) -> None:
    lines = ['A "large" red circle', '"G I G G L E" on a sign', '"a ""quoted"" prompt"', '"', '""']
    found = load_prompts(written(tmp_path, "a.tsv", "\n".join(["Prompt\tNote", *(f"{line}\tx" for line in lines)])))
    assert found == ['A "large" red circle', '"G I G G L E" on a sign', 'a "quoted" prompt', '"', '""']
    text = 'prompt\n"a ""large"", red\ncircle"\nA "large" one\n'
    assert load_prompts(written(tmp_path, "a.csv", text)) == ['a "large", red\ncircle', 'A "large" one']


def test_rows_are_kept_whole_where_all_are_objects(tmp_path: Path) -> None:
    table = read_prompt_file(written(tmp_path, "a.csv", "Prompt,Category\na cat,pets\na dog\n"))
    assert table.rows == [{"Prompt": "a cat", "Category": "pets"}, {"Prompt": "a dog"}]
    assert read_prompt_file(written(tmp_path, "a.json", '["a", {"prompt": "b"}]')).rows is None
    assert read_prompt_file(written(tmp_path, "a.txt", "a\n")).rows is None
