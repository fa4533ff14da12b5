"""What cannot be scored is said in full before any scoring."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from drawn import an_image
from PIL import Image
from scored import FILES, Spy, evaluate, save_images, spies

from stepalign.data.manifest import ImageRow, read_scores
from stepalign.runs.scorer_names import scorer_entries


@pytest.fixture
def rows(tmp_path: Path) -> list[ImageRow]:
    """Two images of each of three prompts in the folder `images`."""
    return save_images(tmp_path / "images")


@pytest.fixture
def folder(tmp_path: Path, rows: list[ImageRow]) -> Path:
    return tmp_path / "images"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "scorers must be named, or something else measured"),
        (["pickscore", "hps"], r"scorers: there is no scorer 'hps'; there are pickscore, hps-v2\.0"),
        (["pickscore=a", "pickscore"], "scorers: pickscore is named twice"),
        (["miniature-aesthetic", "miniature-aesthetic"], "scorers: miniature-aesthetic is named twice"),
        (["aesthetic", "pickscore="], "'pickscore=' gives no path or hub id after the ="),
        (["aesthetic", "miniature-pickscore=here"], "miniature-pickscore comes with the package"),
    ],
)
def test_scorers_that_make_no_sense_are_refused_before_anything(entries: list[str], message: str, folder: Path) -> None:
    with spies() as found, pytest.raises(ValueError, match=message):
        evaluate(folder, *entries)
    assert found.loaded == []
    assert not any((folder / name).exists() for name in FILES)


def test_scorers_keep_their_order_and_their_paths() -> None:
    entries = ("aesthetic", "pickscore=a=b", "miniature-alignment")
    assert scorer_entries(entries) == dict(zip(("aesthetic", "pickscore", "miniature-alignment"), entries, strict=True))


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_of_none_is_refused(batch_size: int, folder: Path) -> None:
    with spies(), pytest.raises(ValueError, match=f"batch_size must be at least 1, got {batch_size}"):
        evaluate(folder, "pickscore", batch_size=batch_size)


def test_bad_images_are_counted_and_the_first_ten_named_before_any_scoring(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    rows = save_images(folder, [f"prompt {number}" for number in range(7)])
    for row in rows[:6]:
        (folder / row.file).unlink()
    for row in rows[6:11]:
        (folder / row.file).write_bytes((folder / row.file).read_bytes()[:60])
    (folder / rows[11].file).write_text("no image")
    with spies() as found, pytest.raises(ValueError, match=r"12 of 14 images of .* cannot be scored") as error:
        evaluate(folder, "pickscore")
    assert found.loaded == []
    said = str(error.value)
    assert [row.file for row in rows if row.file in said] == [row.file for row in rows[:10]]
    assert said.count("there is no file ") == 6
    assert said.endswith(", and 2 more")
    assert "\n" not in said


def test_an_image_too_small_for_a_style_is_named(folder: Path, rows: list[ImageRow]) -> None:
    an_image(2, 2).save(folder / rows[3].file)
    with spies(), pytest.raises(ValueError, match=rf"1 of 6 images .*{rows[3].file}.* at least 3 by 3 pixels"):
        evaluate(folder, "pickscore")


def test_a_score_that_is_no_number_names_the_images_and_keeps_what_was_scored(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = Spy.score
    with spies() as found:
        evaluate(folder, "pickscore")

    def broken(self: Spy, images: list[Image.Image], prompts: list[str]) -> torch.Tensor:
        scores = score(self, images, prompts)
        return scores * float("nan") if "a cat | a dog" in prompts else scores

    monkeypatch.setattr(Spy, "score", broken)
    with spies(), pytest.raises(ValueError, match=r"images/2-0\.png to images/2-1\.png: aesthetic gave 2 of 2 imag"):
        evaluate(folder, "aesthetic", batch_size=2)
    assert found.scored == {"pickscore": 6}
    assert [*read_scores(folder)[0].scores] == ["pickscore"]


def test_wrong_prompts_need_two_prompts_and_say_so_before_any_scoring(tmp_path: Path) -> None:
    save_images(tmp_path / "images", ["a cat"])
    with spies() as found, pytest.raises(ValueError, match="at least two distinct prompts, got 1"):
        evaluate(tmp_path / "images", "pickscore", wrong_prompts=True)
    assert found.loaded == []
