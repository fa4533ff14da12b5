"""The cache of preference pairs: latents and prompt embeddings on disk, memory-mapped while training.

A folder holds `pairs-*.safetensors` (latents; prompts, labels, weights and refused rows in the metadata),
`prompts-*.safetensors` (the base model's embeddings, one per distinct prompt) and `manifest.json`, written last. Both
are what the base model's encoders give, in their own precision, so that training from the folder is training from the
images. Preparation resumes where it stopped; several processes share the work.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from jaxtyping import Float
from torch import Tensor

from stepalign.core.batch import Conditioning, LatentPairs
from stepalign.data.pairs import BadRow, ImagePair, PairSource, RawPair, TooManyBadRows, read, to_tensor
from stepalign.data.shards import is_whole, read_rows, save_shard, shard_columns, shard_path, shards_of
from stepalign.support.claim import LOCK, remove_leftovers
from stepalign.support.files import write_text
from stepalign.support.finite import NotFinite, check_finite
from stepalign.support.marker import Note
from stepalign.support.parallel import decided_by_main, processes

SHARD_ROWS = 256
MANIFEST = "manifest.json"
Labeller = Callable[[Float[Tensor, "b 2 3 h w"], list[str]], Float[Tensor, " b"]]
"""Labels of pairs of images in [-1, 1] under their prompts."""


@dataclass(frozen=True, slots=True)
class PairEncoder:
    """The parts of a base model that preparation needs."""

    encode: Callable[[list[str]], Conditioning]
    encode_images: Callable[[Float[Tensor, "b 3 h w"]], Float[Tensor, "b c hh ww"]]
    size: tuple[int, int]
    """Height and width of the images."""
    batch_size: int = 8
    """Pairs per VAE batch."""
    label: Labeller | None = None
    """Replaces every pair's label, if given."""


@dataclass(frozen=True, slots=True)
class PreparedPairs:
    """Prepared pairs for training; `select` returns subsets that share the files."""

    prompts: list[str]
    """One prompt per pair."""
    label: Float[Tensor, " n"]
    weight: Float[Tensor, " n"]
    places: list[tuple[Path, int]]
    """The file and row of each pair's latents."""
    prompt_places: dict[str, tuple[Path, int]]

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, rows: list[int]) -> PreparedPairs:
        """Some of the pairs, in the given order."""
        prompts, places = [self.prompts[row] for row in rows], [self.places[row] for row in rows]
        return PreparedPairs(prompts, self.label[rows], self.weight[rows], places, self.prompt_places)

    def digest(self) -> str:
        """Digest of prompts, labels and weights in their order."""
        columns = [self.prompts, self.label.tolist(), self.weight.tolist()]
        return hashlib.sha256(json.dumps(columns).encode()).hexdigest()

    def take(self, rows: list[int]) -> LatentPairs:
        """Some of the pairs with latents and embeddings, read from disk; raises ValueError when the files are gone."""
        prompts = [self.prompts[row] for row in rows]
        latents = read_rows([self.places[row] for row in rows], ["latents"])["latents"]
        embeddings = read_rows([self.prompt_places[prompt] for prompt in prompts], ["tokens", "pooled", "time_ids"])
        return LatentPairs(prompts, Conditioning(**embeddings), latents, self.label[rows], self.weight[rows])


@dataclass(frozen=True, slots=True)
class Manifest:
    """Counts and sizes of a preparation, for reports."""

    pairs: str
    """The source's name."""
    num_rows: int
    num_unlabelled: int
    """Rows without a label, which are left out and are not errors."""
    skipped: list[BadRow]
    num_bytes: int
    """Bytes on disk."""


def prepare(
    source: PairSource,
    folder: Path,
    *,
    encoder: PairEncoder,
    max_bad: float = 0.01,
    tick: Callable[[int, int], None] = lambda done, total: None,
    tell: Note = lambda message: None,
) -> tuple[PreparedPairs, Manifest]:
    """Encode every pair of a source into a folder, unless it is complete, and open it.

    Raises TooManyBadRows when more than the share `max_bad` of the rows cannot be used, ValueError when no row has a
    label, an encoding is not finite, or the disk is too small.
    """
    if not decided_by_main(lambda: _is_complete(folder, tell)):
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder, tell):
            if not decided_by_main(lambda: _is_complete(folder)):  # another job may have completed it
                _encode_pairs(source, folder, encoder, max_bad, tick, tell)
                processes().wait_for_everyone()
                _encode_prompts(folder, encoder)
                processes().wait_for_everyone()
                if processes().is_main_process:
                    _finish(source, folder, tell)
                processes().wait_for_everyone()
    pairs, manifest = _open(folder)
    if len(manifest.skipped) > max_bad * manifest.num_rows:
        raise TooManyBadRows(manifest.skipped, manifest.num_rows, max_bad)
    return pairs, manifest


