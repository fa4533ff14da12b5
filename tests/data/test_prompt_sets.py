"""Published prompt sets, from files and a hub that is not there; what is shipped; what is refused and how to go on."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from huggingface_hub.errors import LocalEntryNotFoundError

from stepalign.data import prompt_sets
from stepalign.data.prompt_sets import FOLDER_VARIABLE, KNOWN, SHIPPED, STYLES, load_prompt_set


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(repository: str, file: str) -> Path:
        raise LocalEntryNotFoundError("the hub cannot be found\nand more")

    monkeypatch.setattr(prompt_sets, "download", refuse)
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)


def unpinned(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(KNOWN, name, replace(KNOWN[name], sha256=None))


def written(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def benchmark(folder: Path, **changed: Any) -> Path:
    for style in STYLES:
        texts = changed.get(style.replace("-", "_"), [f"{style} {number}" for number in range(800)])
        written(folder / "benchmark" / f"{style}.json", json.dumps(texts))
    return folder


def parti(rows: int = 1632) -> str:
    lines = [f"prompt {number} \tAnimals\tBasic\t" for number in range(rows - 2)]
    lines += ['"G I G" on a sign\tArts\tComplex\ta "note', "the end\tArts\tComplex\t"]
    return "Prompt\tCategory\tChallenge\tNote\n" + "\n".join(lines) + "\n"


# What is shipped


def test_geneval_has_its_553_prompts_by_task() -> None:
    """The paper's numbers; counts and relations as in the repository's file."""
    found = load_prompt_set("geneval")
    assert Counter(found.categories) == {
        "single_object": 80,
        "two_object": 99,
        "counting": 80,
        "colors": 94,
        "position": 100,
        "color_attr": 100,
    }
    rows = found.metadata or []
    assert [row["prompt"] for row in rows] == found.prompts
    assert len(set(found.prompts)) == 553
    counts = Counter(row["include"][0]["count"] for row in rows if row["tag"] == "counting")
    assert counts == {2: 26, 3: 28, 4: 26}
    relations = Counter(row["include"][1]["position"][0] for row in rows if row["tag"] == "position")
    assert relations == {"below": 28, "right of": 27, "above": 26, "left of": 19}
    assert found.licence.startswith("MIT")
    assert found.source == "shipped with stepalign"


def test_what_is_shipped_is_small_and_says_whose_it_is() -> None:
    files = {path.name: path.read_bytes() for path in SHIPPED.iterdir()}
    assert files.keys() == {"geneval.jsonl", "NOTICE"}
    assert sum(map(len, files.values())) < 150_000
    notice = files["NOTICE"].decode()
    assert "Copyright (c) 2023 Dhruba Ghosh" in notice
    assert all(name in notice for name in files if name != "NOTICE")
    assert hashlib.sha256(files["geneval.jsonl"]).hexdigest() == KNOWN["geneval"].sha256


# Files


def test_pick_a_pic_is_the_captions_of_a_parquet_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captions = [f"caption {number % 499}" for number in range(500)]
    for name in ("pick-a-pic-v1-validation", "pick-a-pic-v1-test", "pick-a-pic-v2-validation", "pick-a-pic-v2-test"):
        unpinned(monkeypatch, name)
        known = KNOWN[name]
        assert known.repository == f"yuvalkirstain/pickapic_{name[11:13]}_no_images"
        assert known.files[0].startswith(f"data/{name[14:]}_unique-")
        path = tmp_path / name / known.files[0]
        path.parent.mkdir(parents=True)
        Dataset.from_dict({"label_0": [0.5] * 500, "caption": captions}).to_parquet(path)
        found = load_prompt_set(name, folder=tmp_path / name)
        assert (found.prompts, found.categories, found.metadata) == (captions, None, None)
        assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert found.source == f"{known.repository}: {known.files[0]}"


def test_another_file_under_a_pinned_name_is_refused(tmp_path: Path) -> None:
    name = "pick-a-pic-v1-validation"
    written(tmp_path / KNOWN[name].files[0], "something else")
    with pytest.raises(ValueError, match=rf"847ed34b90bbafc3\.parquet is not the file that {name} was published as"):
        load_prompt_set(name, folder=tmp_path)


def test_the_hpdv2_benchmark_is_four_styles_in_order(tmp_path: Path) -> None:
    found = load_prompt_set("hpdv2-benchmark", folder=benchmark(tmp_path))
    assert len(found.prompts) == 3200
    assert [found.prompts[number] for number in (0, 799, 800, 1600, 2400, 3199)] == [
        "anime 0",
        "anime 799",
        "concept-art 0",
        "paintings 0",
        "photo 0",
        "photo 799",
    ]
    assert found.categories is not None
    assert [found.categories[number] for number in (799, 800, 2399, 2400)] == [
        "anime",
        "concept-art",
        "paintings",
        "photo",
    ]
    digests = [hashlib.sha256((tmp_path / f"benchmark/{style}.json").read_bytes()).hexdigest() for style in STYLES]
    assert found.sha256 == hashlib.sha256("\n".join(digests).encode()).hexdigest()


def test_hpdv2_s_test_prompts_keep_their_rows(tmp_path: Path) -> None:
    rows = [{"prompt": f"prompt {number}", "image_path": ["a"], "rank": [1]} for number in range(400)]
    written(tmp_path / "test.json", json.dumps(rows))
    found = load_prompt_set("hpdv2-test", folder=tmp_path)
    assert found.prompts[399] == "prompt 399"
    assert found.metadata == rows


def test_parti_keeps_its_quotation_marks_and_spaces(tmp_path: Path) -> None:
    written(tmp_path / "PartiPrompts.tsv", parti())
    found = load_prompt_set("parti", folder=tmp_path)
    assert found.prompts[0] == "prompt 0 "
    assert found.prompts[1630] == '"G I G" on a sign'
    assert found.categories is not None
    assert (found.categories[0], found.categories[1630]) == ("Animals", "Arts")
    assert (found.metadata or [])[1630]["Note"] == 'a "note'


@pytest.mark.parametrize("place", ["PartiPrompts.tsv", "parti-prompts/PartiPrompts.tsv"])
def test_a_folder_may_be_given_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    written(tmp_path / place, parti())
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert len(load_prompt_set("parti").prompts) == 1632
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="out of reach"):
        load_prompt_set("parti", folder=empty)
    with pytest.raises(
        ValueError, match=r"nowhere is no folder; it should hold PartiPrompts\.tsv of nateraw/parti-pro"
    ):
        load_prompt_set("parti", folder=tmp_path / "nowhere")


def test_what_no_folder_has_is_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repository: str, file: str) -> Path:
        asked.append((repository, file))
        return benchmark(tmp_path / "cache") / file

    monkeypatch.setattr(prompt_sets, "download", download)
    assert len(load_prompt_set("hpdv2-benchmark").prompts) == 3200
    assert asked == [("ymhao/HPDv2", f"benchmark/{style}.json") for style in STYLES]


def test_a_hub_out_of_reach_says_how_to_go_on() -> None:
    words = (
        r"parti needs PartiPrompts\.tsv of the hub's dataset nateraw/parti-prompts, which is out of reach \(the hub "
        r"cannot be found\); run `hf download nateraw/parti-prompts PartiPrompts\.tsv --repo-type dataset --local-dir "
        r"FOLDER` .* name the folder in STEPALIGN_PROMPTS"
    )
    with pytest.raises(ValueError, match=words):
        load_prompt_set("parti")


@pytest.mark.parametrize(
    ("name", "file", "content", "words"),
    [
        ("parti", "PartiPrompts.tsv", parti(1631), r"parti has 1632 prompts; .*PartiPrompts\.tsv has 1631"),
        (
            "parti",
            "PartiPrompts.tsv",
            parti().replace("prompt 7 ", " "),
            "cannot be read as parti: ValueError: prompt 8 is empty",
        ),
        ("parti", "PartiPrompts.tsv", "Text\n", "has 0"),
        ("parti", "PartiPrompts.tsv", "Text\nx\n", "cannot be read as parti: KeyError: 'Prompt'"),
        ("hpdv2-test", "test.json", "{", "cannot be read as hpdv2-test: ValueError: the file is not valid JSON"),
        ("hpdv2-test", "test.json", '["a"]', "cannot be read as hpdv2-test: TypeError"),
        (
            "hpdv2-test",
            "test.json",
            '[{"prompt": 3}]',
            "cannot be read as hpdv2-test: ValueError: prompt 1 is of type int, not text",
        ),
        ("pick-a-pic-v2-validation", KNOWN["pick-a-pic-v2-validation"].files[0], "PAR1", "cannot be read as pick-a"),
    ],
)
def test_files_that_are_not_the_set_s_are_refused(
    tmp_path: Path, name: str, file: str, content: str, words: str
) -> None:
    written(tmp_path / file, content)
    with pytest.raises(ValueError, match=words):
        load_prompt_set(name, folder=tmp_path)


def test_a_style_with_too_few_prompts_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a list of 800 prompts is wanted for the style concept-art"):
        load_prompt_set("hpdv2-benchmark", folder=benchmark(tmp_path, concept_art=["a"] * 799, photo=["b"] * 801))


# One's own


def test_any_file_of_prompts_is_a_set(tmp_path: Path) -> None:
    path = written(
        tmp_path / "mine.jsonl", '{"prompt": "a cat", "category": "pets"}\n\n{"caption": "a bus", "tag": "cars"}\n'
    )
    found = load_prompt_set(str(path))
    assert (found.name, found.prompts, found.categories) == ("mine", ["a cat", "a bus"], ["pets", "cars"])
    assert found.metadata == [{"prompt": "a cat", "category": "pets"}, {"caption": "a bus", "tag": "cars"}]
    assert (found.source, found.sha256) == ("mine.jsonl", hashlib.sha256(path.read_bytes()).hexdigest())
    mixed = load_prompt_set(str(written(tmp_path / "mixed.json", '["a cat", {"prompt": "a bus"}]')))
    assert (mixed.prompts, mixed.categories, mixed.metadata) == (["a cat", "a bus"], None, None)
    lines = load_prompt_set(str(written(tmp_path / "lines.txt", "a cat\na bus\n")))
    assert (lines.prompts, lines.categories, lines.metadata) == (["a cat", "a bus"], None, None)


def test_geneval_s_own_rows_are_read_as_it_is(tmp_path: Path) -> None:
    path = written(tmp_path / "copy.jsonl", (SHIPPED / "geneval.jsonl").read_text())
    copy, shipped = load_prompt_set(str(path)), load_prompt_set("geneval")
    assert (copy.prompts, copy.categories, copy.metadata) == (shipped.prompts, shipped.categories, shipped.metadata)


def test_a_caller_brings_sets_of_its_own() -> None:
    found = load_prompt_set("miniature", own={"miniature": ["a small red circle"]})
    assert (found.name, found.prompts, found.source) == ("miniature", ["a small red circle"], "miniature")
    other = load_prompt_set("miniature", own={"miniature": ["a small red ring"]})
    assert found.sha256 != other.sha256
    with pytest.raises(ValueError, match="miniature is empty"):
        load_prompt_set("miniature", own={"miniature": []})


def test_an_unknown_name_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no set 'parti-prompts'.*known: miniature, pick-a-pic-v1-validation, .*geneval"
    ):
        load_prompt_set("parti-prompts", own={"miniature": ["a"]})
    with pytest.raises(ValueError, match=r"no set 'gen-eval' \(nearest: geneval"):
        load_prompt_set("gen-eval")
    for name in ("none.txt", "none.tsv", "folder/none"):
        with pytest.raises(ValueError, match=f"there is no file .*{name}"):
            load_prompt_set(str(tmp_path / name))
    with pytest.raises(ValueError, match=r"p\.xlsx ends in '\.xlsx'; \.txt, \.json, \.jsonl, \.csv and \.tsv"):
        load_prompt_set(str(written(tmp_path / "p.xlsx", "a cat")))


def test_a_table_is_a_set_with_categories(tmp_path: Path) -> None:
    path = written(tmp_path / "mine.tsv", "Prompt\tCategory\na cat\tpets\na bus\tcars\n")
    found = load_prompt_set(str(path))
    assert (found.name, found.prompts, found.categories) == ("mine", ["a cat", "a bus"], ["pets", "cars"])
