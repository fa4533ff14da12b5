"""Pairs made ready: which rows are left out and said to be, who labels them, and what happens when files are gone."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from judge_world import SIZE, Encoders, Rows, bright_or_dark
from preparing import BROKEN, Cut, CutEncoders, contents, images_of, latents_of, made
from torch import Tensor

from stepalign.core.batch import Conditioning
from stepalign.data import prepared
from stepalign.data.pairs import TooManyBadRows
from stepalign.data.prepared import prepare


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "SHARD_ROWS", 4)


# Rows that are left out


def test_bad_and_unlabelled_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = bright_or_dark(12)
    rows[1] = replace(rows[1], images=BROKEN)
    rows[5] = replace(rows[5], prompt=" ")
    rows[6] = replace(rows[6], label=None)
    rows[8:12] = [replace(row, label=None) for row in rows[8:12]]
    encoders = Encoders()
    pairs, manifest = made(tmp_path, rows, encoders, max_bad=2 / 12)
    assert pairs.prompts == [rows[row].prompt for row in (0, 2, 3, 4, 7)]
    assert pairs.label.tolist() == [rows[row].label for row in (0, 2, 3, 4, 7)]
    assert torch.equal(pairs.take([3, 4]).latents, latents_of(rows[4], rows[7]))
    assert (manifest.pairs, manifest.num_rows, manifest.num_unlabelled) == ("toy pairs", 12, 5)
    reasons = [(row.where, row.reason.partition(" the formats")[0]) for row in manifest.skipped]
    assert reasons == [
        ("row 1", "the first image: the bytes are no image that can be read: it is in none of"),
        ("row 5", "the caption is empty"),
    ]
    assert len(encoders.images) == 10


def test_too_many_bad_rows_stop_it_with_a_list_before_all_is_read(tmp_path: Path) -> None:
    """A tenth of forty rows may be bad; the fifth bad one is in the third shard of ten."""
    rows = bright_or_dark(40)
    for row in (0, 3, 4, 7, 10, 11, 30):
        rows[row] = replace(rows[row], images=BROKEN)
    source = Rows(rows)
    with pytest.raises(TooManyBadRows) as refused:
        made(tmp_path, source, max_bad=0.1)
    assert [row.where for row in refused.value.bad] == ["row 0", "row 3", "row 4", "row 7", "row 10", "row 11"]
    assert re.match(r"6 of 40 rows cannot be used, more than the 10 % allowed:\n  row 0: ", str(refused.value))
    assert source.num_read == 12
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize("counted", [True, False])
def test_as_many_bad_rows_as_allowed_are_no_reason_to_stop(tmp_path: Path, counted: bool) -> None:
    rows = bright_or_dark(10)
    rows[9] = replace(rows[9], images=BROKEN)
    assert len(made(tmp_path, Rows(rows, counted=counted), max_bad=0.1)[0]) == 9
    with pytest.raises(TooManyBadRows, match="1 of 10 rows cannot be used, more than the 9 % allowed"):
        made(tmp_path, rows, max_bad=0.09)


def test_a_source_of_unknown_length_is_refused_at_its_end(tmp_path: Path) -> None:
    rows = bright_or_dark(10)
    rows[0] = replace(rows[0], images=BROKEN)
    with pytest.raises(TooManyBadRows, match="row 0: the first image"):
        made(tmp_path, Rows(rows, counted=False), max_bad=0.05)


def test_bad_rows_of_shards_that_were_there_count_too(tmp_path: Path) -> None:
    """Two bad rows before the cut and one after, of ten; one alone would be allowed."""
    rows = bright_or_dark(10)
    for row in (0, 1, 9):
        rows[row] = replace(rows[row], images=BROKEN)
    with pytest.raises(Cut):
        made(tmp_path, rows, CutEncoders(images=4), max_bad=0.25)
    with pytest.raises(TooManyBadRows, match=r"3 of 10 rows(.|\n)*row 0(.|\n)*row 1(.|\n)*row 9"):
        made(tmp_path, rows, max_bad=0.25)


@pytest.mark.parametrize("counted", [True, False])
def test_rows_that_are_all_without_a_label_are_refused(tmp_path: Path, counted: bool) -> None:
    rows = [replace(row, label=None) for row in bright_or_dark(6)]
    with pytest.raises(ValueError, match=r"^data\.pairs: none of the 6 rows of toy pairs has a label"):
        made(tmp_path, Rows(rows, counted=counted))


@pytest.mark.parametrize("counted", [True, False])
def test_rows_that_are_all_bad_are_refused_with_a_list(tmp_path: Path, counted: bool) -> None:
    rows = [replace(row, images=BROKEN) for row in bright_or_dark(6)]
    with pytest.raises(TooManyBadRows, match="of 6 rows cannot be used"):
        made(tmp_path, Rows(rows, counted=counted), max_bad=0.01)


# New labels


def test_new_labels_replace_peoples_and_are_asked_for_once_per_pair_ever(tmp_path: Path) -> None:
    """Of pairs without a label as well; here a label says whether the first image is the darker one."""
    rows = bright_or_dark(10)
    rows[2] = replace(rows[2], label=None)
    asked: list[str] = []

    def label(images: Tensor, prompts: list[str]) -> Tensor:
        asked.extend(prompts)
        brightness = images.mean((2, 3, 4))
        assert images.shape[1:] == (2, 3, *SIZE)
        assert 0.2 < brightness.abs().min() <= images.abs().max() <= 1
        return (brightness[:, 0] < brightness[:, 1]).float()

    with pytest.raises(Cut):
        made(tmp_path, rows, CutEncoders(images=8), label=label)
    for _ in range(2):
        pairs, manifest = made(tmp_path, rows, label=label)
    darker = [float(images[0].mean() < images[1].mean()) for images in map(images_of, rows)]
    assert pairs.label.tolist() == darker
    assert {0.0, 1.0} == set(darker)
    assert asked == [row.prompt for row in rows]
    assert (manifest.num_rows, manifest.num_unlabelled) == (10, 0)


# Files that are gone


def vanish(path: Path) -> None:
    path.unlink()


def be_cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("happen", [vanish, be_cut_short])
def test_a_shard_that_is_lost_while_it_is_in_use_is_named(tmp_path: Path, happen: Callable[[Path], None]) -> None:
    pairs, _ = made(tmp_path, bright_or_dark(10))
    happen(tmp_path / "pairs-000001.safetensors")
    assert len(pairs.take([0, 9]).latents) == 2
    with pytest.raises(ValueError, match=r"^data\.cache: .*pairs-000001\.safetensors cannot be read any more"):
        pairs.take([0, 5])


@pytest.mark.parametrize("name", ["pairs-000001.safetensors", "prompts-000001.safetensors"])
def test_a_shard_that_is_gone_from_a_complete_folder_is_made_anew(tmp_path: Path, name: str) -> None:
    rows = bright_or_dark(10)
    expected = made(tmp_path, rows)[0].take(list(range(10)))
    (tmp_path / name).unlink()
    pairs, _ = made(tmp_path, rows)
    assert len(pairs) == 10
    found = pairs.take(list(range(10)))
    assert torch.equal(found.latents, expected.latents)
    assert torch.equal(found.cond.tokens, expected.cond.tokens)


class Overflowing(Encoders):
    """A VAE or a text encoder that overflows for one of its inputs."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def encode(self, prompts: list[str]) -> Conditioning:
        cond = super().encode(prompts)
        return cond.map(lambda value: value * float("nan")) if self.what == "prompts" else cond

    def encode_images(self, images: Tensor) -> Tensor:
        latents = super().encode_images(images)
        if self.what == "images":
            latents[1::2] = float("inf")
        return latents