def _encode_pairs(
    source: PairSource, folder: Path, encoder: PairEncoder, max_bad: float, tick: Callable[[int, int], None], tell: Note
) -> None:
    """Write this process's share of the missing shards."""
    rank, world = processes().process_index, processes().num_processes
    first = next(shard for shard in count() if not is_whole(shard_path(folder, "pairs", shard)))
    bad: list[BadRow] = []
    told = False
    for shard, rows in enumerate(_chunks(source.rows(first * SHARD_ROWS)), start=first):
        path = shard_path(folder, "pairs", shard)
        if shard % world != rank or is_whole(path):
            continue
        bad += _write_shard(path, rows, encoder)
        tick(shard * SHARD_ROWS + len(rows), source.num_rows or 0)
        if source.num_rows is None:
            continue
        if len(bad) > max_bad * source.num_rows:
            raise TooManyBadRows(bad, source.num_rows, max_bad)
        if not told and rank == 0:
            told = True
            total = path.stat().st_size * source.num_rows // len(rows)
            left = total * max(source.num_rows - (shard + 1) * SHARD_ROWS, 0) // source.num_rows
            _check_space(folder, left, source.num_rows)
            tell(f"encoding {source.num_rows} rows once: about {total / 1e6:,.0f} MB of latents in {folder}")


def _chunks(rows: Iterator[RawPair]) -> Iterator[list[RawPair]]:
    while chunk := list(islice(rows, SHARD_ROWS)):
        yield chunk


def _write_shard(path: Path, raw_rows: list[RawPair], encoder: PairEncoder) -> list[BadRow]:
    """Read, label and encode some rows; returns the unusable ones."""
    bad: list[BadRow] = []
    latents: list[Tensor] = []
    prompts: list[str] = []
    labels: list[float | None] = []
    weights: list[float] = []
    for start in range(0, len(raw_rows), encoder.batch_size):  # few decoded images at a time
        rows = [read(raw) for raw in raw_rows[start : start + encoder.batch_size]]
        bad += [row for row in rows if isinstance(row, BadRow)]
        pairs = [row for row in rows if isinstance(row, ImagePair) and (encoder.label or row.label is not None)]
        if not pairs:
            continue
        images = torch.stack([torch.stack([to_tensor(image, encoder.size) for image in pair.images]) for pair in pairs])
        latents.append(_encoded(images, [pair.prompt for pair in pairs], encoder))
        captions = [pair.prompt for pair in pairs]
        prompts += captions
        weights += [pair.weight for pair in pairs]
        labels += encoder.label(images, captions).tolist() if encoder.label else [pair.label for pair in pairs]
    columns = {"num_rows": len(raw_rows), "prompts": prompts, "label": labels, "weight": weights}
    columns["bad"] = [[row.where, row.reason] for row in bad]
    save_shard(path, {"latents": torch.cat(latents)} if latents else {}, columns)
    return bad


def _encoded(images: Float[Tensor, "b 2 3 h w"], prompts: list[str], encoder: PairEncoder) -> Float[Tensor, "b 2 ..."]:
    """Latents of pairs of images; raises ValueError naming the first image with non-finite latents."""
    try:
        latents = encoder.encode_images(images.flatten(0, 1))
        check_finite(
            latents, "latents of the VAE", "fp16 overflows in some: try base.precision fp32, or another base.vae"
        )
    except NotFinite as error:
        which = f"image {error.row % 2} of {prompts[error.row // 2][:80]!r}"
        raise ValueError(f"data.pairs: {which}: {error}; nothing of it is kept") from error
    return latents.unflatten(0, (-1, 2)).cpu()


