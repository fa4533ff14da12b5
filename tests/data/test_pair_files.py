"""Lines of JSON, and folders of winners and losers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from pair_sources import IMAGES, found, image_folder, jsonl, parquet

from stepalign.data.sources import open_pairs

GOOD = {"prompt": "a cat", "image_0": "images/red.png", "image_1": "images/blue.png", "label": 1}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "images")


def test_lines_in_another_encoding_are_bad_rows(images: Path) -> None:
    path = Path(jsonl(images))
    path.write_bytes(json.dumps(GOOD).encode("utf-8-sig") + b'\r\n{"prompt": "Fu\xdf"}\r\n')
    good, bad = found(open_pairs(str(path)))
    assert good[1] == "a cat"
    assert bad == ("pairs.jsonl line 2", "the line is not UTF-8 text")


def test_a_fingerprint_of_lines_sees_an_image_that_was_repaired_or_is_gone(images: Path) -> None:
    path = jsonl(images, GOOD)
    before = open_pairs(path).fingerprint
    (images / "images/red.png").write_bytes(IMAGES["red"] + b"\0")
    repaired = open_pairs(path).fingerprint
    (images / "images/red.png").unlink()
    assert len({before, repaired, open_pairs(path).fingerprint}) == 3


def replaced(file: Path, content: bytes) -> None:
    """Other content of the same size and time of modification."""
    stat = file.stat()
    assert len(content) == stat.st_size
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_fingerprint_sees_an_image_replaced_by_one_of_its_size_and_time(images: Path, tmp_path: Path) -> None:
    """In lines of JSON, in a folder of winners and losers, and named by a table."""
    folder = tmp_path / "pairs"
    for side, colour in (("win", "red"), ("lose", "blue")):
        (folder / side).mkdir(parents=True)
        (folder / side / "a.png").write_bytes(IMAGES[colour])
        (folder / side / "a.txt").write_text("a cat", encoding="utf-8")
    rows = [{"prompt": "a cat", "chosen": "images/red.png", "rejected": "images/blue.png"}]
    sources = {
        jsonl(images, GOOD): images / "images/red.png",
        parquet(images / "a.parquet", rows): images / "images/red.png",
        str(folder): folder / "win/a.png",
    }
    before = {source: open_pairs(source).fingerprint for source in sources}
    for file in sources.values():
        content = bytearray(IMAGES["red"])
        content[-20] ^= 1
        replaced(file, bytes(content))
    assert all(open_pairs(source).fingerprint != before[source] for source in sources)


def test_a_fingerprint_of_lines_is_of_their_text(images: Path) -> None:
    path = jsonl(images, GOOD)
    before = open_pairs(path).fingerprint
    os.utime(path, ns=(0, 0))
    assert open_pairs(path).fingerprint == before
    assert open_pairs(jsonl(images, GOOD, name="copy.jsonl")).fingerprint == before
    assert open_pairs(jsonl(images, GOOD | {"label": 0})).fingerprint != before


def test_a_folder_of_winners_and_losers_is_paired_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    for path, colour in {
        "win/b.cat.PNG": "red",
        "lose/b.cat.jpg": "blue",
        "win/a.png": "lime",
        "lose/a.png": "black",
        "win/c.png": "red",
        "lose/d.png": "red",
        "win/e.png": "red",
        "lose/e.png": "blue",
        "win/f.png": "red",
        "win/f.jpg": "red",
        "lose/f.png": "blue",
        "win/g.png": "red",
        "lose/g.png": "blue",
        "win/h.png": "red",
        "lose/h.png": "blue",
        "win/._a.png": "red",
        "win/sub.png/x.png": "red",
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(IMAGES[colour])
    for path, text in {
        "win/a.txt": " a lime thing\n",
        "lose/b.cat.caption": "a cat",
        "c.txt": "c",
        "d.txt": "d",
        "win/f.txt": "f",
        "win/g.txt": "one",
        "g.txt": "two",
        "win/.hidden": "",
        "lose/notes.md": "",
    }.items():
        (folder / path).write_text(text, encoding="utf-8")
    (folder / "h.txt").write_bytes("Fuß".encode("latin-1"))
    source = open_pairs(str(folder))
    assert source.num_rows == 8
    *first, undecodable = found(source)
    assert first == [
        ("a.png", "a lime thing", "lime black", 1.0, 1.0),
        ("b.cat.PNG", "a cat", "red blue", 1.0, 1.0),
        ("c.png", "there is no image lose/c.*"),
        ("d.png", "there is no image win/d.*"),
        ("e.png", "there is no caption e.txt or e.caption in win/, in lose/ or beside them"),
        ("f.jpg", "win/ has f.jpg and f.png; one of them is expected"),
        ("g.png", "there are different captions in win/g.txt, g.txt"),
    ]
    assert undecodable[0] == "h.png"
    assert undecodable[1].startswith("the caption h.txt cannot be read: ")
    assert "is not UTF-8 text" in undecodable[1]


@pytest.mark.parametrize(("there", "missing"), [("win", "lose"), ("lose", "win")])
def test_half_a_folder_is_refused(tmp_path: Path, there: str, missing: str) -> None:
    (tmp_path / "half" / there).mkdir(parents=True)
    with pytest.raises(ValueError, match=f"half has no folder {missing}/; pairs need win/ and lose/"):
        open_pairs(str(tmp_path / "half"))


def test_captions_and_images_of_a_folder_stay_inside_it(tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    for side in ("win", "lose"):
        (folder / side).mkdir(parents=True)
        for name in "abc":
            (folder / side / f"{name}.png").write_bytes(IMAGES["red"])
    for name in "ab":
        (folder / f"{name}.txt").write_text("a cat", encoding="utf-8")
    outside = tmp_path / "outside.png"
    (folder / "win/a.png").rename(outside)
    (folder / "win/a.png").symlink_to(outside)
    (tmp_path / "c.txt").write_text("a dog", encoding="utf-8")
    (folder / "c.txt").symlink_to(tmp_path / "c.txt")
    first, second, third = found(open_pairs(str(folder)))
    assert first[1].startswith("the image 'win/a.png' leads out of")
    assert second == ("b.png", "a cat", "red red", 1.0, 1.0)
    assert third[1].startswith("'c.txt' leads out of")
    assert [row[1] for row in found(open_pairs(str(folder), allow_outside=True))] == ["a cat", "a cat", "a dog"]


def test_a_file_in_utf_16_is_named_as_that(tmp_path: Path) -> None:
    for name in ("pairs.jsonl", "pairs.json"):
        (tmp_path / name).write_text(json.dumps([GOOD]), encoding="utf-16")
        with pytest.raises(ValueError, match=rf"^data.pairs: .*{name} is UTF-16 or UTF-32 text; save it as UTF-8"):
            open_pairs(str(tmp_path / name))


@pytest.mark.parametrize(
    ("text", "reason"),
    [("{}", "holds a JSON dict; a list of objects is expected"), ("[", "is not valid JSON"), ("[]", "is empty")],
)
def test_a_json_file_that_is_no_list_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"^data\.pairs: .*a\.json {reason}"):
        open_pairs(str(tmp_path / "a.json"))


def test_an_image_that_cannot_be_looked_at_is_a_bad_row_of_its_own(images: Path) -> None:
    """A loop of links, a pipe and a name that is too long between good rows."""
    (images / "loop.png").symlink_to("loop.png")
    os.mkfifo(images / "pipe.png")
    lines = [GOOD | {"image_0": name} for name in ("loop.png", "pipe.png", "a" * 300 + ".png")]
    first, *bad, last = found(open_pairs(jsonl(images, GOOD, *lines, GOOD)))
    assert first[1] == last[1] == "a cat"
    for row, reason in zip(bad, ("symbolic links", "no regular file", "longer than"), strict=True):
        assert reason in row[1]