@pytest.mark.parametrize(
    ("what", "said"),
    [("images", r"^data.pairs: image 1 of .*: latents of the VAE: .* not finite"), ("prompts", "the text encoder's")],
)
def test_what_is_not_finite_is_named_and_not_kept(tmp_path: Path, what: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made(tmp_path, bright_or_dark(4), Overflowing(what))
    assert not (tmp_path / "manifest.json").exists()
    assert not any(path.name.startswith("prompts" if what == "prompts" else "pairs") for path in tmp_path.iterdir())


@pytest.mark.parametrize("name", ["pairs-000000.safetensors", "prompts-000000.safetensors", "manifest.json"])
def test_a_damaged_file_is_named_and_made_again(tmp_path: Path, name: str) -> None:
    rows, notes = Rows(bright_or_dark(5)), []
    made(tmp_path, rows)
    before = contents(tmp_path)
    damaged = bytearray(before[name])
    damaged[-3 if name != "manifest.json" else 0] ^= 4
    (tmp_path / name).write_bytes(damaged)
    (tmp_path / f".{name}.12.tmp").write_bytes(b"half a fi")
    prepare(rows, tmp_path, encoder=Encoders().of_pairs(), tell=notes.append)
    assert contents(tmp_path) == before
    assert name in notes[0]
    assert "damaged" in notes[0]
