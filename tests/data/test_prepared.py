"""Pairs made ready once: what training takes from the folder is what the encoders gave, however it came about."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from judge_world import PROMPTS, SIZE, Encoders, Rows, bright_or_dark
from preparing import Cut, CutEncoders, contents, images_of, latents_of, made
from torch import Tensor

from stepalign.core.batch import Conditioning
from stepalign.data import prepared
from stepalign.data.pairs import read, to_tensor
from stepalign.data.prepared import PairEncoder, prepare
from stepalign.models.base import BaseModel


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "SHARD_ROWS", 4)


# The same as encoding the images


def test_what_is_taken_is_what_the_encoders_gave(tmp_path: Path) -> None:
    rows = bright_or_dark(10)
    pairs, _ = made(tmp_path, rows)
    order = [7, 0, 9, 3, 3, 8]
    batch = pairs.take(order)
    cond = Encoders().encode([rows[row].prompt for row in order])
    assert torch.equal(batch.latents, latents_of(*(rows[row] for row in order)))
    for field in ("tokens", "pooled", "time_ids"):
        assert torch.equal(getattr(batch.cond, field), getattr(cond, field))
    assert batch.prompts == [rows[row].prompt for row in order]
    assert batch.label.tolist() == [rows[row].label for row in order]
    assert torch.equal(batch.weight, torch.tensor([rows[row].weight for row in order]))


def test_a_real_models_encodings_come_back_bit_by_bit_in_their_own_precision(
    tmp_path: Path, tiny_sdxl: BaseModel
) -> None:
    rows = bright_or_dark(4)

    def encode(prompts: list[str]) -> Conditioning:
        return replace(tiny_sdxl.encode(prompts), tokens=tiny_sdxl.encode(prompts).tokens.bfloat16())

    encoder = PairEncoder(encode, tiny_sdxl.encode_images, tiny_sdxl.image_size, batch_size=4)
    batch = prepare(Rows(rows), tmp_path, encoder=encoder)[0].take([0, 1, 2, 3])
    images = [to_tensor(image, tiny_sdxl.image_size) for row in rows for image in read(row).images]
    latents = tiny_sdxl.encode_images(torch.stack(images)).unflatten(0, (-1, 2))
    cond = encode([row.prompt for row in rows])
    assert torch.equal(batch.latents, latents)
    assert batch.cond.tokens.dtype == torch.bfloat16
    for field in ("tokens", "pooled", "time_ids"):
        assert torch.equal(getattr(batch.cond, field), getattr(cond, field))


def test_a_base_without_pooled_embeddings_gets_none(tmp_path: Path) -> None:
    encoder = PairEncoder(lambda prompts: Conditioning(torch.ones(len(prompts), 2, 4)), Encoders().encode_images, SIZE)
    batch = prepare(Rows(bright_or_dark(3)), tmp_path, encoder=encoder)[0].take([0, 2])
    assert batch.cond.tokens.shape == (2, 2, 4)
    assert batch.cond.pooled is batch.cond.time_ids is None


def test_selected_pairs_are_those_rows_in_that_order(tmp_path: Path) -> None:
    pairs, _ = made(tmp_path, bright_or_dark(10))
    part = pairs.select([9, 2, 5])
    assert (len(pairs), len(part)) == (10, 3)
    assert part.prompts == [pairs.prompts[row] for row in (9, 2, 5)]
    again, expected = part.take([2, 0]), pairs.take([5, 9])
    assert torch.equal(again.latents, expected.latents)
    assert torch.equal(again.cond.tokens, expected.cond.tokens)
    assert torch.equal(again.label, expected.label)
    assert torch.equal(again.weight, expected.weight)


def test_the_digest_tells_prompts_labels_weights_and_order_apart(tmp_path: Path) -> None:
    pairs, _ = made(tmp_path, bright_or_dark(10))
    others = [
        pairs,
        pairs.select([1, 0, *range(2, 10)]),
        pairs.select(list(range(9))),
        replace(pairs, label=1 - pairs.label),
        replace(pairs, weight=2 * pairs.weight),
        replace(pairs, prompts=["a dot"] * 10),
    ]
    assert len({other.digest() for other in others}) == 6
    assert pairs.select(list(range(10))).digest() == pairs.digest()


# Once


def test_each_image_and_each_distinct_prompt_is_encoded_once(tmp_path: Path) -> None:
    """Ten pairs, three at a time within shards of four; five prompts in two shards."""
    encoders = Encoders()
    made(tmp_path, bright_or_dark(10), encoders, batch_size=3)
    assert len(encoders.images) == 20
    assert encoders.prompts == PROMPTS
    names = [f"pairs-{shard:06d}.safetensors" for shard in range(3)]
    names += [f"prompts-{shard:06d}.safetensors" for shard in range(2)]
    assert sorted(contents(tmp_path)) == ["manifest.json", *names]


def test_a_complete_folder_is_only_opened(tmp_path: Path) -> None:
    rows = bright_or_dark(10)
    pairs, manifest = made(tmp_path, rows)
    before, source, encoders = contents(tmp_path), Rows(rows), Encoders()
    again, same = made(tmp_path, source, encoders)
    assert (source.starts, encoders.images, encoders.prompts) == ([], [], [])
    assert contents(tmp_path) == before
    assert same == manifest
    assert again.digest() == pairs.digest()
    assert again.places == pairs.places


@pytest.mark.parametrize(
    ("cut", "kept", "start", "images_left", "prompts_left"),
    [
        ({"images": 0}, 0, 0, 20, 5),
        ({"images": 14}, 1, 4, 12, 5),
        ({"images": 16}, 2, 8, 4, 5),
        ({"prompts": 0}, 3, 12, 0, 5),
        ({"prompts": 4}, 4, 12, 0, 1),
    ],
)
def test_preparing_again_goes_on_where_it_was_cut(
    tmp_path: Path, cut: dict[str, int], kept: int, start: int, images_left: int, prompts_left: int
) -> None:
    """Ten pairs in shards of four, two pairs at a time: fourteen images are one shard and three quarters."""
    rows, encoders, source = bright_or_dark(10), Encoders(), Rows(bright_or_dark(10))
    with pytest.raises(Cut):
        made(tmp_path / "cut", rows, CutEncoders(**cut), batch_size=2)
    assert len(contents(tmp_path / "cut")) == kept
    made(tmp_path / "cut", source, encoders, batch_size=2)
    made(tmp_path / "whole", rows, batch_size=2)
    assert source.starts == [start]
    assert (len(encoders.images), len(encoders.prompts)) == (images_left, prompts_left)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_shard_that_is_missing_in_the_middle_is_made_alone(tmp_path: Path) -> None:
    rows, encoders = bright_or_dark(10), Encoders()
    made(tmp_path, rows)
    before = contents(tmp_path)
    for name in ("manifest.json", "pairs-000001.safetensors"):
        (tmp_path / name).unlink()
    made(tmp_path, rows, encoders)
    assert torch.equal(torch.stack(encoders.images), torch.cat([images_of(row) for row in rows[4:8]]))
    assert contents(tmp_path) == before


# What it says


def test_the_disk_used_is_said_before_and_counted_after(tmp_path: Path) -> None:
    """Two latents of 4 · 256 · 256 numbers of 4 bytes are 2.1 MB a pair: 21 MB for ten."""
    told: list[str] = []
    ticks: list[tuple[int, int]] = []
    encoder = PairEncoder(Encoders().encode, lambda images: torch.zeros(len(images), 4, 256, 256), SIZE)
    _, manifest = prepare(
        Rows(bright_or_dark(10)),
        tmp_path,
        encoder=encoder,
        tell=told.append,
        tick=lambda *tick: ticks.append(tick),
    )
    sizes = [path.stat().st_size for path in tmp_path.glob("*.safetensors")]
    assert manifest.num_bytes == sum(sizes) > 20_971_520
    assert told == [
        f"encoding 10 rows once: about 21 MB of latents in {tmp_path}",
        f"toy pairs: 10 pairs ready, 21 MB in {tmp_path}",
    ]
    assert ticks == [(4, 10), (8, 10), (10, 10)]


def test_a_source_of_unknown_length_is_read_to_its_end(tmp_path: Path) -> None:
    rows = bright_or_dark(10)
    pairs, manifest = made(tmp_path / "stream", Rows(rows, counted=False))
    assert (len(pairs), manifest.num_rows) == (10, 10)
    assert pairs.digest() == made(tmp_path / "list", rows)[0].digest()


@pytest.mark.parametrize(("free", "fits"), [(4 * 2_097_152, False), (7 * 2_097_152, True)])
def test_a_disk_that_is_too_small_is_found_out_after_the_first_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, fits: bool
) -> None:
    """Ten pairs of 2.1 MB, of which six are left after the first four."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, free))
    seen: list[Tensor] = []

    def encode_images(images: Tensor) -> Tensor:
        seen.extend(images)
        return torch.zeros(len(images), 4, 256, 256)

    encoder = PairEncoder(Encoders().encode, encode_images, SIZE)
    if fits:
        prepare(Rows(bright_or_dark(10)), tmp_path, encoder=encoder)
        return
    with pytest.raises(ValueError, match=r"^data\.cache: the latents of 10 rows need 0\.0 GB more.* larger disk"):
        prepare(Rows(bright_or_dark(10)), tmp_path, encoder=encoder)
    assert len(seen) == 8


def test_the_manifest_is_plain_json(tmp_path: Path) -> None:
    _, manifest = made(tmp_path, bright_or_dark(5))
    values = json.loads((tmp_path / "manifest.json").read_text())
    assert values == {
        "pairs": "toy pairs",
        "num_rows": 5,
        "num_unlabelled": 0,
        "skipped": [],
        "num_bytes": manifest.num_bytes,
    }