def _encode_prompts(folder: Path, encoder: PairEncoder) -> None:
    """Write this process's share of the embeddings of all distinct prompts."""
    shards = [shard_columns(path) for path in shards_of(folder, "pairs")]
    distinct = list(dict.fromkeys(prompt for columns in shards for prompt in columns["prompts"]))
    for shard, start in enumerate(range(0, len(distinct), SHARD_ROWS)):
        path = shard_path(folder, "prompts", shard)
        if shard % processes().num_processes != processes().process_index or is_whole(path):
            continue
        prompts = distinct[start : start + SHARD_ROWS]
        cond = encoder.encode(prompts)
        fields = {"tokens": cond.tokens, "pooled": cond.pooled, "time_ids": cond.time_ids}
        tensors = {name: tensor.cpu() for name, tensor in fields.items() if tensor is not None}
        for name, tensor in tensors.items():
            check_finite(tensor, f"data.pairs: the text encoder's {name}", "try base.precision fp32")
        save_shard(path, tensors, {"prompts": prompts})


def _finish(source: PairSource, folder: Path, tell: Note) -> None:
    """Count the shards' content and write the manifest."""
    shards = [shard_columns(path) for path in shards_of(folder, "pairs")]
    bad = [row for columns in shards for row in columns["bad"]]
    num_rows = sum(columns["num_rows"] for columns in shards)
    num_pairs = sum(len(columns["prompts"]) for columns in shards)
    if num_pairs == 0 and len(bad) < num_rows:
        raise ValueError(f"data.pairs: none of the {num_rows} rows of {source.name} has a label")
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    num_unlabelled = num_rows - num_pairs - len(bad)
    manifest = {"pairs": source.name, "num_rows": num_rows, "num_unlabelled": num_unlabelled, "skipped": bad}
    write_text(folder / MANIFEST, json.dumps(manifest | {"num_bytes": size}, indent=1) + "\n")
    tell(f"{source.name}: {num_pairs} pairs ready, {size / 1e6:,.0f} MB in {folder}")


def _open(folder: Path) -> tuple[PreparedPairs, Manifest]:
    shards = [(path, shard_columns(path)) for path in shards_of(folder, "pairs")]
    label, weight = (
        torch.tensor([value for _, columns in shards for value in columns[name]], dtype=torch.float32)
        for name in ("label", "weight")
    )
    pairs = PreparedPairs(
        prompts=[prompt for _, columns in shards for prompt in columns["prompts"]],
        label=label,
        weight=weight,
        places=[(path, row) for path, columns in shards for row in range(len(columns["prompts"]))],
        prompt_places={
            prompt: (path, row)
            for path in shards_of(folder, "prompts")
            for row, prompt in enumerate(shard_columns(path)["prompts"])
        },
    )
    values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return pairs, Manifest(**values | {"skipped": [BadRow(*row) for row in values["skipped"]]})


def _check_space(folder: Path, needed: int, num_rows: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"data.cache: the latents of {num_rows} rows need {needed / 1e9:,.1f} GB more, and {folder} has "
            f"{free / 1e9:,.1f} GB left; set data.cache to a larger disk, or data.num_rows to fewer"
        )


@contextmanager
def _alone(folder: Path, tell: Note) -> Iterator[None]:
    """Hold the folder against other jobs, and remove unfinished files of killed ones."""
    lock = FileLock(folder / LOCK)

    def take() -> None:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            tell(f"another job is preparing {folder}; waiting for it")
            lock.acquire()
        remove_leftovers(folder)

    decided_by_main(take)
    try:
        yield
    finally:
        if processes().is_main_process:
            (folder / LOCK).unlink(missing_ok=True)
            lock.release()


def _is_complete(folder: Path, tell: Note = lambda message: None) -> bool:
    """Whether every shard that the manifest counts is present and intact."""
    if not (folder / MANIFEST).is_file():
        return False
    try:
        counted = int(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["num_bytes"])
    except (ValueError, KeyError, TypeError):
        tell(f"{folder / MANIFEST} is damaged, and made again")
        return False
    shards = sorted(folder.glob("*.safetensors"))
    damaged = [path for path in shards if not is_whole(path)]
    if damaged:
        tell(f"in {folder} {', '.join(path.name for path in damaged)} is damaged, and made again")
    return not damaged and counted == sum(path.stat().st_size for path in shards)
